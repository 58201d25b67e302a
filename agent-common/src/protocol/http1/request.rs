//! Lines of a request head.
#![allow(
    clippy::many_single_char_names,
    reason = "f, r, c, w, s: framing, request, cursor, window, settings, everywhere in this parser"
)]

use super::super::context::{self, Pending};
use super::super::swar;
use super::super::window::Window;
use super::framing::{cut, flag, give_up, line_done, not_http, phase, step, Cursor, Framing, TAIL_BYTES};
use super::header::{self, Name};
use crate::abi::{setting, text, Settings, KEPT_HEADERS, KEPT_VALUE_BYTES, PATH_BYTES, TEXT_BYTES};

/// The request's method: [`Request::method`].
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Any other token.
    Other = 0,
    /// GET
    Get = 1,
    /// HEAD
    Head = 2,
    /// POST
    Post = 3,
    /// PUT
    Put = 4,
    /// DELETE
    Delete = 5,
    /// CONNECT
    Connect = 6,
    /// OPTIONS
    Options = 7,
    /// TRACE
    Trace = 8,
    /// PATCH
    Patch = 9,
    /// QUERY
    Query = 10,
}

/// Words of a path.
pub const PATH_WORDS: usize = PATH_BYTES / 8;

/// What a request head said. Filled while the head comes in; valid from `HEAD_END` on. A start line resets everything but
/// the words of `path` behind `path_len`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Inbound trace id; zero, as the parent id, unless a whole context came.
    pub trace_id: [u8; 16],
    /// Inbound parent id.
    pub parent_id: [u8; 8],
    /// Hash of the tenant header's value, 0 if none.
    pub tenant: u64,
    /// Hash of the Host header's value in lower case, 0 if none.
    pub host_hash: u32,
    /// Bytes of `path` in use.
    pub path_len: u16,
    /// One of [`Method`].
    pub method: u8,
    /// 1: HTTP/1.0.
    pub http10: u8,
    /// 1: a configured user-agent prefix matched.
    pub user_agent_excluded: u8,
    /// 1: the path was cut at [`PATH_BYTES`].
    pub path_cut: u8,
    /// 1: POST to `/v1/traces`, `/v1/metrics` or `/v1/logs`.
    pub otlp: u8,
    /// One of [`crate::abi::context_format`].
    pub context_format: u8,
    /// Bits of [`context::flag`].
    pub context_flags: u8,
    /// Zero.
    pub reserved: [u8; 7],
    /// Scratch while the head comes in.
    pub pending: Pending,
    /// The target's path without query and fragment, zero-filled to a whole word: `/..`, `*`, or nothing (CONNECT, or a
    /// target that has none).
    pub path: [u64; PATH_WORDS],
}

impl Default for Request {
    fn default() -> Self {
        Self {
            trace_id: [0; 16],
            parent_id: [0; 8],
            tenant: 0,
            host_hash: 0,
            path_len: 0,
            method: 0,
            http10: 0,
            user_agent_excluded: 0,
            path_cut: 0,
            otlp: 0,
            context_format: 0,
            context_flags: 0,
            reserved: [0; 7],
            pending: Pending::default(),
            path: [0; PATH_WORDS],
        }
    }
}

/// Deals with the line in hand of a request: [`start_line`], [`header_line`] and what it asks for, or the head's end.
#[inline(always)]
pub fn request_line_or_header(f: &mut Framing, r: &mut Request, c: &mut Cursor, w: &Window, s: &Settings) -> u32 {
    if f.phase == phase::START {
        return match start_line(f, r, c, w) {
            step::TARGET => target(f, r, c, w),
            other => other,
        };
    }
    match header_line(f, r, c, w, s) {
        step::FRAMING_VALUE => framing_value(f, c, w),
        step::VALUE => value(f, r, c, w, s),
        step::FOREIGN_VALUE => foreign_value(f, r, c, w),
        step::DELIMITED_VALUE => delimited_value(f, r, c, w),
        other => other,
    }
}

