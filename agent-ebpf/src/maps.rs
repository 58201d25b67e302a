//! Every map but those of the sockets' own state (`access`): what it holds, who writes it, who deletes from it. Sizes here
//! are defaults; the loader may change those of RINGS and its inner rings.

use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, LruHashMap, PerCpuArray, RingBuf, SockHash};
use aya_ebpf::macros::btf_map;
use spanwire_common::abi::{
    generation, AddressRange, OpaqueTurn, PortValue, ProcessValue, ReturnLines, Settings, TextRecord, WireValue,
    RANGES_MOST,
};
use spanwire_common::drop::KERNEL_COUNTERS;
use spanwire_common::protocol::tracestate::TraceState;
use spanwire_common::protocol::window::CARRY_BYTES;

use crate::state::{Exchange, Inbound, InboundKey, Prepared, Preview, Scratch, Unit};

/// What may change while the agent runs. Written by user space.
#[btf_map]
pub static SETTINGS: Array<Settings, 1> = Array::new();

/// Thread group id -> class and selector masks. Written by user space; the kernel side adds placeholders for
/// processes it asks about and sets SERVES and DEMOTED; deleted at the process's exit.
#[btf_map]
pub static PROCESSES: HashMap<u32, ProcessValue, 32768> = HashMap::new();

/// How often PROCESSES has been changed, by whom: [`spanwire_common::abi::generation`].
#[btf_map]
pub static GENERATIONS: Array<u64, { generation::COUNT }> = Array::new();

/// The process this CPU has refused last, and under which generation (`refused`).
#[btf_map]
pub static REFUSED: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Port -> selector items that name it. Written by user space.
#[btf_map]
pub static PORTS: HashMap<u32, PortValue, 1024> = HashMap::new();

/// Partial lines between two calls: (cookie, direction) -> bytes. Only for heads that arrive in pieces.
#[btf_map]
pub static CARRY: LruHashMap<CarryKey, Carry, 2048> = LruHashMap::new();

/// Pipelined exchanges that wait for their responses: (cookie, ordinal).
#[btf_map]
pub static PIPELINE: HashMap<PipelineKey, Exchange, 1024> = HashMap::new();

/// Zeroes; nobody writes them. What CARRY and PIPELINE are given first.
///
/// verifier: before 6.2 the value of a map update may not lie in the memory of a global function's argument.
#[btf_map]
pub static BLANK: Array<Carry, 1> = Array::new();

const _: () = assert!(size_of::<Exchange>() <= size_of::<Carry>());

/// Makes an entry of zeroes; null if there is no room.
#[inline(always)]
pub fn blank_carry(key: &CarryKey) -> *mut Carry {
    let Some(blank) = BLANK.get_ptr(0) else {
        return core::ptr::null_mut();
    };
    // SAFETY: an element of an array.
    if CARRY.insert(key, unsafe { &*blank }, 0).is_err() {
        return core::ptr::null_mut();
    }
    CARRY.get_ptr_mut(key).unwrap_or(core::ptr::null_mut())
}

/// As [`blank_carry`].
#[inline(always)]
pub fn blank_exchange(key: &PipelineKey) -> *mut Exchange {
    let Some(blank) = BLANK.get_ptr(0) else {
        return core::ptr::null_mut();
    };
    // SAFETY: an element of an array, and no smaller than an exchange; every field may be zero.
    if PIPELINE.insert(key, unsafe { &*blank.cast() }, 0).is_err() {
        return core::ptr::null_mut();
    }
    PIPELINE.get_ptr_mut(key).unwrap_or(core::ptr::null_mut())
}

/// Units of execution: thread (`pid << 32 | tid`) -> the request it serves. Entries stay with their thread and are
/// changed in place; deleted at the thread's exit.
#[btf_map]
pub static UNITS: LruHashMap<u64, Unit, 16384> = LruHashMap::new();

/// Requests that an nginx worker has put off (`worker`), by span id.
#[btf_map]
pub static DEFERRED: LruHashMap<u64, u8, 8192> = LruHashMap::new();

/// Wire key -> what the client left for the server. The server deletes what it takes; where its hook came
/// first, user space does.
#[btf_map]
pub static WIRES: LruHashMap<u64, WireValue, 65536> = LruHashMap::new();

/// Header contexts on open inbound requests.
#[btf_map]
pub static INBOUND: LruHashMap<InboundKey, Inbound, 16384> = LruHashMap::new();

/// Sockets whose messages sk_msg sees, by the cookie in their state. Written by sockops, which also deletes what is to be left
/// alone; user space deletes all when rewriting ends. The kernel forgets a socket that is closed.
#[btf_map]
pub static ENROLLED: SockHash<u64, 65536> = SockHash::new();

/// Cookies of sockets that are to be taken out of ENROLLED and get no callbacks any more: user space does it (and deletes
/// the entry). Written by sk_msg.
#[btf_map]
pub static LEAVING: LruHashMap<u64, u32, 4096> = LruHashMap::new();

/// Cookie -> the context of the request that is being sent, from sk_msg for the send's hook, which deletes it.
#[btf_map]
pub static PREPARED: LruHashMap<u64, Prepared, 4096> = LruHashMap::new();

/// Working memory of sk_msg.
#[btf_map]
pub static PREVIEW: PerCpuArray<Preview, 1> = PerCpuArray::new();

/// Where to requests may be rewritten. Written by user space; ends with an element without a mask.
#[btf_map]
pub static DESTINATIONS: Array<AddressRange, { RANGES_MOST }> = Array::new();

/// Whose inbound context is adopted, where the settings say that not everybody's is. As DESTINATIONS.
#[btf_map]
pub static TRUSTED: Array<AddressRange, { RANGES_MOST }> = Array::new();

