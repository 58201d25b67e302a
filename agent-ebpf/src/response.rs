//! A response on its way out: the trace id of a request that nobody traced before goes back with it.
//!
//! As in `rewrite`, everything is decided on a copy of the socket's state.

use aya_ebpf::bindings::sk_msg_md;
use spanwire_common::abi::flag;
use spanwire_common::drop::KernelCounter;
use spanwire_common::protocol::http1::{self, step as code};

use crate::count::count;
use crate::engine::{bring, framing, move_on};
use crate::global::{global, working};
use crate::header::write_return_lines;
use crate::lines::{response_line, scan, skim_response};
use crate::maps::{slot, WIRES};
use crate::message::{insert, Message, Outcome, LINE_BYTES};
use crate::rewrite::{after, blank_line, copied_state, prepare, ALIEN, DONE, MORE, STEPS, UNFINISHED};
use crate::sk::Sock;
use crate::socket::identify;
use crate::state::{Exchange, Preview, Scratch, SockState, EX_EXCLUDED, EX_HEAD, EX_OPEN, NOWHERE, TX};

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
                return put_in(message, sk, known, preview, scratch);
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
fn put_in(message: Message, sk: Sock, known: &mut SockState, preview: &mut Preview, scratch: *mut Scratch) -> u32 {
    let at = blank_line(message, scratch);
    if at == NOWHERE
        || !message.has_room(sk, LINE_BYTES as u32)
        || !write_return_lines(&known.exchange, &mut preview.line)
    {
        count(KernelCounter::ReturnFailed);
        return DONE;
    }
    let before = message.size();
    let outcome = insert(message.0, at, &preview.line);
    known.inserted = message.size().wrapping_sub(before) as u16;
    if outcome == Outcome::Done as u32 {
        known.exchange.flags |= flag::RETURNED;
        count(KernelCounter::Returned);
    } else {
        count(KernelCounter::ReturnFailed);
    }
    after(outcome)
}
