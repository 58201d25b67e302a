//! nginx as a proxy that forwards the headers it is sent: a context that came in is corrected in place, one that is broken
//! leaves as it came, and where there is none, there is one in front of the next.

use anyhow::{bail, ensure, Context, Result};
use serde_json::json;
use spanwire_tests::agent::{Agent, Setup};
use spanwire_tests::apps::nginx::Site;
use spanwire_tests::cases::Cases;
use spanwire_tests::place::Place;
use spanwire_tests::receiver::{Manner, Receiver};
use spanwire_tests::service::Target;
use spanwire_tests::spans::{Kind, Span};

use crate::rows::FRESH;
use crate::seen::{arrived, post, traceparent, without_context, Ids, Lines, Traceparent};
use crate::{calls, service, warm};

/// What becomes of a request that nginx forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The parent id is that of nginx's client span; everything else is as it came.
    Corrected,
    /// Every byte is as it came.
    AsItCame,
    /// It bears a context, and everything else is as it came.
    Inserted,
}

/// One request through the proxy.
struct Row {
    name: &'static str,
    lines: &'static [&'static str],
    outcome: Outcome,
}

const ROWS: [Row; 13] = [
    row("nothing", &[], Outcome::Inserted),
    row("valid", &["traceparent: 00-$ids-01"], Outcome::Corrected),
    row("valid, not sampled", &["traceparent: 00-$ids-00"], Outcome::Corrected),
    row("valid, random", &["traceparent: 00-$ids-03"], Outcome::Corrected),
    row(
        "valid, with tracestate",
        &[
            "tracestate: foo=1 ,bar=2",
            "traceparent: 00-$ids-01",
            "tracestate: baz=3",
        ],
        Outcome::Corrected,
    ),
    row(
        "valid, in another case",
        &["TraceParent: 00-$ids-01"],
        Outcome::Corrected,
    ),
    row("version ff", &["traceparent: ff-$ids-01"], Outcome::AsItCame),
    row(
        "version 00 that goes on",
        &["traceparent: 00-$ids-01-what"],
        Outcome::AsItCame,
    ),
    row("too short", &["traceparent: 00-$ids"], Outcome::AsItCame),
    row("upper case", &["traceparent: 00-$ids-0A"], Outcome::AsItCame),
    row(
        "no trace id",
        &["traceparent: 00-00000000000000000000000000000000-$parent-01"],
        Outcome::AsItCame,
    ),
    row(
        "two traceparents",
        &["traceparent: 00-$ids-01", "traceparent: 00-$ids-01"],
        Outcome::AsItCame,
    ),
    row(
        "broken, with tracestate",
        &["traceparent: 00-$ids-1", "tracestate: foo=1"],
        Outcome::AsItCame,
    ),
];

