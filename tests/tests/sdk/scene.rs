//! Services, some with an SDK, the requests that go through them, and what is told of those.

use std::collections::{BTreeMap, BTreeSet};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use serde_json::json;
use spanwire_tests::agent::{Agent, Setup};
use spanwire_tests::apps::python::{self, Workers};
use spanwire_tests::apps::{App, Calls};
use spanwire_tests::cases::Cases;
use spanwire_tests::http::Connection;
use spanwire_tests::judge::exchange_of;
use spanwire_tests::load::Load;
use spanwire_tests::metrics::Metrics;
use spanwire_tests::place::Place;
use spanwire_tests::receiver::{Manner, Receiver};
use spanwire_tests::service::Target;
use spanwire_tests::spans::{Kind, Span};

use crate::tree::{key_of, request_of, Hop, Maker, Mode, Service, Tree};

/// How often the SDKs export, and how long their spans may take on a busy machine.
const EXPORT_MS: &str = "200";
const EXPORT_LIMIT: Duration = Duration::from_secs(10);
/// As many as the load has connections. None outlives an agent: connections that are older than it bear no header.
const WORKERS: Workers = Workers::Brief(16);
/// (concurrency, requests); and how many with a context of the client's.
const ROUNDS: [(usize, usize); 2] = [(1, 4), (16, 48)];
const GIVEN: usize = 4;
/// The parent in a client's own context.
const GIVEN_PARENT: &str = "00f067aa0ba902b7";

/// Where services are started, and what they call and tell.
pub(crate) struct Scene {
    pub(crate) place: Place,
    /// Takes the SDKs' spans.
    pub(crate) sdks: Receiver,
    /// Is called, and keeps what arrives.
    pub(crate) wire: Receiver,
}

