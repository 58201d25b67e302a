//! Each service that takes part in a request has its own span with a unique span id; parent span ids give the
//! hierarchy. Retries keep the trace id and get span ids of their own, numbered as attempts.

use std::collections::BTreeSet;

use anyhow::{ensure, Result};
use spanwire_tests::agent::{Agent, Setup};
use spanwire_tests::apps::python::{self, Workers};
use spanwire_tests::apps::Calls;
use spanwire_tests::judge::judge;
use spanwire_tests::load::Load;
use spanwire_tests::spans::{Kind, Span};

use crate::{Shop, Verdict};

pub(crate) fn test() -> Result<Verdict> {
    let shop = Shop::open()?;
    let flaky = python::faulty("flaky", &shop.place, "flaky")?;
    let retrying = python::gunicorn(
        "retrying",
        &shop.place,
        Workers::Threads(4),
        &Calls::none().to("b", &flaky)?,
    )?;
    let services = [&shop.front, &shop.app, &shop.stock, &shop.prices, &flaky, &retrying].map(|app| &app.service);
    let agent = Agent::start(&Setup::of_services(&services))?;
    let ids = shop.visit("tree", 100)?;
    let retried = Load {
        target: &retrying.target,
        prefix: "again",
        requests: 10,
        concurrency: 2,
        keep_alive: true,
    }
    .run()
    .all()?;
    // A retried request: ingress, and both ends of three attempts.
    let spans = agent.spans_when(|spans| spans.len() >= (ids.len() + retried.len()) * Shop::SPANS)?;

    let trees = judge(&Shop::topology(), &ids, &spans).check()?;
    let distinct: BTreeSet<_> = spans.iter().map(|span| &span.span_id).collect();
    ensure!(
        distinct.len() == spans.len(),
        "{} spans share {} span ids",
        spans.len(),
        distinct.len()
    );
    for id in &retried {
        attempts(id, &spans)?;
    }
    Ok(Verdict::Pass(format!(
        "{trees}; {} requests with 3 attempts each, numbered, in one trace",
        retried.len()
    )))
}

fn attempts(id: &str, spans: &[Span]) -> Result<()> {
    let of = |path: String, kind| {
        let mut own: Vec<_> = spans
            .iter()
            .filter(|span| span.kind == kind && span.path().as_ref() == Some(&path))
            .collect();
        own.sort_by_key(|span| span.start_ns);
        own
    };
    let front = of(format!("/r/{id}"), Kind::Server);
    ensure!(front.len() == 1, "{id}: {} ingress spans", front.len());
    let attempts = of(format!("/o/{id}/b"), Kind::Client);
    ensure!(attempts.len() == 3, "{id}: {} attempts, expected 3", attempts.len());
    for (n, attempt) in attempts.iter().enumerate() {
        let number = attempt.number("http.request.resend_count").unwrap_or(0);
        ensure!(number == n as i64, "{id}: attempt {n} has resend_count {number}");
        ensure!(
            attempt.trace_id == front[0].trace_id,
            "{id}: attempt {n} left the trace"
        );
        ensure!(
            attempt.parent_span_id.as_ref() == Some(&front[0].span_id),
            "{id}: attempt {n} has another parent"
        );
    }
    Ok(())
}
