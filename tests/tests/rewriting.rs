//! What is around the headers: steps that fail, a node on which the self-test fails, the ways in which rewriting ends, and ids
//! that come back to clients through proxies.
#![allow(clippy::unwrap_used, reason = "test")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use rustix::process::Signal;
use serde_json::{json, Value};
use spanwire_tests::agent::{Agent, Permit, Setup};
use spanwire_tests::apps::nginx::Site;
use spanwire_tests::apps::{haproxy, node, python, App, Calls};
use spanwire_tests::cases::Cases;
use spanwire_tests::http::Connection;
use spanwire_tests::pace::{is_slow, patient};
use spanwire_tests::place::{free_port, program, workload, Place};
use spanwire_tests::receiver::{Manner, Receiver};
use spanwire_tests::service::{Launch, Target};
use spanwire_tests::spans::{Kind, Span};

/// A change takes effect within this.
const WITHIN: Duration = Duration::from_secs(1);

/// `tests/workloads/w3c_service.py`: asks whom it is told to, on a connection of its own each time.
fn service(place: &Place) -> Result<App> {
    let port = free_port()?;
    let target = Target::loopback(port);
    let service = Launch::new("caller", program("python3")?, place)
        .arg(workload("w3c_service.py"))
        .arg(port.to_string())
        .start(std::slice::from_ref(&target))?;
    Ok(App { service, target })
}

/// A service, and where it calls.
struct Scene {
    app: App,
    receiver: Receiver,
    _place: Place,
}

impl Scene {
    fn new(name: &str) -> Result<Self> {
        let place = Place::new(name)?;
        Ok(Self {
            app: service(&place)?,
            receiver: Receiver::start(Manner::Accept)?,
            _place: place,
        })
    }

    fn setup(&self) -> Setup {
        Setup::of_services(&[&self.app.service])
    }

    /// Has the service call once; the traceparents that arrived with the call, and its body.
    fn call(&self, path: &str) -> Result<Vec<String>> {
        let before = self.receiver.received().len();
        let body = json!([{"url": format!("{}{path}", self.receiver.url()), "arguments": {"n": 7}}]).to_string();
        let response = Connection::open(&self.app.target)?.request("POST", path, &[], body.as_bytes())?;
        ensure!(
            response.status == 200,
            "status {}: {}",
            response.status,
            response.text()
        );
        let arrived = self.receiver.received();
        let request = arrived.get(before).context("the call has not arrived")?;
        ensure!(arrived.len() == before + 1, "{} calls for one", arrived.len() - before);
        let sent: Value = serde_json::from_slice(&request.body).context("the call's body")?;
        ensure!(sent == json!({"n": 7}), "the call's body is {sent}");
        let lines = request.head.lines().filter(|line| line.starts_with("traceparent: "));
        Ok(lines.map(str::to_owned).collect())
    }

    /// Until a call arrives with so many traceparents: how long that took.
    fn until(&self, path: &str, headers: usize) -> Result<Duration> {
        let start = Instant::now();
        while self.call(path)?.len() != headers {
            ensure!(
                start.elapsed() < patient(5 * WITHIN),
                "no call with {headers} traceparents"
            );
        }
        Ok(start.elapsed())
    }

    /// A first call, and time for the process to be known.
    fn warm(&self, agent: &Agent) -> Result<()> {
        self.call("/warm")?;
        let spans = agent.spans_when(|spans| !spans.is_empty())?;
        ensure!(
            !spans.is_empty(),
            "no span of the first call; the agent's log:\n{}",
            agent.log()
        );
        Ok(())
    }
}

fn rewriting(agent: &Agent) -> Result<Value> {
    Ok(agent.get_json("/api/status")?["rewriting"].clone())
}

