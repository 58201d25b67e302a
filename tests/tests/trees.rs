//! Whole traces of real services, every parent edge held against ground truth, at concurrency 1, 16 and 128.
//!
//! One agent watches all services at once. A right tree has every edge exact; services whose runtime is recognised and
//! not guessed (asyncio, Node, thread pools) may leave theirs unknown; nobody's may be wrong.
#![allow(clippy::unwrap_used, reason = "test")]

use std::process::Command;

use anyhow::{bail, Result};
use serde_json::json;
use spanwire_tests::agent::{Agent, Setup};
use spanwire_tests::apps::nginx::Site;
use spanwire_tests::apps::python::{self, Workers};
use spanwire_tests::apps::{apache, haproxy, node, php_fpm, ruby, App, Calls};
use spanwire_tests::cases::{say, Cases};
use spanwire_tests::judge::{exchange_of, judge, Hop, Promise, Topology};
use spanwire_tests::load::Load;
use spanwire_tests::place::{program, Place};
use spanwire_tests::spans::Span;

/// (concurrency, requests); the ordinary run stays short, and every worker still sees many requests.
const ROUNDS: [(usize, usize); 3] = [(1, 40), (16, 160), (128, 400)];
/// A process per request costs 20 ms here.
const CGI_ROUNDS: [(usize, usize); 3] = [(1, 16), (16, 48), (128, 128)];

/// A front and what one request through it causes.
struct Subject {
    name: &'static str,
    app: App,
    topology: Topology,
    rounds: [(usize, usize); 3],
    /// Ids that were answered, by concurrency.
    answered: Vec<(usize, Vec<String>)>,
}

impl Subject {
    fn new(name: &'static str, app: App, hops: Vec<Hop>) -> Self {
        Self {
            name,
            app,
            topology: Topology(hops),
            rounds: ROUNDS,
            answered: Vec::new(),
        }
    }

    fn load(&mut self) -> Result<()> {
        for (concurrency, requests) in self.rounds {
            let prefix = format!("{}c{concurrency}", self.name);
            let load = Load {
                target: &self.app.target,
                prefix: &prefix,
                requests,
                concurrency,
                keep_alive: true,
            };
            self.answered.push((concurrency, load.run().all()?));
        }
        Ok(())
    }
}

/// Hops `b` and `c` of one caller.
fn two_calls(cause: &'static str, promise: Promise) -> [Hop; 2] {
    [Hop::call("b", cause, promise), Hop::call("c", cause, promise)]
}

fn ingress_and(hops: impl IntoIterator<Item = Hop>) -> Vec<Hop> {
    let mut all = vec![Hop::ingress("r")];
    all.extend(hops);
    all
}

/// nginx in front: ingress, the proxied request, and the calls of the service behind.
fn behind_nginx() -> Vec<Hop> {
    let mut hops = vec![Hop::ingress("r"), Hop::call("a", "r", Promise::Exact)];
    hops.extend(two_calls("a", Promise::Exact));
    hops
}

