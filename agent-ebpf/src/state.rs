//! What the kernel side remembers: per socket, per exchange, per unit of execution.

use spanwire_common::protocol::http1::{Cursor, Framing, Request};
use spanwire_common::protocol::window::Window;

use crate::atomic;
use crate::message::Line;

/// Which way the bytes of a call go.
pub const RX: u32 = 0;
pub const TX: u32 = 1;

/// [`SockState::role`].
pub const ROLE_UNKNOWN: u8 = 0;
pub const ROLE_SERVER: u8 = 1;
pub const ROLE_CLIENT: u8 = 2;

/// Bits of [`SockState::flags`].
pub const SOCK_OPAQUE: u8 = 1;
/// Older than the agent; no boundary proven yet.
pub const SOCK_LATE: u8 = 2;
/// On a late socket: a response was seen from its first byte to its last, so the next message begins a request.
pub const SOCK_BOUNDARY: u8 = 4;
/// A unix socket.
pub const SOCK_UNIX: u8 = 8;
/// Joined late.
pub const SOCK_JOINED: u8 = 16;
/// The connect is under way (SYN sent): `exchange.request_first_ns` is when it began.
pub const SOCK_CONNECTING: u8 = 32;
/// The first request's cause was inherited at connect().
pub const SOCK_INHERITED: u8 = 64;
/// Speaks TLS.
pub const SOCK_TLS: u8 = 128;

/// Bits of [`SockState::rewrite`]: to be enrolled once it is established.
pub const REWRITE_WANTED: u8 = 1;
/// It may stay enrolled behind its first request.
pub const REWRITE_PERSISTENT: u8 = 2;
/// Its messages are seen on their way out.
pub const REWRITE_ENROLLED: u8 = 4;
/// Never again.
pub const REWRITE_NEVER: u8 = 8;
/// Accepted: it is its responses that are looked at.
pub const REWRITE_RETURNS: u8 = 16;

/// It would be wanted, and its server has spoken first before.
pub const REWRITE_LEFT_ALONE: u8 = 32;

/// Bits of [`SockState::asks`]: to be removed as soon as may be.
pub const ASKS_TO_LEAVE: u8 = 1;
/// The request that is being sent has its context in PREPARED.
pub const ASKS_PREPARED: u8 = 2;
/// A whole head has left: it is HTTP, and may stay.
pub const ASKS_TO_STAY: u8 = 4;

/// Bits of [`Exchange::state`].
pub const EX_OPEN: u8 = 1;
/// The request's head was complete and valid.
pub const EX_HEAD: u8 = 2;
/// The request's last byte was passed.
pub const EX_REQUEST_DONE: u8 = 4;
/// The response's first byte was seen.
pub const EX_RESPONSE: u8 = 8;
/// Excluded: no record.
pub const EX_EXCLUDED: u8 = 16;
/// The deadline passed and the record went out; what still comes belongs to it and makes no other.
pub const EX_TOLD: u8 = 32;

/// One exchange while it is open. `request` is filled by the parser.
#[repr(C)]
pub struct Exchange {
    pub request_first_ns: u64,
    pub request_last_ns: u64,
    pub response_first_ns: u64,
    pub request_bytes: u64,
    pub response_bytes: u64,
    pub span_id: u64,
    /// Client: the span that caused it. Server: the client's span, met on the wire.
    pub related_span_id: u64,
    pub related_trace_id: [u64; 2],
    pub wire_key: u64,
    pub pid: u32,
    pub tid: u32,
    pub flags: u32,
    pub ordinal: u32,
    pub status: u16,
    pub state: u8,
    pub cause: u8,
    pub side: u8,
    pub class: u8,
    /// Context flags of the request for which it was connected.
    pub inherited_context: u8,
    /// 1: a tracestate came with the request; its list is in TRACESTATES.
    pub has_tracestate: u8,
    pub request: Request,
}

