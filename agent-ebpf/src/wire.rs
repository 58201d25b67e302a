//! Wire identity (DESIGN.md 4): both ends of a connection compute the same key for a message from the connection's
//! own numbers, and meet in one map. Nothing is added to the traffic.

use spanwire_common::abi::{cause, context_format, flag, WireValue};
use spanwire_common::drop::KernelCounter;

use crate::count::{cost, count};
use crate::ids;
use crate::maps::WIRES;
use crate::state::{Call, Exchange};

/// Bit of [`WireValue::format`]: the header was forwarded, not made by an SDK.
const FORWARDED: u8 = 0x80;

/// The client's head has gone out: leave its context for the server.
///
/// verifier: where a program has less of the stack, in a frame of its own: see `opaque::sent`.
#[cfg_attr(feature = "untyped", inline(never))]
#[cfg_attr(not(feature = "untyped"), inline(always))]
pub fn leave(exchange: &Exchange) {
    if exchange.flags & flag::WIRE_KEY == 0 {
        return;
    }
    let forwarded = if exchange.cause == cause::HEADER { FORWARDED } else { 0 };
    let wire = WireValue {
        trace_id: ids::trace_id(&exchange.request),
        span_id: exchange.span_id,
        tenant: exchange.request.tenant,
        context_flags: exchange.request.context_flags,
        own: 0,
        format: exchange.request.context_format | forwarded,
        // A client that nobody has classified yet may turn out not to be captured: it is given the trace id, too.
        returns: u8::from(exchange.flags & (flag::RETURN_WANTED | flag::UNCLASSIFIED) != 0),
        reserved: [0; 4],
    };
    cost(KernelCounter::MapOperations);
    // verifier: on the stack; see `maps::BLANK`.
    let key = exchange.wire_key;
    let _ = WIRES.insert(&key, &wire, 0);
}

/// The agent itself has sent something: whoever reads it is not to be traced.
///
/// verifier: in a frame of its own: see `opaque::sent`.
#[inline(never)]
pub fn leave_own(key: u64) {
    let wire = WireValue {
        trace_id: [0; 2],
        span_id: 0,
        tenant: 0,
        context_flags: 0,
        own: 1,
        format: 0,
        returns: 0,
        reserved: [0; 4],
    };
    let _ = WIRES.insert(&key, &wire, 0);
}

/// The server has read a head: take what the client left. Returns true if the agent itself is the client.
///
/// verifier: where fields are read through the stack, in a frame of its own: see `opaque::sent`.
#[cfg_attr(feature = "untyped", inline(never))]
#[cfg_attr(not(feature = "untyped"), inline(always))]
pub fn meet(exchange: &mut Exchange) -> bool {
    if exchange.flags & flag::WIRE_KEY == 0 {
        return false;
    }
    cost(KernelCounter::MapOperations);
    // verifier: as above.
    let key = exchange.wire_key;
    let Some(entry) = WIRES.get_ptr_mut(&key) else {
        return false;
    };
    // SAFETY: a live map value, copied.
    let wire = unsafe { *entry };
    cost(KernelCounter::MapOperations);
    let _ = WIRES.remove(&key);
    if wire.own != 0 {
        return true;
    }
    count(KernelCounter::WireMatched);
    exchange.related_span_id = wire.span_id;
    exchange.related_trace_id = wire.trace_id;
    exchange.flags |= flag::WIRE_MATCHED;
    if wire.returns != 0 {
        exchange.flags |= flag::RETURN_WANTED;
    }
    if exchange.request.tenant == 0 {
        exchange.request.tenant = wire.tenant;
    }
    if exchange.request.context_format == context_format::NONE {
        {
            let trace = wire.trace_id;
            ids::set_trace_id(&mut exchange.request, trace)
        };
        exchange.request.context_flags = wire.context_flags;
        exchange.flags |= flag::ADOPTED_WIRE;
    }
    false
}

/// Key of the message whose first byte is `offset` bytes into the call. What was put into the call lies in its first head.
#[inline(always)]
pub fn key(call: &Call, offset: u32) -> u64 {
    let inserted = if offset == 0 { 0 } else { call.inserted };
    u64::from(call.seq.wrapping_add(offset).wrapping_add(inserted)) << 32 | u64::from(call.ack)
}
