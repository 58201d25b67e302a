//! Services and the edges between them, counted while spans are written: rates and latencies of the last minutes then
//! need no look at the spans.
//!
//! An edge is a client span and the server span whose parent it is. The two may come in either order and in different
//! batches, so the first waits for the other. A client span nobody answered within the wait becomes an edge to the
//! address it called.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use foldhash::fast::RandomState;
use rusqlite::{params, Connection, OptionalExtension};

use super::encode::{read_varint, varint};
use super::histogram::Histogram;
use crate::span::{ParentSource, Span, SpanId, SpanKind, SpanStatus, UnknownReason, Value};

/// Length of one row's window.
pub(super) const SLOT_NS: u64 = 60_000_000_000;
/// How long one side of an edge waits for the other.
const WAIT_NS: u64 = 10_000_000_000;
/// Sides of edges that wait at most; beyond, the oldest gives up early.
const WAITING_MAX: usize = 32_768;
/// Rows of one batch at most: services come from outside, memory and disk are ours.
const ROWS_MAX: usize = 4_096;

/// What a row counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Requests a service answered.
    Server = 0,
    /// Requests a service made.
    Client = 1,
    /// Requests from a service to another.
    Edge = 2,
    /// Requests from a service to an address where no captured service answered.
    Outside = 3,
}

/// One row's counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Counts {
    pub(super) requests: u64,
    pub(super) errors: u64,
    pub(super) first_ns: u64,
    pub(super) last_ns: u64,
    pub(super) latency: Histogram,
    /// Client spans by parent source, in the order of [`ParentSource::ALL`].
    pub(super) sources: [u64; ParentSource::ALL.len()],
    /// Client spans of unknown parent by reason, in the order of [`REASONS`].
    pub(super) reasons: [u64; REASONS.len()],
}

/// Every reason a parent may be unknown for.
pub(super) const REASONS: [UnknownReason; 7] = [
    UnknownReason::Runtime,
    UnknownReason::Overlap,
    UnknownReason::Handoff,
    UnknownReason::LostEvent,
    UnknownReason::AttachedLate,
    UnknownReason::Remote,
    UnknownReason::Contradiction,
];

impl Counts {
    /// Adds what `other` counted.
    pub(super) fn merge(&mut self, other: &Self) {
        self.first_ns = if self.requests == 0 {
            other.first_ns
        } else {
            self.first_ns.min(other.first_ns)
        };
        self.last_ns = self.last_ns.max(other.last_ns);
        self.requests += other.requests;
        self.errors += other.errors;
        self.latency.merge(&other.latency);
        self.sources
            .iter_mut()
            .zip(other.sources)
            .for_each(|(mine, more)| *mine += more);
        self.reasons
            .iter_mut()
            .zip(other.reasons)
            .for_each(|(mine, more)| *mine += more);
    }

    fn record(&mut self, outcome: Outcome) {
        self.first_ns = if self.requests == 0 {
            outcome.end_ns
        } else {
            self.first_ns.min(outcome.end_ns)
        };
        self.last_ns = self.last_ns.max(outcome.end_ns);
        self.requests += 1;
        self.errors += u64::from(outcome.error);
        self.latency.record(outcome.length_ns);
    }

    fn write(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        for number in [self.requests, self.errors, self.first_ns, self.last_ns] {
            varint(number, &mut out);
        }
        self.sources
            .iter()
            .chain(&self.reasons)
            .for_each(|count| varint(*count, &mut out));
        self.latency.write(&mut out);
        out
    }

    /// Reads a row's data.
    pub(super) fn read(mut data: &[u8]) -> Option<Self> {
        let rest = &mut data;
        let mut counts = Self {
            requests: read_varint(rest)?,
            errors: read_varint(rest)?,
            first_ns: read_varint(rest)?,
            last_ns: read_varint(rest)?,
            ..Self::default()
        };
        for count in counts.sources.iter_mut().chain(&mut counts.reasons) {
            *count = read_varint(rest)?;
        }
        counts.latency = Histogram::read(rest)?;
        Some(counts)
    }
}

#[derive(Clone, Copy)]
struct Outcome {
    end_ns: u64,
    length_ns: u64,
    error: bool,
}

/// The side of an edge that came first.
enum Side {
    /// A client span: its service, what it saw, and whom it called.
    Client {
        service: Arc<str>,
        outcome: Outcome,
        peer: Option<Arc<str>>,
    },
    /// A server span with a parent: its service.
    Server { service: Arc<str> },
}

type Key = (u64, Kind, Arc<str>, Arc<str>);

/// Counts of the batch at hand and the edges that are not whole yet.
#[derive(Default)]
pub(super) struct Rollup {
    rows: HashMap<Key, Counts, RandomState>,
    /// By the client span's id.
    waiting: HashMap<SpanId, Side, RandomState>,
    /// When each began to wait, oldest first.
    order: VecDeque<(u64, SpanId)>,
    nobody: Option<Arc<str>>,
}