#[test]
fn parents_are_right_or_unknown() {
    let place = Place::new("trees").unwrap();
    let leaf = python::flask("leaf", &place, &Calls::none()).unwrap();
    let js = node::node("js", &place, &Calls::none()).unwrap();
    let calls = Calls::none().to("b", &leaf).unwrap().to("c", &js).unwrap();
    let one_call = Calls::none().to("b", &leaf).unwrap();

    let sync = python::gunicorn("sync", &place, Workers::Sync(4), &calls).unwrap();
    let gthread = python::gunicorn("gthread", &place, Workers::Threads(16), &calls).unwrap();
    let unix = python::gunicorn_unix("unix", &place, Workers::Sync(4), &calls).unwrap();
    let fpm_tcp = php_fpm::tcp("fpmtcp", &place, &one_call).unwrap();
    let fpm_unix = php_fpm::unix("fpmunix", &place, &one_call).unwrap();
    let script = php_fpm::script(&place, "script").unwrap();
    let proxy = |name: &str, upstream: &App| {
        Site::new()
            .proxying("a", &[&upstream.target])
            .start(name, &place)
            .unwrap()
    };
    let fastcgi = |name: &str, upstream: &App| {
        Site::new()
            .fastcgi(&script, &upstream.target)
            .start(name, &place)
            .unwrap()
    };

    let exact = || ingress_and(two_calls("r", Promise::Exact));
    let careful = || ingress_and(two_calls("r", Promise::NeverWrong));
    let opaque = || ingress_and([Hop::call("b", "r", Promise::Opaque)]);
    let mut subjects = vec![
        Subject::new("sync", proxy("nginxsync", &sync), behind_nginx()),
        Subject::new("gthread", proxy("nginxgthread", &gthread), behind_nginx()),
        Subject::new("unix", proxy("nginxunix", &unix), behind_nginx()),
        Subject::new("flask", python::flask("flask", &place, &calls).unwrap(), exact()),
        Subject::new("modphp", apache::mod_php("modphp", &place, &calls).unwrap(), exact()),
        Subject::new("webrick", ruby::webrick("webrick", &place, &calls).unwrap(), exact()),
        Subject::new("puma", ruby::puma("puma", &place, &calls).unwrap(), careful()),
        Subject::new("fpmtcp", fastcgi("nginxfpmtcp", &fpm_tcp), opaque()),
        Subject::new("fpmunix", fastcgi("nginxfpmunix", &fpm_unix), opaque()),
        Subject::new(
            "asyncio",
            python::aiohttp("asyncio", &place, &calls).unwrap(),
            careful(),
        ),
        Subject::new("node", node::node("node", &place, &calls).unwrap(), careful()),
        Subject::new(
            "haproxy",
            haproxy::haproxy("haproxy", &place, "b", &leaf.target).unwrap(),
            ingress_and([Hop::call("b", "r", Promise::NeverWrong)]),
        ),
    ];
    for (name, script, hops) in [("cgi", "cgi.py", exact()), ("cgishell", "cgi.sh", exact())] {
        let mut subject = Subject::new(name, apache::cgi(name, &place, &calls, script).unwrap(), hops);
        subject.rounds = CGI_ROUNDS;
        subjects.push(subject);
    }

    if let Ok(only) = std::env::var("TREES_ONLY") {
        subjects.retain(|s| only.split(',').any(|o| o == s.name));
    }
    let mut services = vec![&leaf, &js, &sync, &gthread, &unix, &fpm_tcp, &fpm_unix];
    services.extend(subjects.iter().map(|subject| &subject.app));
    let services: Vec<_> = services.iter().map(|app| &app.service).collect();
    let front_port = subjects[0].app.target.port().unwrap();
    let setup = Setup::of_services(&services).include(json!({"exe": "*/curl", "port": front_port}));
    let agent = Agent::start(&setup).unwrap();

    let mut cases = Cases::new("trees");
    for subject in &mut subjects {
        cases.run(&format!("{} answers under load", subject.name), || {
            subject.load()?;
            Ok(format!(
                "{} requests",
                subject.answered.iter().map(|(_, ids)| ids.len()).sum::<usize>()
            ))
        });
    }
    let mut curled = Vec::new();
    cases.run("curl gets answers", || {
        curled = curl(&subjects[0].app, 16)?;
        Ok(format!("{} runs of curl", curled.len()))
    });

    let mut spans = Vec::new();
    cases.run("spans are read back", || {
        let expected: usize = subjects.iter().map(expected_spans).sum();
        spans = agent.spans_when(|spans| spans.len() >= expected)?;
        let dropped = agent.metrics()?.sum("spanwire_dropped_total", &[]);
        Ok(format!("{} spans, {dropped} dropped", spans.len()))
    });
    for subject in &subjects {
        for (concurrency, ids) in &subject.answered {
            cases.run(&format!("{} at {concurrency}", subject.name), || {
                let verdict = judge(&subject.topology, ids, &spans);
                say(&verdict.to_string());
                verdict.check()
            });
        }
    }
    cases.run("curl is the root", || {
        let mut topology = Topology(behind_nginx());
        topology.0[0] = Hop {
            client: Some(Promise::Exact),
            ..Hop::ingress("r")
        };
        judge(&topology, &curled, &spans).check()
    });
    cases.run("runtimes that are not guessed say so", || reasons(&subjects, &spans));
    cases.run("a trace is whole by its id", || {
        whole_by_id(&agent, &subjects[0], &spans)
    });
    cases.finish();
}

