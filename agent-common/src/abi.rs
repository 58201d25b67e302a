//! Records that cross the ring buffer and values user space puts into maps.
//!
//! Every struct is `repr(C)`, 8-byte aligned, without implicit padding, and its size is asserted at compile time:
//! both sides are built from this file. All integers are in the machine's own order, ports included, except
//! addresses, which are in network order as the kernel keeps them.

#[cfg(feature = "host")]
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

mod settings;

pub use self::settings::{
    ingress_key, setting, AddressRange, HeaderName, ReturnLines, Settings, RANGES_MOST, RETURN_BYTES, RETURN_LINES,
    USER_AGENT_PREFIXES, USER_AGENT_PREFIX_BYTES,
};

/// Version of this layout; a record with another one is refused by `decode`.
pub const ABI_VERSION: u8 = 1;

/// Longest path kept, in bytes. A longer one is cut and `EXCHANGE_PATH_CUT` is set.
pub const PATH_BYTES: usize = 256;
/// Longest method token kept, in bytes.
pub const METHOD_BYTES: usize = 16;
/// Longest text in a [`TextRecord`], in bytes: a tracestate within the W3C limit of 512 characters and more.
pub const TEXT_BYTES: usize = 768;
/// How many request header names an operator may list.
pub const KEPT_HEADERS: usize = 8;
/// Longest listed header name, in bytes.
pub const KEPT_NAME_BYTES: usize = 32;
/// Longest value kept of a listed header, in bytes (contract.md, `http.request.header.<name>`).
pub const KEPT_VALUE_BYTES: usize = 128;

/// What a ring record is: [`RecordHeader::kind`].
pub mod kind {
    /// An [`super::ExchangeRecord`].
    pub const EXCHANGE: u8 = 1;
    /// A [`super::TextRecord`].
    pub const TEXT: u8 = 2;
    /// A [`super::ProcessRecord`].
    pub const PROCESS: u8 = 3;
    /// An [`super::OpaqueTurn`].
    pub const OPAQUE_TURN: u8 = 5;
}

/// First 16 bytes of every ring record.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "host", derive(FromBytes, IntoBytes, KnownLayout, Immutable))]
pub struct RecordHeader {
    /// Counts up by one per CPU, reserved or not: a hole is a lost record.
    pub seq: u64,
    /// CPU the record was written on.
    pub cpu: u16,
    /// One of [`kind`].
    pub kind: u8,
    /// [`ABI_VERSION`].
    pub version: u8,
    /// Length of the whole record in bytes, this header included.
    pub len: u32,
}

/// Which end of the connection the traced process is: [`ExchangeRecord::side`].
pub mod side {
    /// It received the request.
    pub const SERVER: u8 = 1;
    /// It sent the request.
    pub const CLIENT: u8 = 2;
}

/// How an exchange ended: [`ExchangeRecord::outcome`].
pub mod outcome {
    /// The response came to its end.
    pub const COMPLETE: u8 = 0;
    /// The connection was closed in order before the response was complete.
    pub const CLOSED: u8 = 1;
    /// The connection was reset.
    pub const RESET: u8 = 2;
    /// No byte for longer than the deadline.
    pub const TIMEOUT: u8 = 3;
    /// The connect was refused; nothing was sent.
    pub const CONNECT_REFUSED: u8 = 4;
    /// The connect timed out; nothing was sent.
    pub const CONNECT_TIMEOUT: u8 = 5;
    /// The connect was reset or given up; nothing was sent.
    pub const CONNECT_RESET: u8 = 6;
    /// The stream was upgraded (101) or turned into a tunnel (CONNECT): opaque afterwards.
    pub const UPGRADED: u8 = 7;
    /// The socket went out of step inside this exchange and is opaque from now on.
    pub const OUT_OF_STEP: u8 = 8;
    /// The process ended before the response was complete.
    pub const EXIT: u8 = 9;
}

