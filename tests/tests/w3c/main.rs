//! W3C Trace Context through services that know nothing of it: a synchronous one that calls others, and a forwarding proxy.
//!
//! Every row is sent twice, without the agent and with it, as a client sends it byte by byte; what arrives where the service
//! calls is held against the Recommendation, against the spans, and against what arrives without the agent.
#![allow(clippy::unwrap_used, reason = "test")]

mod proxy;
mod rows;
mod seen;

use anyhow::{ensure, Result};
use serde_json::json;
use spanwire_tests::agent::{Agent, Setup};
use spanwire_tests::apps::App;
use spanwire_tests::cases::{say, Cases};
use spanwire_tests::place::{free_port, program, workload, Place};
use spanwire_tests::receiver::{Manner, Receiver};
use spanwire_tests::service::{Launch, Target};

use rows::{rows, Row};
use seen::{arrived, check_heads, check_spans, post, without_context, Ids, Lines};

/// What the agent says of itself where a traceparent goes alone (docs/kernels.md, before 5.15).
const NO_TRACESTATE: &str = "keep no tracestate";

/// The service of `tests/workloads/w3c_service.py`.
fn service(name: &str, place: &Place) -> Result<App> {
    let port = free_port()?;
    let target = Target::loopback(port);
    let service = Launch::new(name, program("python3")?, place)
        .arg(workload("w3c_service.py"))
        .arg(port.to_string())
        .start(std::slice::from_ref(&target))?;
    Ok(App { service, target })
}

/// The list that the service is sent: calls of `path/0`, `path/1` and so on.
fn calls(base: &str, path: &str, count: usize) -> String {
    let calls = (0..count).map(|call| json!({"url": format!("{base}{path}/{call}"), "arguments": {"call": call}}));
    calls.collect::<serde_json::Value>().to_string()
}

fn path_of(number: usize) -> String {
    format!("/row{number}")
}

/// Sends every row to the service; the heads that arrived for each, call by call.
fn send_rows(target: &Target, receiver: &Receiver, rows: &[Row]) -> Result<Vec<Vec<Lines>>> {
    let before = receiver.received().len();
    for (number, row) in rows.iter().enumerate() {
        let ids = Ids::of(number);
        let lines: Vec<String> = row.lines.iter().map(|line| ids.put_into(line)).collect();
        post(
            target,
            &path_of(number),
            &lines,
            &calls(&receiver.url(), &path_of(number), row.calls),
        )?;
    }
    let mut heads = arrived(receiver, before);
    let of_call = |heads: &mut std::collections::BTreeMap<_, _>, number, call| {
        heads.remove(&format!("{}/{call}", path_of(number))).unwrap_or_default()
    };
    let rows = rows.iter().enumerate();
    Ok(rows
        .map(|(number, row)| {
            (0..row.calls)
                .flat_map(|call| of_call(&mut heads, number, call))
                .collect()
        })
        .collect())
}

/// Sends one plain request and waits for its spans: from then on the processes are classified.
fn warm(agent: &Agent, send: impl FnOnce() -> Result<()>) -> Result<()> {
    send()?;
    let spans = agent.spans_when(|spans| !spans.is_empty())?;
    ensure!(
        !spans.is_empty(),
        "no span of the first request; the agent's log:\n{}",
        agent.log()
    );
    Ok(())
}

#[test]
fn a_service_passes_on_what_came_in() {
    let place = Place::new("w3c").unwrap();
    let receiver = Receiver::start(Manner::Accept).unwrap();
    let app = service("w3c", &place).unwrap();
    let mut rows = rows();
    let mut cases = Cases::new("w3c");
    let off = send_rows(&app.target, &receiver, &rows).unwrap();
    cases.run("without the agent every row fails", || {
        for (number, (row, heads)) in rows.iter().zip(&off).enumerate() {
            ensure!(
                heads.len() == row.calls,
                "{}: {} of {} calls arrived",
                row.name,
                heads.len(),
                row.calls
            );
            ensure!(
                heads.iter().all(|head| without_context(head) == *head),
                "{}: {heads:?}",
                row.name
            );
            ensure!(
                check_heads(row, &Ids::of(number), heads).is_err(),
                "{} passes",
                row.name
            );
        }
        Ok(format!("{} rows", rows.len()))
    });

    let setup = Setup::of_services(&[&app.service]).with("propagate", "enabled", json!("auto"));
    let agent = Agent::start(&setup).unwrap();
    if agent.get("/readyz").unwrap().text().contains(NO_TRACESTATE) {
        say("the programs for this kernel keep no tracestate: each row is held to a traceparent that goes alone");
        for row in &mut rows {
            row.state.clear();
        }
    }
    warm(&agent, || {
        post(&app.target, "/warm", &[], &calls(&receiver.url(), "/warm", 1))
    })
    .unwrap();
    let on = send_rows(&app.target, &receiver, &rows).unwrap();
    let wanted: usize = rows.iter().map(|row| row.calls + 1).sum();
    let spans = agent.spans_when(|spans| spans.len() >= wanted).unwrap();
    for (number, row) in rows.iter().enumerate() {
        let ids = Ids::of(number);
        cases.run(&row.name, || {
            let rest: Vec<_> = on[number].iter().map(|head| without_context(head)).collect();
            ensure!(
                rest == off[number],
                "other lines differ: {:?}, without the agent {:?}",
                on[number],
                off[number]
            );
            let contexts = check_heads(row, &ids, &on[number])?;
            check_spans(row, &ids, &path_of(number), &contexts, &spans)?;
            Ok(format!("{:?} trace, {} calls", row.trace, contexts.len()))
        });
    }
    cases.finish();
}
