//! Trace context in header values: W3C, B3 (single and multi), Jaeger, X-Ray, Datadog.
//!
//! A value that is not exactly what its format asks for is no context. Where formats meet in one head, the one with the
//! lowest number in [`context_format`](crate::abi::context_format) wins, whatever their order on the wire; an invalid or
//! second traceparent means that nothing is adopted at all.

use super::http1::Request;
use super::number::{self, Digits};
use super::swar;
use super::window::Window;
use crate::abi::context_format as format;

/// Bits of [`Request::context_flags`].
pub mod flag {
    /// The caller samples.
    pub const SAMPLED: u8 = 1;
    /// The trace id's lower 56 bits are random (W3C Level 2).
    pub const RANDOM: u8 = 1 << 1;
    /// The caller's sampling decision is known.
    pub const DECIDED: u8 = 1 << 2;
    /// A traceparent was seen and refused, or there were two.
    pub const INVALID: u8 = 1 << 3;
}

const HAS_TRACE: u8 = 1;
const HAS_PARENT: u8 = 1 << 1;
const CONFLICT: u8 = 1 << 2;

/// What the formats leave in a [`Request`] between one header line and another.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// Which ids the format in hand has given.
    parts: u8,
    /// Traceparent lines seen, up to 2.
    traceparents: u8,
    /// [`flag`] bits of `x-b3-sampled` and `x-b3-flags`, for the ids that may come after them.
    b3_flags: u8,
    /// [`flag`] bits of `x-datadog-sampling-priority`.
    datadog_flags: u8,
}

/// Traceparent lines seen in the head so far: 0, 1, or 2 for more.
#[inline(always)]
pub fn traceparents(r: &Request) -> u8 {
    r.pending.traceparents
}

/// Whether `format` counts beside what was found; what a lesser format gave is forgotten.
#[inline(always)]
fn admit(r: &mut Request, format: u8) -> bool {
    if r.context_format != 0 && r.context_format < format {
        return false;
    }
    if r.context_format != format {
        forget(r);
        r.context_format = format;
    }
    true
}

#[inline(always)]
fn forget(r: &mut Request) {
    r.trace_id = [0; 16];
    r.parent_id = [0; 8];
    r.context_format = format::NONE;
    r.context_flags &= flag::INVALID;
    r.pending.parts = 0;
}

/// Two words as an id's bytes.
#[inline(always)]
fn trace_id(high: u64, low: u64) -> [u8; 16] {
    let mut id = [0; 16];
    if let Some(bytes) = id.first_chunk_mut::<8>() {
        *bytes = high.to_le_bytes();
    }
    if let Some(bytes) = id.last_chunk_mut::<8>() {
        *bytes = low.to_le_bytes();
    }
    id
}

#[inline(always)]
fn put_trace(r: &mut Request, format: u8, high: Digits, low: Digits) {
    if high.bad | low.bad != 0 || high.value | low.value == 0 || !admit(r, format) {
        return;
    }
    let id = trace_id(high.value, low.value);
    if r.pending.parts & HAS_TRACE != 0 && r.trace_id != id {
        r.pending.parts |= CONFLICT;
    }
    r.trace_id = id;
    r.pending.parts |= HAS_TRACE;
}

#[inline(always)]
fn put_parent(r: &mut Request, format: u8, id: Digits) {
    if id.bad != 0 || id.value == 0 || !admit(r, format) {
        return;
    }
    let id = id.value.to_le_bytes();
    if r.pending.parts & HAS_PARENT != 0 && r.parent_id != id {
        r.pending.parts |= CONFLICT;
    }
    r.parent_id = id;
    r.pending.parts |= HAS_PARENT;
}

/// The head is complete: keeps a whole context or none.
#[inline(always)]
pub fn finish(r: &mut Request) {
    if r.context_flags & flag::INVALID != 0 || r.pending.parts != HAS_TRACE | HAS_PARENT {
        forget(r);
    }
    match r.context_format {
        format::B3 => r.context_flags |= r.pending.b3_flags,
        format::DATADOG => r.context_flags |= r.pending.datadog_flags,
        _ => {}
    }
}

/// A number of up to 16 hexadecimal digits of either case in `from..to`; bad if there is none or more.
#[inline(always)]
fn id64(w: &Window, from: u32, to: u32) -> Digits {
    let count = to.wrapping_sub(from);
    let mut digits = number::hex(w, to, count, true);
    digits.bad |= (count == 0) as u64;
    digits
}

