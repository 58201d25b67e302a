//! Stage: decode. Ring bytes to typed events; keeps no state and trusts no length.
//!
//! The kernel side is built from the same `abi.rs`, so a record that does not fit is a bug or an object of another
//! build, and never a reason to stop: it is refused, counted ([`UserDrop::Malformed`]) and the next one is read.
//!
//! [`UserDrop::Malformed`]: spanwire_common::drop::UserDrop::Malformed

use std::mem::{offset_of, size_of};

use spanwire_common::abi::{
    cause, context_format, family, flag, kind, outcome, process_event, protocol_id, side, text, ExchangeRecord,
    OpaqueTurn, ProcessRecord, RecordHeader, TextRecord, ABI_VERSION, METHOD_BYTES,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::span::{SpanId, TraceId};

/// The server exchange `server` was sent by `client`: found in the map WIRES, where the server's hook had come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    pub client_span: SpanId,
    pub client_trace: TraceId,
    pub server_span: SpanId,
    pub server_trace: TraceId,
}

/// What came out of the ring; or, a link, out of a map. The big records are boxed once, here, and keep that box until they are a span. A turn of an
/// opaque call is an exchange in which nothing is known but times, sizes and ends.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Exchange(Box<ExchangeRecord>),
    Text(Box<TextRecord>),
    Process(Box<ProcessRecord>),
    Link(Link),
}

/// Why a record was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error(
        "ring record of {got} bytes is shorter than its header or than it says ({said}): the ring was not read whole"
    )]
    Short { said: usize, got: usize },
    #[error("ring record has layout version {0}, this agent reads {ABI_VERSION}: the eBPF object is of another build")]
    Version(u8),
    #[error("ring record is of unknown kind {0}: the eBPF object is of another build")]
    Kind(u8),
    #[error("ring record of kind {kind} cannot be {said} bytes long: the eBPF object is of another build")]
    Length { kind: u8, said: usize },
    #[error("ring record of kind {kind} has an impossible {field}: the kernel side wrote it wrong")]
    Field { kind: u8, field: &'static str },
}

/// Bytes of an exchange before its path: the least that is sent.
const EXCHANGE_FIXED: usize = offset_of!(ExchangeRecord, path);
/// Bytes of a text record before its text.
const TEXT_FIXED: usize = offset_of!(TextRecord, bytes);

/// The header of a record, for [`Sequence::observe`]: also of one that is refused afterwards.
pub fn header(bytes: &[u8]) -> Option<RecordHeader> {
    RecordHeader::read_from_prefix(bytes).ok().map(|(header, _)| header)
}

/// Reads one ring record. The record's own `len` may be less than `bytes` (a ring rounds up), never more. Exchanges and
/// texts may be cut after the bytes in use; what is missing is zero.
pub fn decode(bytes: &[u8]) -> Result<Event, DecodeError> {
    let Ok((header, _)) = RecordHeader::read_from_prefix(bytes) else {
        return Err(DecodeError::Short {
            said: size_of::<RecordHeader>(),
            got: bytes.len(),
        });
    };
    if header.version != ABI_VERSION {
        return Err(DecodeError::Version(header.version));
    }
    let said = header.len as usize;
    let record = bytes.get(..said).ok_or(DecodeError::Short { said, got: bytes.len() })?;
    match header.kind {
        kind::EXCHANGE => exchange(record).map(Event::Exchange),
        kind::TEXT => text_record(record).map(Event::Text),
        kind::PROCESS => process(record).map(Event::Process),
        kind::OPAQUE_TURN => {
            let turn = OpaqueTurn::read_from_bytes(record).map_err(|_| DecodeError::Length {
                kind: kind::OPAQUE_TURN,
                said,
            })?;
            opaque_turn(&turn)
        }
        other => Err(DecodeError::Kind(other)),
    }
}

