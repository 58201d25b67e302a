//! What system calls say on connections whose requests may have been rewritten, step by step.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use spanwire_tests::agent::Agent;
use spanwire_tests::cases::say;
use spanwire_tests::place::{program, workload, Place};
use spanwire_tests::service::Launch;

use crate::rewriting;

const LIMIT: Duration = Duration::from_mins(4);
/// A probe that says one thing now and another then says nothing: such a difference has to show again.
const AGAIN: usize = 2;

/// What each probe said, and how many messages carried an added header.
struct Said {
    probes: BTreeMap<String, String>,
    requests: (u64, u64),
    responses: (u64, u64),
}

/// The same probes without and with the agent.
pub(crate) fn compared(place: &Place) -> Result<String> {
    let off = probe(place, "")?;
    ensure!(off.requests.0 == 0, "a header was added without an agent");
    let agent = Agent::start(&rewriting())?;
    let on = probe(place, "")?;
    let mut differences = Vec::new();
    for (name, said) in &off.probes {
        let other = on.probes.get(name).map_or("nothing", String::as_str);
        if other != said && shows_again(place, name, said)? {
            differences.push(format!("{name}\n  off: {said}\n   on: {other}"));
        }
    }
    drop(agent);
    for difference in &differences {
        say(difference);
    }
    let (count, (requests, sent), (responses, answered)) = (off.probes.len(), on.requests, on.responses);
    let coverage = format!("{requests} of {sent} requests and {responses} of {answered} responses carried a header");
    ensure!(differences.is_empty(), "{} of {count} probes differ; {coverage}", differences.len());
    ensure!(requests > 0, "no request carried an added header: nothing was shown");
    Ok(format!("{count} probes, 0 differences; {coverage}"))
}

/// Whether the probe says something else with the agent once more.
fn shows_again(place: &Place, name: &str, said: &str) -> Result<bool> {
    let (_, short) = name.rsplit_once(' ').context("a probe is named by its last word")?;
    for _ in 0..AGAIN {
        if probe(place, short)?.probes.get(name).is_none_or(|again| again != said) {
            return Ok(true);
        }
    }
    say(&format!("{name}: said something else once, and not again"));
    Ok(false)
}

/// Runs the probes whose names contain a word, in a process of their own.
fn probe(place: &Place, only: &str) -> Result<Said> {
    let mut process = Launch::new("probe", program("python3")?, place)
        .arg(workload("socket_probe.py"))
        .arg(only)
        .spawn()?;
    let status = process.wait_end(LIMIT)?;
    ensure!(status.success(), "the probes ended with {status}:\n{}", process.log());
    let log = process.log();
    let counted = |kind: &str| {
        let line = log.lines().find_map(|line| line.strip_prefix(kind)).context("no count")?;
        let (with, all) = line.trim().split_once(' ').context("two numbers")?;
        anyhow::Ok((with.parse()?, all.parse()?))
    };
    let probes = log.lines().filter(|line| !line.starts_with('#'));
    Ok(Said {
        probes: probes
            .map(|line| line.split_once(": ").unwrap_or((line, "")))
            .map(|(name, said)| (name.to_owned(), said.to_owned()))
            .collect(),
        requests: counted("# requests")?,
        responses: counted("# responses")?,
    })
}
