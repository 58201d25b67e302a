//! The parser's composition for the kernel: what `spanwire_common::protocol::http1` decides, done with user memory,
//! socket state and maps.
//!
//! verifier: the byte search, the contents of a line (`lines`), and the step that joins them are global functions: each is
//! verified once, with unknown arguments, instead of once per path that leads to it. Their loops and branches then
//! add up instead of multiplying.

#[cfg(not(feature = "scalars"))]
use spanwire_common::abi::text;
use spanwire_common::abi::ProcessClass;
use spanwire_common::drop::KernelCounter;
use spanwire_common::protocol::http1::{self, phase, step as code, Cursor, Framing};
use spanwire_common::protocol::window::CARRY_BYTES;

use crate::call::{copy_kernel, fill, skip};
use crate::count::{cost, count};
use crate::exchange::{
    request_begins, request_ends, request_head, response, send_text, BEGINS, BEGINS_REFUSED, RESPONSE_BEGINS,
    RESPONSE_ENDS, RESPONSE_HEAD, RESPONSE_INTERIM, RESPONSE_OUT_OF_STEP, RESPONSE_OVERDUE, RESPONSE_UPGRADED,
};
use crate::global::global;
use crate::ids;
use crate::lines::{chunk_line, request_line, response_line, scan, skim_request, skim_response};
use crate::maps::{blank_carry, CarryKey, PipelineKey, CARRY, PIPELINE};
use crate::process::{is_to_note, note_process};
use crate::state::{
    Scratch, SockState, EX_HEAD, EX_OPEN, ROLE_CLIENT, ROLE_SERVER, ROLE_UNKNOWN, RX, SOCK_BOUNDARY, SOCK_CONNECTING,
    SOCK_JOINED, SOCK_LATE, SOCK_OPAQUE, SOCK_TLS, SOCK_UNIX, TX,
};
#[cfg(not(feature = "scalars"))]
use crate::tracestate;

/// Steps of one call: two for each line of a head, three for each chunk, five for each pipelined message.
const STEPS: u32 = 1024;
/// Exchanges finished at once when a connection dies.
const FINISHES: u32 = 33;

/// The framing of the call's direction.
#[inline(always)]
pub fn framing(state: &mut SockState, direction: u32) -> &mut Framing {
    let [receive, send] = &mut state.framing;
    if direction == TX {
        send
    } else {
        receive
    }
}

/// True if the call's direction carries requests on this socket. Before the role is known, it is a request that is
/// looked for.
#[inline(always)]
pub fn carries_requests(state: &SockState, direction: u32) -> bool {
    match state.role {
        ROLE_SERVER => direction == RX,
        ROLE_CLIENT => direction == TX,
        _ => true,
    }
}

/// The exchange that the next response belongs to: the oldest that waits.
///
/// verifier: where a program has less of the stack, in a frame of its own: see `opaque::sent`.
#[cfg_attr(feature = "untyped", inline(never))]
#[cfg_attr(not(feature = "untyped"), inline(always))]
fn oldest(state: &mut SockState) -> *mut crate::state::Exchange {
    if state.queued == 0 {
        return &raw mut state.exchange;
    }
    let key = PipelineKey {
        cookie: state.cookie,
        ordinal: u64::from(state.oldest_ordinal()),
    };
    cost(KernelCounter::MapOperations);
    PIPELINE.get_ptr_mut(&key).unwrap_or(core::ptr::null_mut())
}

/// A point of the response to the oldest open exchange.
#[inline(always)]
fn respond(state: &mut SockState, scratch: *mut Scratch, point: u32) -> bool {
    let exchange = oldest(state);
    if exchange.is_null() {
        return false;
    }
    let over = response(exchange, scratch, point) != 0;
    if over && state.queued != 0 {
        forget_oldest(state);
    }
    true
}

/// The oldest exchange is over; the next one in line is the oldest.
///
/// verifier: as [`oldest`].
#[cfg_attr(feature = "untyped", inline(never))]
#[cfg_attr(not(feature = "untyped"), inline(always))]
fn forget_oldest(state: &mut SockState) {
    let key = PipelineKey {
        cookie: state.cookie,
        ordinal: u64::from(state.oldest_ordinal()),
    };
    let _ = PIPELINE.remove(&key);
    state.queued -= 1;
}

