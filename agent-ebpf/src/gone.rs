//! Where a socket's state lies in a table: unix sockets that are gone, of which nothing tells, and calls on them whose end
//! was not seen.

use crate::access;
use crate::connection::OVERDUE_SWEEPS;
use crate::engine;
use crate::exchange::RESPONSE_CLOSED;
use crate::global::working;
use crate::maps::slot;
use crate::opaque;
use crate::sk::{Sock, AF_UNIX};
use crate::socket::{identify, locate, lose};
use crate::state::{EX_OPEN, RX, SOCK_OPAQUE, SOCK_UNIX};

/// A call on a unix socket has passed unseen: where the socket stands in its messages is not known any more.
#[inline(always)]
pub fn missed(sk: Sock, element: u32) {
    let state = access::state(sk);
    if state.is_null() {
        return;
    }
    let Some(scratch) = working(element) else {
        return;
    };
    // SAFETY: whole objects; an element that belongs to the program.
    let (state, call) = unsafe { (&mut *state, &mut (*scratch).call) };
    if state.flags & (SOCK_OPAQUE | SOCK_UNIX) == SOCK_UNIX {
        call.slot = element as u8;
        identify(sk, call, AF_UNIX, RX);
        locate(sk, call, AF_UNIX, state.cookie);
        lose(state, scratch);
        state.flags |= SOCK_UNIX;
    }
}

/// The sweep has come to a unix socket that has been closed: what is open on it will not go on. Its state stays for as
/// long as the other end may ask for it.
#[inline(always)]
pub fn sweep(sk: Sock) {
    let state = access::state(sk);
    if state.is_null() {
        return;
    }
    let Some(scratch) = working(slot::SWEEP) else {
        return;
    };
    // SAFETY: whole objects; an element that belongs to this walk.
    let (known, call) = unsafe { (&mut *state, &mut (*scratch).call) };
    if known.flags & SOCK_OPAQUE != 0 {
        opaque::end(known.cookie);
    } else if known.exchange.state & EX_OPEN != 0 || known.queued != 0 {
        call.slot = slot::SWEEP as u8;
        identify(sk, call, AF_UNIX, RX);
        locate(sk, call, AF_UNIX, known.cookie);
        engine::finish_all(known, scratch, RESPONSE_CLOSED);
    }
    // SAFETY: a static of this program, set before the load.
    if u32::from(known.idle_sweeps) < unsafe { core::ptr::read_volatile(&raw const OVERDUE_SWEEPS) } {
        known.idle_sweeps += 1;
    } else {
        access::ends(sk);
    }
}
