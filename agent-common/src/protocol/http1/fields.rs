//! Header lines of a request: which are looked at, and what their values say.

#![allow(
    clippy::many_single_char_names,
    reason = "f, r, c, w, s are framing, request, cursor, window and settings throughout the parser"
)]

use super::super::context;
use super::super::swar;
use super::super::window::Window;
use super::framing::{cut, flag, give_up, line_done, phase, step, Cursor, Framing};
pub use super::header::locate_value;
use super::header::{self, Name};
use super::request::{signed, Method, Request};
use crate::abi::{setting, text, Settings, KEPT_HEADERS, KEPT_VALUE_BYTES, TEXT_BYTES};

/// Headers whose values are looked at: [`Cursor::field`].
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    None = 0,
    ContentLength,
    TransferEncoding,
    Host,
    UserAgent,
    Traceparent,
    Tracestate,
    Authorization,
    Signature,
    B3,
    Jaeger,
    Xray,
    B3Trace,
    B3Span,
    B3Sampled,
    B3Flags,
    DatadogTrace,
    DatadogParent,
    DatadogPriority,
}

/// Which header a name is: by its first eight bytes and its length, then by the rest.
#[inline(always)]
fn field(n: Name, w: &Window) -> Field {
    const fn key(text: [u8; 8]) -> u64 {
        swar::word(text)
    }
    const HOST: u64 = key(*b"host\0\0\0\0");
    const B3: u64 = key(*b"b3\0\0\0\0\0\0");
    const CONTENT: u64 = key(*b"content-");
    const TRANSFER: u64 = key(*b"transfer");
    const USER_AGENT: u64 = key(*b"user-age");
    const TRACEPARENT: u64 = key(*b"tracepar");
    const TRACESTATE: u64 = key(*b"tracesta");
    const B3_TRACE: u64 = key(*b"x-b3-tra");
    const B3_SPAN: u64 = key(*b"x-b3-spa");
    const B3_SAMPLED: u64 = key(*b"x-b3-sam");
    const B3_FLAGS: u64 = key(*b"x-b3-fla");
    const JAEGER: u64 = key(*b"uber-tra");
    const XRAY: u64 = key(*b"x-amzn-t");
    const DATADOG: u64 = key(*b"x-datado");
    const SIGNATURE: u64 = key(*b"signatur");
    const AUTHORIZATION: u64 = key(*b"authoriz");
    let (found, is) = match n.key {
        HOST => (Field::Host, true),
        B3 => (Field::B3, true),
        CONTENT => (Field::ContentLength, n.is_content_length(w)),
        TRANSFER => (Field::TransferEncoding, n.is_transfer_encoding(w)),
        USER_AGENT => (Field::UserAgent, n.len == 10 && n.has(w, 2, *b"er-agent")),
        TRACEPARENT => (Field::Traceparent, n.len == 11 && n.has(w, 3, *b"ceparent")),
        TRACESTATE => (Field::Tracestate, n.len == 10 && n.has(w, 2, *b"acestate")),
        B3_TRACE => (Field::B3Trace, n.len == 12 && n.has(w, 4, *b"-traceid")),
        B3_SPAN => (Field::B3Span, n.len == 11 && n.has(w, 3, *b"3-spanid")),
        B3_SAMPLED => (Field::B3Sampled, n.len == 12 && n.has(w, 4, *b"-sampled")),
        B3_FLAGS => (Field::B3Flags, n.len == 10 && n.has(w, 2, *b"b3-flags")),
        JAEGER => (Field::Jaeger, n.len == 13 && n.has(w, 5, *b"trace-id")),
        XRAY => (Field::Xray, n.len == 15 && n.has(w, 7, *b"trace-id")),
        SIGNATURE => (
            Field::Signature,
            n.len == 9 || (n.len == 15 && n.has(w, 7, *b"re-input")),
        ),
        AUTHORIZATION => (Field::Authorization, n.len == 13 && n.has(w, 5, *b"rization")),
        DATADOG => return datadog_field(n, w),
        _ => (Field::None, true),
    };
    if is {
        found
    } else {
        Field::None
    }
}

