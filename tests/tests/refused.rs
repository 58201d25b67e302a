//! A process that nobody asks for is not looked at, and from the moment it executes a program that somebody does ask for,
//! it is: the same process id, on the same processor.
#![allow(clippy::unwrap_used, reason = "test")]

use std::process::Command;

use anyhow::{ensure, Context, Result};
use serde_json::json;
use spanwire_tests::agent::{Agent, Setup};
use spanwire_tests::apps::python;
use spanwire_tests::apps::{App, Calls};
use spanwire_tests::cases::Cases;
use spanwire_tests::place::Place;
use spanwire_tests::spans::Kind;

/// Processes, one after the other.
const RUNS: usize = 10;
/// Requests of each before it becomes curl: enough to be classified, refused and remembered.
const BEFORE: usize = 300;

/// Asks many times on one connection, then becomes curl, on the processor where it is.
const BECOMES_CURL: &str = "
import http.client, os, sys
host, port, run, before = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
os.sched_setaffinity(0, {0})
connection = http.client.HTTPConnection(host, port)
for n in range(before):
    connection.request('GET', f'/r/before{run}x{n}')
    connection.getresponse().read()
os.execvp('curl', ['curl', '-s', '-o', '/dev/null', f'http://{host}:{port}/r/after{run}'])
";

fn run(server: &App, number: usize) -> Result<()> {
    let port = server.target.port()?.to_string();
    let status = Command::new("python3")
        .args([
            "-c",
            BECOMES_CURL,
            "127.0.0.1",
            &port,
            &number.to_string(),
            &BEFORE.to_string(),
        ])
        .status()
        .context("cannot run python3")?;
    ensure!(status.success(), "run {number}: {status}");
    Ok(())
}

#[test]
fn a_refused_process_that_becomes_another_program_is_seen() {
    let place = Place::new("refused").unwrap();
    let server = python::flask("server", &place, &Calls::none()).unwrap();
    let agent = Agent::start(&Setup::capturing(&[json!({"exe": "*/curl"})])).unwrap();
    for number in 0..RUNS {
        run(&server, number).unwrap();
    }
    let spans = agent.spans_when(|spans| spans.len() >= RUNS).unwrap();

    let mut cases = Cases::new("refused");
    cases.run("curl's calls are there", || {
        for number in 0..RUNS {
            let path = format!("/r/after{number}");
            let calls = spans
                .iter()
                .filter(|span| span.kind == Kind::Client && span.path().as_deref() == Some(&path))
                .count();
            ensure!(calls == 1, "{path}: {calls} client spans");
        }
        Ok(format!("{RUNS} processes became curl, each seen"))
    });
    cases.run("nothing else is", || {
        let others = spans.iter().filter(|span| span.kind != Kind::Client).count();
        let before = spans
            .iter()
            .filter(|span| span.path().is_some_and(|path| path.starts_with("/r/before")))
            .count();
        ensure!(
            others == 0 && before == 0,
            "{others} server spans, {before} of python's calls"
        );
        Ok(format!("none of python's {} calls", RUNS * BEFORE))
    });
    cases.finish();
}