// ---- start line ------------------------------------------------------------------------------------------------------

/// The method and the length of its token, `None` for one that is not in [`Method`].
#[inline(always)]
fn known_method(first: u64) -> Option<(Method, u32)> {
    const fn is(first: u64, text: [u8; 8], len: u32) -> bool {
        first & swar::keep(len + 1) == swar::word(text)
    }
    if is(first, *b"GET \0\0\0\0", 3) {
        Some((Method::Get, 3))
    } else if is(first, *b"POST \0\0\0", 4) {
        Some((Method::Post, 4))
    } else if is(first, *b"HEAD \0\0\0", 4) {
        Some((Method::Head, 4))
    } else if is(first, *b"PUT \0\0\0\0", 3) {
        Some((Method::Put, 3))
    } else if is(first, *b"DELETE \0", 6) {
        Some((Method::Delete, 6))
    } else if is(first, *b"OPTIONS ", 7) {
        Some((Method::Options, 7))
    } else if is(first, *b"CONNECT ", 7) {
        Some((Method::Connect, 7))
    } else if is(first, *b"TRACE \0\0", 5) {
        Some((Method::Trace, 5))
    } else if is(first, *b"PATCH \0\0", 5) {
        Some((Method::Patch, 5))
    } else if is(first, *b"QUERY \0\0", 5) {
        Some((Method::Query, 5))
    } else {
        None
    }
}

/// Longest method token understood, in bytes.
const METHOD_TOKEN_BYTES: u32 = 32;

/// The length of the token at `from` if a space follows it, else 0.
#[inline(always)]
fn token(w: &Window, from: u32, end: u32) -> u32 {
    let limit = if end - from > METHOD_TOKEN_BYTES {
        from + METHOD_TOKEN_BYTES
    } else {
        end
    };
    let space = w.find_space(from, limit);
    // verifier: what is no token byte is added up without a branch; bytes from the space on count for nothing.
    let mut bad = 0;
    for i in 0..METHOD_TOKEN_BYTES {
        let inside = ((from + i).wrapping_sub(space) >> 31) as u64;
        bad |= inside & !is_token_byte(w.byte(from + i));
    }
    if bad == 0 && space < limit && w.byte(space) == b' ' {
        space - from
    } else {
        0
    }
}

/// Bit 0: the byte may stand in a token (RFC 9110 5.6.2). One bit for each byte below 128, in two words.
#[inline(always)]
fn is_token_byte(byte: u8) -> u64 {
    const LOW: u64 = token_bits(0);
    const HIGH: u64 = token_bits(64);
    let upper = (byte as u64 >> 6) & 1;
    let bits = (LOW & upper.wrapping_sub(1)) | (HIGH & upper.wrapping_neg());
    (bits >> (byte & 63)) & !(byte as u64 >> 7) & 1
}

/// The token bytes among the 64 from `base` on.
const fn token_bits(base: u8) -> u64 {
    let mut bits = 0;
    let mut i = 0;
    while i < 64 {
        let token = matches!(base + i, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'0'..=b'9' | b'A'..=b'Z' | b'^'..=b'z' | b'|' | b'~');
        bits |= (token as u64) << i;
        i += 1;
    }
    bits
}

