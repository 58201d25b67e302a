//! `limits`: what the agent may use is kept, and what it gives up for that is counted and named.
#![allow(clippy::unwrap_used, reason = "test")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use serde_json::{json, Value};
use spanwire_tests::agent::{Agent, Setup};
use spanwire_tests::apps::nginx::{requests_of, requests_of_idle, Site};
use spanwire_tests::apps::App;
use spanwire_tests::cases::Cases;
use spanwire_tests::load::wrk;
use spanwire_tests::metrics::{Balance, Metrics};
use spanwire_tests::place::{program, Place};

const MIB: u64 = 1 << 20;
/// The least that `limits.memory` accepts.
const MEMORY: u64 = 64 * MIB;
const CONNECTIONS: u64 = 64;
const SECONDS: u64 = 8;

/// Captured by its port, so that nothing is observed provisionally.
fn setup(nginx: &App) -> Result<Setup> {
    Ok(Setup::of_ports(&[nginx.target.port()?]))
}

/// Resident memory of a process.
fn resident(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.context("no VmRSS")? * 1024)
}

/// wrk at the machine's limit while `look` is called, over and over.
fn under_load(nginx: &App, mut look: impl FnMut() -> Result<()>) -> Result<u64> {
    std::thread::scope(|scope| {
        let load = scope.spawn(|| wrk(&nginx.target, CONNECTIONS, SECONDS));
        while !load.is_finished() {
            look()?;
            sleep(Duration::from_millis(50));
        }
        load.join().ok().context("wrk's thread panicked")?
    })
}

fn dropped(metrics: &Metrics, reason: &str) -> u64 {
    metrics.sum("spanwire_dropped_total", &[("reason", reason)])
}

/// What `/readyz` says is given up.
fn degradations(agent: &Agent) -> Result<String> {
    let ready = agent.get_json("/readyz")?;
    Ok(ready.get("degradations").context("no `degradations`")?.to_string())
}

/// Puts nginx under load, and holds what the agent counted against what nginx served.
fn counted_load(nginx: &App, agent: &Agent, look: impl FnMut() -> Result<()>) -> Result<Load> {
    let before = agent.drained()?.balance();
    let first = requests_of(nginx)?;
    let answered = under_load(nginx, look)?;
    let served = requests_of_idle(nginx)?.0 - first + 1;
    let metrics = agent.drained()?;
    let balance = metrics.balance().since(before);
    // Both ends of every request are captured: two messages each. wrk's last request on each connection may be one that
    // nginx never begins.
    let expected = 2 * served..=2 * served + CONNECTIONS;
    ensure!(
        expected.contains(&balance.messages()),
        "nginx served {served}, the agent counted {balance:?}"
    );
    ensure!(balance.closes(), "exchanges are not spans plus drops: {balance:?}");
    Ok(Load {
        answered,
        metrics,
        balance,
    })
}

/// What came of a load.
struct Load {
    answered: u64,
    metrics: Metrics,
    balance: Balance,
}

/// Far over a small budget of processor time: less is kept until it is within reach, and all of it again afterwards.
fn little_cpu(nginx: &App) -> Result<String> {
    let setup = setup(nginx)?.with_section("limits", json!({"cpu": 0.1}));
    let agent = Agent::start(&setup)?;
    let always = degradations(&agent)?;
    let mut said = BTreeSet::new();
    let Load { metrics, balance, .. } = counted_load(nginx, &agent, || {
        said.insert(degradations(&agent)?);
        Ok(())
    })?;
    ensure!(
        said.iter().any(|text| text.contains("limits.cpu")),
        "/readyz did not name the limit: {said:?}"
    );
    let (sampled, unassembled) = (
        metrics.sum(
            "spanwire_dropped_total",
            &[("stage", "sample"), ("reason", "cpu_limit")],
        ),
        metrics.sum(
            "spanwire_dropped_total",
            &[("stage", "assemble"), ("reason", "cpu_limit")],
        ),
    );
    // Whether sampling alone is enough depends on how much of the machine is left for the load; that the second step
    // comes where it is not, shows in agent/src/budget.rs.
    ensure!(
        sampled > 0 && balance.spans > 0,
        "{balance:?}: {sampled} not sampled, {unassembled} not assembled"
    );
    ensure!(
        agent.log().contains("limits.cpu"),
        "the log does not name the limit:\n{}",
        agent.log()
    );
    let start = Instant::now();
    while degradations(&agent)? != always {
        ensure!(
            start.elapsed() < Duration::from_secs(20),
            "still {} after the load",
            degradations(&agent)?
        );
        sleep(Duration::from_millis(200));
    }
    Ok(format!(
        "{} messages = {} spans + {sampled} not sampled + {unassembled} not assembled + {} others; all kept again {:?} after the load",
        balance.messages(),
        balance.spans,
        balance.dropped_kernel + balance.dropped_user - sampled - unassembled,
        start.elapsed()
    ))
}