/// What is spoken: [`ExchangeRecord::protocol`].
pub mod protocol_id {
    /// HTTP/1.0 or 1.1.
    pub const HTTP1: u8 = 1;
    /// Not understood or encrypted: one turn of an opaque call.
    pub const OPAQUE: u8 = 2;
    /// A connect that failed: no protocol was spoken.
    pub const CONNECT: u8 = 3;
    /// An opaque call that began with a TLS record.
    pub const TLS: u8 = 4;
}

/// Address family: [`ExchangeRecord::family`].
pub mod family {
    /// IPv4: the first 4 bytes of the address.
    pub const INET: u8 = 2;
    /// IPv6: 16 bytes.
    pub const INET6: u8 = 10;
    /// Stream unix socket: no address.
    pub const UNIX: u8 = 1;
}

/// Where an inbound context was read: [`ExchangeRecord::context_format`].
pub mod context_format {
    /// No context came in a header.
    pub const NONE: u8 = 0;
    /// W3C `traceparent`.
    pub const W3C: u8 = 1;
    /// B3, single or multi.
    pub const B3: u8 = 2;
    /// Jaeger `uber-trace-id`.
    pub const JAEGER: u8 = 3;
    /// `x-amzn-trace-id`.
    pub const XRAY: u8 = 4;
    /// `x-datadog-trace-id` and its companions.
    pub const DATADOG: u8 = 5;
}

/// By what the kernel side names the open request that caused a client exchange: [`ExchangeRecord::cause`].
pub mod cause {
    /// No evidence.
    pub const NONE: u8 = 0;
    /// The thread that sent it had read that request and not answered it.
    pub const THREAD: u8 = 1;
    /// As `THREAD`, inherited by a child process forked while the request was open.
    pub const PROCESS: u8 = 2;
    /// nginx: the immediately preceding receive on the worker thread, or inherited at connect().
    pub const IO: u8 = 3;
    /// The outgoing head carries a (trace id, parent id) that came in on that request.
    pub const HEADER: u8 = 4;
}

/// Bits of [`ExchangeRecord::flags`].
pub mod flag {
    /// The path was cut at [`super::PATH_BYTES`].
    pub const PATH_CUT: u32 = 1;
    /// The socket was blocking when the request was read (O_NONBLOCK clear), on the server side.
    pub const BLOCKING: u32 = 1 << 1;
    /// Two open requests on the unit of execution: the cause is not to be used.
    pub const AMBIGUOUS: u32 = 1 << 2;
    /// The cause's request had been read whole when this exchange began.
    pub const CAUSE_COMPLETE: u32 = 1 << 3;
    /// The cause's inbound socket was blocking when it was read.
    pub const CAUSE_BLOCKING: u32 = 1 << 4;
    /// `trace_id` was taken over from the cause at request time (the process's class allowed it).
    pub const ADOPTED_CAUSE: u32 = 1 << 5;
    /// `trace_id` was taken over from the other end of the wire at request time.
    pub const ADOPTED_WIRE: u32 = 1 << 6;
    /// `trace_id` was read from a header (see `context_format`).
    pub const ADOPTED_HEADER: u32 = 1 << 7;
    /// More than one traceparent line, or an invalid one: a header was seen and refused.
    pub const CONTEXT_INVALID: u32 = 1 << 8;
    /// HTTP/1.0 (else 1.1).
    pub const HTTP10: u32 = 1 << 9;
    /// This socket was older than the agent and joined at a proven boundary.
    pub const LATE_JOIN: u32 = 1 << 10;
    /// `request_body_bytes` is known (declared or counted to its end).
    pub const REQUEST_SIZE_KNOWN: u32 = 1 << 11;
    /// `response_body_bytes` is known.
    pub const RESPONSE_SIZE_KNOWN: u32 = 1 << 12;
    /// A configured user-agent prefix matched: drop in user space, counted as excluded.
    pub const EXCLUDED_USER_AGENT: u32 = 1 << 13;
    /// Observed provisionally: the process was not classified when the request began. User space keeps or drops the
    /// record once it is, and counts the exchange then.
    pub const UNCLASSIFIED: u32 = 1 << 14;
    /// The other end of this connection belongs to the agent itself: never a span.
    pub const OWN_TRAFFIC: u32 = 1 << 15;
    /// The process served a captured request earlier (a parentless client span is then `unknown`, not `root`).
    pub const PROCESS_SERVES: u32 = 1 << 16;
    /// The process was demoted: a thread rule contradicted itself here; causes by thread are not to be used.
    pub const DEMOTED: u32 = 1 << 17;
    /// The peer of this connection is a socket of this node that some captured process holds.
    pub const WIRE_MATCHED: u32 = 1 << 18;
    /// The sampled bit of the context (header, cause or wire; else our own decision: 1).
    pub const SAMPLED: u32 = 1 << 19;
    /// The random-trace-id bit of the context (W3C Level 2).
    pub const RANDOM: u32 = 1 << 20;
    /// The wire key is valid (TCP: both numbers were readable; unix: peer and byte position).
    pub const WIRE_KEY: u32 = 1 << 21;
    /// The method was longer than [`super::METHOD_BYTES`] and cut.
    pub const METHOD_CUT: u32 = 1 << 22;
    /// The request was the last the agent could pair: pipelined deeper than it keeps.
    pub const PIPELINED: u32 = 1 << 23;
    /// The request left with a traceparent that was put in: this trace id, this span id.
    pub const INJECTED: u32 = 1 << 24;
    /// The request left with the application's own traceparent, in which this span's id has taken the parent's place.
    pub const CORRECTED: u32 = 1 << 25;
    /// The response bears the trace id.
    pub const RETURNED: u32 = 1 << 26;
    /// Whoever sent the request cannot return the trace id itself, and passes on what comes back.
    pub const RETURN_WANTED: u32 = 1 << 27;
}

