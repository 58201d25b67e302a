//! What happens at the points of an exchange: its first byte, the end of its head, the end of a message.

use aya_ebpf::helpers::generated::{bpf_get_current_comm, bpf_get_prandom_u32};
use spanwire_common::abi::{
    context_format, flag, outcome, process_flag, protocol_id, setting, text, PortValue, ProcessClass, ProcessValue,
    Settings, TEXT_BYTES,
};
use spanwire_common::drop::KernelCounter;
use spanwire_common::protocol::http1::request::{otlp, Request};

use crate::call::{copy_kernel, now};
use crate::count::{cost, count};
use crate::global::global;
use crate::maps::{blank_exchange, PipelineKey, GENERATORS, PORTS, PROCESSES, SETTINGS, TEXTS, TRACESTATES, TRUSTED};
use crate::state::{
    Call, Exchange, Scratch, SockState, ASKS_PREPARED, EX_EXCLUDED, EX_HEAD, EX_OPEN, EX_REQUEST_DONE, EX_RESPONSE,
    EX_TOLD, REWRITE_LEFT_ALONE, ROLE_CLIENT, ROLE_SERVER, ROLE_UNKNOWN, RX, SOCK_INHERITED, SOCK_JOINED, SOCK_LATE,
};
use crate::{emit, enrol, ids, prepared, unit, wire};

/// How many exchanges one socket may have waiting for their responses.
const QUEUE: u8 = 32;

/// A random 64-bit id, never zero. xorshift128+ (Vigna 2014): `bpf_get_prandom_u32` costs a call for every 32 bits. One
/// generator per CPU and `slot`: two programs of which one comes while the other runs would draw the same id.
#[inline(always)]
fn random_id(slot: u8) -> u64 {
    let Some(generator) = GENERATORS.get_ptr_mut(u32::from(slot)) else {
        return seed();
    };
    // SAFETY: an element of a per-CPU array.
    let generator = unsafe { &mut *generator };
    let [mut low, high] = *generator;
    if low | high == 0 {
        *generator = [seed(), seed()];
        return seed();
    }
    low ^= low << 23;
    low ^= low >> 18;
    low ^= high ^ (high >> 5);
    *generator = [high, low];
    let id = high.wrapping_add(low);
    id | u64::from(id == 0)
}

/// 64 bits of the kernel's generator, never zero.
#[inline(always)]
fn seed() -> u64 {
    // SAFETY: no arguments.
    let (high, low) = unsafe { (bpf_get_prandom_u32(), bpf_get_prandom_u32()) };
    let id = u64::from(high) << 32 | u64::from(low);
    id | u64::from(id == 0)
}

/// Looks the process up; a process nobody asked for is not admitted.
#[inline(always)]
pub fn admit(call: &mut Call, settings: &Settings) -> bool {
    let pid = (call.pid_tgid >> 32) as u32;
    let api = |port: u16| port != 0 && (call.local_port == port || call.remote_port == port);
    if pid == settings.own_pid || api(settings.api_port) || api(settings.health_port) {
        return false;
    }
    cost(KernelCounter::MapOperations);
    let process = match PROCESSES.get_ptr_mut(&pid) {
        // SAFETY: a live map value, copied.
        Some(process) => unsafe { *process },
        // Not classified yet: observed provisionally.
        None => ProcessValue {
            include: u32::MAX,
            ..ProcessValue::default()
        },
    };
    call.class = process.class;
    call.process_flags = process.flags;
    if process.flags & process_flag::EXCLUDED != 0 {
        return false;
    }
    let named = ports(call);
    let include = process.include & (settings.include_any_port | named.include);
    let exclude = process.exclude & (settings.exclude_any_port | named.exclude);
    include != 0 && exclude == 0
}

/// The class to go by: that of a process which nobody has classified yet is told from its name, where the first request
/// needs it already (nginx's receive rule). User space confirms the class before a parent rests on it.
///
/// verifier: a global function, so that its branches do not multiply the caller's.
#[no_mangle]
#[inline(never)]
pub extern "C" fn class_or_name(class: u32) -> u32 {
    const NGINX: u64 = u64::from_le_bytes(*b"nginx\0\0\0");
    const COMPARED: u64 = 0xffff_ffff_ffff;
    if class != ProcessClass::Unclassified as u32 {
        return class;
    }
    let mut comm = [0u64; 2];
    // SAFETY: 16 bytes of stack.
    unsafe { bpf_get_current_comm((&raw mut comm).cast(), 16) };
    if comm[0] & COMPARED == NGINX {
        ProcessClass::Nginx as u32
    } else {
        class
    }
}

