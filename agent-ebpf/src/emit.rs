//! Records into this CPU's ring.

use aya_ebpf::bindings::{BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_get_smp_processor_id, bpf_ringbuf_output,
    bpf_ringbuf_reserve, bpf_ringbuf_submit,
};
use core::ffi::c_void;
use spanwire_common::abi::{self, flag, kind, ExchangeRecord, ProcessRecord, RecordHeader, PATH_BYTES};
use spanwire_common::drop::KernelCounter;
use spanwire_common::protocol::http1::Method;

use crate::count::{cost, count};
use crate::global::global;
use crate::ids;
use crate::maps::{RINGS, SEQUENCES};
use crate::state::{Call, Exchange, ROLE_SERVER};

/// The ring of this CPU and the header of its next record. Every attempt takes a number, so that a lost record
/// leaves a hole.
#[inline(always)]
fn next(record_kind: u8, len: u32) -> Option<(*mut c_void, RecordHeader)> {
    // SAFETY: no arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let sequence = SEQUENCES.get_ptr_mut(0)?;
    // SAFETY: an element of a per-CPU array.
    let seq = unsafe {
        let seq = *sequence;
        *sequence = seq + 1;
        seq
    };
    let ring = RINGS.get(cpu)?;
    let header = RecordHeader {
        seq,
        cpu: cpu as u16,
        kind: record_kind,
        version: abi::ABI_VERSION,
        len,
    };
    cost(KernelCounter::Records);
    Some((core::ptr::from_ref(ring).cast_mut().cast(), header))
}

/// Sends a record that lies whole in map memory; false if the ring is full.
#[inline(always)]
pub fn output<T>(record: &mut T, record_kind: u8, header_of: impl Fn(&mut T) -> &mut RecordHeader) -> bool {
    let Some((ring, header)) = next(record_kind, size_of::<T>() as u32) else {
        return false;
    };
    *header_of(record) = header;
    // SAFETY: `record` is a whole T.
    unsafe {
        bpf_ringbuf_output(
            ring,
            core::ptr::from_mut(record).cast(),
            size_of::<T>() as u64,
            BPF_RB_NO_WAKEUP.into(),
        ) == 0
    }
}

/// Sends a process record and wakes user space; false if the ring is full. `fill` writes every field but the header. Put
/// together in the ring, since it would take half of the stack.
#[inline(always)]
pub fn process(fill: impl FnOnce(&mut ProcessRecord)) -> bool {
    let Some((ring, header)) = next(kind::PROCESS, size_of::<ProcessRecord>() as u32) else {
        return false;
    };
    // SAFETY: a constant size; checked for null.
    let record = unsafe { bpf_ringbuf_reserve(ring, size_of::<ProcessRecord>() as u64, 0) }.cast::<ProcessRecord>();
    if record.is_null() {
        return false;
    }
    // SAFETY: the room for a whole record was reserved, and any bytes are one.
    unsafe {
        (*record).header = header;
        fill(&mut *record);
        bpf_ringbuf_submit(record.cast(), BPF_RB_FORCE_WAKEUP.into());
    }
    true
}

/// Length of a short exchange record: most paths fit, and the ring holds more of them.
const SHORT_PATH: usize = 64;
const SHORT_RECORD: usize = core::mem::offset_of!(ExchangeRecord, path) + SHORT_PATH;

/// Sends the exchange's record. The addresses are those of the call under way on its socket.
#[inline(always)]
pub fn exchange(exchange: &Exchange, call: &Call, outcome: u8, protocol: u8, end_ns: u64) {
    let codes = u32::from(outcome) | u32::from(protocol) << 8;
    emit_exchange(core::ptr::from_ref(exchange), core::ptr::from_ref(call), codes, end_ns);
}

