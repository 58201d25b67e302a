//! Requests that are put off. nginx does it by a limit on the rate, a lock on the cache, for requests that came at once on
//! one connection, for an upstream whose connect takes its time: what the worker sends then is not for the request it has
//! read last. A thread does it with the second of two requests that it has read at once.
#![allow(clippy::unwrap_used, reason = "test")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{ensure, Result};
use spanwire_tests::agent::{Agent, Setup};
use spanwire_tests::apps::nginx::Site;
use spanwire_tests::apps::{php_fpm, python, ruby, App, Calls};
use spanwire_tests::cases::{say, Cases};
use spanwire_tests::judge::{exchange_of, judge, Hop, Promise, Topology};
use spanwire_tests::load::Load;
use spanwire_tests::place::Place;
use spanwire_tests::spans::{Kind, Span};

const REQUESTS: usize = 320;
const CONCURRENCY: usize = 32;
/// Pairs of requests that go out in one send.
const PAIRS: usize = 24;
/// Requests one after the other, when nothing waits any more.
const AFTERWARDS: usize = 16;

/// nginx in front of one service; its calls must be right or unknown.
struct Front {
    name: &'static str,
    app: App,
    ids: Vec<String>,
    ids_afterwards: Vec<String>,
}

impl Front {
    fn new(name: &'static str, site: &Site, place: &Place) -> Result<Self> {
        Ok(Self::of(name, site.start(name, place)?))
    }

    fn of(name: &'static str, app: App) -> Self {
        Self {
            name,
            app,
            ids: Vec::new(),
            ids_afterwards: Vec::new(),
        }
    }

    fn load(&mut self) -> Result<String> {
        let load = Load {
            target: &self.app.target,
            prefix: self.name,
            requests: REQUESTS,
            concurrency: CONCURRENCY,
            keep_alive: true,
        };
        self.ids = load.run().all()?;
        Ok(format!("{} requests", self.ids.len()))
    }

    fn load_afterwards(&mut self) -> Result<()> {
        let load = Load {
            target: &self.app.target,
            prefix: &format!("{}later", self.name),
            requests: AFTERWARDS,
            concurrency: 1,
            keep_alive: true,
        };
        self.ids_afterwards = load.run().all()?;
        Ok(())
    }

    /// Two requests in one send, on a connection of their own.
    fn load_pairs(&mut self) -> Result<String> {
        let port = self.app.target.port()?;
        for pair in 0..PAIRS {
            let ids = [0, 1].map(|n| format!("{}n{}", self.name, 2 * pair + n));
            let mut stream = TcpStream::connect(("127.0.0.1", port))?;
            let [first, second] = &ids;
            write!(
                stream,
                "GET /r/{first} HTTP/1.1\r\nHost: a\r\n\r\nGET /r/{second} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
            )?;
            let mut answers = String::new();
            stream.read_to_string(&mut answers)?;
            ensure!(
                ids.iter().all(|id| answers.contains(id.as_str())),
                "answers to {ids:?}: {answers:?}"
            );
            self.ids.extend(ids);
        }
        Ok(format!("{PAIRS} pairs"))
    }
}

fn proxied(promise: Promise) -> Topology {
    Topology(vec![Hop::ingress("r"), Hop::call("a", "r", promise)])
}

/// A thread that has read two requests at once serves the first of them first.
fn by_thread() -> Topology {
    Topology(vec![Hop::ingress("r"), Hop::call("b", "r", Promise::NeverWrong)])
}

/// Each request made one FastCGI call, which is a turn without a name: none may be under another's span.
fn turns(front: &Front, spans: &[Span]) -> Result<String> {
    let mut under: BTreeMap<&str, Vec<&Span>> = BTreeMap::new();
    for span in spans
        .iter()
        .filter(|span| span.kind == Kind::Client && span.path().is_none())
    {
        if let Some(parent) = &span.parent_span_id {
            under.entry(parent).or_default().push(span);
        }
    }
    let mut counts = [0; 2];
    for id in &front.ids {
        let own = |span: &&Span| {
            let path = span.path().unwrap_or_default();
            span.kind == Kind::Server && exchange_of(&path) == Some((id.as_str(), "r"))
        };
        let servers: Vec<_> = spans.iter().filter(own).collect();
        ensure!(servers.len() == 1, "{id}: {} server spans", servers.len());
        let server = servers[0];
        let turns = under.get(server.span_id.as_str()).map_or(&[][..], Vec::as_slice);
        ensure!(turns.len() <= 1, "{id}: {} turns under one request", turns.len());
        for turn in turns {
            ensure!(
                turn.start_ns >= server.start_ns && turn.end_ns <= server.end_ns,
                "{id}: its turn lies outside of it: {}..{} in {}..{}",
                turn.start_ns,
                turn.end_ns,
                server.start_ns,
                server.end_ns
            );
        }
        counts[turns.len()] += 1;
    }
    ensure!(
        counts[1] * 10 >= front.ids.len() * 9,
        "{} of {} requests have their turn",
        counts[1],
        front.ids.len()
    );
    Ok(format!("{} requests with their turn, {} without", counts[1], counts[0]))
}

