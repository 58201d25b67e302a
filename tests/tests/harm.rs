//! Zero harm: killing the agent at any instant disturbs no request and leaves nothing in the kernel.
#![allow(clippy::unwrap_used, reason = "test")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use serde_json::json;
use spanwire_tests::agent::{Agent, Setup, STOP_LIMIT};
use spanwire_tests::apps::nginx::Site;
use spanwire_tests::apps::python::{self, Workers};
use spanwire_tests::apps::{App, Calls};
use spanwire_tests::cases::Cases;
use spanwire_tests::http::Connection;
use spanwire_tests::kernel::Inventory;
use spanwire_tests::load::{Load, Outcome};
use spanwire_tests::place::Place;
use spanwire_tests::receiver::{Manner, Receiver};
use spanwire_tests::spans::Span;

/// Programs and maps are freed after the kernel's grace periods.
const FREE_LIMIT: Duration = Duration::from_secs(5);

struct Services {
    front: App,
    behind: App,
}

impl Services {
    /// nginx before gunicorn. No agent that starts later finds a connection between them that is older than it.
    fn start(name: &str, place: &Place) -> Result<Self> {
        let behind = python::gunicorn(&format!("{name}-behind"), place, Workers::Threads(8), &Calls::none())?;
        let front = Site::new()
            .proxying("a", &[&behind.target])
            .start(&format!("{name}-front"), place)?;
        Ok(Self { front, behind })
    }

    fn setup(&self) -> Setup {
        Setup::of_services(&[&self.front.service, &self.behind.service])
    }

    /// Load until told to stop, in rounds of requests that must all be answered.
    fn load_while<T>(&self, prefix: &str, during: impl FnOnce() -> Result<T>) -> Result<(T, Outcome)> {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let load = scope.spawn(|| {
                let mut all = Outcome::default();
                let mut round = 0;
                while !stop.load(Ordering::Relaxed) {
                    let prefix = format!("{prefix}{round}");
                    let outcome = Load {
                        target: &self.front.target,
                        prefix: &prefix,
                        requests: 100,
                        concurrency: 8,
                        keep_alive: true,
                    }
                    .run();
                    all.answered.extend(outcome.answered);
                    all.failed.extend(outcome.failed);
                    all.elapsed += outcome.elapsed;
                    round += 1;
                }
                all
            });
            let result = during();
            stop.store(true, Ordering::Relaxed);
            let outcome = load.join().ok().context("the load panicked")?;
            Ok((result?, outcome))
        })
    }
}

/// SIGKILL at different instants of the agent's life, while every connection is in use.
fn killed_at_any_time(services: &Services) -> Result<String> {
    let before = Inventory::now()?;
    let mut evidence = Vec::new();
    let mut loaded_once = false;
    // While programs are loaded, just ready, in the middle of settling, in steady state.
    for after_ms in [20, 80, 200, 500, 1_500] {
        let prefix = format!("kill{after_ms}r");
        let (gone, outcome) = services.load_while(&prefix, || {
            let mut agent = Agent::spawn(&services.setup())?;
            sleep(Duration::from_millis(after_ms));
            let loaded = Inventory::now()?.added_since(&before).len();
            loaded_once |= loaded > 0;
            agent.kill()?;
            let gone = Inventory::wait_gone_since(&before, FREE_LIMIT)?;
            sleep(Duration::from_millis(100));
            Ok(gone)
        })?;
        let answered = outcome.all()?.len();
        ensure!(answered > 0, "no request was made");
        evidence.push(format!(
            "{after_ms} ms: {answered} answered, kernel clean after {gone:?}"
        ));
    }
    ensure!(
        loaded_once,
        "no agent lived long enough to load a program: nothing was shown"
    );
    Ok(evidence.join("; "))
}