/// Selector items that name either port of the call.
#[inline(always)]
fn ports(call: &Call) -> PortValue {
    let mut named = PortValue::default();
    // SAFETY: a static of this program.
    if unsafe { core::ptr::read_volatile(&raw const PORT_SELECTORS) } == 0 {
        return named;
    }
    for port in [call.local_port, call.remote_port] {
        if let Some(value) = PORTS.get_ptr_mut(&u32::from(port)) {
            // SAFETY: a live map value, copied.
            let value = unsafe { *value };
            named.include |= value.include;
            named.exclude |= value.exclude;
        }
    }
    named
}

/// Set by the loader when any selector names a port.
#[no_mangle]
static PORT_SELECTORS: u32 = 0;

/// What [`request_begins`] returns.
pub const BEGINS: u32 = 1;
/// Nobody asks for the process, or for the port, any more.
pub const BEGINS_REFUSED: u32 = 2;
/// There is no room for the exchanges that wait.
pub const BEGINS_FULL: u32 = 3;

global! {
    /// First byte of a request. Anything but [`BEGINS`]: the socket cannot be followed any further.
    ///
    /// verifier: a global function; see `engine::step`.
    pub fn request_begins(state: *mut SockState, scratch: *mut Scratch) else { BEGINS_REFUSED } {
        // SAFETY: whole objects (rule for pointer arguments of global functions).
        let (state, scratch) = unsafe { (&mut *state, &mut *scratch) };
        let Some(settings) = SETTINGS.get_ptr(0) else {
            return BEGINS_REFUSED;
        };
        // SAFETY: an array element.
        if !admit(&mut scratch.call, unsafe { &*settings }) {
            return BEGINS_REFUSED;
        }
        if state.exchange.state & EX_OPEN != 0 && !queue(state, scratch.call.cookie) {
            return BEGINS_FULL;
        }
        let call = &mut scratch.call;
        let provisional = call.class == ProcessClass::Unclassified as u8;
        call.class = class_or_name(u32::from(call.class)) as u8;
        begin(state, call);
        if provisional {
            state.exchange.flags |= flag::UNCLASSIFIED;
        }
        if state.asks & ASKS_PREPARED != 0 {
            prepared::take_span_id(state);
        }
        let exchange = &mut state.exchange;
        if call.has_key != 0 {
            let offset = scratch
                .cursor
                .pos
                .wrapping_sub(call.carry)
                .wrapping_add(call.window_offset);
            exchange.wire_key = wire::key(call, offset);
            exchange.flags |= flag::WIRE_KEY;
        }
        BEGINS
    }
}

/// What an exchange is from its first byte on.
#[inline(always)]
pub fn begin(state: &mut SockState, call: &mut Call) {
    if state.role == ROLE_UNKNOWN {
        state.role = if call.direction == RX { ROLE_SERVER } else { ROLE_CLIENT };
    }
    let first_ns = now(call);
    let exchange = &mut state.exchange;
    let inherited = state.flags & SOCK_INHERITED != 0;
    clear(exchange, inherited);
    state.flags &= !SOCK_INHERITED;
    exchange.request_first_ns = first_ns;
    exchange.span_id = random_id(call.slot);
    exchange.pid = (call.pid_tgid >> 32) as u32;
    exchange.tid = call.pid_tgid as u32;
    exchange.ordinal = state.next_ordinal;
    state.next_ordinal = state.next_ordinal.wrapping_add(1);
    exchange.state = EX_OPEN;
    exchange.side = state.role;
    exchange.class = call.class;
    if call.process_flags & process_flag::SERVES != 0 {
        exchange.flags |= flag::PROCESS_SERVES;
    }
    if call.process_flags & process_flag::DEMOTED != 0 {
        exchange.flags |= flag::DEMOTED;
    }
    if state.flags & (SOCK_LATE | SOCK_JOINED) != 0 {
        exchange.flags |= flag::LATE_JOIN;
    }
}

/// Everything zero but the path's bytes, which `path_len` covers; a cause inherited at connect() stays.
#[inline(always)]
fn clear(exchange: &mut Exchange, inherited: bool) {
    exchange.request_last_ns = 0;
    exchange.response_first_ns = 0;
    exchange.request_bytes = 0;
    exchange.response_bytes = 0;
    exchange.wire_key = 0;
    exchange.status = 0;
    exchange.has_tracestate = 0;
    let (tenant, context_flags) = (exchange.request.tenant, exchange.request.context_flags);
    clear_request(&mut exchange.request);
    if inherited {
        exchange.flags &= flag::CAUSE_BLOCKING | flag::CAUSE_COMPLETE | flag::AMBIGUOUS;
        // The parser empties the request once more at its first line: what came along waits where nothing is counted yet, for
        // `unit::attribute`.
        exchange.request_bytes = tenant;
        exchange.inherited_context = context_flags;
    } else {
        exchange.inherited_context = 0;
        exchange.flags = 0;
        exchange.cause = 0;
        exchange.related_span_id = 0;
        exchange.related_trace_id = [0; 2];
    }
}