#[inline(always)]
fn datadog_field(n: Name, w: &Window) -> Field {
    if n.len == 18 && n.has(w, 8, *b"g-trace-") && n.has(w, 10, *b"trace-id") {
        Field::DatadogTrace
    } else if n.len == 19 && n.has(w, 8, *b"g-parent") && n.has(w, 11, *b"arent-id") {
        Field::DatadogParent
    } else if n.len == 27 && n.has(w, 8, *b"g-sampli") && n.has(w, 16, *b"ng-prior") && n.has(w, 19, *b"priority") {
        Field::DatadogPriority
    } else {
        Field::None
    }
}

/// A listed name's place in the configuration, `KEPT_HEADERS` if it is not listed.
#[inline(always)]
fn listed(n: Name, w: &Window, s: &Settings) -> u32 {
    for (i, name) in (0_u32..).zip(s.names.iter()) {
        if i >= s.name_count {
            break;
        }
        if name.len == n.len && n.len != 0 {
            let mut differs = 0;
            for (j, word) in (0_u32..).zip(name.words.iter()) {
                let bytes = swar::keep(n.len.saturating_sub(j * 8));
                differs |= (swar::lower(w.load8(n.start + j * 8)) & bytes) ^ *word;
            }
            if differs == 0 {
                return i;
            }
        }
    }
    KEPT_HEADERS as u32
}

/// A header line: whose it is. Where its value matters, [`step::FIELD`] asks for [`locate_value`] and [`field_value`], each
/// a BPF function of its own. An empty line is the head's end.
#[inline(always)]
pub fn header_line(f: &mut Framing, r: &mut Request, c: &mut Cursor, w: &Window, s: &Settings) -> u32 {
    if c.cut == cut::WHOLE && c.line_end == c.line_start {
        return head_end(f, r, c);
    }
    let Some(name) = header::name(c, w) else {
        if c.cut == cut::PARTIAL && w.byte(c.colon) != b':' {
            c.hold = 1;
            return step::MORE;
        }
        return give_up(f, step::OPAQUE_FRAMING);
    };
    let field = w.launder(field(name, w) as u32) as u8;
    let index = if s.name_count == 0 {
        KEPT_HEADERS as u32
    } else {
        w.launder(listed(name, w, s))
    };
    let is_idle = field == Field::None as u8 && index == KEPT_HEADERS as u32;
    if !is_idle && c.cut == cut::PARTIAL {
        c.hold = 1;
        return step::MORE;
    }
    // Once for each line: one that is held comes again from its beginning, one whose text was put again in the next pass.
    r.lines = r.lines.wrapping_add((c.pass == 0) as u16);
    if is_idle {
        return line_done(f, c);
    }
    c.field = field;
    c.listed = index as u8;
    step::FIELD
}

/// What is to be done with the value that [`locate_value`] has found: nothing, a text ([`step::TEXT`]), or one of
/// [`framing_value`], [`value`], [`foreign_value`] and [`delimited_value`].
#[inline(always)]
pub fn field_value(f: &mut Framing, r: &mut Request, c: &mut Cursor, w: &Window, s: &Settings) -> u32 {
    let index = c.listed as u32;
    let field = c.field;
    if let Some(entry) = s.names.get(index as usize) {
        let (from, to) = (c.value_from, c.value_to);
        if entry.keep != 0 && c.pass == 0 {
            c.pass = 1;
            return put_text(c, text::HEADER, index, from, to, KEPT_VALUE_BYTES);
        }
        if entry.tenant != 0 && c.pass <= 1 && r.tenant == 0 && from < to {
            c.pass = 2;
            put_text(c, text::TENANT, index, from, to, KEPT_VALUE_BYTES);
            r.tenant = hash(w, from, from + c.text_len, 0) | 1;
            c.text_hash = r.tenant;
            return step::TEXT;
        }
    }
    if field == Field::None as u8 {
        line_done(f, c)
    } else if field <= Field::TransferEncoding as u8 {
        step::FRAMING_VALUE
    } else if field <= Field::Signature as u8 {
        step::VALUE
    } else if field == Field::Xray as u8 {
        step::XRAY_VALUE
    } else if field <= Field::Xray as u8 {
        step::DELIMITED_VALUE
    } else {
        step::FOREIGN_VALUE
    }
}