const fn row(name: &'static str, lines: &'static [&'static str], outcome: Outcome) -> Row {
    Row { name, lines, outcome }
}

/// The locations: how nginx speaks to the one it forwards to, by default and with HTTP/1.1.
const MANNERS: [&str; 2] = ["plain", "eleven"];

fn path_of(manner: &str, number: usize) -> String {
    format!("/{manner}/{number}")
}

/// Sends every row through one location; the head that arrived for each.
fn send(front: &Target, receiver: &Receiver, manner: &str) -> Result<Vec<Lines>> {
    let before = receiver.received().len();
    for (number, row) in ROWS.iter().enumerate() {
        let ids = Ids::of(number);
        let lines: Vec<String> = row.lines.iter().map(|line| ids.put_into(line)).collect();
        post(front, &path_of(manner, number), &lines, "{}")?;
    }
    let mut heads = arrived(receiver, before);
    let of = |number| heads.remove(&path_of(manner, number)).unwrap_or_default();
    (0..ROWS.len())
        .map(of)
        .map(|heads| match <[Lines; 1]>::try_from(heads) {
            Ok([head]) => Ok(head),
            Err(heads) => bail!("{} heads arrived", heads.len()),
        })
        .collect()
}

/// What arrived for a row, held against what arrives without the agent. Returns the context on the wire, if there is to be one.
fn check(row: &Row, ids: &Ids, off: &Lines, on: &Lines) -> Result<Option<Traceparent>> {
    match row.outcome {
        Outcome::AsItCame => {
            ensure!(on == off, "arrived as {on:?}, without the agent as {off:?}");
            Ok(None)
        }
        Outcome::Inserted => {
            ensure!(
                without_context(on) == *off,
                "arrived as {on:?}, without the agent as {off:?}"
            );
            let context = traceparent(on)?;
            ensure!(context.flags == FRESH, "flags {:02x}", context.flags);
            Ok(Some(context))
        }
        Outcome::Corrected => {
            let came = format!("{}-{}", ids.trace, ids.parent);
            let at = off
                .iter()
                .position(|line| line.contains(&came))
                .context("nginx forwards no traceparent")?;
            let line = on.get(at).context("the head is shorter")?;
            let (_, value) = line.split_once(": ").context("no header line")?;
            let context = traceparent(&[format!("traceparent: {value}")])?;
            ensure!(
                context.trace == ids.trace,
                "trace id {} is not the one that came",
                context.trace
            );
            ensure!(context.parent != ids.parent, "the parent id that came goes on");
            let mut back = on.clone();
            back[at] = line.replace(&context.parent, &ids.parent);
            ensure!(back == *off, "arrived as {on:?}, without the agent as {off:?}");
            Ok(Some(context))
        }
    }
}

/// The client span of a forwarded request is the one that the wire names, below the server span.
fn check_spans(ids: &Ids, path: &str, outcome: Outcome, context: &Traceparent, spans: &[Span]) -> Result<()> {
    let of = |kind| {
        let fits = |span: &&Span| span.kind == kind && span.path().as_deref() == Some(path);
        spans
            .iter()
            .find(fits)
            .with_context(|| format!("no {kind:?} span of {path}"))
    };
    let (server, client) = (of(Kind::Server)?, of(Kind::Client)?);
    ensure!(
        (&client.trace_id, &client.span_id) == (&context.trace, &context.parent),
        "nginx's client span is {}-{}, on the wire there was {context:?}",
        client.trace_id,
        client.span_id
    );
    ensure!(
        client.parent_span_id.as_ref() == Some(&server.span_id),
        "its parent is {:?}",
        client.parent_span_id
    );
    let above = (outcome == Outcome::Corrected).then_some(&ids.parent);
    ensure!(
        server.parent_span_id.as_ref() == above,
        "the server span's parent is {:?}",
        server.parent_span_id
    );
    Ok(())
}

#[test]
fn a_proxy_forwards_what_came_in() {
    let place = Place::new("w3cproxy").unwrap();
    let receiver = Receiver::start(Manner::Accept).unwrap();
    let behind = service("behind", &place).unwrap();
    let behind_url = behind.target.url().unwrap();
    let to = receiver.url();
    let front = Site::new()
        .one_worker()
        .location(&format!("location /plain/ {{ proxy_pass {to}; }}"))
        .location(&format!(
            "location /eleven/ {{ proxy_pass {to}; proxy_http_version 1.1; proxy_set_header Connection \"close\"; }}"
        ))
        .location(&format!("location /behind/ {{ proxy_pass {behind_url}; }}"))
        .start("front", &place)
        .unwrap();
    let mut cases = Cases::new("w3c proxy");
    let off: Vec<_> = MANNERS
        .map(|manner| send(&front.target, &receiver, manner).unwrap())
        .into();
    cases.run("without the agent every row with a change fails", || {
        for (number, row) in ROWS
            .iter()
            .enumerate()
            .filter(|(_, row)| row.outcome != Outcome::AsItCame)
        {
            let passes = off
                .iter()
                .any(|heads| check(row, &Ids::of(number), &heads[number], &heads[number]).is_ok());
            ensure!(!passes, "{} passes", row.name);
        }
        Ok(format!(
            "{} of {} rows",
            ROWS.iter().filter(|row| row.outcome != Outcome::AsItCame).count(),
            ROWS.len()
        ))
    });

    let setup = Setup::of_services(&[&front.service, &behind.service]).with("propagate", "enabled", json!("auto"));
    let agent = Agent::start(&setup).unwrap();
    warm(&agent, || {
        post(&front.target, "/behind/warm", &[], &calls(&to, "/warm", 1))
    })
    .unwrap();
    let on: Vec<_> = MANNERS
        .map(|manner| send(&front.target, &receiver, manner).unwrap())
        .into();
    let broken = Ids::of(ROWS.len());
    let line = broken.put_into("traceparent: 00-$ids-1");
    let before = receiver.received().len();
    post(&front.target, "/behind/anew", &[line], &calls(&to, "/anew", 1)).unwrap();
    let anew = arrived(&receiver, before);
    let is_row = |span: &&Span| {
        span.path()
            .is_some_and(|path| MANNERS.iter().any(|manner| path[1..].starts_with(manner)))
    };
    let wanted = MANNERS.len() * ROWS.len() * 2;
    let spans = agent
        .spans_when(|spans| spans.iter().filter(is_row).count() >= wanted)
        .unwrap();
    for (nth, manner) in MANNERS.iter().enumerate() {
        for (number, row) in ROWS.iter().enumerate() {
            let ids = Ids::of(number);
            cases.run(&format!("{manner}: {}", row.name), || {
                let context = check(row, &ids, &off[nth][number], &on[nth][number])?;
                if let Some(context) = &context {
                    check_spans(&ids, &path_of(manner, number), row.outcome, context, &spans)?;
                }
                Ok(format!("{:?}", row.outcome))
            });
        }
    }
    cases.run("the service behind begins anew", || {
        let [head] = anew.get("/anew/0").map_or(&[] as &[Lines], Vec::as_slice) else {
            bail!("{anew:?} arrived");
        };
        let context = traceparent(head)?;
        ensure!(
            context.trace != broken.trace && context.parent != broken.parent,
            "{context:?} came in, broken"
        );
        Ok("another trace id".to_owned())
    });
    cases.finish();
}
