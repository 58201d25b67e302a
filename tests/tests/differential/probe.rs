//! What system calls say on connections whose requests may have been rewritten, step by step.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use spanwire_tests::agent::Agent;
use spanwire_tests::cases::say;
use spanwire_tests::place::{program, workload, Place};
use spanwire_tests::service::Launch;

use crate::rewriting;

const LIMIT: Duration = Duration::from_mins(2);
/// How often each side is run. What a probe says without an agent, in any run, it may say with one.
const RUNS: usize = 2;
const FAMILIES: [&str; 2] = ["ipv4", "ipv6"];
const STATES: [&str; 3] = ["fresh", "waiting", "answered"];

/// What is known to differ, and told in docs/rewriting.md: a thread that waits in `recv` on a blocking socket on which nothing has
/// been sent yet gets EAGAIN where a signal, its own process or a reset wakes it (the next call says what it should have). No HTTP
/// client receives before it sends; and a server that has spoken first once is left alone from then on. A difference of
/// any other probe, and of these in any other state, is a fault.
const KNOWN: [&str; 4] = [
    "fresh client blocked_until_reset",
    "fresh client own_shutdown_while_blocked",
    "fresh client signal_interrupts",
    "fresh client signal_restarts",
];

/// What each probe said, in all runs, and how many messages carried an added header.
#[derive(Default)]
struct Said {
    probes: BTreeMap<String, BTreeSet<String>>,
    requests: (u64, u64),
    responses: (u64, u64),
}

/// The same probes without and with the agent.
pub(crate) fn compared(place: &Place) -> Result<String> {
    let off = probe(place)?;
    ensure!(off.requests.0 == 0, "a header was added without an agent");
    for (name, said) in off.probes.iter().filter(|(_, said)| said.len() > 1) {
        say(&format!("{name}: says different things by itself: {said:?}"));
    }
    let agent = Agent::start(&rewriting())?;
    let on = probe(place)?;
    drop(agent);
    let nothing = BTreeSet::new();
    let (mut differences, mut known) = (0, 0);
    for (name, said) in &off.probes {
        let other = on.probes.get(name).unwrap_or(&nothing);
        if other.is_empty() || !other.is_subset(said) {
            if KNOWN.iter().any(|tail| name.ends_with(tail)) {
                known += 1;
            } else {
                differences += 1;
            }
            say(&format!("{name}\n  off: {said:?}\n   on: {other:?}"));
        }
    }
    let (count, (requests, sent), (responses, answered)) = (off.probes.len(), on.requests, on.responses);
    let coverage = format!("{requests} of {sent} requests and {responses} of {answered} responses carried a header");
    ensure!(differences == 0, "{differences} of {count} probes differ; {coverage}");
    ensure!(requests > 0, "no request carried an added header: nothing was shown");
    Ok(format!(
        "{count} probes, {RUNS} times each way, 0 differences but {known} that are known; {coverage}"
    ))
}

/// Runs all probes: a process for each family and state, beside each other.
fn probe(place: &Place) -> Result<Said> {
    let mut said = Said::default();
    for _ in 0..RUNS {
        let mut processes = Vec::new();
        for family in FAMILIES {
            for state in STATES {
                let launch = Launch::new(&format!("probe-{family}-{state}"), program("python3")?, place);
                processes.push(launch.arg(workload("socket_probe.py")).args([family, state]).spawn()?);
            }
        }
        for process in &mut processes {
            let status = process.wait_end(LIMIT)?;
            ensure!(
                status.success(),
                "{} ended with {status}:\n{}",
                process.name(),
                process.log()
            );
            said.add(&process.log())?;
        }
    }
    Ok(said)
}

impl Said {
    fn add(&mut self, log: &str) -> Result<()> {
        for line in log.lines() {
            if let Some(count) = line.strip_prefix("# requests ") {
                add_counts(&mut self.requests, count)?;
            } else if let Some(count) = line.strip_prefix("# responses ") {
                add_counts(&mut self.responses, count)?;
            } else {
                let (name, said) = line
                    .split_once(": ")
                    .with_context(|| format!("not a probe's line: {line}"))?;
                self.probes.entry(name.to_owned()).or_default().insert(said.to_owned());
            }
        }
        Ok(())
    }
}

fn add_counts(total: &mut (u64, u64), text: &str) -> Result<()> {
    let (with, all) = text.split_once(' ').context("not two numbers")?;
    total.0 += with.parse::<u64>()?;
    total.1 += all.parse::<u64>()?;
    Ok(())
}