/// One exchange: a request with its response, or what became of it. Timestamps are CLOCK_MONOTONIC nanoseconds
/// (`bpf_ktime_get_ns`); 0 means that it never happened.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "host", derive(FromBytes, IntoBytes, KnownLayout, Immutable))]
pub struct ExchangeRecord {
    /// Kind [`kind::EXCHANGE`].
    pub header: RecordHeader,
    /// First byte of the request, as this side saw it.
    pub request_first_ns: u64,
    /// Last byte of the request.
    pub request_last_ns: u64,
    /// First byte of the (final) response.
    pub response_first_ns: u64,
    /// Last byte of the response, or the end of the exchange otherwise (`outcome`).
    pub response_last_ns: u64,
    /// Trace id the exchange bears.
    pub trace_id: [u8; 16],
    /// This span's id.
    pub span_id: [u8; 8],
    /// Parent id read from the header, zero if none.
    pub header_parent_id: [u8; 8],
    /// Server span id of the open request that caused this client exchange, zero if none.
    pub cause_span_id: [u8; 8],
    /// That request's trace id.
    pub cause_trace_id: [u8; 16],
    /// Span id of the other end of the wire, zero if it was not met in the kernel.
    pub wire_span_id: [u8; 8],
    /// Trace id the other end bore when they met.
    pub wire_trace_id: [u8; 16],
    /// The span id in a `server-timing: traceparent` of the response, zero if none: what a proxy passes on.
    pub returned_span_id: [u8; 8],
    /// Wire key of the request's first byte: client (seq << 32 | ack), the same at both ends.
    pub wire_key: u64,
    /// Hash of the tenant header's value, 0 if none: see [`TextRecord`] with [`text::TENANT`].
    pub tenant: u64,
    /// Body bytes of the request (opaque: bytes sent).
    pub request_body_bytes: u64,
    /// Body bytes of the response (opaque: bytes received).
    pub response_body_bytes: u64,
    /// Socket cookie.
    pub cookie: u64,
    /// cgroup v2 id of the task.
    pub cgroup_id: u64,
    /// Local address, network order.
    pub local_addr: [u8; 16],
    /// Remote address, network order. Unix sockets have none: the cookie of the other end, in the machine's order.
    pub remote_addr: [u8; 16],
    /// Local port.
    pub local_port: u16,
    /// Remote port.
    pub remote_port: u16,
    /// Inode of the socket's network namespace.
    pub netns: u32,
    /// Thread group id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// Bits of [`flag`].
    pub flags: u32,
    /// Hash of the Host header's value in lower case, 0 if none: same logical target, never the text.
    pub host_hash: u32,
    /// How many exchanges this socket had before.
    pub ordinal: u32,
    /// Status code, 0 if none.
    pub status: u16,
    /// Bytes of `path` in use.
    pub path_len: u16,
    /// [`side`].
    pub side: u8,
    /// [`outcome`].
    pub outcome: u8,
    /// [`protocol_id`].
    pub protocol: u8,
    /// [`family`].
    pub family: u8,
    /// [`context_format`].
    pub context_format: u8,
    /// [`cause`].
    pub cause: u8,
    /// Bytes of `method` in use.
    pub method_len: u8,
    /// [`ProcessClass`] of the process as the kernel side knew it.
    pub class: u8,
    /// Errno of a failed connect or reset, 0 if none.
    pub errno: u16,
    /// Zero.
    pub reserved: [u8; 6],
    /// Method token.
    pub method: [u8; METHOD_BYTES],
    /// Path without query.
    pub path: [u8; PATH_BYTES],
}