impl Rollup {
    /// Counts one span. `now_ns` is the wall clock at the batch.
    pub(super) fn record(&mut self, span: &Span, now_ns: u64) {
        let outcome = Outcome {
            end_ns: span.end_unix_ns,
            length_ns: span.end_unix_ns.saturating_sub(span.start_unix_ns),
            error: span.status == SpanStatus::Error,
        };
        let service = &span.resource.service_name;
        let nobody = Arc::clone(self.nobody.get_or_insert_with(|| "".into()));
        match span.kind {
            SpanKind::Client | SpanKind::Producer => {
                if let Some(counts) = self.row(Kind::Client, service, &nobody, outcome) {
                    if let Some(place) = ParentSource::ALL
                        .iter()
                        .position(|source| *source == span.parent_source)
                    {
                        counts.sources[place] += 1;
                    }
                    if let Some(place) = unknown_reason(span) {
                        counts.reasons[place] += 1;
                    }
                }
                self.client(span, outcome, now_ns);
            }
            SpanKind::Server | SpanKind::Consumer => {
                self.row(Kind::Server, service, &nobody, outcome);
                if let Some(parent) = span.parent_span_id {
                    self.server(parent, service, now_ns);
                }
            }
        }
    }

    /// Lets go of what has waited long enough; then writes and forgets the batch's counts.
    pub(super) fn flush(&mut self, connection: &Connection, now_ns: u64) -> rusqlite::Result<()> {
        while let Some((since_ns, id)) = self.order.front().copied() {
            if since_ns.saturating_add(WAIT_NS) > now_ns && self.order.len() <= WAITING_MAX {
                break;
            }
            self.order.pop_front();
            self.give_up(id);
        }
        if self.rows.is_empty() {
            return Ok(());
        }
        let mut read = connection
            .prepare_cached("SELECT data FROM rollup WHERE slot = ?1 AND kind = ?2 AND service = ?3 AND peer = ?4")?;
        let mut write = connection.prepare_cached("INSERT OR REPLACE INTO rollup VALUES (?1, ?2, ?3, ?4, ?5)")?;
        for ((slot, kind, service, peer), mut counts) in self.rows.drain() {
            let key = params![slot as i64, kind as i64, &*service, &*peer];
            let before: Option<Vec<u8>> = read.query_row(key, |row| row.get(0)).optional()?;
            if let Some(before) = before.as_deref().and_then(Counts::read) {
                counts.merge(&before);
            }
            write.execute(params![slot as i64, kind as i64, &*service, &*peer, counts.write()])?;
        }
        Ok(())
    }

    /// Forgets the batch's counts after a failed write.
    pub(super) fn discard(&mut self) {
        self.rows.clear();
    }

    /// True when a flush without new spans would write something.
    pub(super) fn is_due(&self, now_ns: u64) -> bool {
        self.order
            .front()
            .is_some_and(|(since_ns, _)| since_ns.saturating_add(WAIT_NS) <= now_ns)
    }

    fn row(&mut self, kind: Kind, service: &Arc<str>, peer: &Arc<str>, outcome: Outcome) -> Option<&mut Counts> {
        let full = self.rows.len() >= ROWS_MAX;
        let key = (outcome.end_ns / SLOT_NS, kind, Arc::clone(service), Arc::clone(peer));
        let counts = match self.rows.entry(key) {
            Entry::Occupied(row) => row.into_mut(),
            Entry::Vacant(_) if full => return None,
            Entry::Vacant(row) => row.insert(Counts::default()),
        };
        counts.record(outcome);
        Some(counts)
    }

    fn client(&mut self, span: &Span, outcome: Outcome, now_ns: u64) {
        let service = Arc::clone(&span.resource.service_name);
        if let Some(Side::Server { service: callee }) = self.waiting.get(&span.span_id) {
            let callee = Arc::clone(callee);
            self.waiting.remove(&span.span_id);
            self.row(Kind::Edge, &service, &callee, outcome);
            return;
        }
        self.wait(
            span.span_id,
            Side::Client {
                service,
                outcome,
                peer: peer_of(span),
            },
            now_ns,
        );
    }

    fn server(&mut self, parent: SpanId, service: &Arc<str>, now_ns: u64) {
        match self.waiting.get(&parent) {
            Some(Side::Client {
                service: caller,
                outcome,
                ..
            }) => {
                let (caller, outcome) = (Arc::clone(caller), *outcome);
                self.waiting.remove(&parent);
                self.row(Kind::Edge, &caller, service, outcome);
            }
            Some(Side::Server { .. }) => {}
            None => self.wait(
                parent,
                Side::Server {
                    service: Arc::clone(service),
                },
                now_ns,
            ),
        }
    }

    fn wait(&mut self, id: SpanId, side: Side, now_ns: u64) {
        self.waiting.insert(id, side);
        self.order.push_back((now_ns, id));
    }

    fn give_up(&mut self, id: SpanId) {
        if let Some(Side::Client {
            service,
            outcome,
            peer: Some(peer),
        }) = self.waiting.remove(&id)
        {
            self.row(Kind::Outside, &service, &peer, outcome);
        }
    }
}

fn unknown_reason(span: &Span) -> Option<usize> {
    if span.parent_source != ParentSource::Unknown {
        return None;
    }
    let (_, value) = span
        .attributes
        .iter()
        .find(|(name, _)| name == "spanwire.parent.reason")?;
    let text = match value {
        Value::Str(text) => &**text,
        Value::Static(text) => text,
        _ => return None,
    };
    REASONS.iter().position(|reason| reason.as_str() == text)
}

fn peer_of(span: &Span) -> Option<Arc<str>> {
    let (_, value) = span.attributes.iter().find(|(name, _)| name == "server.address")?;
    match value {
        Value::Str(text) => Some(Arc::clone(text)),
        Value::Static(text) => Some((*text).into()),
        _ => None,
    }
}