/// The value of a header that frames the body.
#[inline(always)]
pub fn framing_value(f: &mut Framing, c: &mut Cursor, w: &Window) -> u32 {
    if c.field == Field::ContentLength as u8 {
        header::content_length(f, c, w)
    } else {
        header::transfer_encoding(f, c, w)
    }
}

/// Describes a value as a text of at most `most` bytes.
#[inline(always)]
fn put_text(c: &mut Cursor, what: u8, index: u32, from: u32, to: u32, most: usize) -> u32 {
    let len = to - from;
    let longer = len > most as u32;
    c.text_what = what;
    c.text_index = index as u8;
    c.text_from = from;
    c.text_len = if longer { most as u32 } else { len };
    c.text_cut = (longer || c.cut == cut::LONG) as u8;
    c.text_hash = 0;
    step::TEXT
}

/// The value of a header that belongs to the request itself, or of W3C trace context.
#[inline(always)]
pub fn value(f: &mut Framing, r: &mut Request, c: &mut Cursor, w: &Window, s: &Settings) -> u32 {
    let (from, to) = (c.value_from, c.value_to);
    let mut what = 0;
    if c.field == Field::Host as u8 {
        take_host(r, w, from, to);
    } else if c.field == Field::UserAgent as u8 {
        r.user_agent_excluded |= excluded(w, s, from) as u8;
        if s.flags & setting::USER_AGENT_TEXT != 0 {
            what = text::USER_AGENT;
        }
    } else if c.field == Field::Tracestate as u8 {
        what = text::TRACESTATE;
    } else if c.field == Field::Signature as u8 {
        r.signed |= signed::MESSAGE;
    } else if c.field == Field::Authorization as u8 {
        let is_aws4 = w.load8(from) & swar::keep(5) == swar::word(*b"AWS4-\0\0\0");
        r.signed |= signed::AWS4 * is_aws4 as u8;
    } else {
        // No traceparent is as long as a line that was cut: show it as empty, which none is.
        context::traceparent(r, w, from, if c.cut == cut::LONG { from } else { to });
    }
    if what != 0 && from < to {
        put_text(c, what, 0, from, to, TEXT_BYTES);
        line_done(f, c);
        return step::TEXT;
    }
    line_done(f, c)
}

/// The value's end, for a trace context: none is as long as a line that was cut, so such a one is shown as empty.
#[inline(always)]
fn context_end(c: &Cursor) -> u32 {
    if c.cut == cut::LONG {
        c.value_from
    } else {
        c.value_to
    }
}

/// The value of another vendor's trace context that is one field of it.
#[inline(always)]
pub fn foreign_value(f: &mut Framing, r: &mut Request, c: &mut Cursor, w: &Window) -> u32 {
    const B3_TRACE: u8 = Field::B3Trace as u8;
    const B3_SPAN: u8 = Field::B3Span as u8;
    const B3_SAMPLED: u8 = Field::B3Sampled as u8;
    const B3_FLAGS: u8 = Field::B3Flags as u8;
    const DATADOG_TRACE: u8 = Field::DatadogTrace as u8;
    const DATADOG_PARENT: u8 = Field::DatadogParent as u8;
    let (from, to) = (c.value_from, context_end(c));
    match c.field {
        B3_TRACE => context::b3_trace(r, w, from, to),
        B3_SPAN => context::b3_span(r, w, from, to),
        B3_SAMPLED => context::b3_sampled(r, w, from, to),
        B3_FLAGS => context::b3_debug(r, w, from, to),
        DATADOG_TRACE => context::datadog_trace(r, w, from, to),
        DATADOG_PARENT => context::datadog_parent(r, w, from, to),
        _ => context::datadog_priority(r, w, from, to),
    }
    line_done(f, c)
}

