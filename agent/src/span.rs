//! What the stages hand on: a settled exchange (`assemble` -> `enrich`) and a span (`enrich` -> everything after).

use std::borrow::Cow;
use std::sync::Arc;

use spanwire_common::abi::ExchangeRecord;

/// A trace id; all zero is invalid (W3C Trace Context 3.2.2.3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct TraceId(pub [u8; 16]);

/// A span id; all zero is invalid.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct SpanId(pub [u8; 8]);

macro_rules! hex_id {
    ($name:ident, $bytes:literal) => {
        impl $name {
            /// True unless all bytes are zero.
            pub fn is_valid(self) -> bool {
                self.0 != [0; $bytes]
            }

            /// Lower-case hex, as W3C and OTLP/JSON write it.
            pub fn hex(self) -> String {
                const DIGITS: &[u8; 16] = b"0123456789abcdef";
                let mut text = String::with_capacity($bytes * 2);
                for byte in self.0 {
                    text.push(char::from(DIGITS[usize::from(byte >> 4)]));
                    text.push(char::from(DIGITS[usize::from(byte & 15)]));
                }
                text
            }

            /// Reads exactly the right number of hex digits of either case; `None` for anything else.
            pub fn parse(text: &str) -> Option<Self> {
                let digits = text.as_bytes();
                if digits.len() != $bytes * 2 {
                    return None;
                }
                let mut bytes = [0u8; $bytes];
                for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
                    let high = char::from(pair[0]).to_digit(16)?;
                    let low = char::from(pair[1]).to_digit(16)?;
                    *byte = (high * 16 + low) as u8;
                }
                Some(Self(bytes))
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.hex())
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.hex())
            }
        }
    };
}
hex_id!(TraceId, 16);
hex_id!(SpanId, 8);

/// How a span's parent was found: `spanwire.parent.source` (contract.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ParentSource {
    /// A context in the request's head.
    Header,
    /// The other end of the connection.
    Wire,
    /// The thread that sent it was serving the parent.
    Thread,
    /// As `Thread`, inherited over a fork.
    Process,
    /// As `Thread`, of a goroutine; no rule gives it yet.
    Goroutine,
    /// As `Thread`, of a runtime's task; no rule gives it yet.
    Task,
    /// The runtime's own context; no rule gives it yet.
    Context,
    /// nginx's receive rule.
    Io,
    /// There is no parent.
    Root,
    /// There may be one, and it cannot be told which.
    Unknown,
}

impl ParentSource {
    /// Every value, for metrics that start at zero.
    pub const ALL: [Self; 10] = [
        Self::Header,
        Self::Wire,
        Self::Thread,
        Self::Process,
        Self::Goroutine,
        Self::Task,
        Self::Context,
        Self::Io,
        Self::Root,
        Self::Unknown,
    ];

    /// The value of `spanwire.parent.source`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::Wire => "wire",
            Self::Thread => "thread",
            Self::Process => "process",
            Self::Goroutine => "goroutine",
            Self::Task => "task",
            Self::Context => "context",
            Self::Io => "io",
            Self::Root => "root",
            Self::Unknown => "unknown",
        }
    }
}

/// Why a parent is unknown: `spanwire.parent.reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum UnknownReason {
    /// No rule holds for the process.
    Runtime,
    /// Two open requests on one unit of execution, or with the same header.
    Overlap,
    /// Another thread read part of the request.
    Handoff,
    /// The other end is captured, and was not met.
    LostEvent,
    /// The connection is older than the agent.
    AttachedLate,
    /// The other end is on another node.
    Remote,
    /// The evidence contradicts itself.
    Contradiction,
}

impl UnknownReason {
    /// The value of `spanwire.parent.reason`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Runtime => "runtime",
            Self::Overlap => "overlap",
            Self::Handoff => "handoff",
            Self::LostEvent => "lost_event",
            Self::AttachedLate => "attached_late",
            Self::Remote => "remote",
            Self::Contradiction => "contradiction",
        }
    }
}

