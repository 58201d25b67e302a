//! A trace is found by its trace id, whole, with the service-to-service relations.

use std::collections::BTreeSet;

use anyhow::{ensure, Context, Result};
use serde_json::Value;
use spanwire_tests::agent::command;
use spanwire_tests::judge::judge;
use spanwire_tests::spans::{read_otlp_json, Span};

use crate::{Shop, Verdict};

pub(crate) fn test() -> Result<Verdict> {
    let shop = Shop::open()?;
    let agent = shop.watched()?;
    let ids = shop.visit("found", 20)?;
    let spans = agent.spans_when(|spans| spans.len() >= ids.len() * Shop::SPANS)?;
    let api = format!("http://{}", agent.api());
    for id in &ids {
        let path = format!("/r/{id}");
        let root = spans
            .iter()
            .find(|span| span.path().as_ref() == Some(&path))
            .context("no ingress span")?;
        let trace = agent.trace(&root.trace_id)?;
        judge(&Shop::topology(), std::slice::from_ref(id), &trace).check()?;
        relations(&trace).with_context(|| format!("trace {}", root.trace_id))?;
    }
    let trace_id = &spans.first().context("no span at all")?.trace_id;

    let output = command(&["trace", trace_id, "--json", "--api", &api])?;
    ensure!(
        output.status.success(),
        "spanwire trace: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let told = read_otlp_json(&serde_json::from_slice(&output.stdout)?)?;
    ensure!(
        told.len() == agent.trace(trace_id)?.len(),
        "the command line tells {} spans",
        told.len()
    );
    let whole = format!("00-{trace_id}-{}-01", told[0].span_id);
    ensure!(
        command(&["trace", &whole, "--api", &api])?.status.success(),
        "a whole traceparent is not understood"
    );

    let unknown = "f".repeat(32);
    let answer = agent.get(&format!("/api/traces/{unknown}"))?;
    ensure!(
        answer.status == 404 && says_error(&answer.body),
        "an unknown id: {} {}",
        answer.status,
        answer.text()
    );
    ensure!(
        command(&["trace", &unknown, "--api", &api])?.status.code() == Some(1),
        "an unknown id on the command line"
    );
    let answer = agent.get("/api/traces/nonsense")?;
    ensure!(
        answer.status == 400 && says_error(&answer.body),
        "a malformed id: {} {}",
        answer.status,
        answer.text()
    );

    let listed = agent.traces("service=stock&since=15m&limit=1000")?;
    ensure!(
        listed.len() == ids.len(),
        "{} traces with service stock, expected {}",
        listed.len(),
        ids.len()
    );
    Ok(Verdict::Pass(format!(
        "{} traces whole by id, by API and command line; unknown 404, malformed 400",
        ids.len()
    )))
}

/// Which service calls which, by the parents that lie in another service.
fn relations(trace: &[Span]) -> Result<()> {
    let mut edges = BTreeSet::new();
    for span in trace {
        let parent = span
            .parent_span_id
            .as_ref()
            .and_then(|id| trace.iter().find(|other| &other.span_id == id));
        if let Some(parent) = parent.filter(|parent| parent.service() != span.service()) {
            edges.insert((parent.service(), span.service()));
        }
    }
    let has = |from: &str, to: &str| edges.contains(&(from.to_owned(), to.to_owned()));
    ensure!(has("app", "stock") && has("app", "prices"), "relations {edges:?}");
    ensure!(
        edges.len() == 3,
        "relations {edges:?}, expected the front's and the app's two"
    );
    Ok(())
}

fn says_error(body: &[u8]) -> bool {
    serde_json::from_slice::<Value>(body).is_ok_and(|answer| answer["error"].is_string())
}
