//! Every exchange is a span or a counted drop: requests counted by hey, wrk and nginx itself, at about 1,000 a second
//! and at the machine's limit.
#![allow(clippy::unwrap_used, reason = "test")]

use std::time::Duration;

use anyhow::{bail, ensure, Result};
use serde_json::json;
use spanwire_tests::agent::{Agent, Setup};
use spanwire_tests::apps::nginx::{requests_of, requests_of_idle, Site};
use spanwire_tests::apps::App;
use spanwire_tests::cases::Cases;
use spanwire_tests::load::{hey, wrk};
use spanwire_tests::metrics::{Balance, Metrics};
use spanwire_tests::place::Place;
use spanwire_tests::receiver::{Manner, Receiver};

/// What a load added to the agent's counts.
struct Added {
    balance: Balance,
    stored: u64,
    not_stored: u64,
    /// Status pages, requests as well.
    pages: u64,
}

fn sinks(metrics: &Metrics, exporter: &str) -> (u64, u64) {
    let result = |result| {
        metrics.sum(
            "spanwire_export_spans_total",
            &[("exporter", exporter), ("result", result)],
        )
    };
    (result("sent"), result("failed") + result("dropped"))
}

/// Runs a load and holds the agent's counts against nginx's own. The status pages are requests as well: the first lies
/// before the count it returns, the others in it.
fn measured(agent: &Agent, nginx: &App, load: impl FnOnce() -> Result<u64>) -> Result<(u64, Added)> {
    let before = agent.drained()?;
    let first = requests_of(nginx)?;
    let answered = load()?;
    let (last, pages) = requests_of_idle(nginx)?;
    let after = agent.drained()?;
    let served = last - first + 1;
    let balance = after.balance().since(before.balance());
    let (stored_before, lost_before) = sinks(&before, "store");
    let (stored, lost) = sinks(&after, "store");
    let added = Added {
        balance,
        stored: stored - stored_before,
        not_stored: lost - lost_before,
        pages: pages + 1,
    };
    ensure!(
        balance.messages() == served,
        "nginx served {served}, the agent counted {} exchanges and {} drops at the kernel",
        balance.exchanges,
        balance.dropped_kernel
    );
    ensure!(
        balance.closes(),
        "{} exchanges became {} spans and {} counted drops",
        balance.exchanges,
        balance.spans,
        balance.dropped_user
    );
    ensure!(
        balance.spans == added.stored + added.not_stored,
        "{} spans, of which {} stored and {} counted as not stored",
        balance.spans,
        added.stored,
        added.not_stored
    );
    Ok((answered, added))
}

#[test]
fn requests_equal_spans_plus_counted_drops() {
    let place = Place::new("every").unwrap();
    let nginx = Site::new().returning().counting().start("nginx", &place).unwrap();
    let receiver = Receiver::start(Manner::Accept).unwrap();
    let setup = Setup::of_services(&[&nginx.service])
        .with("capture", "paths", json!("templated"))
        .export(json!({"name": "test", "protocol": "otlp_http", "endpoint": receiver.url()}));
    let agent = Agent::start(&setup).unwrap();

    let mut cases = Cases::new("every exchange");
    cases.run("about 1,000 a second", || {
        let (answered, added) = measured(&agent, &nginx, || hey(&nginx.target, 5_000, 50, 20))?;
        ensure!(answered == 5_000, "hey got {answered} answers");
        ensure!(
            added.balance.messages() == answered + added.pages,
            "{} messages for 5,000 requests and {} status pages",
            added.balance.messages(),
            added.pages
        );
        ensure!(
            added.stored == answered + added.pages,
            "{} spans stored: at this rate nothing may be dropped",
            added.stored
        );
        let listed: u64 = agent.all_traces()?.iter().map(|trace| trace.span_count).sum();
        ensure!(
            listed == added.stored,
            "{} spans stored, {listed} listed by the API",
            added.stored
        );
        let exported = receiver.wait_for_spans(listed as usize, Duration::from_secs(10))?;
        ensure!(exported as u64 == listed, "{listed} spans stored, {exported} exported");
        Ok(format!(
            "5,000 requests, {} spans stored, {exported} exported, nothing dropped",
            added.stored
        ))
    });
    cases.run("the machine's limit", || {
        let connections = 64;
        let (answered, added) = measured(&agent, &nginx, || wrk(&nginx.target, connections, 3))?;
        let served = added.balance.messages() - added.pages;
        if served < answered || served > answered + connections {
            bail!("wrk read {answered} answers, the agent counted {served}");
        }
        let metrics = agent.metrics()?;
        let (sent, lost) = sinks(&metrics, "test");
        let spans = metrics.sum("spanwire_spans_total", &[]);
        ensure!(spans == sent + lost, "{spans} spans, exporter sent {sent} and counted {lost} as lost");
        let received = receiver.wait_for_spans(sent as usize, Duration::from_secs(10))?;
        ensure!(received as u64 == sent, "{sent} spans counted as sent, {received} received");
        Ok(format!(
            "{served} requests ({answered} read by wrk) = {} spans + {} dropped in the kernel + {} in user space; {} stored, {} not stored and counted; exported {sent}, lost and counted {lost}",
            added.balance.spans, added.balance.dropped_kernel, added.balance.dropped_user, added.stored, added.not_stored
        ))
    });
    cases.finish();
}
