//! Attempts: a call that fails and is made again stays in its trace, each attempt has a span of its own with a number,
//! and the error is at the span where it happened.
#![allow(clippy::unwrap_used, reason = "test")]

use std::collections::BTreeMap;

use anyhow::{bail, ensure, Context, Result};
use spanwire_tests::agent::{Agent, Setup};
use spanwire_tests::apps::nginx::Site;
use spanwire_tests::apps::python::{self, Workers};
use spanwire_tests::apps::{App, Calls};
use spanwire_tests::cases::Cases;
use spanwire_tests::http;
use spanwire_tests::load::Load;
use spanwire_tests::place::{free_port, Place};
use spanwire_tests::service::Target;
use spanwire_tests::spans::{Kind, Span};

const REQUESTS: usize = 24;
/// More where two CPUs race: the reset against the hook of the send that it answers.
const RESETS: usize = 200;

/// The spans of one front's requests.
struct Seen<'a> {
    spans: &'a [Span],
    by_path: BTreeMap<(String, Kind), Vec<&'a Span>>,
}

impl<'a> Seen<'a> {
    fn new(spans: &'a [Span]) -> Self {
        let mut by_path: BTreeMap<_, Vec<&Span>> = BTreeMap::new();
        for span in spans {
            by_path
                .entry((span.path().unwrap_or_default(), span.kind))
                .or_default()
                .push(span);
        }
        for spans in by_path.values_mut() {
            spans.sort_by_key(|span| span.start_ns);
        }
        Self { spans, by_path }
    }

    /// Spans of a path, in order of start.
    fn of(&self, path: &str, kind: Kind) -> &[&'a Span] {
        self.by_path.get(&(path.to_owned(), kind)).map_or(&[], Vec::as_slice)
    }

    fn server(&self, path: &str) -> Result<&'a Span> {
        match self.of(path, Kind::Server) {
            [one] => Ok(one),
            other => bail!("{} server spans of {path}", other.len()),
        }
    }

    /// Client spans of the time of a span, for a message: who they were placed under, and why.
    fn around(&self, front: &Span) -> String {
        let near = self.spans.iter().filter(|span| {
            span.kind == Kind::Client
                && span.service() == front.service()
                && span.start_ns >= front.start_ns
                && span.start_ns <= front.end_ns
        });
        let lines: Vec<_> = near
            .map(|span| {
                format!(
                    "{} {:?} {} {:?} under {:?}",
                    span.name,
                    span.path(),
                    span.parent_source(),
                    span.attribute("spanwire.parent.reason"),
                    span.parent_span_id
                )
            })
            .collect();
        format!("client spans meanwhile: {lines:#?}")
    }

    /// Client spans below a span, in order of start: with a path or without one (a connect that failed has none).
    fn calls_of(&self, parent: &Span) -> Vec<&'a Span> {
        let mut calls: Vec<_> = self
            .spans
            .iter()
            .filter(|span| span.kind == Kind::Client && span.parent_span_id.as_ref() == Some(&parent.span_id))
            .collect();
        calls.sort_by_key(|span| span.start_ns);
        calls
    }
}

/// Attempts in order: numbered from nothing or 0 upwards, span ids of their own, the trace of their parent.
fn numbered(attempts: &[&Span], parent: &Span) -> Result<()> {
    for (n, attempt) in attempts.iter().enumerate() {
        let number = attempt.number("http.request.resend_count").unwrap_or(0);
        ensure!(number == n as i64, "attempt {n} has http.request.resend_count {number}");
        ensure!(attempt.trace_id == parent.trace_id, "attempt {n} left the trace");
        ensure!(
            attempt.parent_span_id.as_ref() == Some(&parent.span_id),
            "attempt {n} left its parent"
        );
    }
    let mut ids: Vec<_> = attempts.iter().map(|attempt| &attempt.span_id).collect();
    ids.sort();
    ids.dedup();
    ensure!(ids.len() == attempts.len(), "attempts share a span id");
    Ok(())
}

/// An attempt that got no answer: an error, with its kind, at the port it went to.
fn unanswered(attempt: &Span, port: u16) -> Result<String> {
    ensure!(attempt.error, "a failed attempt without an error status");
    ensure!(
        attempt.status().is_none(),
        "a failed attempt with status {:?}",
        attempt.status()
    );
    ensure!(
        attempt.number("server.port") == Some(i64::from(port)),
        "server.port is {:?}",
        attempt.attribute("server.port")
    );
    attempt
        .attribute("error.type")
        .context("a failed attempt without error.type")
}

