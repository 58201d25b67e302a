//! Reading: services and the edges between them, from the counts made while writing.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::query::{decimal, StoreReader};
use super::rollup::{Counts, Kind, REASONS, SLOT_NS};
use super::StoreError;
use crate::span::ParentSource;

/// Latencies, at most 6 % off.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// Half are faster.
    #[serde(with = "decimal")]
    pub p50: u64,
    /// 95 % are faster.
    #[serde(with = "decimal")]
    pub p95: u64,
    /// 99 % are faster.
    #[serde(with = "decimal")]
    pub p99: u64,
}

/// How many of a service's outgoing calls have a parent that is known.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Coverage {
    /// Outgoing calls seen.
    pub client_spans: u64,
    /// With an exact parent.
    pub exact: u64,
    /// Known to have none.
    pub root: u64,
    /// Why the others' parent is not known.
    pub unknown: BTreeMap<String, u64>,
    /// `(exact + root) / client_spans`; absent without calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
}

/// A service in the window asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceView {
    /// `service.name`.
    pub name: String,
    /// Requests it answered; of a service that only calls, requests it made.
    pub requests: u64,
    /// Those per second.
    pub rate: f64,
    /// Those that failed.
    pub errors: u64,
    /// How long they took.
    pub latency_nano: Latency,
    /// What is known of its calls.
    pub coverage: Coverage,
    /// When it was last seen, within retention.
    #[serde(with = "decimal")]
    pub last_seen_unix_nano: u64,
}

/// `GET /api/services`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicesView {
    /// By name.
    pub services: Vec<ServiceView>,
    /// Length of the window the numbers are for.
    pub window_seconds: f64,
}

/// Calls of one service to another.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GraphEdge {
    /// Who calls.
    pub caller: String,
    /// Who answers: a service, or an address when `external`.
    pub callee: String,
    /// No captured service answered.
    pub external: bool,
    /// Calls, as the caller saw them.
    pub requests: u64,
    /// Those per second.
    pub rate: f64,
    /// Those that failed.
    pub errors: u64,
    /// How long they took.
    pub latency_nano: Latency,
}

/// `GET /api/graph`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GraphView {
    /// Services seen in the window.
    pub nodes: Vec<ServiceView>,
    /// Who calls whom.
    pub edges: Vec<GraphEdge>,
    /// Length of the window the numbers are for.
    pub window_seconds: f64,
}

/// The sums of a window.
#[derive(Default)]
struct Window {
    sums: BTreeMap<(Kind, String, String), Counts>,
    /// Services of any time, and when each was seen last.
    last_seen: BTreeMap<String, u64>,
    seconds: f64,
}

impl StoreReader {
    /// Every service within retention, with the numbers since `since_unix_ns` (rounded down to a minute).
    pub fn services(&self, since_unix_ns: u64, now_unix_ns: u64) -> Result<ServicesView, StoreError> {
        let window = self.window(since_unix_ns, now_unix_ns)?;
        let services = window.last_seen.keys().map(|name| window.service(name)).collect();
        Ok(ServicesView {
            services,
            window_seconds: window.seconds,
        })
    }

    /// The services seen since `since_unix_ns` and the calls between them.
    pub fn graph(&self, since_unix_ns: u64, now_unix_ns: u64) -> Result<GraphView, StoreError> {
        let window = self.window(since_unix_ns, now_unix_ns)?;
        let names: BTreeSet<&String> = window.sums.keys().map(|(_, service, _)| service).collect();
        let edges = window
            .sums
            .iter()
            .filter(|((kind, ..), _)| matches!(kind, Kind::Edge | Kind::Outside));
        let edges = edges.map(|((kind, caller, callee), counts)| GraphEdge {
            caller: caller.clone(),
            callee: callee.clone(),
            external: *kind == Kind::Outside,
            requests: counts.requests,
            rate: counts.requests as f64 / window.seconds,
            errors: counts.errors,
            latency_nano: latency(counts),
        });
        Ok(GraphView {
            nodes: names.iter().map(|name| window.service(name)).collect(),
            edges: edges.collect(),
            window_seconds: window.seconds,
        })
    }

    fn window(&self, since_unix_ns: u64, now_unix_ns: u64) -> Result<Window, StoreError> {
        let connection = self.connect()?;
        let mut window = Window::default();
        let first_slot = since_unix_ns / SLOT_NS;
        let mut begin_ns = now_unix_ns;
        let mut read = || -> rusqlite::Result<()> {
            let mut statement = connection.prepare("SELECT slot, kind, service, peer, data FROM rollup")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let (slot, kind): (i64, i64) = (row.get(0)?, row.get(1)?);
                let (Some(kind), Some(counts)) = (kind_of(kind), Counts::read(row.get_ref(4)?.as_blob()?)) else {
                    continue;
                };
                let service: String = row.get(2)?;
                if matches!(kind, Kind::Server | Kind::Client) {
                    let last_seen = window.last_seen.entry(service.clone()).or_default();
                    *last_seen = counts.last_ns.max(*last_seen);
                }
                if slot as u64 >= first_slot {
                    begin_ns = begin_ns.min(counts.first_ns);
                    window
                        .sums
                        .entry((kind, service, row.get(3)?))
                        .or_default()
                        .merge(&counts);
                }
            }
            Ok(())
        };
        read().map_err(self.failed())?;
        // An agent that began a minute ago has a rate per second of that minute.
        let begin_ns = begin_ns.max(first_slot * SLOT_NS);
        window.seconds = (now_unix_ns.saturating_sub(begin_ns) as f64 / 1e9).max(1.0);
        Ok(window)
    }
}

impl Window {
    fn service(&self, name: &str) -> ServiceView {
        let none = Counts::default();
        let of = |kind: Kind| self.sums.get(&(kind, name.to_owned(), String::new())).unwrap_or(&none);
        let (server, client) = (of(Kind::Server), of(Kind::Client));
        let counts = if server.requests > 0 { server } else { client };
        ServiceView {
            name: name.to_owned(),
            requests: counts.requests,
            rate: counts.requests as f64 / self.seconds,
            errors: counts.errors,
            latency_nano: latency(counts),
            coverage: coverage(client),
            last_seen_unix_nano: self.last_seen.get(name).copied().unwrap_or(0),
        }
    }
}

fn latency(counts: &Counts) -> Latency {
    Latency {
        p50: counts.latency.quantile_ns(0.5),
        p95: counts.latency.quantile_ns(0.95),
        p99: counts.latency.quantile_ns(0.99),
    }
}

fn coverage(client: &Counts) -> Coverage {
    let of = |wanted: fn(ParentSource) -> bool| -> u64 {
        ParentSource::ALL
            .iter()
            .zip(client.sources)
            .filter(|(source, _)| wanted(**source))
            .map(|(_, count)| count)
            .sum()
    };
    let root = of(|source| source == ParentSource::Root);
    let exact = of(|source| !matches!(source, ParentSource::Root | ParentSource::Unknown));
    let reasons = REASONS.iter().zip(client.reasons).filter(|(_, count)| *count > 0);
    Coverage {
        client_spans: client.requests,
        exact,
        root,
        unknown: reasons
            .map(|(reason, count)| (reason.as_str().to_owned(), count))
            .collect(),
        share: (client.requests > 0).then(|| (exact + root) as f64 / client.requests as f64),
    }
}

fn kind_of(number: i64) -> Option<Kind> {
    [Kind::Server, Kind::Client, Kind::Edge, Kind::Outside]
        .into_iter()
        .find(|kind| *kind as i64 == number)
}
