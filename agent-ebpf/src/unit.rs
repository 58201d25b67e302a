//! Units of execution and the requests they serve: who caused an outgoing request (correlation.md, rule order).
//!
//! The kernel side records evidence; it takes over the cause's trace id only where the process's class makes the
//! evidence exact. User space judges the rest once the process is classified.

use aya_ebpf::helpers::generated::bpf_get_current_pid_tgid;
use spanwire_common::abi::{cause, context_format, flag, process_flag, ProcessClass};
use spanwire_common::drop::KernelCounter;

use crate::count::{cost, count};
use crate::ids;
use crate::maps::{INBOUND, PROCESSES, UNITS};
use crate::state::{
    Call, Exchange, Inbound, InboundKey, Unit, EX_REQUEST_DONE, ROLE_CLIENT, UNIT_AMBIGUOUS, UNIT_BLOCKING,
    UNIT_CLOSED, UNIT_COMPLETE, UNIT_CONSUMED, UNIT_DEAD, UNIT_NONE, UNIT_OPEN,
};
use crate::worker::{self, is_nginx};

/// How many forks away from the request's process a child may be.
const GENERATIONS: u32 = 4;

/// Classes for which the thread that read a request may be asked later: the table is not kept for the others.
#[inline(always)]
pub fn keeps_units(class: u8) -> bool {
    matches!(
        ProcessClass::from_u8(class),
        ProcessClass::Unclassified
            | ProcessClass::ThreadPerRequest
            | ProcessClass::ProcessPerRequest
            | ProcessClass::ThreadReadsWhole
            | ProcessClass::Nginx
    )
}

/// A thread that serves such a request does nothing else, so what it does can contradict that. A class that goes by
/// blocking sockets says nothing of the others (asyncio in a Python that is not known for it).
#[inline(always)]
fn is_by_thread(class: u8, unit_flags: u8) -> bool {
    match ProcessClass::from_u8(class) {
        ProcessClass::ThreadPerRequest => unit_flags & UNIT_BLOCKING != 0,
        ProcessClass::ProcessPerRequest | ProcessClass::ThreadReadsWhole => true,
        _ => false,
    }
}

/// A request was read whole up to the end of its head: this thread serves it now.
#[inline(always)]
pub fn open(exchange: &Exchange, call: &Call) {
    if exchange.request.context_format == context_format::W3C {
        remember_context(exchange);
    }
    if !keeps_units(exchange.class) || is_nginx(exchange.class) {
        // nginx's unit is set by the receive rule, at the end of the call.
        return;
    }
    let mut flags = if call.blocking != 0 { UNIT_BLOCKING } else { 0 };
    if exchange.state & EX_REQUEST_DONE != 0 {
        flags |= UNIT_COMPLETE;
    }
    let unit = Unit {
        trace_id: ids::trace_id(&exchange.request),
        span_id: exchange.span_id,
        tenant: exchange.request.tenant,
        parent: 0,
        waiting: 0,
        reserved: 0,
        state: UNIT_OPEN,
        cause: cause::THREAD,
        flags,
        context_flags: exchange.request.context_flags,
        reader: exchange.pid,
    };
    set(call.pid_tgid, unit, exchange.class);
}

/// Makes `unit` what `thread` serves.
#[inline(always)]
fn set(thread: u64, mut unit: Unit, class: u8) {
    cost(KernelCounter::MapOperations);
    let Some(entry) = UNITS.get_ptr_mut(&thread) else {
        cost(KernelCounter::MapOperations);
        if UNITS.insert(&thread, &unit, 0).is_err() {
            count(KernelCounter::StateFull);
        }
        return;
    };
    // SAFETY: a live map value; only this thread and the end of its own request write to it.
    let entry = unsafe { &mut *entry };
    let other = entry.span_id != unit.span_id;
    let alive = entry.state == UNIT_OPEN && entry.parent == 0 && entry.flags & UNIT_DEAD == 0;
    if other && alive && !is_nginx(class) {
        // Two open requests on one thread: neither can be named (correlation.md, intro), and where the thread was to
        // tell, it is not asked again. A process without a class yet may be of one that asks something else.
        unit.state = UNIT_AMBIGUOUS;
        if is_by_thread(class, unit.flags) {
            demote((thread >> 32) as u32);
        }
    }
    *entry = unit;
}