/// An attempt that was answered with a status of its own.
fn answered(attempt: &Span, status: i64) -> Result<()> {
    ensure!(
        attempt.status() == Some(status),
        "status {:?}, expected {status}",
        attempt.status()
    );
    ensure!(
        attempt.error == (status >= 400),
        "status {status}, error {}",
        attempt.error
    );
    let kind = attempt.attribute("error.type");
    let expected = (status >= 400).then(|| status.to_string());
    ensure!(kind == expected, "status {status}, error.type {kind:?}");
    Ok(())
}

struct Apps {
    flaky: App,
    always: App,
    reset: App,
    retrying: App,
    resetting: App,
    refused: App,
    dead_port: u16,
    next_busy: App,
    next_dead: App,
    good: App,
}

impl Apps {
    fn start(place: &Place) -> Result<Self> {
        let flaky = python::faulty("flaky", place, "flaky")?;
        let always = python::faulty("always", place, "always")?;
        let reset = python::faulty("reset", place, "reset")?;
        let good = python::flask("good", place, &Calls::none())?;
        let dead_port = free_port()?;
        let dead = Target::loopback(dead_port);
        let front = |name: &str, calls: Calls| python::gunicorn(name, place, Workers::Threads(8), &calls);
        Ok(Self {
            retrying: front("retrying", Calls::none().to("b", &flaky)?)?,
            resetting: front("resetting", Calls::none().to("b", &reset)?)?,
            refused: front("refused", Calls::none().to_url("b", dead.url()?))?,
            next_busy: Site::new()
                .proxying("a", &[&always.target, &good.target])
                .start("nextbusy", place)?,
            next_dead: Site::new()
                .proxying("a", &[&dead, &good.target])
                .start("nextdead", place)?,
            flaky,
            always,
            reset,
            dead_port,
            good,
        })
    }

    fn all(&self) -> [&App; 9] {
        [
            &self.flaky,
            &self.always,
            &self.reset,
            &self.retrying,
            &self.resetting,
            &self.refused,
            &self.next_busy,
            &self.next_dead,
            &self.good,
        ]
    }
}

/// What the agent has counted besides spans, for a message.
fn told(agent: &Agent) -> String {
    match agent.metrics() {
        Ok(metrics) => format!(
            "counted: {:#?}",
            metrics.nonzero(&["spanwire_kernel_notes_total", "spanwire_dropped_total"])
        ),
        Err(error) => format!("no metrics: {error:#}"),
    }
}

fn load(app: &App, prefix: &str) -> Result<Vec<String>> {
    Load {
        target: &app.target,
        prefix,
        requests: REQUESTS,
        concurrency: 4,
        keep_alive: true,
    }
    .run()
    .all()
}

/// Requests that are expected to fail at the front.
fn failing(app: &App, prefix: &str, requests: usize) -> Result<Vec<String>> {
    (0..requests)
        .map(|n| {
            let id = format!("{prefix}n{n}");
            let status = http::get(&app.target, &format!("/r/{id}"))?.status;
            ensure!(status == 502, "{id}: status {status}, expected 502");
            Ok(id)
        })
        .collect()
}