/// `METHOD SP target SP HTTP/1.x`, or an empty line or a PROXY line in front of it. [`step::TARGET`] asks for
/// [`target`], a BPF function of its own.
#[inline(always)]
pub fn start_line(f: &mut Framing, r: &mut Request, c: &mut Cursor, w: &Window) -> u32 {
    let start = c.line_start;
    if c.cut == cut::TAIL {
        return start_line_tail(f, r, c, w);
    }
    let first = w.load8(start);
    if c.cut == cut::WHOLE && f.flags & flag::PREAMBLE == 0 {
        let proxy = first == swar::word(*b"PROXY TC") || first == swar::word(*b"PROXY UN");
        if c.line_end == start || (proxy && f.flags & flag::SEEN == 0) {
            f.flags = (f.flags | flag::PREAMBLE) & !flag::BEGUN;
            return line_done(f, c);
        }
    }
    let known = known_method(first);
    if c.cut == cut::BROKEN {
        // A method and its space make it a request with something in it that may not be there.
        return match known {
            Some((_, len)) if c.line_end > start + len => give_up(f, step::OPAQUE_FRAMING),
            _ => not_http(f),
        };
    }
    let (method, len) = match known {
        Some(known) => known,
        None => (Method::Other, token(w, start, c.line_end)),
    };
    // verifier: one path from here on, not one for each method.
    let (method, len) = (w.launder(method as u32) as u8, w.launder(len));
    let from = start + len + 1;
    let to = if c.cut == cut::LONG {
        c.line_end - TAIL_BYTES
    } else {
        match version(w, c.line_end) {
            Version::Http11 => {}
            Version::Http10 => f.flags |= flag::HTTP10,
            Version::Http2 if first == swar::word(*b"PRI * HT") && f.flags & flag::SEEN == 0 => {
                return give_up(f, step::OPAQUE_HTTP2);
            }
            _ => return not_http(f),
        }
        c.line_end - 9
    };
    if len == 0 || from >= to || w.find_space(from, to) != to {
        return not_http(f);
    }
    reset(r, method);
    r.http10 = (f.flags & flag::HTTP10 != 0) as u8;
    c.value_from = from;
    c.value_to = to;
    step::TARGET
}

/// The target of the request line that [`start_line`] has dealt with.
#[inline(always)]
pub fn target(f: &mut Framing, r: &mut Request, c: &mut Cursor, w: &Window) -> u32 {
    take_path(r, w, c.value_from, c.value_to);
    if c.cut == cut::LONG {
        f.flags |= flag::TAIL;
    } else {
        f.phase = phase::HEADERS;
    }
    line_done(f, c)
}

/// The end of a long request line.
#[inline(always)]
fn start_line_tail(f: &mut Framing, r: &mut Request, c: &mut Cursor, w: &Window) -> u32 {
    match version(w, c.line_end) {
        Version::Http11 => {}
        Version::Http10 => {
            f.flags |= flag::HTTP10;
            r.http10 = 1;
        }
        _ => return not_http(f),
    }
    f.flags &= !(flag::SKIP | flag::TAIL);
    f.phase = phase::HEADERS;
    line_done(f, c)
}

/// What stands at the end of a request line.
enum Version {
    Http10,
    Http11,
    Http2,
    None,
}

#[inline(always)]
fn version(w: &Window, line_end: u32) -> Version {
    let text = w.load8(line_end.wrapping_sub(8));
    if w.byte(line_end.wrapping_sub(9)) != b' ' {
        Version::None
    } else if text == swar::word(*b"HTTP/1.1") {
        Version::Http11
    } else if text == swar::word(*b"HTTP/1.0") {
        Version::Http10
    } else if text == swar::word(*b"HTTP/2.0") {
        Version::Http2
    } else {
        Version::None
    }
}

/// Forgets the request before. The path's words stay: what lies behind `path_len` means nothing.
#[inline(always)]
fn reset(r: &mut Request, method: u8) {
    r.trace_id = [0; 16];
    r.parent_id = [0; 8];
    r.context_format = 0;
    r.context_flags = 0;
    r.pending = Pending::default();
    r.tenant = 0;
    r.host_hash = 0;
    r.path_len = 0;
    r.method = method;
    r.http10 = 0;
    r.user_agent_excluded = 0;
    r.path_cut = 0;
    r.otlp = 0;
}

