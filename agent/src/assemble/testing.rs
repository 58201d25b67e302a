//! Records for tests, made field by field from something plausible, and a replay that collects what comes out.
//!
//! Ids are small numbers: span 7 is `span(7)`, trace 7 is `trace(7)`. Unless told otherwise an exchange is a complete
//! `GET /` over IPv4 loopback that took 1 ms, by a process of pid 100, with trace id = its span's number.
#![allow(clippy::panic, reason = "test")]

use std::collections::BTreeMap;
use std::net::IpAddr;

use spanwire_common::abi::{
    context_format, family, flag, kind, outcome, process_event, protocol_id, side, text, ExchangeRecord, ProcessClass,
    ProcessRecord, RecordHeader, TextRecord, ABI_VERSION,
};
use spanwire_common::drop::UserDrop;
use zerocopy::FromZeros;

use super::{Assembler, Options, Output};
use crate::decode::{Event, Link};
use crate::span::{ParentSource, Settled, SpanId, TraceAlias, TraceId, UnknownReason};

/// A millisecond in nanoseconds.
pub(crate) const MS: u64 = 1_000_000;
/// When replays begin.
pub(crate) const START_NS: u64 = 1_000_000 * MS;

/// Span id number `n`.
pub(crate) fn span(n: u64) -> SpanId {
    SpanId(n.to_be_bytes())
}

/// Trace id number `n`.
pub(crate) fn trace(n: u64) -> TraceId {
    let mut bytes = [0; 16];
    bytes[8..].copy_from_slice(&n.to_be_bytes());
    TraceId(bytes)
}

fn header(kind: u8, len: usize) -> RecordHeader {
    RecordHeader {
        seq: 0,
        cpu: 0,
        kind,
        version: ABI_VERSION,
        len: len as u32,
    }
}

/// An exchange being made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exchange(pub(crate) ExchangeRecord);

/// A server exchange with span id `n`, in a process of pid 100 + `n`.
pub(crate) fn server(n: u64) -> Exchange {
    Exchange::new(side::SERVER, n).pid(100 + n as u32).ports(80, 40_000)
}

/// A client exchange with span id `n`, in a process of pid 100 + `n`.
pub(crate) fn client(n: u64) -> Exchange {
    Exchange::new(side::CLIENT, n).pid(100 + n as u32).ports(40_000, 80)
}