/// A connection in the middle of a request lives through the agent's death.
fn open_connection_lives_on(services: &Services) -> Result<String> {
    let mut agent = Agent::start(&services.setup())?;
    let mut connection = Connection::open(&services.front.target)?;
    ensure!(connection.get("/r/before")?.status == 200, "the request before");
    connection.send(b"GET /r/during HTTP/1.1\r\nHost: te")?;
    agent.kill()?;
    connection.send(b"st.invalid\r\n\r\n")?;
    let during = connection.receive(false)?;
    ensure!(
        during.status == 200 && during.text().contains("during"),
        "the request during: {during:?}"
    );
    ensure!(connection.get("/r/after")?.status == 200, "the request after");
    Ok("a request half sent when the agent was killed was answered, and the next on the same connection".to_owned())
}

/// SIGTERM: detached and flushed within 5 s, exit status 0, nothing left, and the store has what was seen last.
fn terminated(services: &Services) -> Result<String> {
    let before = Inventory::now()?;
    let receiver = Receiver::start(Manner::Accept)?;
    let setup = services
        .setup()
        .export(json!({"name": "test", "protocol": "otlp_http", "endpoint": receiver.url()}));
    let mut agent = Agent::start(&setup)?;
    ensure!(
        !Inventory::now()?.added_since(&before).is_empty(),
        "a running agent has programs in the kernel"
    );
    let ((status, took), outcome) = services.load_while("term", || {
        sleep(Duration::from_millis(1_500));
        agent.terminate()
    })?;
    let answered = outcome.all()?.len();
    ensure!(status.success(), "exit status {status}; its log:\n{}", agent.log());
    ensure!(took <= STOP_LIMIT, "took {took:?} to end");
    let gone = Inventory::wait_gone_since(&before, FREE_LIMIT)?;
    // What ended more than the settle window before the signal was on its way or out; the flush sends the rest.
    let exported = receiver.span_count()?;
    ensure!(exported > 0, "nothing was exported before the end");
    Ok(format!(
        "{answered} answered, ended in {took:?}, kernel clean after {gone:?}, {exported} spans exported"
    ))
}

/// Spans of the last second before SIGTERM are flushed, none is lost.
fn flushed(place: &Place) -> Result<String> {
    let services = Services::start("flushed", place)?;
    let receiver = Receiver::start(Manner::Accept)?;
    let setup = services
        .setup()
        .export(json!({"name": "test", "protocol": "otlp_http", "endpoint": receiver.url()}));
    let mut agent = Agent::start(&setup)?;
    let requests = 40;
    let load = Load {
        target: &services.front.target,
        prefix: "flush",
        requests,
        concurrency: 2,
        keep_alive: true,
    };
    load.run().all()?;
    // The responses are out, their records are in the ring or in the settle window.
    let (status, took) = agent.terminate()?;
    ensure!(
        status.success() && took <= STOP_LIMIT,
        "ended with {status} after {took:?}"
    );
    let found = receiver
        .spans()?
        .iter()
        .filter(|span| span.path().is_some_and(|path| path.contains("flush")))
        .count();
    ensure!(
        found == requests * 3,
        "{found} spans exported at the end, expected {}",
        requests * 3
    );
    Ok(format!(
        "{requests} requests, {found} spans exported, ended in {took:?}"
    ))
}

/// A second agent on the node refuses by a lock and names the first; the first does not notice.
fn second_refuses(services: &Services) -> Result<String> {
    let first = Agent::start(&services.setup())?;
    let mut second = Agent::spawn(&services.setup())?;
    let status = second.service().wait_end(Duration::from_secs(10))?;
    ensure!(status.code() == Some(1), "the second ended with {status}");
    let log = second.log();
    ensure!(
        log.contains(&first.pid().to_string()),
        "the second does not name the first, pid {}:\n{log}",
        first.pid()
    );
    ensure!(first.get("/readyz")?.status == 200, "the first is not ready any more");
    let line = log.lines().last().unwrap_or_default().trim().to_owned();
    Ok(format!("exit 1: {line}"))
}