/// Span id of a server's exchange -> the tracestate that came with its traceparent, for the requests it causes.
#[btf_map]
pub static TRACESTATES: LruHashMap<u64, TraceState, 2048> = LruHashMap::new();

/// As [`blank_carry`].
#[cfg(not(feature = "scalars"))]
#[inline(always)]
pub fn blank_tracestate(span_id: u64) -> *mut TraceState {
    const { assert!(size_of::<TraceState>() <= size_of::<Carry>()) };
    let Some(blank) = BLANK.get_ptr(0) else {
        return core::ptr::null_mut();
    };
    // SAFETY: an element of an array, and no smaller than a list; all zero is an empty one.
    if TRACESTATES.insert(&span_id, unsafe { &*blank.cast() }, 0).is_err() {
        return core::ptr::null_mut();
    }
    TRACESTATES.get_ptr_mut(&span_id).unwrap_or(core::ptr::null_mut())
}

/// Servers that have spoken first: connections to them are left alone. Written by sockops.
#[btf_map]
pub static LEFT_ALONE: LruHashMap<ServerKey, u32, 4096> = LruHashMap::new();

/// Ports of the other end whose connections are left alone: TLS, and protocols in which the server speaks first. Written by user
/// space.
#[btf_map]
pub static SPARED_PORTS: HashMap<u32, u32, 128> = HashMap::new();

/// What is put into responses. Written by user space.
#[btf_map]
pub static RETURN_LINES: Array<ReturnLines, 1> = Array::new();

/// Listening sockets of servers whose responses may be written into, by [`spanwire_common::abi::ingress_key`]. Written and deleted
/// by user space.
#[btf_map]
pub static INGRESS: HashMap<u64, u32, 4096> = HashMap::new();

/// Opaque calls under way by cookie; user space's sweep ends those that have gone quiet.
#[btf_map]
pub static OPAQUE_TURNS: LruHashMap<u64, OpaqueTurn, 2048> = LruHashMap::new();

/// Thread group id -> path executed, for processes that are gone before user space looks.
#[btf_map]
pub static EXECUTED: LruHashMap<u32, [u8; 128], 2048> = LruHashMap::new();

/// Thread -> position in a sendmmsg or recvmmsg vector.
#[btf_map]
pub static VECTORS: LruHashMap<u64, VectorPosition, 1024> = LruHashMap::new();

/// [`spanwire_common::drop::KernelCounter`] totals.
#[btf_map]
pub static COUNTERS: PerCpuArray<u64, KERNEL_COUNTERS> = PerCpuArray::new();

/// Next sequence number of this CPU's ring.
#[btf_map]
pub static SEQUENCES: PerCpuArray<u64, 1> = PerCpuArray::new();

/// States of this CPU's generators of ids (xorshift128+) by [`slot`], seeded from the kernel's.
#[btf_map]
pub static GENERATORS: PerCpuArray<[u64; 2], 12> = PerCpuArray::new();

/// Working memory: an element for each program that can be entered while another runs on the same CPU ([`slot`]).
#[btf_map]
pub static SCRATCH: PerCpuArray<Scratch, 12> = PerCpuArray::new();

/// A text record while it is put together, by [`slot`].
#[btf_map]
pub static TEXTS: PerCpuArray<TextRecord, 8> = PerCpuArray::new();

/// An opaque turn while it is put together, by [`slot`]: with the rest of a send it does not fit on the stack.
#[btf_map]
pub static TURN: PerCpuArray<OpaqueTurn, 8> = PerCpuArray::new();

/// Who uses which element of the per-CPU arrays. Softirqs come between a program's instructions, and where preemption is
/// not off (trampolines; tracepoints of 7.x) other threads do. The kernel leaves out a program that is under way on
/// the same CPU already (`prog->active`: trampolines 5.12+, tracepoints 6.2+; see `seen`), but no other.
pub mod slot {
    /// sock_recv_length, or tcp_recvmsg.
    pub const RECEIVE: u32 = 0;
    /// sock_send_length, or tcp_sendmsg.
    pub const SEND: u32 = 1;
    pub const UNIX_RECEIVE: u32 = 2;
    pub const UNIX_SEND: u32 = 3;
    #[cfg(any(not(feature = "untyped"), feature = "scalars"))]
    pub const TCP_PAGE: u32 = 4;
    pub const UNIX_PAGE: u32 = 5;
    /// tcp_bpf_sendmsg.
    #[cfg(any(not(feature = "untyped"), feature = "scalars"))]
    pub const BPF_SEND: u32 = 6;
    #[cfg(any(not(feature = "untyped"), feature = "scalars"))]
    pub const BPF_PAGE: u32 = 7;
    pub const STATE: u32 = 8;
    /// inet_sock_set_state in a softirq that came while it ran in a thread, before 6.2.
    pub const STATE_NESTED: u32 = 9;
    pub const SWEEP: u32 = 10;
    /// sk_msg: preempted by itself, it does nothing (`rewrite`).
    pub const MESSAGE: u32 = 11;
}

/// One ring per CPU (one shared ring collapses with two producers). The loader fills it.
#[btf_map]
pub static RINGS: ArrayOfMaps<RingBuf<u64, 4096>, 1024> = ArrayOfMaps::new();

/// Key of CARRY.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CarryKey {
    pub cookie: u64,
    pub direction: u64,
}

/// Value of CARRY.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Carry {
    pub words: [u64; CARRY_BYTES / 8],
}

/// Key of PIPELINE.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PipelineKey {
    pub cookie: u64,
    pub ordinal: u64,
}

/// Key of LEFT_ALONE: the other end of a connection.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ServerKey {
    pub address: [u64; 2],
    pub port: u64,
}

/// Value of VECTORS.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct VectorPosition {
    pub vector: u64,
    pub next: u64,
}
