//! Every map: what it holds, who writes it, who deletes from it. Sizes here are defaults; the loader may change
//! those of RINGS and its inner rings.

use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, LruHashMap, PerCpuArray, RingBuf, SkStorage};
use aya_ebpf::macros::btf_map;
use spanwire_common::abi::{OpaqueTurn, PortValue, ProcessValue, Settings, TextRecord};
use spanwire_common::drop::KERNEL_COUNTERS;
use spanwire_common::protocol::window::CARRY_BYTES;

use crate::state::{Exchange, Inbound, InboundKey, Scratch, SockState, Unit, Wire};

/// What may change while the agent runs. Written by user space.
#[btf_map]
pub static SETTINGS: Array<Settings, 1> = Array::new();

/// Thread group id -> class and selector masks. Written by user space; the kernel side adds placeholders for
/// processes it asks about and sets SERVES and DEMOTED; deleted at the process's exit.
#[btf_map]
pub static PROCESSES: HashMap<u32, ProcessValue, 32768> = HashMap::new();

/// Port -> selector items that name it. Written by user space.
#[btf_map]
pub static PORTS: HashMap<u32, PortValue, 1024> = HashMap::new();

/// State of TCP sockets; the kernel frees it with the socket.
#[btf_map]
pub static SOCKETS: SkStorage<SockState> = SkStorage::new();

/// State of stream unix sockets by cookie: the end of a unix socket shows only at its peer, which must find it here.
/// Deleted when the peer's end of stream is read; a socket whose end nobody reads gives way to newer ones.
#[btf_map]
pub static UNIX_SOCKETS: LruHashMap<u64, SockState, 4096> = LruHashMap::new();

/// A zeroed state, to begin a unix socket's with. Never written.
#[btf_map]
pub static BLANK: Array<SockState, 1> = Array::new();

/// Partial lines between two calls: (cookie, direction) -> bytes. Only for heads that arrive in pieces.
#[btf_map]
pub static CARRY: LruHashMap<CarryKey, Carry, 2048> = LruHashMap::new();

/// Pipelined exchanges that wait for their responses: (cookie, ordinal).
#[btf_map]
pub static PIPELINE: HashMap<PipelineKey, Exchange, 1024> = HashMap::new();

/// Units of execution: thread (`pid << 32 | tid`) -> the request it serves. Entries stay with their thread and are
/// changed in place; deleted at the thread's exit.
#[btf_map]
pub static UNITS: LruHashMap<u64, Unit, 16384> = LruHashMap::new();

/// Wire key -> what the client left for the server. The server deletes what it takes.
#[btf_map]
pub static WIRES: LruHashMap<u64, Wire, 65536> = LruHashMap::new();

/// Header contexts on open inbound requests.
#[btf_map]
pub static INBOUND: LruHashMap<InboundKey, Inbound, 16384> = LruHashMap::new();

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

/// State of this CPU's generator of ids (xorshift128+), seeded from the kernel's.
#[btf_map]
pub static GENERATORS: PerCpuArray<[u64; 2], 1> = PerCpuArray::new();

/// Working memory: one element per hook that can be entered while another runs on the same CPU.
#[btf_map]
pub static SCRATCH: PerCpuArray<Scratch, 3> = PerCpuArray::new();

/// A text record while it is put together.
#[btf_map]
pub static TEXTS: PerCpuArray<TextRecord, 2> = PerCpuArray::new();

/// An opaque turn while it is put together: with the rest of a send it does not fit on the stack.
#[btf_map]
pub static TURN: PerCpuArray<OpaqueTurn, 1> = PerCpuArray::new();

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

/// Value of VECTORS.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct VectorPosition {
    pub vector: u64,
    pub next: u64,
}