global! {
    /// verifier: a global function, verified once and not once for each way an exchange can end.
    pub fn emit_exchange(exchange: *const Exchange, call: *const Call; codes: u32, end_ns: u64) else { 0 } {
        // SAFETY: whole objects (rule for pointer arguments of global functions).
        let (exchange, call) = unsafe { (&*exchange, &*call) };
        let sent = send(exchange, call, codes as u8, (codes >> 8) as u8, end_ns);
        // Over captured sockets: messages completed = exchanges + dropped at the kernel. Whether a socket of a process that
        // is not classified yet is one, user space decides and counts.
        if sent && exchange.flags & flag::UNCLASSIFIED != 0 {
            return 0;
        }
        count(if !sent {
            if exchange.flags & flag::UNCLASSIFIED == 0 {
                KernelCounter::RingFullExchange
            } else {
                KernelCounter::RingFullProvisional
            }
        } else if exchange.side == ROLE_SERVER {
            KernelCounter::ExchangesServer
        } else {
            KernelCounter::ExchangesClient
        });
        0
    }
}

/// Reserves, fills and submits; false if the ring is full.
#[inline(always)]
fn send(exchange: &Exchange, call: &Call, outcome: u8, protocol: u8, end_ns: u64) -> bool {
    let short = exchange.request.path_len as usize <= SHORT_PATH;
    let len = if short {
        SHORT_RECORD
    } else {
        size_of::<ExchangeRecord>()
    };
    let Some((ring, header)) = next(kind::EXCHANGE, len as u32) else {
        return false;
    };
    if short {
        // SAFETY: a constant size; checked for null.
        let record = unsafe { bpf_ringbuf_reserve(ring, SHORT_RECORD as u64, 0) }.cast::<ExchangeRecord>();
        if record.is_null() {
            return false;
        }
        // SAFETY: `fixed` writes the part before `path`, `path` the first SHORT_PATH bytes after.
        unsafe {
            fixed(record, header, exchange, call, outcome, protocol, end_ns);
            path::<{ SHORT_PATH / 8 }>(record, exchange);
            bpf_ringbuf_submit(record.cast(), BPF_RB_NO_WAKEUP.into());
        }
    } else {
        // SAFETY: as above, with the whole path.
        unsafe {
            let record = bpf_ringbuf_reserve(ring, size_of::<ExchangeRecord>() as u64, 0).cast::<ExchangeRecord>();
            if record.is_null() {
                return false;
            }
            fixed(record, header, exchange, call, outcome, protocol, end_ns);
            path::<{ PATH_BYTES / 8 }>(record, exchange);
            bpf_ringbuf_submit(record.cast(), BPF_RB_NO_WAKEUP.into());
        }
    }
    true
}

/// Copies the first `WORDS` words of the path.
#[inline(always)]
unsafe fn path<const WORDS: usize>(record: *mut ExchangeRecord, exchange: &Exchange) {
    // SAFETY: `path` is 8-byte aligned in both (offset asserted by the abi's sizes), and WORDS fits the reservation.
    unsafe {
        let to = (&raw mut (*record).path).cast::<u64>();
        let mut index = 0;
        while index < WORDS {
            *to.add(index) = exchange.request.path[index];
            index += 1;
        }
    }
}

/// Method tokens by code, zero-filled; the ones behind the last are `_OTHER`, too.
static METHODS: [[u8; 8]; 16] = [
    *b"_OTHER\0\0",
    *b"GET\0\0\0\0\0",
    *b"HEAD\0\0\0\0",
    *b"POST\0\0\0\0",
    *b"PUT\0\0\0\0\0",
    *b"DELETE\0\0",
    *b"CONNECT\0",
    *b"OPTIONS\0",
    *b"TRACE\0\0\0",
    *b"PATCH\0\0\0",
    *b"QUERY\0\0\0",
    *b"_OTHER\0\0",
    *b"_OTHER\0\0",
    *b"_OTHER\0\0",
    *b"_OTHER\0\0",
    *b"_OTHER\0\0",
];