/// A number of up to 32 hexadecimal digits in `from..to`, zero-filled in front: its upper and lower half.
#[inline(always)]
fn id128(w: &Window, from: u32, to: u32) -> (Digits, Digits) {
    let count = to.wrapping_sub(from);
    let low_count = if count > 16 { 16 } else { count };
    let high = number::hex(w, to.wrapping_sub(16), count.saturating_sub(16), true);
    let mut low = number::hex(w, to, low_count, true);
    low.bad |= (count == 0 || count > 32) as u64;
    (high, low)
}

/// A sampling state of one byte.
#[inline(always)]
fn decision(byte: u8) -> u8 {
    match byte {
        b'1' | b'd' | b't' | b'T' => flag::DECIDED | flag::SAMPLED,
        b'0' | b'f' | b'F' => flag::DECIDED,
        _ => 0,
    }
}

/// `traceparent` in `from..to`: `version-traceid-parentid-flags` in lower case, 55 bytes; a version above 00 may go on
/// behind another `-`.
#[inline(always)]
pub fn traceparent(r: &mut Request, w: &Window, from: u32, to: u32) {
    let len = to.wrapping_sub(from);
    let head = w.load8(from);
    let end = w.load8(from + 52);
    let version = head as u16;
    let current = version == u16::from_le_bytes(*b"00");
    let length_ok = len == 55 || (len > 55 && !current && w.byte(from + 55) == b'-');
    let dashes = (head >> 16) as u8 == b'-' && w.byte(from + 35) == b'-' && end as u8 == b'-';
    // The digits outside the ids, side by side: version, flags, and four zeros.
    let around = version as u64 | ((end << 8) & 0xffff_0000) | (swar::splat(b'0') << 32);
    let high = number::hex(w, from + 19, 16, false);
    let low = number::hex(w, from + 35, 16, false);
    let parent = number::hex(w, from + 52, 16, false);
    let bad = number::not_hex(around, false) | high.bad | low.bad | parent.bad;
    let zero = high.value | low.value == 0 || parent.value == 0;
    r.pending.traceparents += (r.pending.traceparents < 2) as u8;
    if bad != 0 || zero || !length_ok || !dashes || version == u16::from_le_bytes(*b"ff") || r.pending.traceparents > 1
    {
        r.context_flags |= flag::INVALID;
        return;
    }
    admit(r, format::W3C);
    r.trace_id = trace_id(high.value, low.value);
    r.parent_id = parent.value.to_le_bytes();
    r.pending.parts = HAS_TRACE | HAS_PARENT;
    let bits = (number::pack_hex(around) >> 8) as u8;
    let known = if current {
        flag::SAMPLED | flag::RANDOM
    } else {
        flag::SAMPLED
    };
    r.context_flags |= (bits & known) | flag::DECIDED;
}

/// `b3` in `from..to`: `traceid-spanid[-state[-parentid]]`, or a state alone, which names no trace.
#[inline(always)]
pub fn b3_single(r: &mut Request, w: &Window, from: u32, to: u32) {
    let dash = w.find_delimiter(from, to, b'-');
    let span_end = dash + 17;
    let behind = w.byte(span_end);
    let state_end = w.byte(span_end + 2);
    // Behind the span id: nothing, a state, or a state and a parent id of 16 digits.
    let state = to == span_end + 2 || (to == span_end + 19 && state_end == b'-');
    let ended = to == span_end || (behind == b'-' && state);
    let trace_len = dash.wrapping_sub(from);
    let (high, mut low) = id128(w, from, dash);
    low.bad |= !(ended && (trace_len == 16 || trace_len == 32)) as u64;
    let mut parent = id64(w, dash + 1, span_end);
    parent.bad |= high.bad | low.bad;
    low.bad |= parent.bad;
    if low.bad | high.bad != 0 {
        return;
    }
    put_trace(r, format::B3, high, low);
    put_parent(r, format::B3, parent);
    if behind == b'-' && ended {
        r.pending.b3_flags |= decision(w.byte(span_end + 1));
    }
}

/// `x-b3-traceid` in `from..to`.
#[inline(always)]
pub fn b3_trace(r: &mut Request, w: &Window, from: u32, to: u32) {
    let len = to.wrapping_sub(from);
    let (high, mut low) = id128(w, from, to);
    low.bad |= (len != 16 && len != 32) as u64;
    put_trace(r, format::B3, high, low);
}

/// `x-b3-spanid` in `from..to`.
#[inline(always)]
pub fn b3_span(r: &mut Request, w: &Window, from: u32, to: u32) {
    let mut id = id64(w, from, to);
    id.bad |= (to.wrapping_sub(from) != 16) as u64;
    put_parent(r, format::B3, id);
}

