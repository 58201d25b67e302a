//! nginx's receive rule (correlation.md A3): what a worker sends, it sends for the request of the socket it has just
//! read from, or whose upstream socket it has just closed. For an upstream socket that is the request which caused the
//! upstream exchange.
//!
//! A worker may put a request off: a limit on the rate, a lock on the cache, a name to be resolved, a second request in
//! one read. It goes on with it out of a timer or an event that no hook sees, and by then the worker has read something
//! else. So requests are counted that were read whole and, before anything was sent for them, were followed by something
//! else ([`Unit::waiting`], DEFERRED). While there is one, no send names its request for certain.

use aya_ebpf::helpers::generated::bpf_get_current_pid_tgid;
use spanwire_common::abi::{cause, flag, ProcessClass};
use spanwire_common::drop::KernelCounter;

use crate::count::cost;
use crate::ids;
use crate::maps::{DEFERRED, UNITS};
use crate::state::{
    Exchange, Unit, EX_EXCLUDED, EX_HEAD, EX_REQUEST_DONE, ROLE_SERVER, UNIT_COMPLETE, UNIT_CONSUMED, UNIT_NONE,
    UNIT_OPEN, UNIT_WHOLE,
};

/// Flag of a map update: only a new entry (include/uapi/linux/bpf.h).
const BPF_NOEXIST: u64 = 1;

#[inline(always)]
pub fn is_nginx(class: u8) -> bool {
    class == ProcessClass::Nginx as u8
}

/// The worker's unit, if it has read anything yet.
#[inline(always)]
fn unit_of(thread: u64) -> Option<&'static mut Unit> {
    cost(KernelCounter::MapOperations);
    // SAFETY: a live map value; only its own thread writes to a worker's.
    UNITS.get_ptr_mut(&thread).map(|unit| unsafe { &mut *unit })
}

/// A receive on the socket of `exchange`. `known` is false if that socket is not understood, or holds other requests
/// that come first: then the worker works for nobody we know.
#[inline(always)]
pub fn received(exchange: &Exchange, class: u8, thread: u64, known: bool) {
    if !is_nginx(class) {
        return;
    }
    let Some(unit) = unit_of(thread) else {
        begin(thread, exchange.pid);
        if let Some(unit) = unit_of(thread) {
            work_for(unit, exchange, known);
        }
        return;
    };
    work_for(unit, exchange, known);
}

/// The worker's first receive: an entry to be changed in place from now on.
///
/// verifier: a frame of its own.
#[inline(never)]
fn begin(thread: u64, reader: u32) {
    let blank = Unit {
        trace_id: [0; 2],
        span_id: 0,
        tenant: 0,
        parent: 0,
        reader,
        state: UNIT_NONE,
        cause: cause::IO,
        flags: UNIT_COMPLETE,
        context_flags: 0,
        waiting: 0,
        reserved: 0,
    };
    let _ = UNITS.insert(&thread, &blank, 0);
}

/// Makes the exchange's request what the worker works for.
#[inline(always)]
fn work_for(unit: &mut Unit, exchange: &Exchange, known: bool) {
    let server = exchange.side == ROLE_SERVER;
    let span_id = if server {
        exchange.span_id
    } else {
        exchange.related_span_id
    };
    let named = known
        && if server {
            exchange.state & (EX_HEAD | EX_EXCLUDED) == EX_HEAD
        } else {
            exchange.cause == cause::IO && exchange.flags & flag::AMBIGUOUS == 0
        };
    if !named || unit.span_id != span_id {
        put_off(unit);
    }
    unit.cause = cause::IO;
    unit.flags = UNIT_COMPLETE;
    if !named {
        unit.span_id = 0;
        unit.state = UNIT_NONE;
        return;
    }
    if server {
        settle(unit, span_id);
        if exchange.state & EX_REQUEST_DONE != 0 {
            unit.flags |= UNIT_WHOLE;
        }
        unit.trace_id = ids::trace_id(&exchange.request);
    } else {
        unit.trace_id = exchange.related_trace_id;
    }
    unit.span_id = span_id;
    unit.tenant = exchange.request.tenant;
    unit.context_flags = exchange.request.context_flags;
    unit.state = UNIT_OPEN;
}

/// The worker turns to something else. If it has sent nothing for a request that it had read whole, that one waits.
#[inline(always)]
fn put_off(unit: &mut Unit) {
    if unit.state == UNIT_OPEN && unit.flags & (UNIT_WHOLE | UNIT_CONSUMED) == UNIT_WHOLE {
        defer(unit, unit.span_id);
    }
}

/// verifier: a frame of its own.
#[inline(never)]
fn defer(unit: &mut Unit, span_id: u64) {
    cost(KernelCounter::MapOperations);
    if DEFERRED.insert(&span_id, &1, BPF_NOEXIST).is_ok() {
        unit.waiting = unit.waiting.wrapping_add(1);
    }
}

/// The worker has come back to the request, or is done with it.
#[inline(always)]
fn settle(unit: &mut Unit, span_id: u64) {
    if unit.waiting != 0 {
        settle_one(unit, span_id);
    }
}

/// verifier: a frame of its own.
#[inline(never)]
fn settle_one(unit: &mut Unit, span_id: u64) {
    cost(KernelCounter::MapOperations);
    if DEFERRED.remove(&span_id).is_ok() {
        unit.waiting = unit.waiting.wrapping_sub(1);
    }
}

/// Several requests came in one read: the worker takes the first, and the others out of its own buffer, in order.
#[inline(always)]
pub fn pipelined(newest: &Exchange, class: u8, thread: u64) {
    if !is_nginx(class) {
        return;
    }
    if let Some(unit) = unit_of(thread) {
        defer(unit, newest.span_id);
    }
}

/// The thread works for nobody we know from now on.
#[inline(always)]
pub fn forget(thread: u64) {
    if let Some(unit) = unit_of(thread) {
        put_off(unit);
        unit.state = UNIT_NONE;
    }
}

/// nginx has begun to answer: it does not go on to call anybody for that request out of this receive.
#[inline(always)]
pub fn answering(exchange: &Exchange, thread: u64) {
    if !is_nginx(exchange.class) {
        return;
    }
    if let Some(unit) = unit_of(thread) {
        settle(unit, exchange.span_id);
        if unit.span_id != exchange.span_id {
            // Out of an event of its own, and not out of the last receive.
            put_off(unit);
        }
        unit.flags |= UNIT_CONSUMED;
    }
}

/// The answer is complete.
#[inline(always)]
pub fn answered(exchange: &Exchange) {
    // SAFETY: no arguments.
    answering(exchange, unsafe { bpf_get_current_pid_tgid() });
}

/// The worker closes the connection of a request that it did not answer.
#[inline(always)]
pub fn closes(exchange: &Exchange, thread: u64) {
    if let Some(unit) = unit_of(thread) {
        settle(unit, exchange.span_id);
        if unit.span_id == exchange.span_id {
            unit.flags |= UNIT_CONSUMED;
        }
    }
}

/// An edge serves one outgoing head, or connect; the next needs a receive of its own. While others wait, it may have
/// been for one of them: then the unit's own request waits as well.
#[inline(always)]
pub fn consume(thread: u64) {
    if let Some(unit) = unit_of(thread) {
        if unit.waiting != 0 {
            put_off(unit);
        }
        unit.flags |= UNIT_CONSUMED;
    }
}

/// A send that is for nobody we know, and not out of the last receive.
#[inline(always)]
pub fn moves_on(thread: u64) {
    if let Some(unit) = unit_of(thread) {
        put_off(unit);
        unit.flags |= UNIT_CONSUMED;
    }
}
