//! What passes on a TCP socket without a hook's knowledge: found by comparing its sequence numbers with what was seen.

use crate::sk::Sock;
use crate::state::{Call, SockState, EX_OPEN, ROLE_CLIENT, ROLE_UNKNOWN, RX, TX};

/// Bytes may pass unseen: a program that is preempted in one thread is not run for another on the same CPU (trampolines;
/// tracepoints of 7.x), and splice() reads a socket past the functions that fexit hooks. Then what follows on the socket
/// cannot be told for certain. Returns true if bytes are missing before this call's; notes where it ended.
#[inline(always)]
pub fn is_missing(call: &Call, seen: &mut [u32; 2], len: u32) -> bool {
    if call.has_key == 0 {
        return false;
    }
    let seen = &mut seen[(call.direction & 1) as usize];
    let end = call.seq.wrapping_add(len);
    // A FIN that came with the last bytes counts as one.
    let missing = *seen != 0 && end.wrapping_sub(*seen) > 1;
    *seen = end;
    missing
}

/// No program has seen the call that has just moved `len` bytes: the last byte seen lies that far behind. A socket that
/// nothing is known of may be one that nobody asks for; `socket::on_call` finds out.
#[cfg(not(feature = "untyped"))]
#[inline(always)]
pub fn is_left_out(sk: Sock, len: u32, direction: u32) -> bool {
    let family = sk.family();
    if family == crate::sk::AF_UNIX || !sk.is_stream(family) {
        return false;
    }
    let state = crate::access::state(sk);
    if state.is_null() {
        return true;
    }
    // SAFETY: non-null: a whole state.
    let (seen, inserted) = unsafe { ((*state).seen[(direction & 1) as usize], (*state).inserted) };
    let inserted = if direction == TX { u32::from(inserted) } else { 0 };
    // A FIN that came with the last bytes counts as one.
    let behind = passed(sk, direction).wrapping_sub(seen).wrapping_sub(inserted);
    seen == 0 || behind == len || behind == len.wrapping_add(1)
}

/// The bytes that a send has just moved were told of already: by the function that it led to.
#[cfg(any(not(feature = "untyped"), feature = "scalars"))]
#[inline(always)]
pub fn is_told(sk: Sock) -> bool {
    let state = crate::access::state(sk);
    if state.is_null() {
        return false;
    }
    // SAFETY: non-null: a whole state.
    let [_, sent] = unsafe { (*state).seen };
    sent != 0 && passed(sk, TX) == sent
}

/// An answer, and its request has passed unseen.
#[inline(always)]
pub fn is_unasked(sk: Sock, state: &SockState, direction: u32) -> bool {
    let requests = if state.role == ROLE_CLIENT { TX } else { RX };
    if direction == requests || state.role == ROLE_UNKNOWN || state.exchange.state & EX_OPEN != 0 || state.queued != 0 {
        return false;
    }
    let [received, sent] = state.seen;
    let seen = if requests == TX { sent } else { received };
    seen != 0 && passed(sk, requests).wrapping_sub(seen) > 1
}

/// The sequence number behind the last byte that has passed in `direction`.
#[inline(always)]
pub fn passed(sk: Sock, direction: u32) -> u32 {
    sk.tcp().map_or(0, |tcp| {
        if direction == TX {
            tcp.write_seq()
        } else {
            tcp.copied_seq()
        }
    })
}

/// Nothing has passed in the direction that the first call seen on the socket is not of.
#[inline(always)]
pub fn is_untouched(sk: Sock, call: &Call, [received, sent]: [u32; 2]) -> bool {
    if call.direction == TX {
        passed(sk, RX) == received
    } else {
        passed(sk, TX).wrapping_sub(sent) <= 1
    }
}