impl Scene {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            place: Place::new("sdk")?,
            sdks: Receiver::start(Manner::Accept)?,
            wire: Receiver::start(Manner::Once)?,
        })
    }

    /// Flask that nobody instrumented.
    pub(crate) fn plain(&self, service: Service, calls: &Calls) -> Result<App> {
        python::gunicorn(service.0, &self.place, WORKERS, calls)
    }

    /// Flask with an SDK, settings of its own, and calls of which the SDK does not know.
    pub(crate) fn with_sdk(
        &self,
        service: Service,
        calls: &Calls,
        plain: &Calls,
        settings: &[(&str, &str)],
    ) -> Result<App> {
        let endpoint = self.sdks.url();
        let mut all = vec![
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
            ("OTEL_BSP_SCHEDULE_DELAY", EXPORT_MS),
            ("OTEL_METRIC_EXPORT_INTERVAL", EXPORT_MS),
            ("OTEL_SEMCONV_STABILITY_OPT_IN", "http"),
        ];
        all.extend(settings);
        python::gunicorn_sdk(service.0, &self.place, WORKERS, calls, plain, &all)
    }

    /// Waits until an SDK has sent something to `path` from now on.
    pub(crate) fn wait_for_export(&self, path: &str) -> Result<()> {
        let count = || {
            self.sdks
                .received()
                .iter()
                .filter(|request| request.path == path)
                .count()
        };
        let (before, start) = (count(), Instant::now());
        while count() == before {
            ensure!(start.elapsed() < EXPORT_LIMIT, "nothing was sent to {path}");
            sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

/// Where requests enter, and what each of them causes.
pub(crate) struct Way<'a> {
    pub(crate) name: &'static str,
    /// In every id.
    pub(crate) prefix: &'static str,
    pub(crate) entry: &'a Target,
    pub(crate) hops: Vec<Hop>,
    /// The flags of the context that the client sends, if it sends one.
    pub(crate) given: Option<&'static str>,
    /// What arrives is sampled.
    pub(crate) sampled: bool,
    /// The hops that arrive at [`Scene::wire`], and whose client span the header there names; `None`: one of which nobody tells.
    pub(crate) arrives: Vec<(&'static str, Option<Maker>)>,
}

/// Requests that were sent.
struct Round<'a> {
    way: &'a Way<'a>,
    name: String,
    ids: Vec<String>,
}

/// An agent, and who takes its spans.
pub(crate) struct Watched {
    pub(crate) agent: Agent,
    pub(crate) told: Receiver,
    pub(crate) mode: Mode,
}

impl Watched {
    pub(crate) fn start(apps: &[&App], mode: Mode) -> Result<Self> {
        let told = Receiver::start(Manner::Accept)?;
        let services: Vec<_> = apps.iter().map(|app| &app.service).collect();
        let mut setup = Setup::of_services(&services).export(json!({
            "name": "told",
            "protocol": "otlp_http",
            "endpoint": told.url(),
        }));
        if let Some(value) = match mode {
            Mode::Keep => Some("keep"),
            Mode::Skip => Some("skip"),
            Mode::Auto => None,
        } {
            setup = setup.with("capture", "sdk", json!(value));
        }
        let agent = Agent::start(&setup)?;
        Ok(Self { agent, told, mode })
    }

    /// First requests, until the processes are known and the SDKs were seen at work.
    fn warm<'a>(&self, scene: &Scene, ways: &'a [Way<'a>]) -> Result<Vec<Round<'a>>> {
        let mut rounds = Vec::new();
        for way in ways {
            let prefix = format!("{:?}{}warm", self.mode, way.prefix);
            rounds.push(Round {
                way,
                name: String::new(),
                ids: send(way, &prefix, 2, 1)?,
            });
        }
        self.of_sdks(scene, &rounds)?;
        ensure!(self.told.wait_for_spans(1, EXPORT_LIMIT)? > 0, "{}", self.agent.log());
        Ok(rounds)
    }

    /// Sends all requests, and holds everything that is told of them against what must be.
    pub(crate) fn judge(&self, cases: &mut Cases, scene: &Scene, ways: &[Way<'_>]) -> Result<()> {
        let mut rounds = self.warm(scene, ways)?;
        let warm = rounds.len();
        for way in ways {
            let given = [(1, GIVEN)];
            for (concurrency, requests) in if way.given.is_some() { &given[..] } else { &ROUNDS } {
                let prefix = format!("{:?}{}c{concurrency}", self.mode, way.prefix);
                rounds.push(Round {
                    way,
                    name: format!("{:?}: {}, c = {concurrency}", self.mode, way.name),
                    ids: send(way, &prefix, *requests, *concurrency)?,
                });
            }
        }
        let (spans, after) = self.collect(scene, &rounds)?;
        for round in &rounds[warm..] {
            cases.run(&round.name, || self.judge_round(scene, round, &spans));
        }
        cases.run(&format!("{:?}: counted", self.mode), || {
            Self::counted(&after, &rounds, &spans)
        });
        Ok(())
    }

    fn judge_round(&self, scene: &Scene, round: &Round<'_>, spans: &BTreeMap<String, Vec<Span>>) -> Result<String> {
        let tree = Tree::of(&round.way.hops, self.mode);
        let heads = heads(scene, round)?;
        let mut faults = Vec::new();
        for id in &round.ids {
            let own: Vec<&Span> = spans.get(id).into_iter().flatten().collect();
            let arrived = &heads[id];
            let mut untold: BTreeMap<&str, String> = arrived.iter().map(|(hop, head)| (*hop, head.1.clone())).collect();
            untold.insert("r", GIVEN_PARENT.to_owned());
            faults.extend(tree.faults(id, &own, &untold));
            faults.extend(self.wire_faults(round.way, id, &own, arrived)?);
        }
        let shown: Vec<_> = faults.iter().take(12).cloned().collect();
        ensure!(faults.is_empty(), "{} faults:\n  {}", faults.len(), shown.join("\n  "));
        Ok(format!(
            "{} requests, each one trace of {} spans of ours and {} of the SDKs'",
            round.ids.len(),
            tree.count(Maker::Agent),
            tree.count(Maker::Sdk)
        ))
    }

    /// What was left out is counted, and nothing else was.
    fn counted(after: &Metrics, rounds: &[Round<'_>], spans: &BTreeMap<String, Vec<Span>>) -> Result<String> {
        let labels = [("stage", "assemble"), ("reason", "told_by_sdk")];
        let told = after.sum("spanwire_dropped_total", &labels);
        let made = |round: &Round<'_>| Tree::of(&round.way.hops, Mode::Keep).count(Maker::Agent) * round.ids.len();
        let ours = spans
            .values()
            .flatten()
            .filter(|span| key_of(span).is_some_and(|key| key.0 == Maker::Agent));
        let missing = rounds.iter().map(made).sum::<usize>() - ours.count();
        ensure!(told == missing as u64, "{told} calls counted, {missing} left out");
        let balance = after.balance();
        ensure!(
            balance.closes(),
            "{balance:?} {:?}",
            after.nonzero(&["spanwire_dropped_total"])
        );
        Ok(format!(
            "{told} calls told by an SDK, as many as are missing; {balance:?}"
        ))
    }

    /// All spans told of the requests, by request, when no more are to come, and what the agent has counted by then.
    fn collect(&self, scene: &Scene, rounds: &[Round<'_>]) -> Result<(BTreeMap<String, Vec<Span>>, Metrics)> {
        let counted = self.agent.drained()?;
        let mut spans = self.of_sdks(scene, rounds)?;
        let ids = ids_of(rounds);
        let own = |span: &Span| request_of(span).is_some_and(|id| ids.contains(id));
        spans.extend(self.told.spans()?.into_iter().filter(own));
        let mut by_request: BTreeMap<String, Vec<Span>> = BTreeMap::new();
        for span in spans {
            let id = request_of(&span).unwrap_or_default().to_owned();
            by_request.entry(id).or_default().push(span);
        }
        Ok((by_request, counted))
    }

    /// The SDKs' spans of the requests, once all have come that must.
    fn of_sdks(&self, scene: &Scene, rounds: &[Round<'_>]) -> Result<Vec<Span>> {
        let wanted: usize = rounds
            .iter()
            .map(|round| Tree::of(&round.way.hops, self.mode).count(Maker::Sdk) * round.ids.len())
            .sum();
        let ids = ids_of(rounds);
        let start = Instant::now();
        loop {
            let mut spans = scene.sdks.spans()?;
            spans.retain(|span| request_of(span).is_some_and(|id| ids.contains(id)));
            if spans.len() >= wanted || start.elapsed() > EXPORT_LIMIT {
                return Ok(spans);
            }
            sleep(Duration::from_millis(100));
        }
    }

    /// What arrived names the span that it must, in the request's trace, and is sampled or is not.
    fn wire_faults(&self, way: &Way<'_>, id: &str, spans: &[&Span], arrived: &Arrived) -> Result<Vec<String>> {
        let mut faults = Vec::new();
        for (hop, maker) in &way.arrives {
            let Some((trace, parent, flags)) = arrived.get(hop) else {
                faults.push(format!("{id}: {hop} has not arrived"));
                continue;
            };
            let named = spans
                .iter()
                .find(|span| span.span_id == *parent)
                .and_then(|span| key_of(span));
            if named != maker.map(|maker| (maker, Kind::Client, *hop)) {
                faults.push(format!(
                    "{id}: {hop} names {parent}: {named:?}, and not one of {maker:?}"
                ));
            }
            // Where all of ours is left out, there is nothing to resolve.
            let told = Tree::of(&way.hops, self.mode).count(Maker::Agent) > 0;
            let resolved = if told { self.agent.trace(trace)? } else { Vec::new() };
            if told && !resolved.iter().any(|span| request_of(span) == Some(id)) {
                faults.push(format!(
                    "{id}: {hop} bears trace {trace}, which resolves to {resolved:?}"
                ));
            }
            let ours = spans
                .iter()
                .find(|span| key_of(span) == Some((Maker::Agent, Kind::Client, *hop)));
            if ours.is_some_and(|span| (span.flags & 1 == 1) != way.sampled) {
                faults.push(format!("{id}: our span of {hop} is sampled, or is not: {ours:?}"));
            }
            if flags.ends_with(['1', '3']) != way.sampled {
                faults.push(format!("{id}: {hop} bears flags {flags}"));
            }
        }
        Ok(faults)
    }
}

fn ids_of<'a>(rounds: &'a [Round<'_>]) -> BTreeSet<&'a str> {
    rounds.iter().flat_map(|round| &round.ids).map(String::as_str).collect()
}

/// By hop: trace id, parent id and flags that arrived.
type Arrived = BTreeMap<&'static str, (String, String, String)>;

/// What arrived, by request.
fn heads(scene: &Scene, round: &Round<'_>) -> Result<BTreeMap<String, Arrived>> {
    let mut heads: BTreeMap<_, _> = round.ids.iter().map(|id| (id.clone(), Arrived::new())).collect();
    for request in scene.wire.received() {
        let Some((id, hop)) = exchange_of(&request.path) else {
            continue;
        };
        let Some(own) = heads.get_mut(id) else { continue };
        let known = round.way.arrives.iter().find(|(name, _)| *name == hop);
        let (hop, _) = known.with_context(|| format!("{hop} is not to arrive"))?;
        let mut values = request.head.lines().filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("traceparent").then(|| value.trim())
        });
        let value = values
            .next()
            .with_context(|| format!("no traceparent in {}", request.head))?;
        ensure!(values.next().is_none(), "two traceparents in {}", request.head);
        let parts: Vec<&str> = value.split('-').collect();
        let [_, trace, parent, flags] = parts[..] else {
            bail!("traceparent: {value}");
        };
        own.insert(*hop, (trace.to_owned(), parent.to_owned(), flags.to_owned()));
    }
    Ok(heads)
}

/// Sends the requests of one load; the ids that they bear.
fn send(way: &Way<'_>, prefix: &str, requests: usize, concurrency: usize) -> Result<Vec<String>> {
    let Some(flags) = way.given else {
        let load = Load {
            target: way.entry,
            prefix,
            requests,
            concurrency,
            keep_alive: true,
        };
        return load.run().all();
    };
    let mut connection = Connection::open(way.entry)?;
    let ids: Vec<String> = (0..requests).map(|number| format!("{prefix}n{number}")).collect();
    for id in &ids {
        let trace = rand::random::<u128>();
        let traceparent = format!("00-{trace:032x}-{GIVEN_PARENT}-{flags}");
        let headers = [("traceparent", traceparent.as_str())];
        let response = connection.request("GET", &format!("/r/{id}"), &headers, &[])?;
        ensure!(
            response.status == 200,
            "status {}: {}",
            response.status,
            response.text()
        );
    }
    Ok(ids)
}
