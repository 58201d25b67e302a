//! A response on its way out: the trace id of a request that nobody traced before goes back with it.
//!
//! As in `rewrite`, everything is decided on a copy of the socket's state.

use aya_ebpf::bindings::sk_msg_md;
use spanwire_common::abi::{flag, ReturnLines, RETURN_BYTES, RETURN_LINES as MOST_LINES};
use spanwire_common::drop::KernelCounter;
use spanwire_common::protocol::http1::{self, step as code};
use spanwire_common::protocol::traceparent::VALUE_BYTES;

use crate::call::copy_kernel;
use crate::count::count;
use crate::engine::{bring, framing, move_on};
use crate::global::{global, working};
use crate::lines::{response_line, scan, skim_response};
use crate::maps::{slot, RETURN_LINES, WIRES};
use crate::message::{insert, Line, Message, Outcome, LINE_BYTES};
use crate::rewrite::{blank_line, copied_state, prepare, value_of, ALIEN, DONE, MORE, STEPS, UNFINISHED};
use crate::sk::Sock;
use crate::socket::identify;
use crate::state::{Exchange, Preview, Scratch, SockState, ASKS_TO_LEAVE, EX_EXCLUDED, EX_HEAD, EX_OPEN, NOWHERE, TX};

/// A message of a socket that was accepted.
///
/// verifier: see `rewrite::look_at`.
#[inline(never)]
pub fn look_at(message: *mut sk_msg_md, sk: Sock, state: *mut SockState, preview: *mut Preview) -> u32 {
    let message = Message(message);
    let Some(scratch) = working(slot::MESSAGE) else {
        return ALIEN;
    };
    // SAFETY: whole objects.
    let (known, preview) = unsafe { (&mut *state, &mut *preview) };
    if known.queued != 0 || known.exchange.state & EX_OPEN == 0 {
        // Pipelined, or an answer that nobody asked for.
        return ALIEN;
    }
    let copy = copied_state(preview);
    // SAFETY: a whole object.
    identify(sk, unsafe { &mut (*scratch).call }, sk.family(), TX);
    if copy.is_null() || !prepare(message, known, copy, scratch) {
        return ALIEN;
    }
    let mut verdict = MORE;
    for _ in 0..STEPS {
        verdict = answer_step(copy, scratch);
        if verdict != MORE {
            break;
        }
    }
    match verdict {
        DONE => {
            if is_wanted(&known.exchange) {
                put_in(message, sk, known, preview, scratch);
            }
            DONE
        }
        UNFINISHED => UNFINISHED,
        _ => ALIEN,
    }
}

global! {
    /// One step of the parser over the copy.
    ///
    /// verifier: see `engine`.
    pub fn answer_step(state: *mut SockState, scratch: *mut Scratch) else { ALIEN } {
        // SAFETY: whole objects (rule for pointer arguments of global functions).
        let (known, working) = unsafe { (&mut *state, &mut *scratch) };
        if http1::may_skim(framing(known, TX), &working.cursor) {
            skim_response(state, scratch);
        }
        let mut found = working.cursor.end;
        if http1::needs_scan(framing(known, TX), &working.cursor) {
            found = scan(state, scratch);
        }
        let mut next = http1::advance(framing(known, TX), &mut working.cursor, found);
        if next == code::LINE {
            next = response_line(state, scratch, u32::from(known.exchange.request.method));
        }
        match next {
            code::MORE | code::HEAD_BEGIN | code::INTERIM => MORE,
            code::FILL => {
                if move_on(known, scratch) && bring(known, scratch) {
                    MORE
                } else {
                    ALIEN
                }
            }
            code::HEAD_END => DONE,
            code::END => UNFINISHED,
            _ => ALIEN,
        }
    }
}

/// The client is nobody that an agent sees, or one that passes on what comes back.
#[inline(always)]
fn is_wanted(exchange: &Exchange) -> bool {
    if exchange.state & (EX_HEAD | EX_EXCLUDED) != EX_HEAD {
        return false;
    }
    if exchange.flags & flag::RETURN_WANTED != 0 {
        return true;
    }
    if exchange.flags & flag::WIRE_MATCHED != 0 {
        return false;
    }
    // The client's hook may have come after the server's.
    let key = exchange.wire_key;
    exchange.flags & flag::WIRE_KEY == 0
        || WIRES.get_ptr(&key).is_none_or(|wire| {
            // SAFETY: a live map value.
            unsafe { (*wire).returns != 0 }
        })
}

/// verifier: see `rewrite::look_at`.
#[inline(never)]
fn put_in(message: Message, sk: Sock, known: &mut SockState, preview: &mut Preview, scratch: *mut Scratch) {
    let at = blank_line(message, scratch);
    if at == NOWHERE || !message.has_room(sk, LINE_BYTES as u32) || !write_lines(&known.exchange, &mut preview.line) {
        return count(KernelCounter::ReturnFailed);
    }
    let before = message.size();
    let outcome = insert(message.0, at, &preview.line);
    if outcome == Outcome::Done as u32 {
        known.inserted = preview.line.len as u16;
        known.exchange.flags |= flag::RETURNED;
        return count(KernelCounter::Returned);
    }
    count(KernelCounter::ReturnFailed);
    if outcome == Outcome::Doubtful as u32 {
        count(KernelCounter::InjectionDoubtful);
        known.inserted = message.size().wrapping_sub(before) as u16;
        known.asks |= ASKS_TO_LEAVE;
    }
}

/// The configured lines with the exchange's context in them.
#[inline(always)]
fn write_lines(exchange: &Exchange, line: &mut Line) -> bool {
    const { assert!(RETURN_BYTES <= LINE_BYTES) };
    let Some(lines) = RETURN_LINES.get_ptr(0) else {
        return false;
    };
    // SAFETY: an element of an array.
    let lines: &ReturnLines = unsafe { &*lines };
    if lines.len == 0 {
        return false;
    }
    // SAFETY: no longer than a line.
    if !unsafe {
        copy_kernel(
            (&raw mut line.words).cast(),
            RETURN_BYTES as u32,
            (&raw const lines.words).cast(),
        )
    } {
        return false;
    }
    let value = value_of(exchange);
    for (index, at) in lines.value_at.iter().enumerate().take(MOST_LINES) {
        if index as u32 >= lines.count {
            break;
        }
        put_value(line, *at, &value);
    }
    line.len = lines.len;
    true
}

/// verifier: the value's words are aligned nowhere; the helper writes them wherever it is told.
#[inline(always)]
fn put_value(line: &mut Line, at: u32, value: &[u64; 7]) {
    let mut at = u64::from(at);
    // SAFETY: register arithmetic only.
    unsafe { core::arch::asm!("{0} &= 511", inout(reg) at) };
    // SAFETY: `spill` follows the words; the value lies on the stack.
    unsafe {
        let to = (&raw mut line.words).cast::<u8>().add(at as usize);
        copy_kernel(to, VALUE_BYTES, (&raw const *value).cast());
    }
}
