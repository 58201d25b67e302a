//! Server exchanges whose clients did not meet them in the kernel, and the look on the wire for each.
//!
//! Where a client's hook comes after its server's, its end lies on the wire with nobody to take it. It is looked for once,
//! shortly before the server's span leaves assemble: at its time, or earlier where it has to leave early for want of room.
//! So every exchange that leaves as a root was looked for, and what waits here is at most what assemble holds.
//!
//! A look is a system call, and nearly all find nothing: the client is on this node and not captured. That holds for its
//! connection, so the connection is remembered, and looked for no more until an exchange on it meets its client, or any
//! process becomes known or changes.

use std::collections::{HashSet, VecDeque};

use foldhash::fast::RandomState;
use spanwire_common::abi::{flag, side, ExchangeRecord};

use super::Worker;
use crate::decode::{Event, Link};
use crate::span::{SpanId, TraceId};

/// How long after its exchange a client is looked for: assemble's settle window is 1 s.
const LOOK_AFTER_NS: u64 = 850_000_000;
/// Connections without a captured client that are remembered. With more, all are forgotten, and looked for again.
const STRANGERS: usize = 16_384;

/// A server exchange that did not meet its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Missing {
    /// Where the client's end would lie.
    pub(super) wire_key: u64,
    /// The server's socket.
    pub(super) cookie: u64,
    pub(super) span: SpanId,
    pub(super) trace: TraceId,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Unmet {
    /// In the order in which assemble holds them, each with the time to look for it.
    waiting: VecDeque<(u64, Missing)>,
    /// Sockets of connections that had no captured client when it was last looked for.
    strangers: HashSet<u64, RandomState>,
}

impl Unmet {
    pub(super) fn push(&mut self, missing: Missing, now_ns: u64) {
        if !self.strangers.contains(&missing.cookie) {
            self.waiting.push_back((now_ns.saturating_add(LOOK_AFTER_NS), missing));
        }
    }

    /// The next one whose time has come.
    fn due(&mut self, until_ns: u64) -> Option<Missing> {
        let (_, missing) = self.waiting.pop_front_if(|(due_ns, _)| *due_ns <= until_ns)?;
        Some(missing)
    }

    /// The one that leaves with this span, if it waits: assemble holds none that is older.
    fn leaving(&mut self, span: SpanId) -> Option<Missing> {
        let (_, missing) = self.waiting.pop_front_if(|(_, missing)| missing.span == span)?;
        Some(missing)
    }

    /// Nobody was found at the other end of this connection. One without a cookie cannot be told from others.
    fn found_nobody(&mut self, cookie: u64) {
        if cookie == 0 {
            return;
        }
        if self.strangers.len() >= STRANGERS {
            self.strangers.clear();
        }
        self.strangers.insert(cookie);
    }

    /// An exchange has come: if it met its client, that one is captured.
    fn arrived(&mut self, record: &ExchangeRecord) {
        let met = record.wire_span_id != [0; 8] || record.flags & flag::WIRE_MATCHED != 0;
        if met && !self.strangers.is_empty() && record.side == side::SERVER {
            self.strangers.remove(&record.cookie);
        }
    }

    /// From now on any connection's client may be captured.
    pub(super) fn meet_everybody(&mut self) {
        self.strangers.clear();
    }
}

impl Worker {
    /// An exchange is about to go into assemble. The one that has to make room for it is looked for now.
    pub(super) fn look_before_one_leaves(&mut self, record: &ExchangeRecord, now_ns: u64) {
        self.unmet.arrived(record);
        if let Some(span) = self.path.assembler.leaves_early() {
            if let Some(missing) = self.unmet.leaving(span) {
                self.look_for(missing, now_ns);
            }
        }
    }

    /// Looks on the wire for clients that came second.
    pub(super) fn look_for_unmet(&mut self, until_ns: u64, now_ns: u64) {
        while let Some(missing) = self.unmet.due(until_ns) {
            self.look_for(missing, now_ns);
        }
    }

    fn look_for(&mut self, missing: Missing, now_ns: u64) {
        let Some(wire) = self.path.kernel.take_wire(missing.wire_key) else {
            self.unmet.found_nobody(missing.cookie);
            return;
        };
        if wire.own != 0 {
            return;
        }
        let link = Link {
            client_span: SpanId(wire.span_id.to_ne_bytes()),
            client_trace: TraceId(zerocopy::transmute!(wire.trace_id)),
            server_span: missing.span,
            server_trace: missing.trace,
        };
        self.take(Event::Link(link), now_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::{Missing, Unmet, LOOK_AFTER_NS, STRANGERS};
    use crate::span::{SpanId, TraceId};
    use spanwire_common::abi::{side, ExchangeRecord};
    use zerocopy::FromZeros;

    fn missing(n: u8, cookie: u64) -> Missing {
        Missing {
            wire_key: n.into(),
            cookie,
            span: SpanId([n; 8]),
            trace: TraceId([n; 16]),
        }
    }

    #[test]
    fn each_is_looked_for_once_at_its_time_or_when_it_has_to_leave() {
        let mut unmet = Unmet::default();
        unmet.push(missing(1, 1), 0);
        unmet.push(missing(2, 2), 5);
        assert_eq!(unmet.due(LOOK_AFTER_NS - 1), None);
        assert_eq!(unmet.leaving(SpanId([9; 8])), None, "one that nobody is missing for");
        assert_eq!(unmet.leaving(SpanId([1; 8])), Some(missing(1, 1)));
        assert_eq!(unmet.due(LOOK_AFTER_NS + 4), None);
        assert_eq!(unmet.due(LOOK_AFTER_NS + 5), Some(missing(2, 2)));
        assert_eq!(unmet.due(u64::MAX), None);
    }

    #[test]
    fn a_connection_without_a_captured_client_is_not_looked_at_again() {
        let mut unmet = Unmet::default();
        let waits = |unmet: &mut Unmet| {
            unmet.push(missing(1, 7), 0);
            unmet.due(u64::MAX).is_some()
        };
        assert!(waits(&mut unmet));
        unmet.found_nobody(7);
        assert!(!waits(&mut unmet));
        unmet.push(missing(2, 8), 0);
        assert!(unmet.due(u64::MAX).is_some(), "another connection is");
        let mut met = ExchangeRecord {
            cookie: 7,
            side: side::SERVER,
            ..ExchangeRecord::new_zeroed()
        };
        unmet.arrived(&met);
        assert!(!waits(&mut unmet), "this one met nobody either");
        met.wire_span_id = [1; 8];
        unmet.arrived(&met);
        assert!(waits(&mut unmet), "its client is captured by now");
        unmet.found_nobody(7);
        unmet.meet_everybody();
        assert!(waits(&mut unmet));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut unmet = Unmet::default();
        for cookie in 0..3 * STRANGERS as u64 {
            unmet.found_nobody(cookie);
            assert!(unmet.strangers.len() <= STRANGERS);
        }
    }
}