/// The request's last byte was read, by the thread of `call`.
#[inline(always)]
pub fn complete(exchange: &Exchange, call: &Call) {
    if !keeps_units(exchange.class) || is_nginx(exchange.class) {
        return;
    }
    let reader = u64::from(exchange.pid) << 32 | u64::from(exchange.tid);
    cost(KernelCounter::MapOperations);
    if let Some(entry) = UNITS.get_ptr_mut(&reader) {
        // SAFETY: a live map value.
        let entry = unsafe { &mut *entry };
        if entry.span_id == exchange.span_id {
            if reader == call.pid_tgid {
                entry.flags |= UNIT_COMPLETE;
            } else {
                // Another thread read on: the request was handed over (puma's reactor).
                entry.state = UNIT_AMBIGUOUS;
            }
        }
    }
}

/// The response is over. `answered` is false when the connection died first: the thread may go on serving.
#[inline(always)]
pub fn close(exchange: &Exchange, answered: bool) {
    if exchange.request.context_format == context_format::W3C {
        forget_context(exchange);
    }
    if is_nginx(exchange.class) {
        // Without an answer the worker may go on.
        if answered {
            worker::answered(exchange);
        }
        return;
    }
    if !keeps_units(exchange.class) {
        return;
    }
    let reader = u64::from(exchange.pid) << 32 | u64::from(exchange.tid);
    cost(KernelCounter::MapOperations);
    if let Some(entry) = UNITS.get_ptr_mut(&reader) {
        // SAFETY: a live map value.
        let entry = unsafe { &mut *entry };
        if entry.span_id == exchange.span_id {
            // A dead connection's request is no longer open in the sense of "two on one thread", but what the thread
            // still does, it does for that request: keep it until the thread reads another one.
            if answered {
                entry.state = UNIT_CLOSED;
            } else {
                entry.flags |= UNIT_DEAD;
            }
        }
    }
}

/// A connect began on this thread: what it is for, is known now; the send comes out of a later event.
#[inline(always)]
pub fn connecting(exchange: &mut Exchange, call: &Call) {
    let Some(unit) = current(call.pid_tgid) else { return };
    take(exchange, &unit, (call.pid_tgid >> 32) as u32);
    if is_nginx(exchange.class) {
        worker::consume(call.pid_tgid);
    }
}

/// The unit a thread works for, following forks back to the process that read the request.
#[inline(always)]
pub fn current(thread: u64) -> Option<Unit> {
    let mut key = thread;
    let mut inherited = 0;
    for _ in 0..GENERATIONS {
        cost(KernelCounter::MapOperations);
        let entry = UNITS.get_ptr_mut(&key)?;
        // SAFETY: a live map value, copied.
        let mut unit = unsafe { *entry };
        if inherited != 0 && unit.span_id != inherited {
            // The parent has gone on to another request.
            return None;
        }
        if unit.parent == 0 {
            if inherited != 0 {
                unit.cause = cause::PROCESS;
            }
            return Some(unit);
        }
        key = unit.parent;
        inherited = unit.span_id;
    }
    None
}