#[test]
fn a_step_that_fails_leaves_the_request_as_it_was() {
    let mut cases = Cases::new("rewriting: steps that fail");
    // Where the place for the text cannot be taken away again, the text goes into it.
    for (step, headers) in [
        ("enrol", 0),
        ("push", 0),
        ("linearise", 0),
        ("write", 0),
        ("pop", 1),
        ("linearise_and_pop", 1),
        ("", 1),
    ] {
        cases.run(if step.is_empty() { "none" } else { step }, || {
            let scene = Scene::new("rewriting")?;
            let agent = Agent::start(&scene.setup().env("SPANWIRE_REWRITE_FAULT", step))?;
            scene.warm(&agent)?;
            for number in 0..5 {
                let found = scene.call(&format!("/{number}"))?;
                ensure!(found.len() == headers, "call {number}: {found:?}");
                ensure!(
                    found.iter().all(|line| line.len() == "traceparent: ".len() + 55),
                    "call {number}: {found:?}"
                );
            }
            let (mut failed, mut refused) = (0, 0);
            let start = Instant::now();
            while failed + refused < 5 && !step.is_empty() {
                ensure!(start.elapsed() < 5 * WITHIN, "{failed} failures, {refused} refused");
                sleep(WITHIN / 10);
                let metrics = agent.metrics()?;
                failed = metrics.sum("spanwire_injections_total", &[("result", "failed")]);
                refused = metrics.sum("spanwire_kernel_notes_total", &[("reason", "enrol_failed")]);
            }
            Ok(format!(
                "{headers} headers in each of 5 calls, {failed} failures counted, {refused} not enrolled"
            ))
        });
    }
    cases.finish();
}

#[test]
fn what_the_self_test_does_not_allow_is_not_done() {
    let mut cases = Cases::new("rewriting: narrowed");
    for (row, headers, reason) in [
        ("insertion", 0, "insertion"),
        ("removal", 0, "removal"),
        ("splice", 1, "splice"),
    ] {
        cases.run(row, || {
            let scene = Scene::new("rewriting")?;
            let agent = Agent::start(&scene.setup().env("SPANWIRE_SELFTEST_FAULTY", row))?;
            scene.warm(&agent)?;
            let found = scene.call("/one")?;
            ensure!(found.len() == headers, "{found:?}");
            let status = rewriting(&agent)?;
            ensure!(status["on"] == json!(headers == 1), "{status}");
            ensure!(status["reasons"].to_string().contains(reason), "{status}");
            Ok(format!("{headers} headers, and the reason named"))
        });
    }
    cases.finish();
}

#[test]
fn it_ends_when_it_is_told_to_and_by_itself() {
    let mut cases = Cases::new("rewriting: its end");
    let scene = Scene::new("rewriting").unwrap();
    let mut agent = Agent::start(&scene.setup()).unwrap();
    scene.warm(&agent).unwrap();
    cases.run("signals", || {
        ensure!(scene.call("/on")?.len() == 1, "no header before");
        agent.service().signal(Signal::USR1)?;
        let off = scene.until("/off", 0)?;
        ensure!(off < patient(WITHIN), "ended after {off:?}");
        ensure!(
            rewriting(&agent)?["on"] == json!(false) || off < patient(WITHIN),
            "status"
        );
        agent.service().signal(Signal::USR2)?;
        let on = scene.until("/again", 1)?;
        Ok(format!(
            "ended {off:?} after the signal, begun again {on:?} after the other"
        ))
    });
    drop(agent);
    cases.run("by itself", || {
        let agent = Agent::start(&scene.setup().env("SPANWIRE_REWRITE_FAULT", "push"))?;
        for number in 0..40 {
            ensure!(scene.call(&format!("/f{number}"))?.is_empty(), "a header");
        }
        let start = Instant::now();
        while rewriting(&agent)?["on"] != json!(false) {
            ensure!(
                start.elapsed() < patient(5 * WITHIN),
                "still on: {}",
                rewriting(&agent)?
            );
            sleep(WITHIN / 10);
        }
        let status = rewriting(&agent)?;
        ensure!(
            status["reasons"].to_string().contains("could not be rewritten"),
            "{status}"
        );
        Ok(format!("ended: {}", status["reasons"]))
    });
    cases.finish();
}