/// What a [`TextRecord`] carries.
pub mod text {
    /// The tracestate that came with the adopted traceparent; `index` is 0.
    pub const TRACESTATE: u8 = 1;
    /// A listed request header; `index` is its place in the configuration's list.
    pub const HEADER: u8 = 2;
    /// The tenant header's value; `hash` is what [`super::ExchangeRecord::tenant`] refers to.
    pub const TENANT: u8 = 3;
    /// The user agent, asked for only where an exclusion's glob is more than a prefix. Never exported.
    pub const USER_AGENT: u8 = 4;
}

/// A text that belongs to an exchange, sent when its head is complete, before the exchange's own record.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "host", derive(FromBytes, IntoBytes, KnownLayout, Immutable))]
pub struct TextRecord {
    /// Kind [`kind::TEXT`].
    pub header: RecordHeader,
    /// The exchange's span id.
    pub span_id: [u8; 8],
    /// Hash of the text ([`text::TENANT`]).
    pub hash: u64,
    /// One of [`text`].
    pub what: u8,
    /// See [`text`].
    pub index: u8,
    /// Bytes of `bytes` in use.
    pub len: u16,
    /// 1 if the value was longer and was cut.
    pub cut: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// The text.
    pub bytes: [u8; TEXT_BYTES],
}

/// Why a [`ProcessRecord`] was sent.
pub mod process_event {
    /// First head seen of a process that user space has not classified.
    pub const SEEN: u8 = 1;
    /// The process ended.
    pub const EXIT: u8 = 2;
    /// The process replaced its image.
    pub const EXEC: u8 = 3;
    /// The thread rule contradicted itself in this process.
    pub const DEMOTED: u8 = 4;
    /// One of its sockets waits for connections from now on.
    pub const LISTEN: u8 = 5;
}

/// Ancestors beyond the parent that a [`ProcessRecord`] names.
pub const GRANDPARENTS: usize = 4;

/// Something about a process.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "host", derive(FromBytes, IntoBytes, KnownLayout, Immutable))]
pub struct ProcessRecord {
    /// Kind [`kind::PROCESS`].
    pub header: RecordHeader,
    /// When.
    pub time_ns: u64,
    /// cgroup v2 id of the task.
    pub cgroup_id: u64,
    /// Thread group id.
    pub pid: u32,
    /// Parent's thread group id, 0 if unknown.
    pub parent_pid: u32,
    /// The parent's own ancestors, nearest first, ended by 0: all of them may be gone when user space looks.
    pub grandparents: [u32; GRANDPARENTS],
    /// Effective user id.
    pub uid: u32,
    /// One of [`process_event`].
    pub event: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// `task->comm`.
    pub comm: [u8; 16],
    /// The path that was executed, NUL-terminated, empty if not seen.
    pub filename: [u8; 128],
}

/// Key of the map CALLS: what a thread is in the middle of.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "host", derive(FromBytes, IntoBytes, KnownLayout, Immutable))]
pub struct CallKey {
    /// `pid << 32 | tid`.
    pub thread: u64,
    /// Which function or system call.
    pub what: u64,
}