/// Spans whose path contains a word.
fn named(spans: &[Span], word: &str) -> usize {
    spans
        .iter()
        .filter(|span| span.path().is_some_and(|path| path.contains(word)))
        .count()
}

/// A killed agent's lock and store do not stand in the next one's way.
fn starts_again(place: &Place) -> Result<String> {
    let services = Services::start("again", place)?;
    // Its connections to the service behind it are not older than the second agent.
    let second_front = Site::new()
        .proxying("a", &[&services.behind.target])
        .start("again-front-2", place)?;
    let setup = Setup::of_services(&[&services.front.service, &second_front.service, &services.behind.service]);
    let load = |front: &App, prefix| {
        Load {
            target: &front.target,
            prefix,
            requests: 10,
            concurrency: 1,
            keep_alive: true,
        }
        .run()
        .all()
    };
    let mut first = Agent::start(&setup)?;
    let store = first.store.clone();
    load(&services.front, "again1")?;
    first.drained()?;
    first.kill()?;
    let second = Agent::start(&setup.with("store", "path", json!(store)))?;
    load(&second_front, "again2")?;
    let spans = second.spans_when(|spans| spans.len() >= 60)?;
    let (of_first, of_second) = (named(&spans, "again1"), named(&spans, "again2"));
    ensure!(
        of_first == 30 && of_second == 30,
        "spans of the first {of_first}, of the second {of_second}"
    );
    Ok("30 spans from before SIGKILL and 30 from after are in the same store".to_owned())
}

/// A connection that is older than the agent is joined after the first response that was seen whole. What it carried
/// before is no span, and that is said; from then on every exchange is one.
fn older_connections(place: &Place) -> Result<String> {
    let behind = python::gunicorn("older", place, Workers::Threads(4), &Calls::none())?;
    let mut kept = Connection::open(&behind.target)?;
    let mut closed = Connection::open(&behind.target)?;
    for connection in [&mut kept, &mut closed] {
        ensure!(connection.get("/r/before")?.status == 200, "the request before");
    }
    let agent = Agent::start(&Setup::of_services(&[&behind.service]))?;
    for path in ["/r/unproven", "/r/joined1", "/r/joined2", "/r/joined3"] {
        ensure!(kept.get(path)?.status == 200, "{path}");
    }
    let last = closed.request("GET", "/r/last", &[("Connection", "close")], &[])?;
    ensure!(last.status == 200, "the last request");
    drop((kept, closed));
    let spans = agent.spans_when(|spans| spans.len() >= 3)?;
    let paths: Vec<_> = spans.iter().filter_map(Span::path).collect();
    ensure!(
        spans.len() == 3 && named(&spans, "joined") == 3,
        "spans of what followed the boundary, and no other, were expected: {paths:?}"
    );
    let metrics = agent.metrics()?;
    let balance = metrics.balance();
    ensure!(
        balance.messages() == 3 && balance.closes(),
        "exchanges are not what was seen: {balance:?}"
    );
    let joined = metrics.sum("spanwire_joined_sockets_total", &[]);
    let never = metrics.sum("spanwire_opaque_sockets_total", &[("reason", "late_join")]);
    ensure!(
        joined == 1 && never >= 1,
        "{joined} sockets counted as joined, {never} as never joined"
    );
    Ok("one connection joined after a whole response, one that ended before that is counted as late_join".to_owned())
}

#[test]
fn the_agent_harms_nothing() {
    let place = Place::new("harm").unwrap();
    let services = Services::start("harm", &place).unwrap();
    let mut cases = Cases::new("harm");
    cases.run("SIGKILL at any time", || killed_at_any_time(&services));
    cases.run("SIGKILL inside a request", || open_connection_lives_on(&services));
    cases.run("SIGTERM detaches", || terminated(&services));
    cases.run("SIGTERM flushes", || flushed(&place));
    cases.run("a second agent refuses", || second_refuses(&services));
    cases.run("a killed agent starts again", || starts_again(&place));
    cases.run("connections older than the agent", || older_connections(&place));
    cases.finish();
}