global! {
    /// One step of the parser and what follows from it. Returns 0 when the call is done with.
    ///
    /// verifier: see the module's note.
    pub fn step(state: *mut SockState, scratch: *mut Scratch) else { 0 } {
        // SAFETY: whole objects.
        let (known, working) = unsafe { (&mut *state, &mut *scratch) };
        let direction = working.call.direction;
        let requests = carries_requests(known, direction);
        if http1::may_skim(framing(known, direction), &working.cursor) {
            if requests {
                skim_request(state, scratch);
            } else {
                skim_response(state, scratch);
            }
        }
        let mut found = working.cursor.end;
        if http1::needs_scan(framing(known, direction), &working.cursor) {
            found = scan(state, scratch);
        }
        let mut next = http1::advance(framing(known, direction), &mut working.cursor, found);
        if next == code::LINE {
            next = if requests {
                let in_start_line = framing(known, direction).phase == phase::START;
                request_line(state, scratch, in_start_line)
            } else {
                answer_line(known, scratch)
            };
        } else if next == code::CHUNK_LINE {
            next = chunk_line(state, scratch);
        }
        if next == code::MORE {
            return 1;
        }
        match next {
            code::FILL => refill(state, scratch),
            code::END => {
                save(known, working);
                0
            }
            code::HEAD_BEGIN if requests => {
                let begins = request_begins(state, scratch);
                if begins == BEGINS {
                    return 1;
                }
                known.flags |= SOCK_OPAQUE;
                finish_open(known, scratch, RESPONSE_OUT_OF_STEP);
                if begins == BEGINS_REFUSED {
                    // The cheapest way out (`opaque::on_call`).
                    known.exchange.class = ProcessClass::Other as u8;
                }
                0
            }
            code::HEAD_BEGIN => answered(known, scratch, RESPONSE_BEGINS),
            code::HEAD_END if requests => {
                let more = request_head(state, scratch);
                if is_to_note(&known.exchange) {
                    note_process(&raw const known.exchange, &raw const working.call);
                }
                more
            }
            code::HEAD_END => answered(known, scratch, RESPONSE_HEAD),
            code::INTERIM => answered(known, scratch, RESPONSE_INTERIM),
            code::MESSAGE_END if requests => {
                known.exchange.request_bytes = framing(known, direction).body_bytes;
                request_ends(state, scratch)
            }
            code::MESSAGE_END => message_answered(known, scratch),
            code::TEXT if requests => {
                // Left out where every step is walked with look-ups in it: the program would be too large (before 5.13).
                #[cfg(not(feature = "scalars"))]
                if direction == RX && working.cursor.text_what == text::TRACESTATE {
                    tracestate::keep(state, scratch);
                }
                send_text(state, scratch)
            }
            code::TEXT => 1,
            code::UPGRADED => {
                respond(known, scratch, RESPONSE_UPGRADED);
                known.flags |= SOCK_OPAQUE;
                count(KernelCounter::OpaqueUpgrade);
                0
            }
            _ => {
                out_of_step(known, scratch, next);
                0
            }
        }
    }
}

/// A line of the head of the answer to the oldest open exchange.
#[inline(always)]
fn answer_line(state: &mut SockState, scratch: *mut Scratch) -> u32 {
    let exchange = oldest(state);
    if exchange.is_null() {
        return code::OPAQUE_FRAMING;
    }
    // SAFETY: a live map value or the state's own.
    let method = unsafe { (*exchange).request.method };
    let next = response_line(state, scratch, u32::from(method));
    // SAFETY: as above; the cursor is part of a whole object.
    let (request, cursor) = unsafe { (&mut (*exchange).request, &mut (*scratch).cursor) };
    if cursor.returned != 0 {
        ids::set_returned(request, cursor.returned);
        cursor.returned = 0;
    }
    next
}

