//! Ids that come back through a proxy. A server's response bears its span id to a proxy, which passes it on to its own
//! client: the call that brought the id, and the request that was answered with it, belong together, whatever the proxy's
//! runtime is.
//!
//! Invariant: an id that came on two calls, or that may have answered two requests, names nobody. A response out of a cache
//! bears an old id: its request came after the call.

use spanwire_common::abi::{side, ExchangeRecord};

use super::recent::Recent;
use crate::span::{SpanId, TraceId};

/// Requests remembered of one id.
const REQUESTS: usize = 4;

/// A request that was answered with an id.
#[derive(Clone, Copy, Debug)]
struct Request {
    span: SpanId,
    trace: TraceId,
    began_ns: u64,
    answered_ns: u64,
}

/// A call that brought one.
#[derive(Clone, Copy, Debug)]
struct Call {
    span: SpanId,
    trace: TraceId,
    began_ns: u64,
}

/// What is known of one id in one process.
#[derive(Debug, Default)]
struct Passage {
    call: Option<Call>,
    requests: Vec<Request>,
    /// It came on another call too, or answered more requests than are remembered.
    is_doubtful: bool,
}

/// The request that caused a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cause {
    pub(super) span: SpanId,
    pub(super) trace: TraceId,
}

/// What an id says about the call it came on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nobody has passed it on.
    Silent,
    One(Cause),
    /// More than one may have caused it.
    Many,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Returned {
    /// By process and id.
    passages: Recent<(u32, [u8; 8]), Passage>,
}

impl Returned {
    pub(super) fn new(capacity: usize, span_ns: u64) -> Self {
        Self {
            passages: Recent::new(capacity, span_ns),
        }
    }

    /// Takes in what an exchange tells. Its parent's trace and its own, where the two ends of a passage have met.
    pub(super) fn note(&mut self, record: &ExchangeRecord) -> Option<(TraceId, TraceId)> {
        if record.returned_span_id == [0; 8] {
            return None;
        }
        let key = (record.pid, record.returned_span_id);
        let passage = self.passages.entry(key, Passage::default);
        if record.side == side::SERVER {
            passage.answers(record);
        } else {
            passage.brings(record);
        }
        match (passage.call, passage.verdict()) {
            (Some(call), Verdict::One(cause)) => Some((cause.trace, call.trace)),
            _ => None,
        }
    }

    /// What caused the call `record`.
    pub(super) fn cause_of(&self, record: &ExchangeRecord) -> Verdict {
        if record.returned_span_id == [0; 8] {
            return Verdict::Silent;
        }
        let passage = self.passages.peek(&(record.pid, record.returned_span_id));
        passage.map_or(Verdict::Silent, Passage::verdict)
    }

    pub(super) fn advance(&mut self, now_ns: u64) {
        self.passages.advance(now_ns);
    }

    pub(super) fn len(&self) -> usize {
        self.passages.len()
    }

    pub(super) fn evicted(&self) -> u64 {
        self.passages.evicted()
    }
}

impl Passage {
    fn brings(&mut self, record: &ExchangeRecord) {
        let span = SpanId(record.span_id);
        self.is_doubtful |= self.call.is_some_and(|call| call.span != span);
        self.call = Some(Call {
            span,
            trace: TraceId(record.trace_id),
            began_ns: record.request_first_ns,
        });
    }

    fn answers(&mut self, record: &ExchangeRecord) {
        let is_later = |call: Call| record.request_first_ns > call.began_ns;
        if self.call.is_some_and(is_later) {
            return;
        }
        if self.requests.len() >= REQUESTS {
            self.is_doubtful = true;
            return;
        }
        self.requests.push(Request {
            span: SpanId(record.span_id),
            trace: TraceId(record.trace_id),
            began_ns: record.request_first_ns,
            answered_ns: record.response_first_ns,
        });
    }

    fn verdict(&self) -> Verdict {
        let Some(call) = self.call else {
            return Verdict::Silent;
        };
        if self.is_doubtful {
            return Verdict::Many;
        }
        // Open when the call was made, and not answered before.
        let is_open = |request: &&Request| request.began_ns <= call.began_ns && call.began_ns <= request.answered_ns;
        let mut open = self.requests.iter().filter(is_open);
        match (open.next(), open.next()) {
            (None, _) => Verdict::Silent,
            (Some(one), None) => Verdict::One(Cause {
                span: one.span,
                trace: one.trace,
            }),
            _ => Verdict::Many,
        }
    }
}
