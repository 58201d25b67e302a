//! An exchange comes in: what it tells of others is taken in at once.

use spanwire_common::abi::{flag, side, ExchangeRecord, ProcessClass};
use spanwire_common::drop::UserDrop;

use super::attempts::{began_ns, Maker};
use super::judge::{self, has, Evidence, Runtime};
use super::local::Place;
use super::returned::Verdict;
use super::union::Known;
use super::wire::{Client, Pair};
use super::{Assembler, Output};
use crate::span::{ParentSource, SpanId, TraceId, UnknownReason};

/// Where OTLP over HTTP goes: telemetry is not traced, whoever sends it.
const OTLP_PATHS: [&[u8]; 3] = [b"/v1/traces", b"/v1/metrics", b"/v1/logs"];

impl Assembler {
    pub(super) fn arrive(&mut self, record: Box<ExchangeRecord>, now_ns: u64, out: &mut impl FnMut(Output)) {
        self.counted.exchanges += 1;
        let is_server = record.side == side::SERVER;
        let process = self.processes.meet(record.pid);
        process.serves |= is_server;
        process.demoted |= has(&record, flag::DEMOTED);
        let process = *process;
        if process.excluded || self.excluded(&record, None) {
            self.drop_excluded(&record, process.excluded, out);
            return;
        }
        if record.class == ProcessClass::Unclassified as u8 && !process.known {
            self.ask(record.pid, out);
        }
        if record.ordinal == 0 && has(&record, flag::LATE_JOIN) {
            self.counted.joined += 1;
        }
        if record.ordinal == 0 || has(&record, flag::LATE_JOIN) {
            self.seen.bound(&record);
        }
        for (flags, known) in [
            (flag::ADOPTED_HEADER, Known::Adopted),
            (flag::INJECTED, Known::Injected),
            (flag::RETURNED, Known::Returned),
        ] {
            if has(&record, flags) {
                self.union.note(TraceId(record.trace_id), known);
            }
        }
        if is_server {
            self.server_arrived(&record, out);
        } else {
            self.client_arrived(&record);
        }
        if let Some((parent, child)) = self.returned.note(&record) {
            self.merge(parent, child);
        }
        let waits = !is_server && self.take_evidence(&record);
        if record.tenant != 0 {
            let trace = self.union.find(TraceId(record.trace_id));
            self.shelf.bears(trace, record.tenant, began_ns(&record));
        }
        let pid = record.pid;
        let sequence = self.window.hold(record, now_ns);
        if waits {
            self.processes.wait(pid, sequence);
        }
        if self.window.len() > self.options.max_held {
            if let Some(held) = self.window.oldest() {
                self.counted.settled_early += 1;
                self.leave(held, out);
            }
        }
    }

    /// True if this exchange is not to be a span, for a reason that it bears itself.
    pub(super) fn excluded(&self, record: &ExchangeRecord, user_agent: Option<&str>) -> bool {
        let path = &record.path[..usize::from(record.path_len).min(record.path.len())];
        has(record, flag::EXCLUDED_USER_AGENT | flag::OWN_TRAFFIC)
            || OTLP_PATHS.contains(&path)
            || self
                .options
                .exclusion
                .as_ref()
                .is_some_and(|excludes| excludes(record, user_agent))
    }

    /// `whole`: nothing of its process is captured. Then an exchange that was observed provisionally never counted.
    pub(super) fn drop_excluded(&mut self, record: &ExchangeRecord, whole: bool, out: &mut impl FnMut(Output)) {
        if record.side == side::CLIENT {
            self.wire.exclude(SpanId(record.span_id), true);
        }
        self.counted.dropped += 1;
        if whole && has(record, flag::UNCLASSIFIED) {
            return;
        }
        keep(record, out);
        out(Output::Dropped(UserDrop::ExcludedProcess, 1));
    }

    fn server_arrived(&mut self, record: &ExchangeRecord, out: &mut impl FnMut(Output)) {
        self.wire.note_header(record);
        match self.wire.client_of(record) {
            Some(client) => self.joined_by_wire(client, record),
            None => {
                if let Some(pair) = self.wire.meet(record) {
                    self.paired(pair);
                } else if has(record, flag::WIRE_KEY) && self.peer_place(record) == Place::Node {
                    out(Output::Unmet {
                        wire_key: record.wire_key,
                        cookie: record.cookie,
                        span: SpanId(record.span_id),
                        trace: TraceId(record.trace_id),
                    });
                }
            }
        }
        self.joined_by_sdk(record);
    }

    /// A server's trace is its client's. One that it adopted from a header stays, and the two remain apart.
    pub(super) fn joined_by_wire(&mut self, client: Client, record: &ExchangeRecord) {
        let own = TraceId(record.trace_id);
        if client.trace == own {
            return;
        }
        if has(record, flag::ADOPTED_HEADER) {
            self.union.cut(own);
        } else {
            self.merge(client.trace, own);
        }
    }