/// Value of the map CALLS.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "host", derive(FromBytes, IntoBytes, KnownLayout, Immutable))]
pub struct CallUnderWay {
    /// Address of the `struct sock`.
    pub sock: u64,
    /// The call's flags (`MSG_*`).
    pub flags: u32,
    /// 0 until its result is known.
    pub told: u32,
}

/// What a client left on the wire for the server: value of the map WIRES.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "host", derive(FromBytes, IntoBytes, KnownLayout, Immutable))]
pub struct WireValue {
    /// The client's trace id, as two words in memory order.
    pub trace_id: [u64; 2],
    /// The client's span id, the same.
    pub span_id: u64,
    /// Hash of the tenant, 0 if none is known.
    pub tenant: u64,
    /// Flags of the context, as the parser keeps them.
    pub context_flags: u8,
    /// 1: the agent itself sent it.
    pub own: u8,
    /// context_format of the client's header, with bit 7 set if it was forwarded (cause HEADER).
    pub format: u8,
    /// 1: the response is to bear the trace id.
    pub returns: u8,
    /// Zero.
    pub reserved: [u8; 4],
}

/// One turn of a call on a protocol that is not understood or is encrypted, made while a traced request was being
/// served: what was sent, then what came back, until the next send or until it went quiet. Also the value of the map
/// OPAQUE_TURNS, from which user space takes the turns that went quiet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "host", derive(FromBytes, IntoBytes, KnownLayout, Immutable))]
pub struct OpaqueTurn {
    /// Kind [`kind::OPAQUE_TURN`].
    pub header: RecordHeader,
    /// First send of the turn.
    pub sent_first_ns: u64,
    /// Last send of the turn.
    pub sent_last_ns: u64,
    /// First receive after it, 0 if none came.
    pub received_first_ns: u64,
    /// Last receive.
    pub received_last_ns: u64,
    /// This span's id.
    pub span_id: u64,
    /// Server span id of the open request that caused it.
    pub cause_span_id: u64,
    /// That request's trace id.
    pub cause_trace_id: [u64; 2],
    /// Hash of the trace's tenant, 0 if none.
    pub tenant: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Socket cookie.
    pub cookie: u64,
    /// cgroup v2 id of the task.
    pub cgroup_id: u64,
    /// Local address, network order.
    pub local_addr: [u64; 2],
    /// Remote address, network order.
    pub remote_addr: [u64; 2],
    /// Local port.
    pub local_port: u16,
    /// Remote port.
    pub remote_port: u16,
    /// Inode of the socket's network namespace.
    pub netns: u32,
    /// Thread group id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// Bits of [`flag`].
    pub flags: u32,
    /// [`cause`].
    pub cause: u8,
    /// [`ProcessClass`] as the kernel side knew it.
    pub class: u8,
    /// [`family`].
    pub family: u8,
    /// [`protocol_id::OPAQUE`] or [`protocol_id::TLS`].
    pub protocol: u8,
}

/// What user space found out about a process, written into the map PROCESSES: which rules its parents may rest on.
/// DESIGN.md 2, promise 2; correlation.md, "Known to be thread-per-request".
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProcessClass {
    /// Not looked at yet: evidence is recorded, nothing is decided.
    Unclassified = 0,
    /// Looked at; no rule holds (an unknown program, or one whose parents are not known how to find).
    Other = 1,
    /// A thread serves one request at a time, and sockets are blocking when it does (Python with threads or sync
    /// workers).
    ThreadPerRequest = 2,
    /// One process, one thread, one request at a time (Apache prefork with mod_php, CGI).
    ProcessPerRequest = 3,
    /// As `ThreadPerRequest`, with sockets that are non-blocking by the runtime's habit: only requests read whole by
    /// the thread count (Ruby).
    ThreadReadsWhole = 4,
    /// nginx: the receive rule.
    Nginx = 5,
    /// A runtime whose parents need a rule of its own, built later: recognised and not guessed (Node, asyncio).
    EventLoop = 6,
    /// Go: recognised and not guessed.
    Go = 7,
    /// JVM: recognised and not guessed.
    Jvm = 8,
    /// A proxy for which only header equality holds (HAProxy, Envoy, Apache event MPM).
    Proxy = 9,
}