#[inline(always)]
fn answered(state: &mut SockState, scratch: *mut Scratch, point: u32) -> u32 {
    if state.flags & SOCK_LATE != 0 {
        return 1;
    }
    if point == RESPONSE_BEGINS && state.exchange.state & EX_OPEN == 0 {
        // An answer nobody asked for.
        out_of_step(state, scratch, code::OPAQUE_FRAMING);
        return 0;
    }
    u32::from(respond(state, scratch, point))
}

/// The last byte of a response has passed.
#[inline(always)]
fn message_answered(state: &mut SockState, scratch: *mut Scratch) -> u32 {
    // SAFETY: a whole object.
    let working = unsafe { &mut *scratch };
    let direction = working.call.direction;
    if state.flags & SOCK_LATE != 0 {
        // A whole response, to the last byte of a call: what comes next in the other direction begins a request.
        if working.cursor.beyond == 0 && working.cursor.pos >= working.cursor.end {
            state.flags |= SOCK_BOUNDARY;
        }
        return 1;
    }
    let bytes = framing(state, direction).body_bytes;
    let exchange = oldest(state);
    if exchange.is_null() {
        return 0;
    }
    // SAFETY: a live map value or the state's own.
    unsafe { (*exchange).response_bytes = bytes };
    u32::from(respond(state, scratch, RESPONSE_ENDS))
}

/// The socket is not to be followed any further: counted, and what was open on it ends here.
#[inline(always)]
fn out_of_step(state: &mut SockState, scratch: *mut Scratch, reason: u32) {
    if state.flags & SOCK_LATE != 0 {
        // Not a boundary after all: wait for the next.
        state.framing = [Framing::default(), Framing::default()];
        state.role = ROLE_UNKNOWN;
        return;
    }
    count(match reason {
        _ if state.flags & SOCK_JOINED != 0 => KernelCounter::OpaqueLateJoin,
        code::OPAQUE_TLS => KernelCounter::OpaqueTls,
        code::OPAQUE_HTTP2 => KernelCounter::OpaqueHttp2,
        code::OPAQUE_PROTOCOL => KernelCounter::OpaqueProtocol,
        _ => KernelCounter::OpaqueFraming,
    });
    if reason == code::OPAQUE_TLS {
        state.flags |= SOCK_TLS;
    }
    if state.role == ROLE_UNKNOWN {
        // SAFETY: a whole object.
        let direction = unsafe { (*scratch).call.direction };
        state.role = if direction == TX || state.exchange.side == ROLE_CLIENT {
            ROLE_CLIENT
        } else if state.flags & SOCK_UNIX == 0 {
            ROLE_SERVER
        } else {
            // Connects of unix sockets have no hook: the other end may have spoken first (MySQL).
            ROLE_UNKNOWN
        };
    }
    state.flags |= SOCK_OPAQUE;
    finish_open(state, scratch, RESPONSE_OUT_OF_STEP);
}

/// Moves the partial line to the front and copies the call's next bytes behind it.
#[inline(always)]
fn refill(state: *mut SockState, scratch: *mut Scratch) -> u32 {
    // SAFETY: a whole object.
    let known = unsafe { &mut *state };
    if !move_on(known, scratch) {
        return unreadable(known, scratch);
    }
    load(known, scratch)
}

/// Moves the partial line to the front, and passes over what need not be read. False if it does not reach that far.
#[inline(always)]
pub fn move_on(known: &mut SockState, scratch: *mut Scratch) -> bool {
    // SAFETY: a whole object.
    let working = unsafe { &mut *scratch };
    let direction = working.call.direction;
    let carry = bound_carry(framing(known, direction).carry);
    let start = bound_position(working.cursor.line_start);
    // SAFETY: both lie within window and spill. Forward in memory, word by word: the overlap is harmless.
    unsafe {
        let window = (&raw mut working.window).cast::<u8>();
        copy_kernel(window, carry, window.add(start as usize));
    }
    let passed = working.call.unread.wrapping_sub(working.cursor.beyond);
    working.call.window_offset = working.call.length.wrapping_sub(working.cursor.beyond as u32);
    working.call.carry = carry;
    passed == 0 || skip(scratch, passed) != 0
}