/// What came back: span ids by trace ids, and how many answers there were.
#[derive(Default)]
struct Returned {
    ids: BTreeMap<String, String>,
    answers: usize,
}

/// Asks many times, beside each other.
fn ids_returned(target: &Target, prefix: &str, requests: usize, concurrency: usize) -> Result<Returned> {
    let returned = Mutex::new(Returned::default());
    let failure = Mutex::new(None);
    std::thread::scope(|scope| {
        for client in 0..concurrency {
            let (returned, failure) = (&returned, &failure);
            scope.spawn(move || {
                let ask = || -> Result<()> {
                    let mut connection = Connection::open(target)?;
                    for number in 0..requests / concurrency {
                        let response = connection.get(&format!("/r/{prefix}c{client}n{number}"))?;
                        ensure!(response.status == 200, "status {}", response.status);
                        let mut returned = returned.lock().unwrap();
                        returned.answers += 1;
                        if let Some(value) = response.header("server-timing") {
                            let (trace, span) = ids_of(value).with_context(|| value.to_owned())?;
                            returned.ids.insert(trace, span);
                        }
                    }
                    Ok(())
                };
                if let Err(error) = ask() {
                    *failure.lock().unwrap() = Some(error);
                }
            });
        }
    });
    match failure.into_inner().unwrap() {
        Some(error) => Err(error),
        None => Ok(returned.into_inner().unwrap()),
    }
}

/// Trace and span id in a header's value.
fn ids_of(value: &str) -> Option<(String, String)> {
    let ids = value.strip_prefix("traceparent;desc=\"00-")?;
    let (trace, span) = (ids.get(..32)?, ids.get(33..49)?);
    Some((trace.to_owned(), span.to_owned()))
}

/// Requests at 128 connections, of an emulated machine as well, and the share of the answers that has to bear an id.
const REQUESTS: usize = 1_280;
const REQUESTS_SLOW: usize = 256;
const CONCURRENCY: usize = 128;
const SHARE: f64 = 0.95;

/// Every id that came back has to resolve to a whole tree: one chain of spans of these kinds, all of one request, of which one,
/// if it is known which, wrote the id.
fn check_ids(agent: &Agent, returned: &Returned, kinds: &[Kind], writer: Option<usize>) -> Result<String> {
    let Returned { ids, answers } = returned;
    ensure!(
        ids.len() as f64 >= SHARE * *answers as f64,
        "{} ids in {answers} answers",
        ids.len()
    );
    agent.drained()?;
    sleep(patient(WITHIN));
    for (trace, span) in ids {
        let spans = agent.trace(trace)?;
        check_chain(&spans, kinds, (writer, span)).with_context(|| format!("{trace}-{span}: {spans:#?}"))?;
    }
    let place = writer.map(|writer| format!(", written by number {writer} from the root"));
    Ok(format!(
        "{} ids in {answers} answers, each resolves to its tree of {} spans{}",
        ids.len(),
        kinds.len(),
        place.unwrap_or_default()
    ))
}

/// The spans are a chain of these kinds, from the root down, their URLs name one request, and the one of `writer`, if
/// that is known, is that of the id.
fn check_chain(spans: &[Span], kinds: &[Kind], (writer, written): (Option<usize>, &str)) -> Result<()> {
    ensure!(spans.len() == kinds.len(), "{} spans", spans.len());
    let mut parent = None;
    let mut requests = BTreeSet::new();
    for (depth, kind) in kinds.iter().enumerate() {
        let mut children = spans.iter().filter(|span| span.parent_span_id == parent);
        let span = children.next().context("the chain ends")?;
        ensure!(children.next().is_none(), "two children of {parent:?}");
        ensure!(span.kind == *kind, "{:?} where {kind:?} is due", span.kind);
        ensure!(
            writer.is_none_or(|writer| (span.span_id == written) == (depth == writer)),
            "the span that the response named is not number {writer:?} from the root"
        );
        // `/r/{id}`, or `/o/{id}/{hop}`.
        let path = span.path().or_else(|| span.attribute("url.full")).context("no URL")?;
        let (_, tail) = path
            .split_once("/r/")
            .or_else(|| path.split_once("/o/"))
            .context(path.clone())?;
        requests.insert(tail.split('/').next().unwrap_or_default().to_owned());
        parent = Some(span.span_id.clone());
    }
    ensure!(requests.len() == 1, "of requests {requests:?}");
    Ok(())
}