    fn client_arrived(&mut self, record: &ExchangeRecord) {
        self.seen.client(record, &self.options.local);
        if judge::sdk_made(record) {
            self.wire.mark_sdk_made(record);
            if !self.wire.came_in(record) {
                self.sdks.made(record);
            }
        }
        let own = Client {
            span: SpanId(record.span_id),
            trace: TraceId(record.trace_id),
        };
        if record.wire_span_id != [0; 8] {
            self.wire.link(SpanId(record.wire_span_id), own);
            self.merge(own.trace, TraceId(record.wire_trace_id));
        } else if let Some(pair) = self.wire.meet(record) {
            self.paired(pair);
        }
    }

    /// Two ends met here.
    fn paired(&mut self, pair: Pair) {
        self.wire.link(pair.server_span, pair.client);
        if !pair.server_adopted {
            self.merge(pair.client.trace, pair.server_trace);
        }
    }

    /// What is known of a client exchange's process now.
    pub(super) fn runtime(&self, record: &ExchangeRecord) -> Runtime {
        let process = self.processes.peek(record.pid);
        Runtime {
            class: process.class,
            demoted: process.demoted,
            may_inherit: record.cause != spanwire_common::abi::cause::PROCESS || self.processes.may_inherit(record.pid),
        }
    }

    /// The class of its process has come.
    pub(super) fn evidence_of_held(&mut self, sequence: u64) {
        // A copy, because evidence changes every table but the window; it is only made for processes not yet known.
        if let Some(record) = self.window.by_sequence(sequence).copied() {
            self.take_evidence(&record);
        }
    }

    /// Joins a client exchange's fragment to its parent's trace, and notes what may be repeated. True if the class of the
    /// process is needed first.
    fn take_evidence(&mut self, record: &ExchangeRecord) -> bool {
        let runtime = self.runtime(record);
        let evidence = self.evidence(record, runtime);
        let own = TraceId(record.trace_id);
        if let Evidence::Exact { source, trace, .. } = evidence {
            if source != ParentSource::Header && !has(record, flag::ADOPTED_HEADER) {
                self.merge(trace, own);
            }
        }
        if let Some(maker) = self.maker(record, runtime, evidence) {
            if matches!(maker, Maker::Thread(..)) && !has(record, flag::ADOPTED_HEADER) {
                if let Some(repeats) = self.attempts.repeats(maker, record) {
                    self.merge(repeats.trace, own);
                }
            }
            self.attempts.note(maker, record);
        }
        let class = judge::class_of(record, runtime);
        let caller_waits = self.note_caller(record, evidence);
        caller_waits
            || evidence == Evidence::Waits
            || (evidence == Evidence::Nothing && class == ProcessClass::Unclassified)
    }

    /// What is known of a client exchange's parent: by its own evidence, or else by the id that came back.
    pub(super) fn evidence(&self, record: &ExchangeRecord, runtime: Runtime) -> Evidence {
        let evidence = judge::client(record, runtime);
        if matches!(evidence, Evidence::Exact { .. }) {
            return evidence;
        }
        match self.returned.cause_of(record) {
            Verdict::Silent => evidence,
            Verdict::One(cause) => Evidence::Exact {
                source: ParentSource::Header,
                span: cause.span,
                trace: cause.trace,
            },
            Verdict::Many => Evidence::Unknown(UnknownReason::Overlap),
        }
    }

    /// By whom a client exchange was made, as far as attempts go.
    pub(super) fn maker(&self, record: &ExchangeRecord, runtime: Runtime, evidence: Evidence) -> Option<Maker> {
        let class = judge::class_of(record, runtime);
        match evidence {
            // An SDK numbers the attempts it makes itself, and gives each a parent of its own.
            Evidence::Exact {
                source: ParentSource::Header,
                ..
            } if judge::sdk_made(record) => None,
            Evidence::Exact { span, .. } if class == ProcessClass::Nginx => Some(Maker::NginxRequest(span)),
            Evidence::Exact { span, .. } => Some(Maker::Request(span)),
            Evidence::Nothing if judge::one_at_a_time(class) && !self.serves(record) => {
                Some(Maker::Thread(record.pid, record.tid))
            }
            _ => None,
        }
    }

    /// True if the process has served a captured request.
    pub(super) fn serves(&self, record: &ExchangeRecord) -> bool {
        has(record, flag::PROCESS_SERVES) || self.processes.peek(record.pid).serves
    }
}

/// Has an exchange counted that the kernel side left to be counted here.
pub(super) fn keep(record: &ExchangeRecord, out: &mut impl FnMut(Output)) {
    if has(record, flag::UNCLASSIFIED) {
        let is_server = record.side == side::SERVER;
        out(Output::Kept { is_server });
    }
}