/// State of one socket.
#[repr(C)]
pub struct SockState {
    pub framing: [Framing; 2],
    pub role: u8,
    pub flags: u8,
    /// Earlier exchanges of this socket that wait for their responses, in PIPELINE.
    pub queued: u8,
    /// How many sweeps in a row have found [`SockState::swept`] unchanged.
    pub idle_sweeps: u8,
    /// Sum of what has passed in both directions, as the last sweep saw it.
    pub swept: u32,
    /// Ordinal of the next request.
    pub next_ordinal: u32,
    /// Bits of `REWRITE_*`, as the programs see it that enrol the socket and remove it.
    pub rewrite: u8,
    /// Bits of `ASKS_*`: what the program that sees its messages asks of the others.
    pub asks: u8,
    /// Bytes put into the message that is being sent.
    pub inserted: u16,
    pub cookie: u64,
    /// How many calls are at work on this state, on whichever CPU, and whether the connection has ended: see
    /// [`SockState::enter`].
    calls: u64,
    /// By direction. TCP: the sequence number of the stream's first byte, 0 while not known. Unix: bytes passed so far.
    pub position: [u32; 2],
    /// By direction. TCP: the sequence number behind the last byte seen, 0 while not known.
    pub seen: [u32; 2],
    pub exchange: Exchange,
}

/// In [`SockState::calls`]: the connection has ended.
const ENDED: u64 = 1 << 63;

/// A call's hook and the end of its connection may meet: the peer resets on one CPU while the bytes it answers are still
/// being parsed on another. Both enter and leave; whoever is the last to leave finishes what is open, and only that one.
impl SockState {
    /// Ordinal of the oldest exchange that waits for its response.
    #[inline(always)]
    pub fn oldest_ordinal(&self) -> u32 {
        self.exchange.ordinal.wrapping_sub(u32::from(self.queued))
    }

    /// A call begins its work on this state. False: the connection has ended, and somebody is about to finish what is open on
    /// it; the call is to leave it alone. It leaves in either case.
    #[inline(always)]
    #[must_use]
    pub fn enter(&mut self) -> bool {
        let before = atomic::fetch_add(&mut self.calls, 1);
        before & ENDED == 0 || before == ENDED
    }

    /// The connection has ended: whoever says so enters.
    #[inline(always)]
    pub fn ends(&mut self) {
        let ended = if self.load() & ENDED == 0 { ENDED } else { 0 };
        atomic::fetch_add(&mut self.calls, ended + 1);
    }

    /// True: nobody else is at work, and the connection has ended: what is open is to be finished before the caller leaves.
    #[inline(always)]
    #[must_use]
    pub fn is_last(&self) -> bool {
        self.load() == ENDED + 1
    }

    /// The caller is done. True: it is the last after all, and the connection has ended meanwhile.
    #[inline(always)]
    #[must_use]
    pub fn leave(&mut self) -> bool {
        // An entry of a table may have become another socket's while a hook held it: nobody has entered that one.
        self.is_at_work() && atomic::fetch_add(&mut self.calls, u64::MAX) == ENDED + 1
    }

    /// Somebody has entered.
    #[inline(always)]
    pub fn is_at_work(&self) -> bool {
        self.load() & !ENDED != 0
    }

    /// The socket connects once more.
    #[inline(always)]
    pub fn begins_anew(&mut self) {
        if self.load() & ENDED != 0 {
            // The highest bit, added once more, is gone.
            atomic::fetch_add(&mut self.calls, ENDED);
        }
    }

    #[inline(always)]
    fn load(&self) -> u64 {
        // SAFETY: a word of a live map value.
        unsafe { core::ptr::read_volatile(&raw const self.calls) }
    }
}

const _: () = assert!(
    size_of::<SockState>() <= 512,
    "socket storage is charged to the application's optmem"
);

/// [`Unit::state`].
pub const UNIT_NONE: u8 = 0;
pub const UNIT_OPEN: u8 = 1;
pub const UNIT_AMBIGUOUS: u8 = 2;
pub const UNIT_CLOSED: u8 = 3;

/// A unit of execution and the request it serves (correlation.md A5). Key: `pid << 32 | tid` for threads.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Unit {
    pub trace_id: [u64; 2],
    pub span_id: u64,
    pub tenant: u64,
    /// For a child forked while the request was open: the unit it inherits from; else 0.
    pub parent: u64,
    /// Process that read the request.
    pub reader: u32,
    pub state: u8,
    /// `cause` code that an exchange caused by this unit bears.
    pub cause: u8,
    /// Bits of `UNIT_*` below.
    pub flags: u8,
    /// context_flags of the request.
    pub context_flags: u8,
    /// nginx: requests this worker has put off (`worker`).
    pub waiting: u32,
    pub reserved: u32,
}

/// Bits of [`Unit::flags`].
pub const UNIT_BLOCKING: u8 = 1;
pub const UNIT_COMPLETE: u8 = 2;
/// The request's connection died before the answer; the thread may still work for it.
pub const UNIT_DEAD: u8 = 4;
/// nginx: the receive that made this unit has been used up.
pub const UNIT_CONSUMED: u8 = 8;
/// nginx: the request was read to its last byte.
pub const UNIT_WHOLE: u8 = 16;

