//! Each span carries trace id, span id, parent span id, service name, operation name, start, duration, status, HTTP
//! response code.

use anyhow::{ensure, Result};
use spanwire_tests::spans::{Kind, Span};

use crate::{Shop, Verdict};

/// Attributes of every HTTP span beside those that `Span::faults` wants (contract.md, Spans).
const ATTRIBUTES: [&str; 5] = [
    "url.path",
    "url.scheme",
    "server.address",
    "server.port",
    "network.protocol.version",
];

pub(crate) fn test() -> Result<Verdict> {
    let shop = Shop::open()?;
    let agent = shop.watched()?;
    let started = now_ns();
    let ids = shop.visit("bare", 50)?;
    let ended = now_ns();
    let spans = agent.spans_when(|spans| spans.len() >= ids.len() * Shop::SPANS)?;
    ensure!(
        spans.len() >= ids.len() * Shop::SPANS,
        "{} spans of {} requests",
        spans.len(),
        ids.len()
    );
    for span in &spans {
        complete(span, started, ended)?;
    }
    Ok(Verdict::Pass(format!(
        "{} spans, each with every field, names and times that fit",
        spans.len()
    )))
}

fn complete(span: &Span, started: u64, ended: u64) -> Result<()> {
    let faults = span.faults();
    ensure!(faults.is_empty(), "{}", faults.join("; "));
    let who = format!("{} {:?} {:?}", span.service(), span.kind, span.path());
    for name in ATTRIBUTES {
        ensure!(span.attributes.contains_key(name), "{who}: no {name}");
    }
    let (route, other) = match span.kind {
        Kind::Server => ("http.route", "url.template"),
        _ => ("url.template", "http.route"),
    };
    let template = span.attribute(route);
    ensure!(
        template.is_some() && !span.attributes.contains_key(other),
        "{who}: no {route}, or {other} beside it"
    );
    ensure!(
        span.name == format!("GET {}", template.unwrap_or_default()),
        "{who}: operation name {:?}",
        span.name
    );
    ensure!(
        span.status() == Some(200) && !span.error,
        "{who}: status {:?}, error {}",
        span.status(),
        span.error
    );
    ensure!(
        !span.attributes.contains_key("error.type"),
        "{who}: error.type on a success"
    );
    // The clocks are one machine's; a converted monotonic clock may be a few milliseconds off.
    let slack_ns = 50_000_000;
    ensure!(
        span.start_ns + slack_ns >= started && span.end_ns <= ended + slack_ns,
        "{who}: from {} to {}, outside of the load's {started} to {ended}",
        span.start_ns,
        span.end_ns
    );
    for name in [
        "service.name",
        "process.pid",
        "process.executable.name",
        "telemetry.distro.name",
    ] {
        ensure!(span.resource.contains_key(name), "{who}: resource without {name}");
    }
    let private: Vec<_> = span
        .resource
        .keys()
        .filter(|key| key.contains("command") || key.contains("environment"))
        .collect();
    ensure!(private.is_empty(), "{who}: resource with {private:?}");
    Ok(())
}

fn now_ns() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap_or_default().as_nanos() as u64
}