impl Exchange {
    fn new(of_side: u8, n: u64) -> Self {
        let mut record = ExchangeRecord::new_zeroed();
        record.header = header(kind::EXCHANGE, size_of::<ExchangeRecord>());
        record.side = of_side;
        record.span_id = span(n).0;
        record.trace_id = trace(n).0;
        record.family = family::INET;
        record.local_addr[..4].copy_from_slice(&[127, 0, 0, 1]);
        record.remote_addr[..4].copy_from_slice(&[127, 0, 0, 1]);
        record.protocol = protocol_id::HTTP1;
        record.outcome = outcome::COMPLETE;
        record.status = 200;
        record.class = ProcessClass::Other as u8;
        record.flags = flag::SAMPLED | flag::RANDOM;
        record.cookie = n;
        record.netns = 1;
        Self(record).method("GET").path("/").at(0, 1)
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut ExchangeRecord)) -> Self {
        change(&mut self.0);
        self
    }

    /// Begins and ends so many milliseconds after the replay's start.
    pub(crate) fn at(self, begin_ms: u64, end_ms: u64) -> Self {
        self.with(|r| {
            r.request_first_ns = START_NS + begin_ms * MS;
            r.request_last_ns = r.request_first_ns;
            r.response_first_ns = START_NS + end_ms * MS;
            r.response_last_ns = r.response_first_ns;
        })
    }

    pub(crate) fn trace(self, n: u64) -> Self {
        self.with(|r| r.trace_id = trace(n).0)
    }

    pub(crate) fn pid(self, pid: u32) -> Self {
        self.with(|r| (r.pid, r.tid) = (pid, pid))
    }

    pub(crate) fn tid(self, tid: u32) -> Self {
        self.with(|r| r.tid = tid)
    }

    pub(crate) fn class(self, class: ProcessClass) -> Self {
        self.with(|r| r.class = class as u8)
    }

    pub(crate) fn flags(self, flags: u32) -> Self {
        self.with(|r| r.flags |= flags)
    }

    pub(crate) fn method(self, method: &str) -> Self {
        self.with(|r| {
            r.method = [0; 16];
            r.method[..method.len()].copy_from_slice(method.as_bytes());
            r.method_len = method.len() as u8;
        })
    }

    pub(crate) fn path(self, path: &str) -> Self {
        self.with(|r| {
            r.path = [0; 256];
            r.path[..path.len()].copy_from_slice(path.as_bytes());
            r.path_len = path.len() as u16;
        })
    }

    /// Local and remote port.
    pub(crate) fn ports(self, local: u16, remote: u16) -> Self {
        self.with(|r| (r.local_port, r.remote_port) = (local, remote))
    }

    pub(crate) fn local(self, address: &str) -> Self {
        self.with(|r| r.local_addr = bytes(r, address))
    }

    pub(crate) fn remote(self, address: &str) -> Self {
        self.with(|r| r.remote_addr = bytes(r, address))
    }

    /// A traceparent of trace `of_trace` with this parent id, whose trace id was taken over.
    pub(crate) fn w3c(self, of_trace: u64, parent: u64) -> Self {
        self.trace(of_trace).flags(flag::ADOPTED_HEADER).with(|r| {
            r.context_format = context_format::W3C;
            r.header_parent_id = span(parent).0;
        })
    }

    /// The kernel names the open request `cause_span` in trace `cause_trace` as the cause, by `by`.
    pub(crate) fn cause(self, by: u8, cause_span: u64, cause_trace: u64) -> Self {
        self.with(|r| {
            r.cause = by;
            r.cause_span_id = span(cause_span).0;
            r.cause_trace_id = trace(cause_trace).0;
        })
    }

    /// The kernel found the other end.
    pub(crate) fn wire(self, other_span: u64, other_trace: u64) -> Self {
        self.with(|r| {
            r.wire_span_id = span(other_span).0;
            r.wire_trace_id = trace(other_trace).0;
        })
    }

    /// A wire key the kernel did not find the other end of.
    pub(crate) fn wire_key(self, key: u64) -> Self {
        self.flags(flag::WIRE_KEY).with(|r| r.wire_key = key)
    }

    pub(crate) fn status(self, status: u16) -> Self {
        self.with(|r| r.status = status)
    }

    pub(crate) fn outcome(self, ended: u8) -> Self {
        self.with(|r| (r.outcome, r.status) = (ended, 0))
    }

    /// A connect that failed so: nothing was sent.
    pub(crate) fn connect(self, ended: u8) -> Self {
        self.outcome(ended).method("").path("").with(|r| {
            r.protocol = protocol_id::CONNECT;
            r.response_first_ns = 0;
        })
    }

    pub(crate) fn event(self) -> Event {
        Event::Exchange(Box::new(self.0))
    }

    /// The ring's bytes, cut after the path as the kernel side may.
    pub(crate) fn bytes(self) -> Vec<u8> {
        use zerocopy::IntoBytes;
        let path = self.0.path_len as usize;
        let len = std::mem::offset_of!(ExchangeRecord, path) + path.next_multiple_of(8);
        let mut record = self.0;
        record.header.len = len as u32;
        record.as_bytes()[..len].to_vec()
    }
}

fn bytes(record: &mut ExchangeRecord, address: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    match address.parse() {
        Ok(IpAddr::V4(v4)) => {
            record.family = family::INET;
            bytes[..4].copy_from_slice(&v4.octets());
        }
        Ok(IpAddr::V6(v6)) => {
            record.family = family::INET6;
            bytes = v6.octets();
        }
        Err(error) => panic!("{address}: {error}"),
    }
    bytes
}

/// A text of exchange `n`.
pub(crate) fn text_of(n: u64, what: u8, index: u8, value: &str) -> Event {
    let mut record = TextRecord::new_zeroed();
    record.header = header(kind::TEXT, size_of::<TextRecord>());
    record.span_id = span(n).0;
    record.what = what;
    record.index = index;
    record.len = value.len() as u16;
    record.bytes[..value.len()].copy_from_slice(value.as_bytes());
    Event::Text(Box::new(record))
}

/// The text behind a tenant hash.
pub(crate) fn tenant_text(hash: u64, value: &str) -> Event {
    match text_of(0, text::TENANT, 0, value) {
        Event::Text(mut record) => {
            record.hash = hash;
            Event::Text(record)
        }
        other => other,
    }
}

/// Something happened to a process.
pub(crate) fn process(pid: u32, event: u8, parent_pid: u32) -> Event {
    let mut record = ProcessRecord::new_zeroed();
    record.header = header(kind::PROCESS, size_of::<ProcessRecord>());
    (record.pid, record.event, record.parent_pid) = (pid, event, parent_pid);
    Event::Process(Box::new(record))
}

/// As [`process`], for a demotion.
pub(crate) fn demoted(pid: u32) -> Event {
    process(pid, process_event::DEMOTED, 0)
}