/// Zero but for the path's bytes: the parser writes those it counts in `path_len`.
#[inline(always)]
fn clear_request(request: &mut Request) {
    let words = core::mem::offset_of!(Request, path) / 8;
    let head = core::ptr::from_mut(request).cast::<u64>();
    let mut index = 0;
    while index < words {
        // SAFETY: within the part before `path`, which is a whole number of words.
        unsafe { *head.add(index) = 0 };
        index += 1;
    }
}

/// Puts the open exchange aside until its response comes.
#[inline(always)]
fn queue(state: &mut SockState, cookie: u64) -> bool {
    if state.queued >= QUEUE {
        count(KernelCounter::PipelineFull);
        return false;
    }
    let key = PipelineKey {
        cookie,
        ordinal: u64::from(state.exchange.ordinal),
    };
    cost(KernelCounter::MapOperations);
    let waiting = blank_exchange(&key);
    if waiting.is_null() {
        count(KernelCounter::PipelineFull);
        return false;
    }
    // SAFETY: a live map value.
    unsafe {
        copy_kernel(
            waiting.cast(),
            size_of::<Exchange>() as u32,
            (&raw const state.exchange).cast(),
        );
    }
    state.queued += 1;
    true
}

global! {
    /// The request's head is complete and valid: contexts, causes, the wire.
    pub fn request_head(state: *mut SockState, scratch: *mut Scratch) else { 0 } {
        // SAFETY: as in `request_begins`.
        let (state, scratch) = unsafe { (&mut *state, &mut *scratch) };
        let exchange = &mut state.exchange;
        let call = &mut scratch.call;
        exchange.state |= EX_HEAD;
        if exchange.side == ROLE_SERVER && exchange.request.context_format != context_format::NONE {
            believe(exchange, call);
        }
        let request = &exchange.request;
        if request.otlp != 0 {
            if exchange.side == ROLE_CLIENT && request.otlp == otlp::TRACES {
                unit::exports(exchange.pid);
            }
            exchange.state |= EX_EXCLUDED;
            return 1;
        }
        if request.user_agent_excluded != 0 {
            exchange.state |= EX_EXCLUDED;
            return 1;
        }
        if request.context_format != context_format::NONE {
            exchange.flags |= flag::ADOPTED_HEADER;
        }
        if request.context_flags & CONTEXT_INVALID != 0 {
            exchange.flags |= flag::CONTEXT_INVALID;
        }
        if exchange.side == ROLE_SERVER {
            if call.process_flags & process_flag::RETURNS_ALWAYS != 0 {
                exchange.flags |= flag::RETURN_WANTED;
            }
            if wire::meet(exchange) {
                exchange.state |= EX_EXCLUDED;
                return 1;
            }
            if call.blocking != 0 {
                exchange.flags |= flag::BLOCKING;
            }
            if exchange.has_tracestate != 0 && exchange.request.context_format != context_format::W3C {
                forget_tracestate(exchange);
            }
            ensure_trace(exchange, call.slot);
            opens(exchange, call);
        } else {
            if state.rewrite & REWRITE_LEFT_ALONE != 0 {
                state.rewrite = 0;
                enrol::speaks_http(call);
            }
            let prepared = state.asks & ASKS_PREPARED != 0;
            state.asks &= !ASKS_PREPARED;
            if !(prepared && prepared::take(exchange, state.cookie)) {
                caused(exchange, call);
                ensure_trace(exchange, call.slot);
            }
            let by_upstream = call.process_flags & process_flag::RETURNS_BY_UPSTREAM != 0;
            // Of an edge that ends TLS no request is seen.
            if by_upstream || (exchange.cause == 0 && passes_headers_on(exchange.class)) {
                exchange.flags |= flag::RETURN_WANTED;
            }
            wire::leave(exchange);
        }
        seal_flags(exchange);
        1
    }
}

pub const CONTEXT_SAMPLED: u8 = 1;
pub const CONTEXT_RANDOM: u8 = 2;
pub const CONTEXT_DECIDED: u8 = 4;
pub const CONTEXT_INVALID: u8 = 8;

/// A tracestate came without a traceparent that holds.
///
/// verifier: in a frame of its own: see `opaque::sent`.
#[inline(never)]
fn forget_tracestate(exchange: &Exchange) {
    let span_id = exchange.span_id;
    let _ = TRACESTATES.remove(&span_id);
}

