//! How far it goes: the rate at which the first span is lost, the store alone, the time from start to the first span.

use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use serde_json::json;

use super::measure::{hey, wrk, Samples};
use super::page::{Row, Section};
use super::stage::{Agent, Nginx, Sinks};
use super::Bench;
use crate::{process, workspace};

const ROUNDS: usize = 3;
/// Kept connections of wrk: the more, the faster, until the processors are full.
const CONNECTIONS: [u32; 5] = [1, 2, 4, 16, 64];
const SECONDS: u32 = 3;
/// Spans in the store when it is asked for one trace.
const STORED: &str = "1000000";

/// What one load showed.
struct Step {
    connections: u32,
    per_second: f64,
    dropped: f64,
}

pub(super) fn measure(bench: &Bench) -> Result<Section> {
    let nginx = Nginx::start(&bench.place, "ceiling", "location / { return 200 \"ok\\n\"; }", "")?;
    let mut rows = Vec::new();
    for (name, sinks) in [("no store", Sinks::Nothing), ("the store", Sinks::Store)] {
        let steps = rising(bench, &nginx, sinks)?;
        rows.push(Row::shown(
            format!("spans a second before the first drop, {name}"),
            told(&steps),
        ));
    }
    let first = first_span(bench, &nginx)?;
    rows.push(Row::new(
        "start to the first span in under 2 s",
        format!("{first} s"),
        first.median() < 2.0,
    ));
    let store = lookup()?;
    rows.push(Row::new(
        "lookup by trace id among 1,000,000 spans in under 20 ms",
        store.report,
        store.slowest_ms < 20.0,
    ));
    Ok(Section {
        method: format!(
            "nginx `return 200`, server side captured; `wrk -t1 -c{{{}}} -d{SECONDS}s`, one agent for each row, all on the same processors. \
             Drops: `spanwire_dropped_total` and what the store counts as dropped. First span: from the agent's start, with hey at 100 \
             requests a second, to the first span counted, asked for every 10 ms; {ROUNDS} rounds. Lookup: `cargo run --release \
             --example store_cost lookup {STORED}`.",
            CONNECTIONS.map(|connections| connections.to_string()).join(",")
        ),
        rows,
        notes: vec![],
    })
}

fn rising(bench: &Bench, nginx: &Nginx, sinks: Sinks) -> Result<Vec<Step>> {
    let agent = Agent::start(&bench.agent, &bench.place, &json!([nginx.selector()]), sinks, false)?;
    let url = format!("http://127.0.0.1:{}/", nginx.port);
    let lost = || -> Result<f64> {
        agent.drained()?;
        let exchanges = agent.metric("spanwire_dropped_total", "")?;
        Ok(exchanges + agent.metric("spanwire_export_spans_total", "result=\"dropped\"")?)
    };
    let mut before = lost()?;
    let mut steps = Vec::new();
    for connections in CONNECTIONS {
        let load = wrk(&url, connections, SECONDS, &[])?;
        let after = lost()?;
        steps.push(Step {
            connections,
            per_second: load.per_second,
            dropped: after - before,
        });
        before = after;
    }
    Ok(steps)
}

fn told(steps: &[Step]) -> String {
    let lossless = steps.iter().filter(|step| step.dropped == 0.0);
    let best = lossless.map(|step| step.per_second).fold(0.0, f64::max);
    let each: Vec<String> = steps
        .iter()
        .map(|step| {
            format!(
                "{} connections: {:.0}/s, {:.0} dropped",
                step.connections, step.per_second, step.dropped
            )
        })
        .collect();
    format!("{best:.0}: {}", each.join("; "))
}

fn first_span(bench: &Bench, nginx: &Nginx) -> Result<Samples> {
    const LIMIT: Duration = Duration::from_secs(20);
    let url = format!("http://127.0.0.1:{}/", nginx.port);
    let mut took = Samples::default();
    for _ in 0..ROUNDS {
        std::thread::scope(|scope| -> Result<()> {
            let load = scope.spawn(|| hey(&url, 600, 100));
            let start = Instant::now();
            let agent = Agent::start(
                &bench.agent,
                &bench.place,
                &json!([nginx.selector()]),
                Sinks::Nothing,
                false,
            )?;
            while agent.metric("spanwire_spans_total", "")? == 0.0 {
                ensure!(start.elapsed() < LIMIT, "no span within {LIMIT:?}");
                std::thread::sleep(Duration::from_millis(10));
            }
            took.push(start.elapsed().as_secs_f64());
            drop(agent);
            load.join().ok().context("the load's thread panicked")??;
            Ok(())
        })?;
    }
    Ok(took)
}

/// What the store's own example printed.
struct Lookup {
    report: String,
    slowest_ms: f64,
}

fn lookup() -> Result<Lookup> {
    let mut command = workspace::cargo();
    command.args([
        "run",
        "--release",
        "--quiet",
        "--package",
        "spanwire",
        "--example",
        "store_cost",
        "lookup",
        STORED,
    ]);
    let output = process::output(command.current_dir(workspace::root()))?;
    let line = |mark: &str| {
        let found = output.lines().find(|line| line.contains(mark));
        found.with_context(|| format!("store_cost printed no `{mark}`:\n{output}"))
    };
    let (written, asked) = (line(" written, ")?, line("lookup by trace id")?);
    let slowest = asked.rsplit(' ').next().unwrap_or_default();
    Ok(Lookup {
        report: format!("{asked}; {written}"),
        slowest_ms: duration_ms(slowest).with_context(|| format!("{slowest} is no duration"))?,
    })
}

/// As `Duration` prints itself for debugging.
fn duration_ms(text: &str) -> Option<f64> {
    let units = [("ns", 1e-6), ("µs", 1e-3), ("ms", 1.0), ("s", 1e3)];
    let (number, factor) = units
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
    Some(number.parse::<f64>().ok()? * factor)
}

#[cfg(test)]
mod tests {
    use super::duration_ms;
    use std::time::Duration;

    #[test]
    fn durations_are_read_as_they_are_printed() {
        for (duration, ms) in [
            (Duration::from_nanos(900), 0.0009),
            (Duration::from_micros(1_250), 1.25),
            (Duration::from_millis(2_500), 2_500.0),
        ] {
            let read = duration_ms(&format!("{duration:?}")).unwrap();
            assert!((read - ms).abs() < 1e-9, "{duration:?} read as {read} ms");
        }
        assert_eq!(duration_ms("7"), None);
    }
}
