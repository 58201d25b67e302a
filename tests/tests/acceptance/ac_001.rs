//! Every ingress request has a globally unique trace id, returned in the response headers of ingress services. A valid
//! inbound trace id is preserved, an absent or invalid one is generated.

use std::collections::BTreeSet;

use anyhow::{ensure, Context, Result};
use spanwire_tests::http::{Connection, Response};
use spanwire_tests::spans::{Kind, Span};

use crate::{Shop, Verdict};

/// (id, traceparent, trace id that must survive). The invalid ones are those of W3C Trace Context 3.2.2.
const INBOUND: [(&str, &str, Option<&str>); 8] = [
    (
        "valid",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        Some("0af7651916cd43dd8448eb211c80319c"),
    ),
    (
        "unsampled",
        "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
        Some("1af7651916cd43dd8448eb211c80319c"),
    ),
    (
        "future",
        "cc-2af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-extra",
        Some("2af7651916cd43dd8448eb211c80319c"),
    ),
    (
        "zerotrace",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        None,
    ),
    (
        "zerospan",
        "00-3af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        None,
    ),
    (
        "uppercase",
        "00-4AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        None,
    ),
    ("short", "00-5af7651916cd43dd8448eb211c8031-b7ad6b7169203331-01", None),
    (
        "versionff",
        "ff-6af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        None,
    ),
];

/// The parent id in all of them but one.
const SENDER: &str = "b7ad6b7169203331";

pub(crate) fn test() -> Result<Verdict> {
    let shop = Shop::open()?;
    let agent = shop.watched()?;
    let ids = shop.visit("own", 200)?;
    let mut connection = Connection::open(&shop.front.target)?;
    let mut answers = vec![connection.get("/r/plain")?];
    for (id, traceparent, _) in INBOUND {
        let answer = connection.request("GET", &format!("/r/{id}"), &[("traceparent", traceparent)], &[])?;
        ensure!(answer.status == 200, "{id}: status {}", answer.status);
        answers.push(answer);
    }
    let spans = agent.spans_when(|spans| spans.len() >= (ids.len() + INBOUND.len() + 1) * Shop::SPANS)?;

    let mut traces = BTreeSet::new();
    for id in &ids {
        let span = ingress(&spans, id)?;
        ensure!(
            traces.insert(span.trace_id.clone()),
            "trace id {} was given to two requests",
            span.trace_id
        );
    }
    for (id, traceparent, adopted) in INBOUND {
        let span = ingress(&spans, id)?;
        if let Some(trace_id) = adopted {
            ensure!(
                span.trace_id == trace_id,
                "{id}: {traceparent} became trace {}",
                span.trace_id
            );
            ensure!(
                span.parent_span_id.as_deref() == Some(SENDER),
                "{id}: parent {:?}",
                span.parent_span_id
            );
            ensure!(
                span.parent_source() == "header",
                "{id}: parent source {}",
                span.parent_source()
            );
        } else {
            let part = traceparent.get(3..20).unwrap_or_default().to_lowercase();
            ensure!(!span.trace_id.starts_with(&part), "{id}: {traceparent} was adopted");
            ensure!(
                span.parent_span_id.is_none(),
                "{id}: the parent of a refused header was adopted"
            );
            ensure!(
                traces.insert(span.trace_id.clone()),
                "{id}: the generated trace id was given before"
            );
        }
    }
    let holds = format!(
        "{} requests with trace ids of their own, 3 inbound ids preserved, 5 invalid ones replaced",
        ids.len()
    );
    match returned(&answers[0]) {
        None => Ok(Verdict::NotBuiltYet {
            holds,
            missing: "no response carries the trace id (rewriting)".to_owned(),
        }),
        Some(trace_id) => {
            let span = ingress(&spans, "plain")?;
            ensure!(
                span.trace_id == trace_id,
                "the response names {trace_id}, the span {}",
                span.trace_id
            );
            Ok(Verdict::Pass(format!("{holds}, returned in server-timing")))
        }
    }
}

/// The trace id in `server-timing: traceparent;desc="00-..."`.
fn returned(answer: &Response) -> Option<String> {
    let value = answer.header("server-timing")?.split("desc=\"").nth(1)?;
    value.split('-').nth(1).map(str::to_owned)
}

fn ingress<'a>(spans: &'a [Span], id: &str) -> Result<&'a Span> {
    let path = format!("/r/{id}");
    let mut own = spans
        .iter()
        .filter(|span| span.kind == Kind::Server && span.path().as_deref() == Some(&path));
    let span = own.next().with_context(|| format!("no server span of {path}"))?;
    ensure!(own.next().is_none(), "two server spans of {path}");
    Ok(span)
}