/// An inbound header context on an open request of a process: for header equality.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct InboundKey {
    pub trace_id: [u64; 2],
    pub parent_id: u64,
    pub pid: u32,
    pub reserved: u32,
}

/// Who bears it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Inbound {
    pub span_id: u64,
    pub tenant: u64,
    /// Open requests with this pair: more than one names nobody.
    pub open: u32,
    pub context_flags: u8,
    pub reserved: [u8; 3],
}

/// What one call is about, filled from the socket and the registers before anything is parsed.
#[repr(C)]
pub struct Call {
    /// User pointer to the current piece, and how much of it is left.
    pub base: u64,
    pub left: u64,
    /// User pointer to the iovec array, its length, and the next index.
    pub iov: u64,
    pub iov_count: u32,
    pub iov_next: u32,
    /// Bytes of the call not yet taken into the window.
    pub unread: u64,
    /// Clock, read at most once.
    pub now_ns: u64,
    pub cookie: u64,
    pub pid_tgid: u64,
    /// TCP sequence numbers: of the call's first byte, and of the other direction.
    pub seq: u32,
    pub ack: u32,
    pub direction: u32,
    /// 1: the user buffer can be read.
    pub readable: u32,
    pub local_addr: [u64; 2],
    pub remote_addr: [u64; 2],
    pub local_port: u16,
    pub remote_port: u16,
    pub netns: u32,
    /// Offset in the call of the window's first byte after the carry, so that a position becomes a sequence number.
    pub window_offset: u32,
    pub carry: u32,
    /// Bytes of the call in all.
    pub length: u32,
    /// 1: a program is at work in this element. Kept by the one that can be interrupted by itself only.
    pub busy: u32,
    /// Bytes that sk_msg has put into what the call sends, behind the first head in it.
    pub inserted: u32,
    /// sk_msg: where in the message the value of a traceparent lies, [`NOWHERE`] if it does not.
    pub traceparent_at: u32,
    /// sk_msg: bytes of the head but for its last line.
    pub head_bytes: u32,
    /// sk_msg: a tracestate came with the head.
    pub tracestate: u32,
    pub family: u8,
    pub blocking: u8,
    pub class: u8,
    pub process_flags: u8,
    pub errno: u16,
    pub has_key: u8,
    /// Element of the per-CPU arrays (`maps::slot`).
    pub slot: u8,
    /// Bytes that the same system call has moved in front of these: the first of its buffer are theirs. Set and cleared by
    /// the program that knows.
    #[cfg(feature = "untyped")]
    pub earlier: u64,
    /// Address of the `struct sock`: key of its state.
    #[cfg(feature = "scalars")]
    pub socket: u64,
}

impl Call {
    /// Bytes of the same system call in front of these.
    #[inline(always)]
    pub fn earlier(&self) -> u64 {
        #[cfg(feature = "untyped")]
        return self.earlier;
        #[cfg(not(feature = "untyped"))]
        0
    }
}

/// [`Call::traceparent_at`]: not in this message.
pub const NOWHERE: u32 = u32::MAX;

/// What sk_msg has decided of a request before it leaves: value of PREPARED.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Prepared {
    pub trace_id: [u64; 2],
    pub span_id: u64,
    pub related_span_id: u64,
    pub related_trace_id: [u64; 2],
    pub tenant: u64,
    pub flags: u32,
    pub ordinal: u32,
    pub cause: u8,
    pub context_flags: u8,
    pub reserved: [u8; 6],
}

/// Per-CPU working memory of sk_msg, beside a [`Scratch`].
#[repr(C)]
pub struct Preview {
    /// How many threads are at work in it: the program may be preempted by itself.
    pub users: u64,
    /// The socket's state as it will be when what is being sent has left.
    #[cfg(not(feature = "scalars"))]
    pub state: SockState,
    /// What is put in.
    pub line: Line,
}

/// Per-CPU working memory of one hook.
#[repr(C)]
pub struct Scratch {
    pub call: Call,
    pub cursor: Cursor,
    pub window: Window,
    /// verifier: room behind the window for the sum of an offset's and a length's separate bounds.
    pub spill: [u64; SPILL_BYTES / 8],
}

/// Size of [`Scratch::spill`].
pub const SPILL_BYTES: usize = 4096;
