//! What sk_msg has decided about a request that is being sent, handed to the send's own hook.

use crate::ids;
use crate::maps::PREPARED;
use crate::seen;
use crate::sk::Sock;
use crate::state::{Exchange, Prepared, SockState, TX};

/// Leaves what was decided for the send's hook.
///
/// verifier: a function of its own, whose stack ends with it.
#[inline(never)]
pub fn hand_on(exchange: &Exchange, cookie: u64) {
    let prepared = Prepared {
        trace_id: ids::trace_id(&exchange.request),
        span_id: exchange.span_id,
        related_span_id: exchange.related_span_id,
        related_trace_id: exchange.related_trace_id,
        tenant: exchange.request.tenant,
        flags: exchange.flags,
        ordinal: exchange.ordinal,
        cause: exchange.cause,
        context_flags: exchange.request.context_flags,
        reserved: [0; 6],
    };
    let _ = PREPARED.insert(&cookie, &prepared, 0);
}

/// The request that sk_msg has prepared begins: it has its span id already.
#[inline(always)]
pub fn take_span_id(state: &mut SockState) {
    // verifier: on the stack; see `maps::BLANK`.
    let cookie = state.cookie;
    if let Some(prepared) = PREPARED.get_ptr(&cookie) {
        // SAFETY: a live map value.
        let prepared = unsafe { &*prepared };
        if prepared.ordinal == state.exchange.ordinal {
            state.exchange.span_id = prepared.span_id;
        }
    }
}

/// The head that sk_msg has prepared is complete: takes over what was decided. False if that is gone.
///
/// verifier: in a frame of its own: see `opaque::sent`.
#[inline(never)]
pub fn take(exchange: &mut Exchange, cookie: u64) -> bool {
    let Some(entry) = PREPARED.get_ptr(&cookie) else {
        return false;
    };
    // SAFETY: a live map value, copied.
    let prepared = unsafe { *entry };
    let _ = PREPARED.remove(&cookie);
    if prepared.ordinal != exchange.ordinal {
        return false;
    }
    exchange.span_id = prepared.span_id;
    exchange.cause = prepared.cause;
    exchange.related_span_id = prepared.related_span_id;
    exchange.related_trace_id = prepared.related_trace_id;
    exchange.request.tenant = prepared.tenant;
    exchange.request.context_flags = prepared.context_flags;
    exchange.flags |= prepared.flags;
    ids::set_trace_id(&mut exchange.request, prepared.trace_id);
    true
}

/// Bytes that sk_msg put into the send that has just returned `len`: 0 where the socket's numbers say that they did not
/// leave.
#[inline(always)]
pub fn inserted(sk: Sock, known: &mut SockState, len: u32) -> u32 {
    let inserted = u32::from(known.inserted);
    known.inserted = 0;
    let [_, sent] = known.seen;
    let moved = seen::passed(sk, TX).wrapping_sub(sent);
    if moved == len.wrapping_add(inserted) {
        inserted
    } else {
        0
    }
}