#[test]
fn what_is_put_off_is_never_anothers() {
    let place = Place::new("deferred").unwrap();
    let leaf = python::flask("leaf", &place, &Calls::none()).unwrap();
    let one_call = Calls::none().to("b", &leaf).unwrap();
    let fpm = php_fpm::tcp("fpm", &place, &one_call).unwrap();
    let fpm_unix = php_fpm::unix("fpmunix", &place, &one_call).unwrap();
    let script = php_fpm::script(&place, "script").unwrap();
    let proxy = || Site::new().proxying("a", &[&leaf.target]);
    let cache = place.join("cache");
    let mut fronts = [
        Front::new("plain", &proxy(), &place).unwrap(),
        Front::new(
            "limited",
            &proxy()
                .http("limit_req_zone $server_port zone=rate:1m rate=400r/s;")
                .location("limit_req zone=rate burst=1000;"),
            &place,
        )
        .unwrap(),
        Front::new(
            "locked",
            &proxy()
                .http(&format!("proxy_cache_path {} keys_zone=kept:1m;", cache.display()))
                .location(
                    "proxy_cache kept; proxy_cache_key one; proxy_no_cache 1; proxy_cache_lock on; \
                     proxy_cache_lock_timeout 100ms;",
                ),
            &place,
        )
        .unwrap(),
        Front::new(
            "asked",
            &proxy()
                .location("auth_request /allowed;")
                .location("location = /allowed { internal; proxy_pass http://a/o/allowed/x; }"),
            &place,
        )
        .unwrap(),
    ];
    let mut pipelined = Front::new("pipelined", &proxy(), &place).unwrap();
    let mut thread = Front::of("thread", ruby::webrick("webrick", &place, &one_call).unwrap());
    let mut fastcgi = [("fastcgi", &fpm), ("fastcgiunix", &fpm_unix)]
        .map(|(name, fpm)| Front::new(name, &Site::new().fastcgi(&script, &fpm.target), &place).unwrap());

    let mut services = vec![&leaf.service, &fpm.service, &fpm_unix.service, &pipelined.app.service];
    services.push(&thread.app.service);
    services.extend(fronts.iter().chain(&fastcgi).map(|front| &front.app.service));
    let agent = Agent::start(&Setup::of_services(&services)).unwrap();

    let mut cases = Cases::new("deferred");
    for front in fronts.iter_mut().chain(&mut fastcgi) {
        cases.run(&format!("{} answers", front.name), || front.load());
    }
    cases.run("pipelined answers", || pipelined.load_pairs());
    cases.run("a thread with two requests answers", || thread.load_pairs());
    cases.run("all answer one request after the other", || {
        for front in fronts.iter_mut().chain([&mut pipelined]) {
            front.load_afterwards()?;
        }
        Ok(format!("{AFTERWARDS} requests each"))
    });

    let requests = REQUESTS * fronts.len() + 4 * PAIRS + AFTERWARDS * (fronts.len() + 1);
    let spans = agent
        .spans_when(|spans| spans.len() >= requests * 3 + REQUESTS * 8)
        .unwrap();
    for front in fronts.iter().chain([&pipelined]) {
        let promise = match front.name {
            "plain" => Promise::Exact,
            _ => Promise::NeverWrong,
        };
        cases.run(&format!("{}: right or unknown", front.name), || {
            let verdict = judge(&proxied(promise), &front.ids, &spans);
            say(&verdict.to_string());
            verdict.check()
        });
        cases.run(&format!("{}: right when nothing waits", front.name), || {
            judge(&proxied(Promise::Exact), &front.ids_afterwards, &spans).check()
        });
    }
    cases.run("a thread with two requests: right or unknown", || {
        judge(&by_thread(), &thread.ids, &spans).check()
    });
    for front in &fastcgi {
        cases.run(&format!("{}: a turn is its own request's", front.name), || {
            turns(front, &spans)
        });
    }
    cases.finish();
}