/// Copies the call's next bytes into the window behind the carry.
#[inline(always)]
fn load(state: &mut SockState, scratch: *mut Scratch) -> u32 {
    if bring(state, scratch) {
        1
    } else {
        unreadable(state, scratch)
    }
}

/// As [`load`]; false if bytes are wanted where none can be read.
#[inline(always)]
pub fn bring(state: &mut SockState, scratch: *mut Scratch) -> bool {
    // SAFETY: a whole object.
    let working = unsafe { &mut *scratch };
    let direction = working.call.direction;
    working.cursor.end = working.call.carry;
    let added = if working.call.readable != 0 { fill(scratch) } else { 0 };
    if added == 0 && working.call.unread != 0 && needs_bytes(framing(state, direction)) {
        return false;
    }
    working.cursor.filled(framing(state, direction), added);
    true
}

/// Bytes are wanted where none can be read: the socket cannot be followed any further.
#[inline(always)]
fn unreadable(state: &mut SockState, scratch: *mut Scratch) -> u32 {
    out_of_step(state, scratch, code::OPAQUE_FRAMING);
    0
}

#[inline(always)]
pub fn needs_bytes(f: &Framing) -> bool {
    f.phase <= phase::TRAILERS
}

/// Keeps the partial line for the next call.
///
/// verifier: as [`oldest`].
#[cfg_attr(feature = "scalars", inline(never))]
#[cfg_attr(not(feature = "scalars"), inline(always))]
fn save(state: &mut SockState, working: &mut Scratch) {
    let direction = working.call.direction;
    let carry = framing(state, direction).carry;
    if carry == 0 {
        return;
    }
    let key = CarryKey {
        cookie: working.call.cookie,
        direction: u64::from(direction),
    };
    let start = bound_position(working.cursor.line_start);
    cost(KernelCounter::MapOperations);
    let kept = blank_carry(&key);
    if kept.is_null() {
        count(KernelCounter::StateFull);
        return;
    }
    // SAFETY: a live map value; a whole Carry lies behind any position of the window: `spill` follows it.
    unsafe {
        let from = (&raw const working.window).cast::<u8>().add(start as usize);
        copy_kernel(kept.cast(), CARRY_BYTES as u32, from);
    }
}

/// Fetches what `save` kept; false if it is gone. `keep`: somebody else will want it.
#[inline(always)]
pub fn restore(state: &mut SockState, working: &mut Scratch, keep: bool) -> bool {
    let direction = working.call.direction;
    let carry = bound_carry(framing(state, direction).carry);
    working.call.carry = carry;
    if carry == 0 {
        return true;
    }
    let key = CarryKey {
        cookie: working.call.cookie,
        direction: u64::from(direction),
    };
    cost(KernelCounter::MapOperations);
    let Some(kept) = CARRY.get_ptr(&key) else { return false };
    // SAFETY: a live map value; the window is larger than a Carry.
    unsafe { copy_kernel((&raw mut working.window).cast(), carry, kept.cast()) };
    if !keep {
        let _ = CARRY.remove(&key);
    }
    true
}

/// At most CARRY_BYTES, in a way LLVM cannot fold away.
#[inline(always)]
fn bound_carry(carry: u16) -> u32 {
    const { assert!(CARRY_BYTES <= 2047) };
    let mut carry = u64::from(carry);
    // SAFETY: register arithmetic only.
    unsafe { core::arch::asm!("{0} &= 2047", inout(reg) carry) };
    carry as u32
}

/// A position in window and spill.
#[inline(always)]
fn bound_position(position: u32) -> u32 {
    let mut position = u64::from(position);
    // SAFETY: register arithmetic only.
    unsafe { core::arch::asm!("{0} &= 4095", inout(reg) position) };
    position as u32
}

