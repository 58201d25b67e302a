//! An exchange leaves: its parent is decided from all that is known by now.

use std::net::IpAddr;

use spanwire_common::abi::{context_format, family, flag, protocol_id, side, ExchangeRecord, ProcessClass};
use spanwire_common::drop::UserDrop;

use super::arrive::keep;
use super::attempts::Maker;
use super::judge::{self, exact, has, header_names_parent, unknown, Evidence, ROOT};
use super::local::{address, Place};
use super::window::Held;
use super::{Assembler, Output};
use crate::span::{Parent, ParentSource, Settled, SpanId, TraceId, UnknownReason};

impl Assembler {
    /// Hands an exchange on, or drops it.
    pub(super) fn leave(&mut self, held: Held, out: &mut impl FnMut(Output)) {
        let record = held.record;
        let process = self.processes.peek(record.pid);
        self.processes.left(record.pid, self.window.first());
        let texts = self.shelf.take(SpanId(record.span_id));
        let unclassified = record.class == ProcessClass::Unclassified as u8 && !process.known;
        let user_agent = texts.as_ref().and_then(|texts| texts.user_agent.as_deref());
        let provisional = has(&record, flag::UNCLASSIFIED);
        let not_captured = process.excluded
            || (unclassified && !self.options.keep_unclassified)
            || (provisional && !self.options.admission.as_ref().is_none_or(|admits| admits(&record)));
        if not_captured || self.excluded(&record, user_agent) {
            self.drop_excluded(&record, not_captured, out);
            return;
        }
        keep(&record, out);
        let (parent, resend_count) = if record.side == side::SERVER {
            self.joined_by_sdk(&record);
            (self.server_parent(&record), 0)
        } else {
            self.client_parent(&record)
        };
        let opaque = matches!(record.protocol, protocol_id::OPAQUE | protocol_id::TLS);
        if opaque && parent.span_id.is_none() {
            self.counted.dropped += 1;
            out(Output::Dropped(UserDrop::OpaqueUncaused, 1));
            return;
        }
        let (trace_id, alias) = self.union.leave(TraceId(record.trace_id));
        if let Some(alias) = alias {
            out(Output::Alias(alias));
        }
        // A tracestate means nothing without the traceparent it came with (W3C Trace Context 3.3).
        let adopted = record.context_format == context_format::W3C && has(&record, flag::ADOPTED_HEADER);
        let tracestate = texts
            .as_ref()
            .filter(|_| adopted)
            .and_then(super::texts::Texts::tracestate);
        self.counted.settled += 1;
        out(Output::Settled(Settled {
            sdk: self.sdk_span(&record),
            tenant: self.shelf.tenant(trace_id),
            tracestate,
            headers: texts.map_or_else(Vec::new, |texts| texts.headers),
            record,
            trace_id,
            parent,
            resend_count,
        }));
    }

    /// The parent of a server span: the client span at the other end of the wire, or what the header says, or by the
    /// table in contract.md, "Spans".
    fn server_parent(&mut self, record: &ExchangeRecord) -> Parent {
        let header = header_names_parent(record).then(|| exact(ParentSource::Header, SpanId(record.header_parent_id)));
        let Some(client) = self.wire.client_of(record) else {
            return header.unwrap_or_else(|| self.parentless_server(record));
        };
        if self.wire.is_excluded(client.span) {
            // Its sender is local and not captured, as it turned out.
            return header.unwrap_or(ROOT);
        }
        self.joined_by_wire(client, record);
        let one_trace = self.union.find(client.trace) == self.union.find(TraceId(record.trace_id));
        match header {
            // The header names a span of the sender's own SDK, which is nearer than the client span we made.
            Some(header) if !one_trace || self.wire.is_sdk_made(client.span, record) => header,
            None if !one_trace => {
                self.counted.contradictions += 1;
                unknown(UnknownReason::Contradiction)
            }
            _ => exact(ParentSource::Wire, client.span),
        }
    }

    fn parentless_server(&mut self, record: &ExchangeRecord) -> Parent {
        let is_captured = |pid| !self.processes.peek(pid).excluded;
        if has(record, flag::WIRE_MATCHED) || self.seen.peer_captured(record, is_captured) {
            self.counted.wire_missed += 1;
            return unknown(UnknownReason::LostEvent);
        }
        if record.family == family::UNIX && has(record, flag::LATE_JOIN) {
            // Where either end of a unix stream stands in it, is not known of one that is older than the agent.
            return unknown(UnknownReason::AttachedLate);
        }
        match self.peer_place(record) {
            Place::Near => unknown(UnknownReason::Remote),
            Place::Node | Place::Outside => ROOT,
        }
    }

    pub(super) fn peer_place(&self, record: &ExchangeRecord) -> Place {
        let Some(peer) = address(record.family, &record.remote_addr) else {
            // A unix socket: both its ends are here.
            return Place::Node;
        };
        let own: Option<IpAddr> = address(record.family, &record.local_addr);
        if own == Some(peer) || self.seen.on_node(peer) {
            return Place::Node;
        }
        self.options.local.place(peer)
    }

    /// The parent of a client span, and how many failed attempts it follows.
    fn client_parent(&mut self, record: &ExchangeRecord) -> (Parent, u32) {
        let runtime = self.runtime(record);
        let evidence = self.evidence(record, runtime);
        let resend_count = match self.maker(record, runtime, evidence) {
            Some(maker) => self.number(maker, record),
            None => 0,
        };
        let parent = match evidence {
            Evidence::Exact {
                source: ParentSource::Header,
                ..
            } if judge::sdk_made(record) && self.wire.came_in(record) => {
                // Forwarded, but not while exactly one request with this header was open.
                unknown(UnknownReason::Handoff)
            }
            Evidence::Exact { source, span, trace } => {
                if self.union.find(trace) == self.union.find(TraceId(record.trace_id)) {
                    exact(source, span)
                } else {
                    self.counted.contradictions += 1;
                    unknown(UnknownReason::Contradiction)
                }
            }
            Evidence::Unknown(reason) => unknown(reason),
            Evidence::Waits => unknown(UnknownReason::Runtime),
            Evidence::Nothing if !self.serves(record) => ROOT,
            Evidence::Nothing => unknown(judge::why_nothing(record, runtime)),
        };
        (parent, resend_count)
    }

    fn number(&mut self, maker: Maker, record: &ExchangeRecord) -> u32 {
        let repeats = self.attempts.repeats(maker, record);
        // Again, because what came after it may have failed before it.
        self.attempts.note(maker, record);
        let Some(repeats) = repeats else { return 0 };
        self.counted.attempts += 1;
        if matches!(maker, Maker::Thread(..)) && !has(record, flag::ADOPTED_HEADER) {
            self.merge(repeats.trace, TraceId(record.trace_id));
        }
        repeats.count
    }
}