/// Finds out who caused a client exchange whose head has just gone out, and takes over the trace where that is exact.
#[inline(always)]
pub fn attribute(exchange: &mut Exchange, call: &Call) {
    exchange.side = ROLE_CLIENT;
    let process = (call.pid_tgid >> 32) as u32;
    let has_context = exchange.request.context_format == context_format::W3C;
    let inherited_tenant = core::mem::take(&mut exchange.request_bytes);
    if has_context && forwarded(exchange, process) {
        return;
    }
    if exchange.cause != cause::NONE {
        if exchange.request.tenant == 0 {
            exchange.request.tenant = inherited_tenant;
        }
        if !has_context {
            exchange.request.context_flags |= exchange.inherited_context;
        }
    } else {
        let Some(unit) = current(call.pid_tgid) else { return };
        take(exchange, &unit, process);
        if is_nginx(exchange.class) {
            worker::consume(call.pid_tgid);
        }
        // A child that forwards what its parent read (CGI): remembered under the process that read it.
        if has_context && unit.cause == cause::PROCESS && forwarded(exchange, unit.reader) {
            return;
        }
    }
    if exchange.request.context_format == context_format::NONE && is_exact(exchange) {
        adopt(exchange);
    }
}

/// Makes the unit's request the exchange's cause, with the evidence user space judges it by.
#[inline(always)]
fn take(exchange: &mut Exchange, unit: &Unit, process: u32) {
    if unit.state == UNIT_NONE || unit.flags & UNIT_CONSUMED != 0 {
        return;
    }
    // Where no rule rests on the thread, what it did is evidence of nothing but that.
    let no_rule = unit.cause == cause::THREAD && !is_by_thread(exchange.class, unit.flags);
    if unit.state == UNIT_CLOSED && !no_rule {
        // A send after its response: this thread does not work for one request at a time (correlation.md, intro).
        if unit.cause == cause::THREAD {
            demote(process);
            exchange.flags |= flag::DEMOTED;
        }
        return;
    }
    exchange.cause = unit.cause;
    exchange.related_span_id = unit.span_id;
    exchange.related_trace_id = unit.trace_id;
    if unit.state == UNIT_AMBIGUOUS || unit.waiting != 0 {
        exchange.flags |= flag::AMBIGUOUS;
    }
    if unit.flags & UNIT_COMPLETE != 0 {
        exchange.flags |= flag::CAUSE_COMPLETE;
    }
    if unit.flags & UNIT_BLOCKING != 0 {
        exchange.flags |= flag::CAUSE_BLOCKING;
    }
    if exchange.request.tenant == 0 {
        exchange.request.tenant = unit.tenant;
    }
    // What a header says of its trace holds, also where an SDK decided otherwise than whoever asked.
    if exchange.request.context_format == context_format::NONE {
        exchange.request.context_flags |= unit.context_flags;
    }
}

/// Takes over the related trace.
#[inline(always)]
pub fn adopt(exchange: &mut Exchange) {
    {
        let trace = exchange.related_trace_id;
        ids::set_trace_id(&mut exchange.request, trace)
    };
    exchange.flags |= flag::ADOPTED_CAUSE;
}

/// The evidence names exactly one request under the process's class (the same rule as `assemble::rules`).
#[inline(always)]
pub fn is_exact(exchange: &Exchange) -> bool {
    if exchange.flags & (flag::AMBIGUOUS | flag::DEMOTED) != 0 {
        return false;
    }
    match exchange.cause {
        cause::PROCESS => true,
        cause::IO => is_nginx(exchange.class),
        cause::THREAD => match ProcessClass::from_u8(exchange.class) {
            ProcessClass::ThreadPerRequest => exchange.flags & flag::CAUSE_BLOCKING != 0,
            ProcessClass::ThreadReadsWhole => exchange.flags & flag::CAUSE_COMPLETE != 0,
            ProcessClass::ProcessPerRequest => true,
            _ => false,
        },
        _ => false,
    }
}

