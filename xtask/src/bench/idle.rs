//! What the agent holds and spends when nothing happens: memory, kept connections, sleeping processes.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use super::measure::{cpu_ms, resident_mib};
use super::page::{Row, Section};
use super::stage::{Agent, Nginx, Running, Sinks};
use super::Bench;

/// How long each state is watched.
const WATCH: Duration = Duration::from_secs(6);
const PROCESSES: usize = 500;

/// Rest, 1,000 and 10,000 connections that were used once, 500 processes that sleep.
pub(super) fn measure(bench: &Bench) -> Result<Section> {
    let nginx = Nginx::start(&bench.place, "idle", "location / { return 200 \"ok\\n\"; }", "")?;
    let agent = Agent::start(
        &bench.agent,
        &bench.place,
        &json!([{"port": nginx.port}]),
        Sinks::Store,
        false,
    )?;
    let mut rows = Vec::new();
    sleep(Duration::from_secs(2));
    let (rest_cpu, rest_mib) = watch(&agent)?;
    rows.push(Row::new(
        "resident memory at most 40 MiB at rest",
        format!("{rest_mib:.1} MiB"),
        rest_mib <= 40.0,
    ));
    rows.push(Row::shown(
        "the agent's CPU at rest",
        format!("{rest_cpu:.1} ms a second"),
    ));
    let mut held = Vec::new();
    for (count, mark) in [(1_000, Some(64.0)), (10_000, None)] {
        hold(&mut held, count, nginx.port)?;
        sleep(Duration::from_secs(3));
        let (cpu, mib) = watch(&agent)?;
        let measured = format!("{mib:.1} MiB");
        rows.push(match mark {
            Some(most) => Row::new(
                format!("resident memory at most {most} MiB at {count} connections, both sides"),
                measured,
                mib <= most,
            ),
            None => Row::shown(format!("resident memory at {count} connections, both sides"), measured),
        });
        rows.push(Row::new(
            format!("{count} idle connections: no cost to be measured"),
            format!("{cpu:.1} ms a second"),
            cpu <= rest_cpu + 2.0,
        ));
    }
    drop(held);
    let sleepers = Running::start(
        Command::new("sh").args(["-c", &format!("for _ in $(seq {PROCESSES}); do sleep 60 & done; wait")]),
        &bench.place,
        "sleepers.log",
    )?;
    sleep(Duration::from_secs(3));
    let (cpu, _) = watch(&agent)?;
    rows.push(Row::new(
        format!("{PROCESSES} idle processes: no cost to be measured"),
        format!("{cpu:.1} ms a second"),
        cpu <= rest_cpu + 2.0,
    ));
    drop(sleepers);
    Ok(Section {
        method: format!(
            "The agent with its store, both sides of every connection captured (`port=PORT`); each state watched for {} s. A connection \
             carries one request and then idles. `No cost` means within 2 ms a second (0.2 % of a processor) of the \
             state at rest.",
            WATCH.as_secs()
        ),
        rows,
        notes: Vec::new(),
    })
}

/// CPU in ms a second, and resident memory at the end.
fn watch(agent: &Agent) -> Result<(f64, f64)> {
    let before = cpu_ms(agent.pid())?;
    sleep(WATCH);
    let spent = cpu_ms(agent.pid())? - before;
    Ok((spent / WATCH.as_secs_f64(), resident_mib(agent.pid())?))
}

/// Opens connections until there are so many; each is used once.
fn hold(held: &mut Vec<TcpStream>, count: usize, port: u16) -> Result<()> {
    let mut answer = [0; 4_096];
    while held.len() < count {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
        let mut stream = stream.with_context(|| format!("connection {}", held.len()))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: idle\r\n\r\n")?;
        let _ = stream.read(&mut answer)?;
        held.push(stream);
    }
    Ok(())
}
