//! The text of the header lines that are put into messages.

use spanwire_common::abi::{ReturnLines, RETURN_BYTES, RETURN_LINES as MOST_LINES};
use spanwire_common::protocol::traceparent::{self, VALUE_BYTES};
use spanwire_common::protocol::tracestate::LIST_BYTES;

use crate::call::copy_kernel;
use crate::exchange::{CONTEXT_DECIDED, CONTEXT_RANDOM, CONTEXT_SAMPLED};
use crate::ids;
use crate::maps::{RETURN_LINES, TRACESTATES};
use crate::message::{Line, LINE_BYTES};
use crate::state::Exchange;

/// The exchange's context as a traceparent's value.
#[inline(always)]
pub fn value_of(exchange: &Exchange) -> [u64; 7] {
    let context = exchange.request.context_flags;
    let sampled = u8::from(context & CONTEXT_SAMPLED != 0 || context & CONTEXT_DECIDED == 0);
    let random = if context & CONTEXT_RANDOM != 0 { 2 } else { 0 };
    traceparent::value(ids::trace_id(&exchange.request), exchange.span_id, sampled | random)
}

/// `traceparent: ...` with the exchange's context.
///
/// verifier: a function of its own, whose stack ends with it.
#[inline(never)]
pub fn write_traceparent(exchange: &Exchange, line: &mut Line) {
    let [w0, w1, w2, w3, w4, w5, w6] = value_of(exchange);
    let words = &mut line.words;
    // `traceparent: ` is 13 bytes: the value's words lie five bytes into the line's.
    const NAME: u64 = u64::from_le_bytes(*b"tracepar");
    const REST: u64 = u64::from_le_bytes(*b"ent: \0\0\0");
    const END: u64 = u64::from_le_bytes(*b"\0\0\0\0\r\n\0\0");
    words[0] = NAME;
    words[1] = REST | w0 << 40;
    words[2] = w0 >> 24 | w1 << 40;
    words[3] = w1 >> 24 | w2 << 40;
    words[4] = w2 >> 24 | w3 << 40;
    words[5] = w3 >> 24 | w4 << 40;
    words[6] = w4 >> 24 | w5 << 40;
    words[7] = w5 >> 24 | w6 << 40;
    words[8] = w6 >> 24 | END;
    line.len = TRACEPARENT_BYTES as u32;
}

/// The tracestate that came to the cause, behind the traceparent's line.
///
/// verifier: a function of its own, whose stack ends with it.
#[inline(never)]
pub fn add_tracestate(span_id: u64, line: &mut Line) {
    let Some(list) = TRACESTATES.get_ptr(&span_id) else {
        return;
    };
    // SAFETY: a live map value.
    let list = unsafe { &*list };
    let len = u64::from(list.len());
    if len == 0 || len > LIST_BYTES as u64 {
        return;
    }
    let name = *b"tracestate: ";
    let end = *b"\r\n";
    let mut bytes = len;
    // SAFETY: register arithmetic only.
    unsafe { core::arch::asm!("{0} &= 1023", inout(reg) bytes) };
    const { assert!(VALUE_AT + 1023 + 2 <= size_of::<Line>() - 8) };
    // SAFETY: the line has room for the longest list, and `spill` behind it for what the verifier takes to be one; what is read
    // behind the list lies in the same map value.
    unsafe {
        let to = (&raw mut line.words).cast::<u8>();
        let whole = copy_kernel(to.add(VALUE_AT), bytes as u32, (&raw const *list).cast())
            && copy_kernel(to.add(TRACEPARENT_BYTES), 12, name.as_ptr())
            && copy_kernel(to.add(VALUE_AT + bytes as usize), 2, end.as_ptr());
        if whole {
            line.len = VALUE_AT as u32 + len as u32 + 2;
        }
    }
}

/// `traceparent: ...` and its line end.
const TRACEPARENT_BYTES: usize = 13 + traceparent::VALUE_BYTES as usize + 2;
/// Where the tracestate's value goes.
const VALUE_AT: usize = TRACEPARENT_BYTES + 12;

/// The configured lines with the exchange's context in them.
#[inline(always)]
pub fn write_return_lines(exchange: &Exchange, line: &mut Line) -> bool {
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