/// The outgoing context came in on exactly one open request of this process.
///
/// verifier: where a program has less of the stack, in a frame of its own: see `opaque::sent`.
#[cfg_attr(feature = "untyped", inline(never))]
#[cfg_attr(not(feature = "untyped"), inline(always))]
fn forwarded(exchange: &mut Exchange, pid: u32) -> bool {
    let key = InboundKey {
        trace_id: ids::trace_id(&exchange.request),
        parent_id: ids::parent_id(&exchange.request),
        pid,
        reserved: 0,
    };
    cost(KernelCounter::MapOperations);
    let Some(entry) = INBOUND.get_ptr_mut(&key) else {
        return false;
    };
    // SAFETY: a live map value.
    let inbound = unsafe { *entry };
    exchange.cause = cause::HEADER;
    exchange.related_span_id = inbound.span_id;
    exchange.related_trace_id = key.trace_id;
    exchange.request.tenant = inbound.tenant;
    if inbound.open != 1 {
        exchange.flags |= flag::AMBIGUOUS;
    }
    true
}

#[inline(always)]
fn inbound_key(exchange: &Exchange) -> InboundKey {
    InboundKey {
        trace_id: ids::trace_id(&exchange.request),
        parent_id: ids::parent_id(&exchange.request),
        pid: exchange.pid,
        reserved: 0,
    }
}

#[inline(always)]
fn remember_context(exchange: &Exchange) {
    let key = inbound_key(exchange);
    cost(KernelCounter::MapOperations);
    if let Some(entry) = INBOUND.get_ptr_mut(&key) {
        // SAFETY: a live map value.
        unsafe { (*entry).open += 1 };
        return;
    }
    let inbound = Inbound {
        span_id: exchange.span_id,
        tenant: exchange.request.tenant,
        open: 1,
        context_flags: exchange.request.context_flags,
        reserved: [0; 3],
    };
    cost(KernelCounter::MapOperations);
    let _ = INBOUND.insert(&key, &inbound, 0);
}

#[inline(always)]
fn forget_context(exchange: &Exchange) {
    let key = inbound_key(exchange);
    cost(KernelCounter::MapOperations);
    if let Some(entry) = INBOUND.get_ptr_mut(&key) {
        // SAFETY: a live map value.
        let open = unsafe { (*entry).open };
        if open > 1 {
            // Which of them the remaining one is, is not known: never 1 again until all are gone.
            // SAFETY: as above.
            unsafe { (*entry).open = if open == 2 { u32::MAX } else { open - 1 } };
        } else {
            let _ = INBOUND.remove(&key);
        }
        if open == u32::MAX {
            let _ = INBOUND.remove(&key);
        }
    }
}

/// A rule contradicted itself in this process: thread causes are not to be used there any more.
#[inline(always)]
pub fn demote(pid: u32) {
    cost(KernelCounter::MapOperations);
    if let Some(process) = PROCESSES.get_ptr_mut(&pid) {
        // SAFETY: a live map value.
        let process = unsafe { &mut *process };
        if process.flags & process_flag::DEMOTED == 0 {
            process.flags |= process_flag::DEMOTED;
            count(KernelCounter::Demoted);
        }
    }
}

/// This process tells somebody of its own spans.
#[inline(always)]
pub fn exports(pid: u32) {
    if let Some(process) = PROCESSES.get_ptr_mut(&pid) {
        // SAFETY: a live map value.
        unsafe { (*process).flags |= process_flag::EXPORTS };
    }
}

/// A process was forked: if the thread that forked it serves a request, so does the child (CGI).
#[inline(always)]
pub fn inherit(child: u64) {
    // SAFETY: no arguments.
    let parent = unsafe { bpf_get_current_pid_tgid() };
    cost(KernelCounter::MapOperations);
    let Some(entry) = UNITS.get_ptr_mut(&parent) else {
        return;
    };
    // SAFETY: a live map value.
    let unit = unsafe { *entry };
    if unit.parent == 0 && unit.state != UNIT_OPEN {
        return;
    }
    let inherited = Unit {
        parent,
        waiting: 0,
        state: UNIT_OPEN,
        cause: cause::PROCESS,
        ..unit
    };
    let _ = UNITS.insert(&child, &inherited, 0);
}