/// Whether FIONREAD counts what an enrolled socket holds, on the kernels on which that was measured (docs/kernels.md).
fn fionread_is_right(release: &str) -> Option<bool> {
    let version = release.split('-').next()?.split('+').next()?;
    let numbers: Vec<u32> = version.split('.').map_while(|number| number.parse().ok()).collect();
    match numbers[..] {
        [5, 10, ..] | [6, 1, ..] | [7, 2, ..] => Some(true),
        [6, 12, patch, ..] if patch <= 107 => Some(false),
        [6, 12, patch, ..] if patch >= 114 => Some(true),
        [6, 18, 44] => Some(false),
        _ => None,
    }
}

/// Whether the agent lets nginx return ids itself. nginx asks FIONREAD, so that is where FIONREAD is right and nowhere else.
fn nginx_returns(agent: &Agent, nginx: &App) -> Result<bool> {
    let permits = agent.permits(&nginx.service)?;
    ensure!(!permits.is_empty(), "the agent knows no process of nginx");
    let returns = permits.iter().all(|permit| permit.responses == "yes");
    let because_of_fionread = |permit: &Permit| permit.responses.contains("fionread is faulty");
    ensure!(returns || permits.iter().all(because_of_fionread), "{permits:?}");
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    if let Some(is_right) = fionread_is_right(release.trim()) {
        ensure!(returns == is_right, "on {}: {permits:?}", release.trim());
    }
    Ok(returns)
}

/// Who returns the id of a request that passes a proxy.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Front {
    /// There is none.
    None,
    /// nginx; where it may not, its upstream does.
    Nginx,
    /// HAProxy: the line of its upstream, or its own.
    Haproxy,
}

#[test]
fn an_id_that_comes_back_through_a_proxy_resolves() {
    let mut cases = Cases::new("rewriting: ids that come back");
    let place = Place::new("returned").unwrap();
    let aiohttp = python::aiohttp("aiohttp", &place, &Calls::none()).unwrap();
    let node = node::node("node", &place, &Calls::none()).unwrap();
    let before_aiohttp = Site::new()
        .proxying("a", &[&aiohttp.target])
        .start("nginx-a", &place)
        .unwrap();
    let before_node = haproxy::runs_here()
        .unwrap()
        .then(|| haproxy::haproxy("haproxy-n", &place, "n", &node.target).unwrap());
    let alone = Site::new().returning().start("nginx", &place).unwrap();
    let apps = [&aiohttp, &node, &before_aiohttp, &alone];
    let services: Vec<_> = apps.into_iter().chain(&before_node).map(|app| &app.service).collect();
    let agent = Agent::start(&Setup::of_services(&services)).unwrap();
    let everywhere = [
        ("aiohttp", &aiohttp, Front::None),
        ("Node", &node, Front::None),
        ("nginx before aiohttp", &before_aiohttp, Front::Nginx),
    ];
    let haproxy = before_node
        .as_ref()
        .map(|app| ("HAProxy before Node", app, Front::Haproxy));
    for (name, app, front) in everywhere.into_iter().chain(haproxy) {
        cases.run(name, || {
            // Whether a process's sockets block shows when it reads its first request.
            ids_returned(&app.target, "w", 1, 1)?;
            sleep(patient(WITHIN));
            let returned = ids_returned(
                &app.target,
                name.get(..1).unwrap_or("x"),
                if is_slow() { REQUESTS_SLOW } else { REQUESTS },
                CONCURRENCY,
            )?;
            let chain = [Kind::Server, Kind::Client, Kind::Server];
            let kinds = if front == Front::None { &chain[..1] } else { &chain[..] };
            let writer = match front {
                Front::None => Some(0),
                Front::Nginx if nginx_returns(&agent, app)? => Some(0),
                Front::Nginx => Some(2),
                Front::Haproxy => None,
            };
            check_ids(&agent, &returned, kinds, writer)
        });
    }
    cases.run("nginx alone", || {
        ids_returned(&alone.target, "w", 1, 1)?;
        sleep(patient(WITHIN));
        let returned = ids_returned(
            &alone.target,
            "s",
            if is_slow() { REQUESTS_SLOW } else { REQUESTS },
            CONCURRENCY,
        )?;
        if nginx_returns(&agent, &alone)? {
            return check_ids(&agent, &returned, &[Kind::Server], Some(0));
        }
        ensure!(
            returned.ids.is_empty(),
            "{} ids came back all the same",
            returned.ids.len()
        );
        let permits = agent.permits(&alone.service)?;
        Ok(format!("no id in {} answers: {permits:?}", returned.answers))
    });
    cases.finish();
}

