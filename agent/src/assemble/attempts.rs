//! Attempts: which client exchanges repeat a failed one (`http.request.resend_count`).
//!
//! An exchange is a further attempt when the same request of the same process made an earlier one to the same logical
//! target with the same method and path, and that one had failed before this one began. The same request means the same
//! open server span; in a program that serves nobody (a script, a job) it means one thread of a runtime that does one
//! thing after the other, with nothing else asked in between, at most 60 s later and 16 times: so a retry by urllib3 is
//! one, and a load generator's next request is not.
//!
//! The same logical target: the same Host header at any address; without one, the same port. A failed connect has
//! neither method nor host: it counts for what goes to the same port, and in nginx, whose upstream groups have
//! addresses of any port, for whatever its request asks next.
//!
//! Only failures open a group, so where nothing fails nothing is stored.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use spanwire_common::abi::{outcome, protocol_id, ExchangeRecord, METHOD_BYTES, PATH_BYTES};

use super::recent::Recent;
use crate::span::{SpanId, TraceId};

/// By whom attempts are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Maker {
    /// The open request with this server span.
    Request(SpanId),
    /// As `Request`, in nginx.
    NginxRequest(SpanId),
    /// A thread (process, thread) that serves nobody.
    Thread(u32, u32),
}

impl Maker {
    const fn is_thread(self) -> bool {
        matches!(self, Self::Thread(..))
    }
}

#[derive(Clone, Copy, Debug)]
struct Attempt {
    span: SpanId,
    trace: TraceId,
    start_ns: u64,
    end_ns: u64,
    /// Hash of method and path; 0 for a connect.
    shape: u64,
    host: u32,
    port: u16,
    failed: bool,
    /// It followed as many failures as one row may have: with it another begins.
    begins_row: bool,
}

/// What an exchange repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Repeats {
    /// How many attempts failed before it.
    pub(super) count: u32,
    /// The trace of the first of them.
    pub(super) trace: TraceId,
}

#[derive(Debug)]
pub(super) struct Attempts {
    hasher: RandomState,
    groups: Recent<Maker, Vec<Attempt>>,
}

/// Attempts remembered of one maker.
const MAX_ATTEMPTS: usize = 32;
/// A thread's retry comes at most so long after the failure, and at most so often.
const THREAD_GAP_NS: u64 = 60_000_000_000;
const MAX_THREAD_REPEATS: usize = 16;

impl Attempts {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            hasher: RandomState::default(),
            groups: Recent::new(capacity, THREAD_GAP_NS),
        }
    }

    /// Notes an exchange: a failure for what may come, anything else where something failed before.
    pub(super) fn note(&mut self, maker: Maker, record: &ExchangeRecord) {
        let failed = failed(record);
        if !counts(record) || (!failed && self.groups.is_empty()) {
            return;
        }
        let mut attempt = self.attempt(record, failed);
        let group = if failed {
            self.groups.entry(maker, Vec::new)
        } else {
            match self.groups.get_mut(&maker) {
                Some(group) => group,
                None => return,
            }
        };
        if group.iter().any(|known| known.span == attempt.span) {
            return;
        }
        attempt.begins_row = row(maker, group, &attempt).len() > MAX_THREAD_REPEATS && maker.is_thread();
        if group.len() == MAX_ATTEMPTS {
            group.remove(0);
        }
        group.push(attempt);
    }

    /// What `record` repeats, as far as known now.
    pub(super) fn repeats(&mut self, maker: Maker, record: &ExchangeRecord) -> Option<Repeats> {
        if self.groups.is_empty() || !counts(record) {
            return None;
        }
        let this = self.attempt(record, false);
        let row = row(maker, self.groups.get_mut(&maker)?, &this);
        let first = row.last()?;
        if maker.is_thread() && row.len() > MAX_THREAD_REPEATS {
            return None;
        }
        Some(Repeats {
            count: row.len() as u32,
            trace: first.trace,
        })
    }

    pub(super) fn advance(&mut self, now_ns: u64) {
        self.groups.advance(now_ns);
    }

    pub(super) fn len(&self) -> usize {
        self.groups.len()
    }

    fn attempt(&self, record: &ExchangeRecord, failed: bool) -> Attempt {
        let shape = if record.protocol == protocol_id::CONNECT {
            0
        } else {
            let method = &record.method[..usize::from(record.method_len).min(METHOD_BYTES)];
            let path = &record.path[..usize::from(record.path_len).min(PATH_BYTES)];
            self.hasher.hash_one((method, path)) | 1
        };
        Attempt {
            span: SpanId(record.span_id),
            trace: TraceId(record.trace_id),
            start_ns: began_ns(record),
            end_ns: record.response_last_ns,
            shape,
            host: record.host_hash,
            port: record.remote_port,
            failed,
            begins_row: false,
        }
    }
}

/// The failed attempts before `this` that it repeats, the latest first.
fn row(maker: Maker, group: &[Attempt], this: &Attempt) -> Vec<Attempt> {
    let mut before: Vec<Attempt> = group
        .iter()
        .filter(|known| known.span != this.span && known.start_ns < this.start_ns)
        .copied()
        .collect();
    before.sort_unstable_by_key(|known| known.start_ns);
    let mut row = Vec::new();
    let mut next_start_ns = this.start_ns;
    for known in before.into_iter().rev() {
        let same = same_target(&known, this, matches!(maker, Maker::NginxRequest(_)));
        if maker.is_thread() {
            let gap_ns = next_start_ns.saturating_sub(known.end_ns);
            let in_turn = known.end_ns <= next_start_ns && gap_ns <= THREAD_GAP_NS;
            if !(same && known.failed && in_turn) {
                break;
            }
            next_start_ns = known.start_ns;
        } else if !same || (known.failed && known.end_ns > this.start_ns) {
            continue;
        } else if !known.failed {
            break;
        }
        row.push(known);
        if known.begins_row {
            break;
        }
    }
    row
}

/// When it began; a connect that failed may have no first byte.
pub(super) fn began_ns(record: &ExchangeRecord) -> u64 {
    if record.request_first_ns == 0 {
        record.response_last_ns
    } else {
        record.request_first_ns
    }
}

/// Only what is known to be a request, or an attempt to make one, can be an attempt.
fn counts(record: &ExchangeRecord) -> bool {
    matches!(record.protocol, protocol_id::HTTP1 | protocol_id::CONNECT)
}

fn same_target(one: &Attempt, other: &Attempt, upstream_groups: bool) -> bool {
    if one.shape == 0 || other.shape == 0 {
        return upstream_groups || one.port == other.port;
    }
    if one.shape != other.shape {
        return false;
    }
    if one.host != 0 && other.host != 0 {
        one.host == other.host
    } else {
        one.port == other.port
    }
}

/// An attempt that a client may well repeat: it got no whole response, or one that says to try again.
pub(super) fn failed(record: &ExchangeRecord) -> bool {
    matches!(
        record.outcome,
        outcome::CLOSED
            | outcome::RESET
            | outcome::TIMEOUT
            | outcome::CONNECT_REFUSED
            | outcome::CONNECT_TIMEOUT
            | outcome::CONNECT_RESET
    ) || record.status >= 500
        || matches!(record.status, 408 | 429)
}