/// Keeps the path of the target in `from..to`.
#[inline(always)]
fn take_path(r: &mut Request, w: &Window, from: u32, to: u32) {
    if r.method == Method::Connect as u8 {
        return;
    }
    let mut from = from;
    if w.byte(from) != b'/' {
        let scheme = w.load8_folded(from);
        let authority = if scheme & swar::keep(7) == swar::word(*b"http://\0") {
            from + 7
        } else if scheme == swar::word(*b"https://") {
            from + 8
        } else {
            if w.byte(from) == b'*' && to == from + 1 {
                put_byte(r, b'*');
            }
            return;
        };
        from = w.find_path_mark(w.launder(authority), to);
        if w.byte(from) != b'/' || from >= to {
            put_byte(r, b'/');
            return;
        }
    }
    let from = w.launder(from);
    let len = w.find_query(from, to) - from;
    r.path_cut = (len > PATH_BYTES as u32) as u8;
    let len = w.launder(if len > PATH_BYTES as u32 {
        PATH_BYTES as u32
    } else {
        len
    });
    r.path_len = len as u16;
    for (i, word) in (0_u32..).zip(r.path.iter_mut()) {
        if i * 8 >= len {
            break;
        }
        *word = w.load8(from + i * 8) & swar::keep(len - i * 8);
    }
    r.otlp = is_otlp(r) as u8;
}

/// A path of one byte.
#[inline(always)]
fn put_byte(r: &mut Request, byte: u8) {
    if let Some(word) = r.path.first_mut() {
        *word = byte as u64;
        r.path_len = 1;
    }
}

#[inline(always)]
fn is_otlp(r: &Request) -> bool {
    let [first, second, ..] = r.path;
    r.method == Method::Post as u8
        && match r.path_len {
            10 => first == swar::word(*b"/v1/trac") && second == swar::word(*b"es\0\0\0\0\0\0"),
            11 => first == swar::word(*b"/v1/metr") && second == swar::word(*b"ics\0\0\0\0\0"),
            8 => first == swar::word(*b"/v1/logs"),
            _ => false,
        }
}

// ---- header lines ----------------------------------------------------------------------------------------------------

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

/// A header line: whose it is, and what is to be done with its value: nothing, a text ([`step::TEXT`]), or one of
/// [`framing_value`], [`value`] and [`foreign_value`], each a BPF function of its own. An empty line is the head's end.
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
    if field == Field::None as u8 && index == KEPT_HEADERS as u32 {
        return line_done(f, c);
    }
    if c.cut == cut::PARTIAL {
        c.hold = 1;
        return step::MORE;
    }
    header::locate_value(c, w);
    c.field = field;
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
    } else if field <= Field::Tracestate as u8 {
        step::VALUE
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

/// The value of another vendor's trace context that holds all of it, delimited. The kernel side calls the three
/// functions below, each in a frame of its own: one frame for all of them is half of a program's stack.
#[inline(always)]
pub fn delimited_value(f: &mut Framing, r: &mut Request, c: &mut Cursor, w: &Window) -> u32 {
    match c.field {
        FIELD_B3 => b3_value(f, r, c, w),
        FIELD_JAEGER => jaeger_value(f, r, c, w),
        _ => xray_value(f, r, c, w),
    }
}

/// [`Cursor::field`] of `b3`.
pub const FIELD_B3: u8 = Field::B3 as u8;
/// [`Cursor::field`] of `uber-trace-id`.
pub const FIELD_JAEGER: u8 = Field::Jaeger as u8;

/// The value of `b3`.
#[inline(always)]
pub fn b3_value(f: &mut Framing, r: &mut Request, c: &mut Cursor, w: &Window) -> u32 {
    context::b3_single(r, w, c.value_from, context_end(c));
    line_done(f, c)
}

/// The value of `uber-trace-id`.
#[inline(always)]
pub fn jaeger_value(f: &mut Framing, r: &mut Request, c: &mut Cursor, w: &Window) -> u32 {
    context::jaeger(r, w, c.value_from, context_end(c));
    line_done(f, c)
}

/// The value of `x-amzn-trace-id`.
#[inline(always)]
pub fn xray_value(f: &mut Framing, r: &mut Request, c: &mut Cursor, w: &Window) -> u32 {
    context::xray(r, w, c.value_from, context_end(c));
    line_done(f, c)
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

// ---- end of the head -------------------------------------------------------------------------------------------------

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

const _: () = assert!(size_of::<Request>() == 312);