/// Proxies, which pass on the headers of responses.
#[inline(always)]
fn passes_headers_on(class: u8) -> bool {
    matches!(ProcessClass::from_u8(class), ProcessClass::Nginx | ProcessClass::Proxy)
}

/// A context that came from a peer that is not trusted is none.
///
/// verifier: in a frame of its own: see `opaque::sent`.
#[inline(never)]
fn believe(exchange: &mut Exchange, call: &Call) {
    let Some(settings) = SETTINGS.get_ptr(0) else { return };
    // SAFETY: an element of an array.
    if unsafe { (*settings).flags } & setting::TRUST == 0 || enrol::is_in(call, &TRUSTED) {
        return;
    }
    let request = &mut exchange.request;
    ids::set_trace_id(request, [0; 2]);
    request.parent_id = [0; 8];
    request.context_format = context_format::NONE;
    request.context_flags = 0;
}

/// A trace id of its own for an exchange that took over none; its lower 56 bits are random (W3C Level 2).
#[inline(always)]
pub fn ensure_trace(exchange: &mut Exchange, slot: u8) {
    if exchange.flags & (flag::ADOPTED_CAUSE | flag::ADOPTED_WIRE | flag::ADOPTED_HEADER) != 0 {
        return;
    }
    ids::set_trace_id(&mut exchange.request, [random_id(slot), random_id(slot)]);
    exchange.request.context_flags |= CONTEXT_SAMPLED | CONTEXT_RANDOM | CONTEXT_DECIDED;
}

#[inline(always)]
fn seal_flags(exchange: &mut Exchange) {
    let context = exchange.request.context_flags;
    if context & CONTEXT_SAMPLED != 0 || context & CONTEXT_DECIDED == 0 {
        exchange.flags |= flag::SAMPLED;
    }
    if context & CONTEXT_RANDOM != 0 {
        exchange.flags |= flag::RANDOM;
    }
    if exchange.request.http10 != 0 {
        exchange.flags |= flag::HTTP10;
    }
}

global! {
    /// verifier: a frame of its own (see `process::note_process`).
    pub fn opens(exchange: *const Exchange, call: *const Call) else { 0 } {
        // SAFETY: as above.
        unit::open(unsafe { &*exchange }, unsafe { &*call });
        0
    }
}

global! {
    /// verifier: a frame of its own (see `process::note_process`).
    pub fn caused(exchange: *mut Exchange, call: *const Call) else { 0 } {
        // SAFETY: as above.
        unit::attribute(unsafe { &mut *exchange }, unsafe { &*call });
        0
    }
}

global! {
    /// A header value that leaves the kernel by name: the cursor says where it lies in the window.
    pub fn send_text(state: *mut SockState, scratch: *mut Scratch) else { 0 } {
        // SAFETY: as in `request_begins`.
        let (state, scratch) = unsafe { (&mut *state, &mut *scratch) };
        let cursor = &scratch.cursor;
        let Some(record) = TEXTS.get_ptr_mut(u32::from(scratch.call.slot)) else {
            return 0;
        };
        // SAFETY: an element of a per-CPU array, used by one program only.
        let record = unsafe { &mut *record };
        let mut len = cursor.text_len;
        let mut from = cursor.text_from;
        if len > TEXT_BYTES as u32 {
            len = TEXT_BYTES as u32;
        }
        // verifier: bounds that LLVM cannot fold away.
        // SAFETY: register arithmetic only.
        unsafe { core::arch::asm!("{0} &= 1023", "{1} &= 4095", inout(reg) len, inout(reg) from) };
        if len > TEXT_BYTES as u32 {
            return 0;
        }
        // SAFETY: `from` is within window and spill, `len` within `bytes`.
        unsafe {
            let source = (&raw const scratch.window).cast::<u8>().add(from as usize);
            if !copy_kernel((&raw mut record.bytes).cast(), len, source) {
                return 0;
            }
        }
        record.span_id = state.exchange.span_id.to_ne_bytes();
        record.hash = cursor.text_hash;
        record.what = cursor.text_what;
        record.index = cursor.text_index;
        record.len = len as u16;
        record.cut = cursor.text_cut;
        record.reserved = [0; 3];
        if record.what == text::TENANT && state.exchange.request.tenant == 0 {
            state.exchange.request.tenant = cursor.text_hash;
        }
        let sent = emit::output(record, spanwire_common::abi::kind::TEXT, |record| &mut record.header);
        if !sent {
            count(KernelCounter::RingFullOther);
        }
        1
    }
}

