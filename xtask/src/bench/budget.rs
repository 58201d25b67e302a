//! The kernel side's budget as counts, which hold on any machine; and the kernel's own time of each program.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{json, Value};

use super::measure::hey;
use super::page::{Row, Section, Verdict};
use super::stage::{Agent, Nginx, Sinks};
use super::Bench;
use crate::process;

const REQUESTS: u32 = 10_000;
const PER_SECOND: u32 = 2_500;

/// What is counted, and the most of it for one exchange on one side. hey and nginx read and write with one buffer, or
/// nginx with one more array of iovecs.
const BUDGET: [(&str, Option<f64>); 5] = [
    ("user_reads", Some(3.0)),
    ("clock_reads", Some(3.0)),
    ("records", Some(1.0)),
    ("map_operations", None),
    ("program_runs", None),
];

/// Counts for an nginx captured alone, then the time of the programs without counting.
pub(super) fn measure(bench: &Bench) -> Result<Section> {
    let nginx = Nginx::start(&bench.place, "budget", "location / { return 200 \"ok\\n\"; }", "")?;
    let url = format!("http://127.0.0.1:{}/", nginx.port);
    let include = json!([nginx.selector()]);
    let agent = Agent::start(&bench.agent, &bench.place, &include, Sinks::Nothing, true)?;
    let reading = |what: &str| agent.metric("spanwire_kernel_cost_total", &format!("what=\"{what}\""));
    let before = BUDGET
        .iter()
        .map(|(what, _)| reading(what))
        .collect::<Result<Vec<_>>>()?;
    let exchanges_before = agent.metric("spanwire_exchanges_total", "")?;
    hey(&url, REQUESTS, PER_SECOND)?;
    agent.drained()?;
    let exchanges = agent.metric("spanwire_exchanges_total", "")? - exchanges_before;
    let mut rows = Vec::new();
    for ((what, most), before) in BUDGET.iter().zip(before) {
        let each = (reading(what)? - before) / exchanges;
        let name = what.replace('_', " ");
        rows.push(match most {
            None => Row::shown(format!("{name} per exchange"), format!("{each:.3}")),
            Some(most) => Row {
                mark: format!("at most {most} {name} per exchange and side"),
                measured: format!("{each:.3}"),
                // Not one exchange in a hundred may be dearer: connects, and heads that came in two pieces.
                verdict: if each <= most * 1.01 {
                    Verdict::Met
                } else {
                    Verdict::Broken
                },
            },
        });
    }
    drop(agent);
    rows.extend(program_times(bench, &include, &url)?);
    Ok(Section {
        method: format!(
            "nginx `return 200`, server side captured; {REQUESTS} requests of hey at {PER_SECOND} a second; \
             `SPANWIRE_COUNT_COSTS=1` makes the kernel side count. A map operation or program run caused by another process's socket \
             in that time is counted too: these two are upper bounds on a busy machine. Program times: a second run \
             without counting, `kernel.bpf_stats_enabled=1`, `bpftool prog show`; the statistics' own cost of about 50 ns a run is in them."
        ),
        rows,
        notes: vec![
            "User reads: nginx writes head and body as two pieces of one `writev`. `agent-ebpf/src/call.rs` reads each entry of the iovec \
             array by itself, and the bytes of each piece; with the request's one read that makes five. Reading the array at once, \
             and no byte of a body whose length is known, would make three."
                .to_owned(),
        ],
    })
}

fn program_times(bench: &Bench, include: &Value, url: &str) -> Result<Vec<Row>> {
    let known = programs()?;
    let agent = Agent::start(&bench.agent, &bench.place, include, Sinks::Nothing, false)?;
    let (answered, times) = times_during(&known, || hey(url, REQUESTS, PER_SECOND))?;
    drop(agent);
    let mut rows = Vec::new();
    for Ran { name, time_ns, runs } in times {
        if runs > answered / 100.0 {
            rows.push(Row::shown(
                format!("`{name}`: time per run, runs per request"),
                format!("{:.0} ns, {:.2}", time_ns / runs, runs / answered),
            ));
        }
    }
    Ok(rows)
}

/// What an eBPF program did meanwhile.
pub(super) struct Ran {
    pub(super) name: String,
    pub(super) time_ns: f64,
    pub(super) runs: f64,
}

/// What the programs that were not `known` did while something ran, by the kernel's own statistics.
pub(super) fn times_during<T>(known: &[Program], run: impl FnOnce() -> Result<T>) -> Result<(T, Vec<Ran>)> {
    let before = programs()?;
    let switch = |on: &str| {
        process::output(Command::new("sysctl").args(["-q", "-w", &format!("kernel.bpf_stats_enabled={on}")]))
    };
    switch("1")?;
    let result = run();
    let after = programs();
    switch("0")?;
    let mut ran = Vec::new();
    for (id, name, time_ns, runs) in after? {
        let then = before.iter().find(|(own, ..)| *own == id);
        let is_new = known.iter().all(|(own, ..)| *own != id);
        if let Some((_, _, time_then, runs_then)) = then.filter(|_| is_new) {
            ran.push(Ran {
                name,
                time_ns: time_ns - time_then,
                runs: runs - runs_then,
            });
        }
    }
    Ok((result?, ran))
}

/// Id, name, total time in ns and runs of an eBPF program.
pub(super) type Program = (u64, String, f64, f64);

/// Every eBPF program in the kernel.
pub(super) fn programs() -> Result<Vec<Program>> {
    let text = process::output(Command::new("bpftool").args(["-j", "prog", "show"]))?;
    let list: Vec<Value> = serde_json::from_str(&text).context("bpftool's list is no JSON")?;
    let number = |program: &Value, key: &str| program[key].as_f64().unwrap_or(0.0);
    let read = |program: &Value| {
        let name = program["name"].as_str().unwrap_or_default().to_owned();
        let id = program["id"].as_u64()?;
        Some((id, name, number(program, "run_time_ns"), number(program, "run_cnt")))
    };
    Ok(list.iter().filter_map(read).collect())
}