/// The value of another vendor's trace context that holds all of it, delimited.
#[inline(always)]
pub fn delimited_value(f: &mut Framing, r: &mut Request, c: &mut Cursor, w: &Window) -> u32 {
    let (from, to) = (c.value_from, context_end(c));
    if c.field == Field::B3 as u8 {
        context::b3_single(r, w, from, to);
    } else {
        context::jaeger(r, w, from, to);
    }
    line_done(f, c)
}

/// What [`Cursor::pass`] counts in its upper half: fields looked at of a delimited value.
const FIELD_PASS: u8 = 16;
/// More fields than that are not looked at.
const FIELDS: u8 = 8;

/// The next field of an `x-amzn-trace-id`; [`step::XRAY_VALUE`] again while there may be more.
///
/// verifier: one field a call, with what is left in the cursor's memory: as a loop, each turn would be walked once for
/// every way the turn before can end.
#[inline(always)]
pub fn xray_value(f: &mut Framing, r: &mut Request, c: &mut Cursor, w: &Window) -> u32 {
    let to = context_end(c);
    if c.value_from >= to || c.pass >= FIELDS * FIELD_PASS {
        return line_done(f, c);
    }
    c.value_from = context::xray(r, w, c.value_from, to);
    c.pass += FIELD_PASS;
    step::XRAY_VALUE
}

/// Longest part of a Host value that is hashed, in bytes.
const HOST_BYTES: u32 = 256;

#[inline(always)]
fn take_host(r: &mut Request, w: &Window, from: u32, to: u32) {
    let end = if to - from > HOST_BYTES { from + HOST_BYTES } else { to };
    if from < end && r.host_hash == 0 {
        let hash = hash(w, from, end, swar::FOLD);
        r.host_hash = (hash >> 32) as u32 | 1;
    }
}

/// Whether the value at `from` begins with a prefix of the configuration.
#[inline(always)]
fn excluded(w: &Window, s: &Settings, from: u32) -> bool {
    let first = swar::lower(w.load8(from));
    let second = swar::lower(w.load8(from + 8));
    let mut hit = false;
    for (i, [prefix, rest]) in (0_u32..).zip(s.user_agents.iter()) {
        let differs = ((first ^ *prefix) & filled(*prefix)) | ((second ^ *rest) & filled(*rest));
        hit |= i < s.user_agent_count && *prefix != 0 && differs == 0;
    }
    hit
}

/// All bits of the bytes that are not zero.
#[inline(always)]
const fn filled(word: u64) -> u64 {
    (swar::nonzero(word) >> 7).wrapping_mul(0xff)
}

/// Most words hashed of a value.
const HASH_WORDS: u32 = HOST_BYTES / 8;

/// A hash of `from..to` (at most [`HOST_BYTES`] bytes), with the bits of `fold` set in every word. Both ends of a
/// connection and every agent of a cluster compute the same one.
#[inline(always)]
fn hash(w: &Window, from: u32, to: u32, fold: u64) -> u64 {
    let mut hash = 0x9e37_79b9_7f4a_7c15_u64 ^ (to - from) as u64;
    for i in 0..HASH_WORDS {
        let at = from + i * 8;
        if at >= to {
            break;
        }
        let word = (w.load8(at) | fold) & swar::keep(to - at);
        hash = (hash ^ word).wrapping_mul(0xd6e8_feb8_6659_fd93);
        hash ^= hash >> 32;
    }
    hash.wrapping_mul(0xd6e8_feb8_6659_fd93)
}

/// The blank line: how the body is framed, and which context counts.
#[inline(always)]
fn head_end(f: &mut Framing, r: &mut Request, c: &mut Cursor) -> u32 {
    line_done(f, c);
    let framed = f.flags & (flag::CHUNKED | flag::LENGTH) != 0;
    if r.method == Method::Connect as u8 && framed {
        return give_up(f, step::OPAQUE_FRAMING);
    }
    context::finish(r);
    f.flags |= flag::SEEN;
    f.head_bytes = 0;
    f.phase = if f.flags & flag::CHUNKED != 0 {
        phase::CHUNK_SIZE
    } else {
        phase::BODY
    };
    step::HEAD_END
}