/// Copies `bytes`, which may end early but not before `fixed`, over a zeroed record.
fn zero_filled<T: FromZeros + FromBytes + IntoBytes>(
    kind: u8,
    bytes: &[u8],
    fixed: usize,
) -> Result<Box<T>, DecodeError> {
    let wrong_length = DecodeError::Length {
        kind,
        said: bytes.len(),
    };
    if bytes.len() < fixed {
        return Err(wrong_length);
    }
    let mut record = Box::new(T::new_zeroed());
    let target = record
        .as_mut()
        .as_mut_bytes()
        .get_mut(..bytes.len())
        .ok_or(wrong_length)?;
    target.copy_from_slice(bytes);
    Ok(record)
}

fn check(kind: u8, field: &'static str, fine: bool) -> Result<(), DecodeError> {
    if fine {
        Ok(())
    } else {
        Err(DecodeError::Field { kind, field })
    }
}

/// A turn of an opaque call as an exchange: also for those that are taken from the kernel's map, because they went quiet.
pub fn opaque_turn(turn: &OpaqueTurn) -> Result<Event, DecodeError> {
    const KIND: u8 = kind::OPAQUE_TURN;
    check(
        KIND,
        "protocol",
        matches!(turn.protocol, protocol_id::OPAQUE | protocol_id::TLS),
    )?;
    check(KIND, "family", is_family(turn.family))?;
    check(KIND, "cause", turn.cause <= cause::HEADER)?;
    check(KIND, "cause_trace_id", turn.cause_trace_id != [0; 2])?;
    check(KIND, "span_id", turn.span_id != 0)?;
    let mut record = Box::new(ExchangeRecord::new_zeroed());
    record.header = turn.header;
    record.request_first_ns = turn.sent_first_ns;
    record.request_last_ns = turn.sent_last_ns;
    record.response_first_ns = turn.received_first_ns;
    record.response_last_ns = turn.received_last_ns.max(turn.sent_last_ns);
    // The kernel side keeps ids as words of the machine's own order: their bytes are the id's.
    record.trace_id.copy_from_slice(turn.cause_trace_id.as_bytes());
    record.span_id = turn.span_id.to_ne_bytes();
    record.cause_trace_id = record.trace_id;
    record.cause_span_id = turn.cause_span_id.to_ne_bytes();
    record.tenant = turn.tenant;
    record.request_body_bytes = turn.sent_bytes;
    record.response_body_bytes = turn.received_bytes;
    record.cookie = turn.cookie;
    record.cgroup_id = turn.cgroup_id;
    record.local_addr.copy_from_slice(turn.local_addr.as_bytes());
    record.remote_addr.copy_from_slice(turn.remote_addr.as_bytes());
    record.local_port = turn.local_port;
    record.remote_port = turn.remote_port;
    record.netns = turn.netns;
    record.pid = turn.pid;
    record.tid = turn.tid;
    record.flags = turn.flags | flag::ADOPTED_CAUSE | flag::REQUEST_SIZE_KNOWN | flag::RESPONSE_SIZE_KNOWN;
    record.side = side::CLIENT;
    record.outcome = outcome::COMPLETE;
    record.protocol = turn.protocol;
    record.family = turn.family;
    record.cause = turn.cause;
    record.class = turn.class;
    Ok(Event::Exchange(record))
}

const fn is_family(value: u8) -> bool {
    matches!(value, family::UNIX | family::INET | family::INET6)
}

fn exchange(bytes: &[u8]) -> Result<Box<ExchangeRecord>, DecodeError> {
    const KIND: u8 = kind::EXCHANGE;
    let mut record: Box<ExchangeRecord> = zero_filled(KIND, bytes, EXCHANGE_FIXED)?;
    let path_len = usize::from(record.path_len);
    let method_len = usize::from(record.method_len);
    check(KIND, "path_len", path_len <= bytes.len() - EXCHANGE_FIXED)?;
    check(KIND, "method_len", method_len <= METHOD_BYTES)?;
    check(KIND, "side", matches!(record.side, side::SERVER | side::CLIENT))?;
    check(KIND, "outcome", record.outcome <= outcome::EXIT)?;
    check(
        KIND,
        "protocol",
        (protocol_id::HTTP1..=protocol_id::TLS).contains(&record.protocol),
    )?;
    check(KIND, "family", is_family(record.family))?;
    check(KIND, "context_format", record.context_format <= context_format::DATADOG)?;
    check(KIND, "cause", record.cause <= cause::HEADER)?;
    check(KIND, "trace_id", record.trace_id != [0; 16])?;
    check(KIND, "span_id", record.span_id != [0; 8])?;
    // Bytes past the used ones are nobody's business, whatever the kernel left there.
    record.path[path_len..].fill(0);
    record.method[method_len..].fill(0);
    Ok(record)
}