#[test]
fn attempts_are_numbered_and_errors_are_where_they_happened() {
    let place = Place::new("retries").unwrap();
    let apps = Apps::start(&place).unwrap();
    let services: Vec<_> = apps.all().iter().map(|app| &app.service).collect();
    let agent = Agent::start(&Setup::of_services(&services)).unwrap();

    let retried = load(&apps.retrying, "retried").unwrap();
    let reset = failing(&apps.resetting, "reset", RESETS).unwrap();
    let refused = failing(&apps.refused, "refused", REQUESTS).unwrap();
    let busy = load(&apps.next_busy, "busy").unwrap();
    let dead = load(&apps.next_dead, "dead").unwrap();
    // Server and client spans of retried requests and of nginx's good attempts are the least there must be.
    let spans = agent
        .spans_when(|spans| spans.len() >= RESETS * 5 + REQUESTS * (7 + 5 + 4 + 4))
        .unwrap();
    let seen = Seen::new(&spans);

    let mut cases = Cases::new("retries");
    cases.run("urllib3 repeats after 503", || {
        for id in &retried {
            let front = seen.server(&format!("/r/{id}"))?;
            let attempts = seen.of(&format!("/o/{id}/b"), Kind::Client);
            ensure!(attempts.len() == 3, "{id}: {} attempts, expected 3", attempts.len());
            numbered(attempts, front).with_context(|| id.clone())?;
            for (attempt, status) in attempts.iter().zip([503, 503, 200]) {
                answered(attempt, status).with_context(|| id.clone())?;
            }
            let served = seen.of(&format!("/o/{id}/b"), Kind::Server);
            ensure!(served.len() == 3, "{id}: {} served attempts", served.len());
            for (attempt, served) in attempts.iter().zip(served) {
                ensure!(
                    served.parent_span_id.as_ref() == Some(&attempt.span_id),
                    "{id}: an attempt is served under another"
                );
                ensure!(
                    served.trace_id == front.trace_id,
                    "{id}: a served attempt left the trace"
                );
            }
            answered(front, 200).with_context(|| id.clone())?;
        }
        Ok(format!("{} requests, each with 3 attempts in one trace", retried.len()))
    });
    cases.run("a reset connection", || {
        let port = apps.reset.target.port()?;
        let mut kinds = BTreeMap::new();
        for id in &reset {
            let front = seen.server(&format!("/r/{id}"))?;
            let attempts = seen.of(&format!("/o/{id}/b"), Kind::Client);
            ensure!(
                attempts.len() == 4,
                "{id}: {} attempts, expected 4; {}; {}",
                attempts.len(),
                seen.around(front),
                told(&agent)
            );
            numbered(attempts, front).with_context(|| id.clone())?;
            for attempt in attempts {
                *kinds
                    .entry(unanswered(attempt, port).with_context(|| id.clone())?)
                    .or_insert(0) += 1;
            }
            answered(front, 502).with_context(|| id.clone())?;
        }
        Ok(format!(
            "{} requests with 4 attempts each, error.type {kinds:?}",
            reset.len()
        ))
    });
    cases.run("a refused port", || {
        let mut kinds = BTreeMap::new();
        for id in &refused {
            let front = seen.server(&format!("/r/{id}"))?;
            let attempts = seen.calls_of(front);
            ensure!(attempts.len() == 4, "{id}: {} attempts, expected 4", attempts.len());
            numbered(&attempts, front).with_context(|| id.clone())?;
            for attempt in attempts {
                *kinds
                    .entry(unanswered(attempt, apps.dead_port).with_context(|| id.clone())?)
                    .or_insert(0) += 1;
            }
            answered(front, 502).with_context(|| id.clone())?;
        }
        Ok(format!(
            "{} requests with 4 attempts each, error.type {kinds:?}",
            refused.len()
        ))
    });
    cases.run("nginx goes on after 503", || {
        let mut repeated = 0;
        for id in &busy {
            let front = seen.server(&format!("/r/{id}"))?;
            let attempts = seen.of(&format!("/o/{id}/a"), Kind::Client);
            numbered(attempts, front).with_context(|| id.clone())?;
            let statuses: Vec<_> = attempts.iter().filter_map(|attempt| attempt.status()).collect();
            match statuses[..] {
                [200] => {}
                [503, 200] => repeated += 1,
                _ => bail!("{id}: attempts ended with {statuses:?}"),
            }
            answered(front, 200).with_context(|| id.clone())?;
        }
        // Round robin over two workers: about half began at the busy server.
        ensure!(
            repeated >= REQUESTS / 4,
            "only {repeated} of {REQUESTS} requests began at the busy server"
        );
        Ok(format!(
            "{} requests, {repeated} with a second attempt in the same trace",
            busy.len()
        ))
    });
    cases.run("nginx goes on after a refused connect", || {
        let mut repeated = 0;
        for id in &dead {
            let front = seen.server(&format!("/r/{id}"))?;
            let attempts = seen.calls_of(front);
            numbered(&attempts, front).with_context(|| id.clone())?;
            match attempts[..] {
                [one] => answered(one, 200)?,
                [failed, good] => {
                    unanswered(failed, apps.dead_port).with_context(|| id.clone())?;
                    answered(good, 200).with_context(|| id.clone())?;
                    repeated += 1;
                }
                _ => bail!("{id}: {} attempts; {}", attempts.len(), seen.around(front)),
            }
        }
        ensure!(
            repeated >= REQUESTS / 4,
            "only {repeated} of {REQUESTS} requests began at the dead port"
        );
        Ok(format!(
            "{} requests, {repeated} with a second attempt in the same trace",
            dead.len()
        ))
    });
    cases.finish();
}