/// The smallest ceiling, and a load that would take far more: it is kept.
fn little_memory(nginx: &App) -> Result<String> {
    let setup = setup(nginx)?.with("limits", "memory", json!("64MiB"));
    let agent = Agent::start(&setup)?;
    let mut most = 0;
    let Load { metrics, balance, .. } = counted_load(nginx, &agent, || {
        most = most.max(resident(agent.pid())?);
        Ok(())
    })?;
    // It is looked at four times a second.
    ensure!(most <= MEMORY + MEMORY / 8, "{} MiB were used of 64", most / MIB);
    let refused = dropped(&metrics, "memory_limit");
    ensure!(
        (refused > 0) == agent.log().contains("limits.memory"),
        "{refused} refused; the log:\n{}",
        agent.log()
    );
    ensure!(balance.spans > 0, "no spans under the smallest ceiling: {balance:?}");
    Ok(format!(
        "at most {} MiB of 64, {} spans, {refused} exchanges refused",
        most / MIB,
        balance.spans
    ))
}

/// Rings that alone are more than the ceiling: nothing is held, everything is counted and named.
fn no_memory(nginx: &App) -> Result<String> {
    let ring = 32 * MIB;
    let setup = setup(nginx)?
        .with("limits", "memory", json!("64MiB"))
        .env("SPANWIRE_RING_BYTES", &ring.to_string());
    let agent = Agent::start(&setup)?;
    let Load { answered, metrics, .. } = counted_load(nginx, &agent, || Ok(()))?;
    let refused = dropped(&metrics, "memory_limit");
    ensure!(
        refused > 0 && degradations(&agent)?.contains("limits.memory"),
        "{} MiB used, {refused} refused, /readyz says {}",
        resident(agent.pid())? / MIB,
        degradations(&agent)?
    );
    let status = agent.get_json("/api/status")?;
    let given_up = status.pointer("/limits/givenUp").map(Value::to_string);
    ensure!(
        given_up.is_some_and(|text| text.contains("limits.memory")),
        "the status does not name the limit: {status}"
    );
    Ok(format!(
        "{answered} requests answered, {refused} exchanges refused and named"
    ))
}

/// Sizes of the agent's maps in the kernel, by name.
fn map_sizes(pid: u32) -> Result<BTreeMap<String, u64>> {
    let mut own = BTreeSet::new();
    for file in std::fs::read_dir(format!("/proc/{pid}/fdinfo"))?.flatten() {
        let info = std::fs::read_to_string(file.path()).unwrap_or_default();
        let id = info.lines().find_map(|line| line.strip_prefix("map_id:"));
        own.extend(id.and_then(|id| id.trim().parse::<u64>().ok()));
    }
    let output = Command::new(program("bpftool")?)
        .args(["--json", "map", "list"])
        .output()?;
    let list: Vec<Value> = serde_json::from_slice(&output.stdout).context("bpftool map list")?;
    let row = |map: &Value| {
        let id = map.get("id")?.as_u64().filter(|id| own.contains(id));
        id.and(Some((
            map.get("name")?.as_str()?.to_lowercase(),
            map.get("max_entries")?.as_u64()?,
        )))
    };
    Ok(list.iter().filter_map(row).collect())
}

/// Room for few connections: the kernel's tables are small, and requests are spans all the same.
fn few_connections(nginx: &App) -> Result<String> {
    let mut seen = Vec::new();
    for (connections, wires, carry) in [(1_024, 1_024, 512), (131_072, 131_072, 4_096)] {
        let agent = Agent::start(&setup(nginx)?.with("limits", "connections", json!(connections)))?;
        let sizes = map_sizes(agent.pid())?;
        ensure!(
            sizes.get("wires") == Some(&wires) && sizes.get("carry") == Some(&carry),
            "for {connections} connections: {sizes:?}"
        );
        let before = agent.drained()?.balance();
        requests_of(nginx)?;
        let spans = agent.drained()?.balance().since(before).spans;
        ensure!(spans == 2, "{spans} spans of a request with both ends captured");
        seen.push(format!("{connections}: {wires} wire keys, {carry} lines"));
    }
    Ok(seen.join("; "))
}

#[test]
fn limits_are_kept_and_named() {
    let place = Place::new("limits").unwrap();
    let nginx = Site::new().returning().counting().start("nginx", &place).unwrap();
    let mut cases = Cases::new("limits");
    cases.run("little processor time", || little_cpu(&nginx));
    cases.run("little memory", || little_memory(&nginx));
    cases.run("no memory", || no_memory(&nginx));
    cases.run("few connections", || few_connections(&nginx));
    cases.finish();
}