/// `x-b3-sampled` (0, 1, false, true) in `from..to`.
#[inline(always)]
pub fn b3_sampled(r: &mut Request, w: &Window, from: u32, to: u32) {
    if from < to {
        r.pending.b3_flags |= decision(w.byte(from));
    }
}

/// `x-b3-flags` in `from..to`: 1 is debug, which means sampled.
#[inline(always)]
pub fn b3_debug(r: &mut Request, w: &Window, from: u32, to: u32) {
    if to.wrapping_sub(from) == 1 && w.byte(from) == b'1' {
        r.pending.b3_flags |= flag::DECIDED | flag::SAMPLED;
    }
}

/// `uber-trace-id` in `from..to`: `trace:span:parent:flags`, leading zeros may be missing.
#[inline(always)]
pub fn jaeger(r: &mut Request, w: &Window, from: u32, to: u32) {
    let first = w.find_delimiter(from, to, b':');
    let second = w.find_delimiter(first + 1, to, b':');
    let third = w.find_delimiter(second + 1, to, b':');
    let (high, mut low) = id128(w, from, first);
    // Left at once when bad: all the parts side by side need more of the kernel side's stack than there is.
    if high.bad | low.bad != 0 || to.wrapping_sub(third) > 3 {
        return;
    }
    let mut parent = id64(w, first + 1, second);
    if parent.bad != 0 {
        return;
    }
    let flags = id64(w, third + 1, to);
    if flags.bad != 0 {
        return;
    }
    low.bad = (parent.value == 0) as u64;
    parent.bad = (high.value | low.value == 0) as u64;
    put_trace(r, format::JAEGER, high, low);
    put_parent(r, format::JAEGER, parent);
    if r.context_format == format::JAEGER {
        let bits = flags.value.swap_bytes() as u8;
        r.context_flags |= flag::DECIDED | (bits & flag::SAMPLED);
    }
}

/// One field of an `x-amzn-trace-id` in `at..to`: `Root=1-8hex-24hex;Parent=16hex;Sampled=1`, fields in any order. Returns
/// where the next one begins.
#[inline(always)]
pub fn xray(r: &mut Request, w: &Window, at: u32, to: u32) -> u32 {
    let end = w.find_delimiter(at, to, b';');
    xray_field(r, w, at, end);
    w.find_text(end + 1, to)
}

#[inline(always)]
fn xray_field(r: &mut Request, w: &Window, at: u32, end: u32) {
    let key = w.load8(at);
    let len = end - at;
    if key & swar::keep(7) == swar::word(*b"Root=1-\0") {
        // 8 digits, a dash, 24 digits: the id's upper half is cut by the dash.
        let mut seconds = number::hex(w, at + 15, 8, true);
        let upper = number::hex(w, at + 24, 8, true);
        let low = number::hex(w, at + 40, 16, true);
        seconds.value = (seconds.value >> 32) | upper.value;
        seconds.bad |= upper.bad | (len != 40 || w.byte(at + 15) != b'-') as u64;
        put_trace(r, format::XRAY, seconds, low);
    } else if key & swar::keep(7) == swar::word(*b"Parent=\0") {
        let mut parent = number::hex(w, at + 23, 16, true);
        parent.bad |= (len != 23) as u64;
        put_parent(r, format::XRAY, parent);
    } else if key == swar::word(*b"Sampled=") && len == 9 && admit(r, format::XRAY) {
        r.context_flags |= decision(w.byte(at + 8));
    }
}

/// `x-datadog-trace-id` in `from..to`: decimal, the id's lower 64 bits.
#[inline(always)]
pub fn datadog_trace(r: &mut Request, w: &Window, from: u32, to: u32) {
    let mut low = number::decimal(w, to, to.wrapping_sub(from));
    low.value = low.value.swap_bytes();
    put_trace(r, format::DATADOG, Digits { value: 0, bad: 0 }, low);
}

/// `x-datadog-parent-id` in `from..to`: decimal.
#[inline(always)]
pub fn datadog_parent(r: &mut Request, w: &Window, from: u32, to: u32) {
    let mut id = number::decimal(w, to, to.wrapping_sub(from));
    id.value = id.value.swap_bytes();
    put_parent(r, format::DATADOG, id);
}

/// `x-datadog-sampling-priority` in `from..to`: -1, 0, 1 or 2.
#[inline(always)]
pub fn datadog_priority(r: &mut Request, w: &Window, from: u32, to: u32) {
    if from < to {
        let keeps = matches!(w.byte(from), b'1'..=b'9');
        r.pending.datadog_flags = flag::DECIDED | if keeps { flag::SAMPLED } else { 0 };
    }
}