/// Requests over one connection that was made before the agent started, and the share of them that has to bear a header: the
/// first ones show where a request begins, and what process it is.
const KEPT: usize = 40;
const KEPT_SHARE: f64 = 0.8;

/// A service of an event loop that has called before, and calls again on the same connection.
fn older_connection(name: &str, start: impl Fn(&Place, &Calls) -> Result<App>) -> Result<String> {
    let place = Place::new("older")?;
    let receiver = Receiver::start(Manner::Accept)?;
    let app = start(&place, &Calls::none().to_url("r", receiver.url()))?;
    let ask = |request: String| -> Result<()> {
        let response = Connection::open(&app.target)?.get(&format!("/r/{request}"))?;
        ensure!(response.status == 200, "{name}: status {}", response.status);
        ensure!(response.text().contains(&request), "{name}: {}", response.text());
        Ok(())
    };
    for number in 0..3 {
        ask(format!("before{number}"))?;
    }
    let agent = Agent::start(&Setup::of_services(&[&app.service]))?;
    ask("first".into())?;
    sleep(WITHIN);
    for number in 0..KEPT {
        ask(format!("after{number}"))?;
    }
    let received = receiver.received();
    let ports: BTreeSet<u16> = received.iter().map(|request| request.port).collect();
    ensure!(ports.len() == 1, "{} connections", ports.len());
    let after = received.iter().filter(|request| request.path.contains("after"));
    let lines = |request: &spanwire_tests::receiver::Received| {
        let mut found: Vec<String> = Vec::new();
        found.extend(
            request
                .head
                .lines()
                .filter(|line| line.starts_with("traceparent: "))
                .map(str::to_owned),
        );
        found
    };
    let headers: Vec<Vec<String>> = after.map(lines).collect();
    ensure!(headers.len() == KEPT, "{} of {KEPT} requests arrived", headers.len());
    ensure!(headers.iter().all(|lines| lines.len() <= 1), "twice: {headers:#?}");
    let ids: BTreeSet<&str> = headers.iter().flatten().filter_map(|line| line.get(16..48)).collect();
    ensure!(
        ids.len() as f64 >= KEPT_SHARE * KEPT as f64,
        "{} of {KEPT} requests bear a header of their own; {:?}",
        ids.len(),
        agent
            .metrics()?
            .nonzero(&["spanwire_kernel_notes_total", "spanwire_injections_total"])
    );
    agent.drained()?;
    for id in &ids {
        ensure!(!agent.trace(id)?.is_empty(), "{id} is no trace");
    }
    Ok(format!(
        "{} of {KEPT} requests on a connection that is older than the agent",
        ids.len()
    ))
}

#[test]
fn a_connection_that_is_older_than_the_agent_is_joined() {
    let mut cases = Cases::new("rewriting: older connections");
    cases.run("Node", || {
        older_connection("Node", |place, calls| node::node("node", place, calls))
    });
    cases.run("aiohttp", || {
        older_connection("aiohttp", |place, calls| python::aiohttp("aiohttp", place, calls))
    });
    cases.finish();
}