/// The ends (span, trace) of a wire met after each had a trace of its own.
pub(crate) fn link(client: (u64, u64), server: (u64, u64)) -> Event {
    Event::Link(Link {
        client_span: span(client.0),
        client_trace: trace(client.1),
        server_span: span(server.0),
        server_trace: trace(server.1),
    })
}

/// A parent in a form that is quick to write: `by(ParentSource::Wire, 3)`, `ROOT`, `unknown(UnknownReason::Remote)`.
pub(crate) type Found = (ParentSource, Option<SpanId>, Option<UnknownReason>);

/// There is none.
pub(crate) const ROOT: Found = (ParentSource::Root, None, None);

/// Span `n`, known by `source`.
pub(crate) fn by(source: ParentSource, n: u64) -> Found {
    (source, Some(span(n)), None)
}

/// Not known, and why.
pub(crate) fn unknown(reason: UnknownReason) -> Found {
    (ParentSource::Unknown, None, Some(reason))
}

/// An assembler, its clock, and all that came out.
pub(crate) struct Replay {
    pub(crate) assembler: Assembler,
    pub(crate) now_ns: u64,
    pub(crate) settled: BTreeMap<SpanId, Settled>,
    /// In the order they left.
    pub(crate) order: Vec<SpanId>,
    pub(crate) aliases: Vec<TraceAlias>,
    pub(crate) dropped: BTreeMap<UserDrop, u64>,
    /// Provisional exchanges that counted.
    pub(crate) kept: u64,
    /// Servers whose client may still be found on the wire.
    pub(crate) unmet: Vec<SpanId>,
    pub(crate) asked: Vec<u32>,
}

impl Default for Replay {
    fn default() -> Self {
        Self::new(Options::default())
    }
}

impl Replay {
    pub(crate) fn new(options: Options) -> Self {
        Self {
            assembler: Assembler::new(options),
            now_ns: START_NS,
            settled: BTreeMap::new(),
            order: Vec::new(),
            aliases: Vec::new(),
            dropped: BTreeMap::new(),
            kept: 0,
            unmet: Vec::new(),
            asked: Vec::new(),
        }
    }

    /// Replays these a microsecond apart and lets everything settle.
    pub(crate) fn of(events: impl IntoIterator<Item = Event>) -> Self {
        let mut replay = Self::default();
        replay.feed(events);
        replay.settle();
        replay
    }

    fn take(&mut self, run: impl FnOnce(&mut Assembler, u64, &mut dyn FnMut(Output))) {
        let mut outputs = Vec::new();
        run(&mut self.assembler, self.now_ns, &mut |output| {
            outputs.push(output);
        });
        for output in outputs {
            match output {
                Output::Settled(settled) => {
                    let id = SpanId(settled.record.span_id);
                    self.order.push(id);
                    assert!(self.settled.insert(id, settled).is_none(), "{id} left twice");
                }
                Output::Alias(alias) => self.aliases.push(alias),
                Output::Dropped(reason, count) => *self.dropped.entry(reason).or_default() += count,
                Output::Classify { pid } => self.asked.push(pid),
                Output::Kept { .. } => self.kept += 1,
                Output::Unmet { span, .. } => self.unmet.push(span),
            }
        }
    }

    pub(crate) fn feed(&mut self, events: impl IntoIterator<Item = Event>) {
        for event in events {
            self.now_ns += 1_000;
            self.take(|assembler, now_ns, out| {
                assembler.push(event, now_ns, &mut |output| out(output));
            });
        }
    }

    /// Time passes, with a tick every 50 ms.
    pub(crate) fn wait_ms(&mut self, milliseconds: u64) {
        let until_ns = self.now_ns + milliseconds * MS;
        while self.now_ns < until_ns {
            self.now_ns = (self.now_ns + 50 * MS).min(until_ns);
            self.take(|assembler, now_ns, out| assembler.tick(now_ns, &mut |output| out(output)));
        }
    }

    /// Longer than the settle window.
    pub(crate) fn settle(&mut self) {
        self.wait_ms(1_100);
    }

    pub(crate) fn flush(&mut self) {
        self.take(|assembler, _, out| assembler.flush(&mut |output| out(output)));
    }

    /// The span `n` that left.
    pub(crate) fn span(&self, n: u64) -> &Settled {
        self.settled
            .get(&span(n))
            .unwrap_or_else(|| panic!("span {n} has not left: {:?}", self.order))
    }

    /// Its parent.
    pub(crate) fn parent(&self, n: u64) -> Found {
        let parent = self.span(n).parent;
        (parent.source, parent.span_id, parent.reason)
    }

    /// Its trace.
    pub(crate) fn trace(&self, n: u64) -> TraceId {
        self.span(n).trace_id
    }

    /// How many were dropped, whatever the reason.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.values().sum()
    }
}