/// Parses one call's bytes.
#[inline(always)]
pub fn run(state: *mut SockState, scratch: *mut Scratch) {
    // SAFETY: whole objects.
    let (known, working) = unsafe { (&mut *state, &mut *scratch) };
    known.flags &= !SOCK_CONNECTING;
    if known.flags & SOCK_LATE != 0 && !joins(known, working.call.direction) {
        return;
    }
    if !restore(known, working, false) {
        out_of_step(known, scratch, code::OPAQUE_FRAMING);
        return;
    }
    working.cursor = Cursor {
        beyond: working.call.unread,
        ..Cursor::default()
    };
    working.call.window_offset = 0;
    if needs_bytes(framing(known, working.call.direction)) {
        if load(known, scratch) == 0 {
            return;
        }
    } else {
        // Inside a body: nothing is read before its end is reached.
        working.cursor.filled(framing(known, working.call.direction), 0);
    }
    for _ in 0..STEPS {
        if step(state, scratch) == 0 {
            return;
        }
    }
    out_of_step(known, scratch, code::OPAQUE_FRAMING);
}

/// A socket older than the agent. It is joined where a request must begin: after a response that was seen from its
/// first byte to its last. Until then only responses are looked at. Returns true if the call is to be parsed.
#[inline(always)]
fn joins(state: &mut SockState, direction: u32) -> bool {
    if state.flags & SOCK_BOUNDARY != 0 && carries_requests(state, direction) {
        state.flags &= !(SOCK_LATE | SOCK_BOUNDARY);
        state.flags |= SOCK_JOINED;
        return true;
    }
    state.flags &= !SOCK_BOUNDARY;
    if state.role == ROLE_UNKNOWN {
        // A role to try the bytes with: if they are a response, it is the right one.
        state.role = if direction == TX { ROLE_SERVER } else { ROLE_CLIENT };
        return true;
    }
    !carries_requests(state, direction)
}

/// The socket is given up for a reason outside the parser.
#[inline(always)]
pub fn give_up(state: *mut SockState, scratch: *mut Scratch, reason: KernelCounter) {
    // SAFETY: a whole object.
    let known = unsafe { &mut *state };
    count(reason);
    known.flags |= SOCK_OPAQUE;
    finish_open(known, scratch, RESPONSE_OUT_OF_STEP);
}

/// Ends every exchange that is open on a socket.
#[inline(always)]
fn finish_open(state: &mut SockState, scratch: *mut Scratch, point: u32) {
    if state.exchange.state & EX_OPEN != 0 || state.queued != 0 {
        finish_all(state, scratch, point);
    }
}

/// The connection has come to its end: so have the exchanges that were open on it. The first ends as `point` says.
#[inline(always)]
pub fn finish_all(state: &mut SockState, scratch: *mut Scratch, point: u32) {
    finish_each(&raw mut *state, scratch, point);
}

/// The deadline has passed for the oldest exchange that is open on a socket.
#[inline(always)]
pub fn overdue(state: &mut SockState, scratch: *mut Scratch) {
    respond(state, scratch, RESPONSE_OVERDUE);
}

global! {
    /// verifier: a global function, so that its loop is walked once.
    pub fn finish_each(state: *mut SockState, scratch: *mut Scratch; point: u32) else { 0 } {
        // SAFETY: a whole object.
        let known = unsafe { &mut *state };
        let requests = framing_of_requests(known);
        if known.exchange.state & EX_HEAD != 0 {
            known.exchange.request_bytes = requests;
        }
        let responses = framing_of_responses(known);
        for _ in 0..FINISHES {
            let exchange = oldest(known);
            if exchange.is_null() {
                break;
            }
            let last = known.queued == 0;
            // SAFETY: a live map value or the state's own.
            unsafe { (*exchange).response_bytes = responses };
            if !respond(known, scratch, point) || last {
                break;
            }
        }
        1
    }
}

#[inline(always)]
fn framing_of_requests(state: &SockState) -> u64 {
    let [receive, send] = &state.framing;
    if state.role == ROLE_CLIENT {
        send.body_bytes
    } else {
        receive.body_bytes
    }
}

#[inline(always)]
fn framing_of_responses(state: &SockState) -> u64 {
    let [receive, send] = &state.framing;
    if state.role == ROLE_CLIENT {
        receive.body_bytes
    } else {
        send.body_bytes
    }
}