/// A span's parent: exact, or absent with the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    /// By what it is known.
    pub source: ParentSource,
    /// Present exactly when `source` is neither `Root` nor `Unknown`.
    pub span_id: Option<SpanId>,
    /// Present exactly when `source` is `Unknown`.
    pub reason: Option<UnknownReason>,
}

/// An exchange whose parent and trace are settled: what `assemble` hands to `enrich`.
#[derive(Clone, Debug)]
pub struct Settled {
    /// As the kernel wrote it. Its ids are superseded by the fields below.
    pub record: Box<ExchangeRecord>,
    /// After the union of trace ids.
    pub trace_id: TraceId,
    /// Exact, or absent with the reason.
    pub parent: Parent,
    /// The trace's tenant, once known.
    pub tenant: Option<Arc<str>>,
    /// tracestate that came with the adopted header.
    pub tracestate: Option<Box<str>>,
    /// Listed request headers: (place in the configuration's list, value).
    pub headers: Vec<(u8, Box<str>)>,
    /// `http.request.resend_count`: 0 on the first attempt.
    pub resend_count: u32,
    /// What the application's own SDK makes of this call.
    pub sdk: Option<SdkSpan>,
}

/// A span that an application's own SDK makes of a call, beside ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SdkSpan {
    /// The SDK has it sampled: it tells of it, if it tells of any.
    pub sampled: bool,
    /// Ours is the parent of calls that the SDK does not know.
    pub ours_is_parent: bool,
}

/// OpenTelemetry span kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SpanKind {
    Server,
    Client,
    Producer,
    Consumer,
}

impl SpanKind {
    /// Label value in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
            Self::Producer => "producer",
            Self::Consumer => "consumer",
        }
    }

    /// The OTLP enum's number (trace.proto, Span.SpanKind).
    pub const fn otlp(self) -> i32 {
        match self {
            Self::Server => 2,
            Self::Client => 3,
            Self::Producer => 4,
            Self::Consumer => 5,
        }
    }
}

/// OpenTelemetry span status. `Ok` is never set: instrumentation leaves it unset (semantic conventions, HTTP spans).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanStatus {
    Unset,
    Error,
}

/// An attribute's value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Str(Arc<str>),
    /// A string that is known at compile time.
    Static(&'static str),
    Int(i64),
    Bool(bool),
    StrArray(Vec<Arc<str>>),
}

/// An attribute: name and value.
pub type Attribute = (Cow<'static, str>, Value);

/// Who made a span: shared by all spans of one process.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// `service.name`, also among `attributes`.
    pub service_name: Arc<str>,
    /// All of them.
    pub attributes: Vec<Attribute>,
}

/// A finished span.
#[derive(Clone, Debug)]
pub struct Span {
    /// After the union of trace ids.
    pub trace_id: TraceId,
    /// Its own.
    pub span_id: SpanId,
    /// Present exactly when the parent is.
    pub parent_span_id: Option<SpanId>,
    /// By what the parent is known.
    pub parent_source: ParentSource,
    /// W3C trace flags: bit 0 sampled, bit 1 random.
    pub trace_flags: u8,
    /// W3C tracestate of an adopted header.
    pub trace_state: Option<Box<str>>,
    /// The side that was seen.
    pub kind: SpanKind,
    /// `{method} {route}`.
    pub name: Arc<str>,
    /// First byte of the request, as this side saw it.
    pub start_unix_ns: u64,
    /// Last byte of the response, or the end otherwise.
    pub end_unix_ns: u64,
    /// By the conventions for HTTP.
    pub status: SpanStatus,
    /// Without the resource's.
    pub attributes: Vec<Attribute>,
    /// Who made it.
    pub resource: Arc<Resource>,
    /// The trace's, once known.
    pub tenant: Option<Arc<str>>,
}

/// What leaves `route`: spans in the order they were settled, shared by every exporter and the store.
pub type SpanBatch = Arc<[Span]>;

/// A trace id that lost the union, and the one that stands for it now: the store resolves any id that ever left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceAlias {
    /// The id that lost.
    pub alias: TraceId,
    /// The id that stands for it.
    pub canonical: TraceId,
}