fn expected_spans(subject: &Subject) -> usize {
    let hops = &subject.topology.0;
    let per_request: usize = hops
        .iter()
        .map(|hop| usize::from(hop.client.is_some()) + usize::from(hop.server))
        .sum();
    per_request * subject.answered.iter().map(|(_, ids)| ids.len()).sum::<usize>()
}

fn curl(front: &App, runs: usize) -> Result<Vec<String>> {
    let curl = program("curl")?;
    let mut ids = Vec::new();
    for n in 0..runs {
        let id = format!("curl{n}");
        let output = Command::new(&curl)
            .arg("-sf")
            .arg(format!("{}/r/{id}", front.target.url()?))
            .output()?;
        if !output.status.success() {
            bail!("curl: {}", output.status);
        }
        ids.push(id);
    }
    Ok(ids)
}

/// asyncio and Node serve many requests on one thread: every call of theirs is unknown, because of the runtime.
fn reasons(subjects: &[Subject], spans: &[Span]) -> Result<String> {
    let mut evidence = Vec::new();
    for name in ["asyncio", "node"] {
        let subject = subjects.iter().find(|subject| subject.name == name);
        let ids: Vec<_> = subject
            .iter()
            .flat_map(|subject| &subject.answered)
            .flat_map(|(_, ids)| ids)
            .collect();
        let unknown = spans.iter().filter(|span| {
            let path = span.path().unwrap_or_default();
            span.service() == name
                && span.parent_source() == "unknown"
                && exchange_of(&path).is_some_and(|(id, _)| ids.iter().any(|own| *own == id))
        });
        let reasons: Vec<_> = unknown
            .filter_map(|span| span.attribute("spanwire.parent.reason"))
            .collect();
        if reasons.is_empty() || reasons.iter().any(|reason| reason != "runtime") {
            bail!(
                "{name}: {} unknown parents, reasons {:?}",
                reasons.len(),
                reasons.iter().find(|reason| *reason != "runtime")
            );
        }
        evidence.push(format!("{name}: {} unknown (runtime)", reasons.len()));
    }
    Ok(evidence.join(", "))
}

/// `GET /api/traces/{id}` for some of the traces: one root, every service, nobody else's spans.
fn whole_by_id(agent: &Agent, subject: &Subject, spans: &[Span]) -> Result<String> {
    let ids: Vec<_> = subject
        .answered
        .iter()
        .flat_map(|(_, ids)| ids.iter().step_by(50))
        .cloned()
        .collect();
    for id in &ids {
        let root = spans
            .iter()
            .find(|span| span.path().as_deref() == Some(&format!("/r/{id}")));
        let Some(root) = root else { bail!("no span of /r/{id}") };
        let trace = agent.trace(&root.trace_id)?;
        let verdict = judge(&subject.topology, std::slice::from_ref(id), &trace);
        verdict.check()?;
        let own = |span: &Span| {
            span.path()
                .is_some_and(|path| exchange_of(&path).is_some_and(|(own, _)| own == id))
        };
        if !trace.iter().all(own) {
            bail!("trace {} has spans that are not of request {id}", root.trace_id);
        }
        let mut services: Vec<_> = trace.iter().map(Span::service).collect();
        services.sort();
        services.dedup();
        if services.len() != 4 {
            bail!(
                "trace {} names services {services:?}, expected nginx, sync, leaf and js",
                root.trace_id
            );
        }
    }
    Ok(format!(
        "{} traces read back by id, each with 4 services and one root",
        ids.len()
    ))
}