fn text_record(bytes: &[u8]) -> Result<Box<TextRecord>, DecodeError> {
    const KIND: u8 = kind::TEXT;
    let mut record: Box<TextRecord> = zero_filled(KIND, bytes, TEXT_FIXED)?;
    let len = usize::from(record.len);
    check(KIND, "len", len <= bytes.len() - TEXT_FIXED)?;
    check(
        KIND,
        "what",
        (text::TRACESTATE..=text::USER_AGENT).contains(&record.what),
    )?;
    record.bytes[len..].fill(0);
    Ok(record)
}

fn process(bytes: &[u8]) -> Result<Box<ProcessRecord>, DecodeError> {
    const KIND: u8 = kind::PROCESS;
    let record: Box<ProcessRecord> = zero_filled(KIND, bytes, size_of::<ProcessRecord>())?;
    check(
        KIND,
        "event",
        (process_event::SEEN..=process_event::LISTEN).contains(&record.event),
    )?;
    Ok(record)
}

/// Finds holes in the sequence numbers of each CPU's records.
///
/// A program can be preempted between taking its number and reserving its record, so neighbours may come in the wrong
/// order: a number counts as lost once it is 64 behind, or when [`Sequence::sweep`] finds it still missing.
#[derive(Debug, Default)]
pub struct Sequence {
    cpus: Vec<Option<Window>>,
}

/// The last 64 numbers of one CPU: bit `i` of `seen` is `next - 1 - i`.
#[derive(Clone, Copy, Debug)]
struct Window {
    next: u64,
    seen: u64,
}

/// More CPUs than any kernel is built for; a record that claims another is not believed.
const MAX_CPUS: usize = 8192;

impl Sequence {
    /// Nothing observed yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes note of a record and returns how many are now known to be lost. The first record of a CPU is where its
    /// counting begins.
    pub fn observe(&mut self, header: &RecordHeader) -> u64 {
        let cpu = usize::from(header.cpu);
        if cpu >= MAX_CPUS {
            return 0;
        }
        if cpu >= self.cpus.len() {
            self.cpus.resize(cpu + 1, None);
        }
        match &mut self.cpus[cpu] {
            Some(window) => window.observe(header.seq),
            empty => {
                *empty = Some(Window::starting_at(header.seq));
                0
            }
        }
    }

    /// Gives up on every number still missing; called once no late neighbour can be under way (each tick will do).
    pub fn sweep(&mut self) -> u64 {
        let mut lost = 0;
        for window in self.cpus.iter_mut().flatten() {
            lost += u64::from(window.seen.count_zeros());
            window.seen = u64::MAX;
        }
        lost
    }
}

impl Window {
    const fn starting_at(seq: u64) -> Self {
        Self {
            next: seq.wrapping_add(1),
            seen: u64::MAX,
        }
    }

    fn observe(&mut self, seq: u64) -> u64 {
        if seq < self.next {
            let behind = self.next - seq;
            if behind <= 64 {
                self.seen |= 1 << (behind - 1);
            } else {
                // The kernel side started over (it was reloaded): so do we.
                *self = Self::starting_at(seq);
            }
            return 0;
        }
        let shift = seq - self.next + 1;
        let lost = if shift < 64 {
            let leaving = self.seen >> (64 - shift);
            let lost = shift - u64::from(leaving.count_ones());
            self.seen = (self.seen << shift) | 1;
            lost
        } else {
            // Everything in the window leaves it, and of the new numbers only the last 63 before `seq` may still come.
            let lost = u64::from(self.seen.count_zeros()) + (shift - 64);
            self.seen = 1;
            lost
        };
        self.next = seq.wrapping_add(1);
        lost
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
