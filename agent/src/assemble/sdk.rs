//! What applications' own SDKs do, as far as their calls show it.
//!
//! An SDK shows itself by the headers it makes: contexts that did not come in on its process. It is seen to go on with the
//! trace of a request when that trace goes out again under another parent id; of a request that brought no context, the
//! trace is whatever one the calls for it are made in.

use spanwire_common::abi::{flag, side, ExchangeRecord};

use super::judge::{self, has, Evidence};
use super::recent::Recent;
use super::Assembler;
use crate::span::{SdkSpan, SpanId, TraceId};

/// Entries of each table, and for how long: as long as an exchange may run.
const CAPACITY: usize = 16_384;
const SPAN_NS: u64 = 600_000_000_000;

/// The trace that an SDK's calls for a request are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begun {
    /// None was seen.
    Nothing,
    /// All in one, the first of them with this parent id.
    One { trace: TraceId, parent: [u8; 8] },
    /// In several: none is the request's own.
    Several,
}

/// A request that an SDK may have begun a trace for.
#[derive(Clone, Copy, Debug)]
struct Served {
    begun: Begun,
    /// The trace that we began for it. `None`: it is still open, or brought a context.
    own: Option<TraceId>,
}

impl Default for Served {
    fn default() -> Self {
        Self {
            begun: Begun::Nothing,
            own: None,
        }
    }
}

#[derive(Debug)]
pub(super) struct Sdks {
    /// (process, trace) of calls whose header an SDK made, and whether the trace is sampled.
    at_work: Recent<(u32, TraceId), bool>,
    /// By server span.
    served: Recent<SpanId, Served>,
    /// Spans of ours that are the parents of calls which no SDK knows.
    parents: Recent<SpanId, ()>,
}

impl Sdks {
    pub(super) fn new() -> Self {
        Self {
            at_work: Recent::new(CAPACITY, SPAN_NS),
            served: Recent::new(CAPACITY, SPAN_NS),
            parents: Recent::new(CAPACITY, SPAN_NS),
        }
    }

    /// An SDK made the header of this call.
    pub(super) fn made(&mut self, record: &ExchangeRecord) {
        let sampled = has(record, flag::SAMPLED);
        self.at_work.insert((record.pid, TraceId(record.trace_id)), sampled);
    }

    /// ... and the call is for the request `server`, whose own trace is returned if it brought no context and is over.
    fn made_for(&mut self, server: SpanId, record: &ExchangeRecord) -> Option<TraceId> {
        let of_call = TraceId(record.trace_id);
        let served = self.served.entry(server, Served::default);
        served.begun = match served.begun {
            Begun::Nothing => Begun::One {
                trace: of_call,
                parent: record.header_parent_id,
            },
            Begun::One { trace, .. } if trace != of_call => Begun::Several,
            known => known,
        };
        served.own
    }

    /// A request that brought no context is over: the trace that an SDK's calls for it are in, and the parent id of the first.
    fn begun_for(&mut self, record: &ExchangeRecord) -> Option<(TraceId, [u8; 8])> {
        // Until some SDK was seen, nothing need be remembered.
        if self.at_work.is_empty() {
            return None;
        }
        let served = self.served.entry(SpanId(record.span_id), Served::default);
        served.own = Some(TraceId(record.trace_id));
        match served.begun {
            Begun::One { trace, parent } => Some((trace, parent)),
            Begun::Nothing | Begun::Several => None,
        }
    }

    pub(super) fn advance(&mut self, now_ns: u64) {
        self.at_work.advance(now_ns);
        self.served.advance(now_ns);
        self.parents.advance(now_ns);
    }

    pub(super) fn evicted(&self) -> u64 {
        self.at_work.evicted() + self.served.evicted() + self.parents.evicted()
    }

    pub(super) fn len(&self) -> usize {
        self.at_work.len() + self.served.len() + self.parents.len()
    }
}

impl Assembler {
    /// Notes whose call a client exchange is. True if the class of the process is needed to tell.
    pub(super) fn note_caller(&mut self, record: &ExchangeRecord, evidence: Evidence) -> bool {
        if !self.is_sdk_made(record) {
            if let Evidence::Exact { span, .. } = evidence {
                self.sdks.parents.insert(span, ());
            }
            return false;
        }
        match judge::by_cause(record, self.runtime(record)) {
            Evidence::Exact { span, .. } => {
                if let Some(own) = self.sdks.made_for(span, record) {
                    self.union.join_begun(TraceId(record.trace_id), own);
                }
            }
            Evidence::Waits => return true,
            Evidence::Unknown(_) | Evidence::Nothing => {}
        }
        false
    }

    /// An SDK made the header of this client exchange, and did not just forward one.
    pub(super) fn is_sdk_made(&self, record: &ExchangeRecord) -> bool {
        judge::sdk_made(record) && !self.wire.came_in(record)
    }

    /// A request that brought no context is in the trace that an SDK began for it.
    pub(super) fn joined_by_sdk(&mut self, record: &ExchangeRecord) {
        if has(record, flag::ADOPTED_HEADER) {
            return;
        }
        if let Some((trace, parent)) = self.sdks.begun_for(record) {
            // Another request may have brought it in the meantime: then it was forwarded.
            if !self.wire.came_in_on(record.pid, parent) {
                self.union.join_begun(trace, TraceId(record.trace_id));
            }
        }
    }

    /// The span that an SDK makes of this exchange, too.
    pub(super) fn sdk_span(&self, record: &ExchangeRecord) -> Option<SdkSpan> {
        if self.sdks.at_work.is_empty() || (record.side == side::CLIENT && !self.is_sdk_made(record)) {
            return None;
        }
        let key = (record.pid, TraceId(record.trace_id));
        let sampled = *self.sdks.at_work.peek(&key)?;
        Some(SdkSpan {
            sampled,
            ours_is_parent: self.sdks.parents.contains(&SpanId(record.span_id)),
        })
    }
}