global! {
    /// The request's last byte has passed.
    pub fn request_ends(state: *mut SockState, scratch: *mut Scratch) else { 0 } {
        // SAFETY: as in `request_begins`.
        let (state, scratch) = unsafe { (&mut *state, &mut *scratch) };
        let exchange = &mut state.exchange;
        exchange.request_last_ns = now(&mut scratch.call);
        exchange.state |= EX_REQUEST_DONE;
        exchange.flags |= flag::REQUEST_SIZE_KNOWN;
        if exchange.side == ROLE_SERVER && exchange.state & EX_EXCLUDED == 0 {
            unit::complete(exchange, &scratch.call);
        }
        1
    }
}

/// What happened on the response's side: the argument of [`response`].
pub const RESPONSE_BEGINS: u32 = 1;
pub const RESPONSE_HEAD: u32 = 2;
pub const RESPONSE_INTERIM: u32 = 3;
pub const RESPONSE_ENDS: u32 = 4;
pub const RESPONSE_UPGRADED: u32 = 5;
pub const RESPONSE_OUT_OF_STEP: u32 = 6;
pub const RESPONSE_CLOSED: u32 = 7;
pub const RESPONSE_RESET: u32 = 8;
pub const RESPONSE_OVERDUE: u32 = 9;

global! {
    /// A point of the response to `exchange`, which is the socket's own or one that waits in PIPELINE. Returns 1 if the
    /// exchange is over.
    pub fn response(exchange: *mut Exchange, scratch: *mut Scratch; point: u32) else { 0 } {
        // SAFETY: as in `request_begins`.
        let (exchange, scratch) = unsafe { (&mut *exchange, &mut *scratch) };
        if exchange.state & EX_OPEN == 0 {
            return 1;
        }
        let call = &mut scratch.call;
        match point {
            RESPONSE_BEGINS => {
                exchange.response_first_ns = now(call);
                exchange.state |= EX_RESPONSE;
                return 0;
            }
            RESPONSE_HEAD => {
                exchange.status = scratch.cursor.status;
                return 0;
            }
            RESPONSE_INTERIM => {
                exchange.response_first_ns = 0;
                exchange.state &= !EX_RESPONSE;
                return 0;
            }
            RESPONSE_OVERDUE => {
                tell(exchange, call, outcome::TIMEOUT);
                exchange.state |= EX_TOLD;
                return 0;
            }
            _ => {}
        }
        let outcome_code = match point {
            RESPONSE_ENDS => {
                exchange.flags |= flag::RESPONSE_SIZE_KNOWN;
                outcome::COMPLETE
            }
            RESPONSE_UPGRADED => {
                exchange.status = scratch.cursor.status;
                outcome::UPGRADED
            }
            RESPONSE_OUT_OF_STEP => outcome::OUT_OF_STEP,
            RESPONSE_RESET => outcome::RESET,
            _ => outcome::CLOSED,
        };
        finish(exchange, call, outcome_code);
        1
    }
}

/// The exchange is over: its unit is free, its record goes out.
#[inline(always)]
fn finish(exchange: &mut Exchange, call: &mut Call, outcome_code: u8) {
    if exchange.side == ROLE_SERVER && exchange.state & (EX_HEAD | EX_EXCLUDED) == EX_HEAD {
        let answered = outcome_code == outcome::COMPLETE || outcome_code == outcome::UPGRADED;
        unit::close(exchange, answered);
    }
    tell(exchange, call, outcome_code);
    exchange.state = 0;
}

/// Sends the exchange's record, if it is to have one and has not gone out yet.
#[inline(always)]
fn tell(exchange: &Exchange, call: &mut Call, outcome_code: u8) {
    // Without a valid head there was nothing that could be called an exchange.
    if exchange.state & EX_HEAD == 0 || exchange.state & EX_TOLD != 0 {
        return;
    }
    if exchange.state & EX_EXCLUDED != 0 {
        count(KernelCounter::Excluded);
        return;
    }
    let end_ns = now(call);
    emit::exchange(exchange, call, outcome_code, protocol_id::HTTP1, end_ns);
}

/// A connect failed: an exchange in which nothing was said.
#[inline(always)]
pub fn connect_failed(exchange: &mut Exchange, call: &mut Call, outcome_code: u8) {
    exchange.span_id = random_id(call.slot);
    if exchange.cause != 0 && unit::is_exact(exchange) {
        unit::adopt(exchange);
    }
    ensure_trace(exchange, call.slot);
    exchange.request.path_len = 0;
    let end_ns = now(call);
    emit::exchange(exchange, call, outcome_code, protocol_id::CONNECT, end_ns);
}