impl ProcessClass {
    /// The class a byte stands for; an unknown one is `Other`, which allows nothing.
    pub const fn from_u8(value: u8) -> Self {
        match value {
            0 => Self::Unclassified,
            2 => Self::ThreadPerRequest,
            3 => Self::ProcessPerRequest,
            4 => Self::ThreadReadsWhole,
            5 => Self::Nginx,
            6 => Self::EventLoop,
            7 => Self::Go,
            8 => Self::Jvm,
            9 => Self::Proxy,
            _ => Self::Other,
        }
    }
}

/// Elements of the map GENERATIONS: how often the map PROCESSES has been changed. Each is raised after the change.
pub mod generation {
    /// By the programs: forks, execs, exits.
    pub const OF_THE_KERNEL_SIDE: u32 = 0;
    /// By user space.
    pub const OF_USER_SPACE: u32 = 1;
    /// How many there are.
    pub const COUNT: usize = 2;
}

/// Bits of [`ProcessValue::flags`].
pub mod process_flag {
    /// The process is the agent or is excluded as a whole: admit refuses it.
    pub const EXCLUDED: u8 = 1;
    /// It has served a captured request.
    pub const SERVES: u8 = 2;
    /// A thread rule contradicted itself: thread causes are not to be used, for good.
    pub const DEMOTED: u8 = 4;
    /// Its requests may be rewritten: the first of each new connection.
    pub const REWRITES: u8 = 8;
    /// ... and those that follow it on a socket that does not block.
    pub const REWRITES_ALL: u8 = 16;
    /// It answers clients that no agent sees, and cannot write the trace id into its responses: whom it asks does.
    pub const RETURNS_BY_UPSTREAM: u8 = 32;
    /// Its responses bear the trace id whoever asks.
    pub const RETURNS_ALWAYS: u8 = 64;
    /// It tells somebody of its own spans (OTLP).
    pub const EXPORTS: u8 = 128;
}

/// Value of the map PROCESSES (key: thread group id, u32).
///
/// Selectors: user space numbers the items of `capture.include` and `capture.exclude` (at most 32 each) and puts the
/// items whose process part matches into the masks; the kernel side ANDs them with the socket's port mask
/// ([`PortValue`]). With no include item at all, user space sets every bit of `include`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "host", derive(FromBytes, IntoBytes, KnownLayout, Immutable))]
pub struct ProcessValue {
    /// Include items whose process part matches.
    pub include: u32,
    /// Exclude items whose process part matches.
    pub exclude: u32,
    /// The same of `propagate.include` ...
    pub propagate_include: u32,
    /// ... and of `propagate.exclude`.
    pub propagate_exclude: u32,
    /// [`ProcessClass`].
    pub class: u8,
    /// Bits of [`process_flag`].
    pub flags: u8,
    /// Zero.
    pub reserved: [u8; 6],
}

/// Value of the map PORTS (key: port, u16): which selector items name that port. Items without a port are in
/// [`Settings::include_any_port`] and [`Settings::exclude_any_port`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "host", derive(FromBytes, IntoBytes, KnownLayout, Immutable))]
pub struct PortValue {
    /// Include items that name this port.
    pub include: u32,
    /// Exclude items that name this port.
    pub exclude: u32,
    /// The same of `propagate.include` ...
    pub propagate_include: u32,
    /// ... and of `propagate.exclude`.
    pub propagate_exclude: u32,
}

const _: () = {
    assert!(size_of::<RecordHeader>() == 16);
    assert!(size_of::<ExchangeRecord>() == 536);
    assert!(size_of::<TextRecord>() == 808);
    assert!(size_of::<ProcessRecord>() == 208);
    assert!(size_of::<WireValue>() == 40);
    assert!(size_of::<OpaqueTurn>() == 176);
    assert!(size_of::<ProcessValue>() == 24);
    assert!(size_of::<Settings>() == 48 + KEPT_HEADERS * 40 + 64);
};