/// Lengths of [`METHODS`].
static METHOD_LENGTHS: [u8; 16] = [6, 3, 4, 4, 3, 6, 7, 7, 5, 5, 5, 6, 6, 6, 6, 6];

/// Method code -> (text as a word, length).
#[inline(always)]
fn method(code: u8) -> (u64, u8) {
    let code = usize::from(code & 15);
    (u64::from_le_bytes(METHODS[code]), METHOD_LENGTHS[code])
}

const _: () = assert!((Method::Query as usize) < METHODS.len());

/// Writes everything before `path`.
#[inline(always)]
unsafe fn fixed(
    record: *mut ExchangeRecord,
    header: RecordHeader,
    exchange: &Exchange,
    call: &Call,
    outcome: u8,
    protocol: u8,
    end_ns: u64,
) {
    // SAFETY: no arguments.
    let (task, cgroup_id) = unsafe { (bpf_get_current_pid_tgid(), bpf_get_current_cgroup_id()) };
    let in_process = (task >> 32) as u32 == exchange.pid;
    let server = exchange.side == ROLE_SERVER;
    let request = &exchange.request;
    let (method_word, method_len) = method(request.method);
    // SAFETY: the caller reserved at least the fixed part; ids are copied as words (8-byte aligned in the abi).
    unsafe {
        let r = &mut *record;
        r.header = header;
        r.request_first_ns = exchange.request_first_ns;
        r.request_last_ns = exchange.request_last_ns;
        r.response_first_ns = exchange.response_first_ns;
        r.response_last_ns = end_ns;
        *(&raw mut r.trace_id).cast::<[u64; 2]>() = ids::trace_id(request);
        *(&raw mut r.span_id).cast::<u64>() = exchange.span_id;
        let (parent_id, returned_id) = ids::parent_and_returned(request);
        *(&raw mut r.header_parent_id).cast::<u64>() = parent_id;
        *(&raw mut r.returned_span_id).cast::<u64>() = returned_id;
        let (cause_span, wire_span) = if server {
            (0, exchange.related_span_id)
        } else {
            (exchange.related_span_id, 0)
        };
        let (cause_trace, wire_trace) = if server {
            ([0; 2], exchange.related_trace_id)
        } else {
            (exchange.related_trace_id, [0; 2])
        };
        *(&raw mut r.cause_span_id).cast::<u64>() = cause_span;
        *(&raw mut r.cause_trace_id).cast::<[u64; 2]>() = cause_trace;
        *(&raw mut r.wire_span_id).cast::<u64>() = wire_span;
        *(&raw mut r.wire_trace_id).cast::<[u64; 2]>() = wire_trace;
        r.wire_key = exchange.wire_key;
        r.tenant = request.tenant;
        r.request_body_bytes = exchange.request_bytes;
        r.response_body_bytes = exchange.response_bytes;
        r.cookie = call.cookie;
        r.cgroup_id = if in_process { cgroup_id } else { 0 };
        *(&raw mut r.local_addr).cast::<[u64; 2]>() = call.local_addr;
        *(&raw mut r.remote_addr).cast::<[u64; 2]>() = call.remote_addr;
        r.local_port = call.local_port;
        r.remote_port = call.remote_port;
        r.netns = call.netns;
        r.pid = exchange.pid;
        r.tid = exchange.tid;
        r.flags = exchange.flags | if request.path_cut != 0 { flag::PATH_CUT } else { 0 };
        r.host_hash = request.host_hash;
        r.ordinal = exchange.ordinal;
        r.status = exchange.status;
        r.path_len = request.path_len;
        r.side = exchange.side;
        r.outcome = outcome;
        r.protocol = protocol;
        r.family = call.family;
        r.context_format = request.context_format;
        r.cause = exchange.cause;
        r.method_len = method_len;
        r.class = exchange.class;
        r.errno = call.errno;
        r.reserved = [0; 6];
        *(&raw mut r.method).cast::<[u64; 2]>() = [method_word, 0];
    }
}
