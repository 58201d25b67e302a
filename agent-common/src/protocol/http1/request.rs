//! Lines of a request head.
#![allow(
    clippy::many_single_char_names,
    reason = "f, r, c, w, s: framing, request, cursor, window, settings, everywhere in this parser"
)]

use super::super::context::Pending;
use super::super::swar;
use super::super::window::Window;
use super::fields::{
    delimited_value, field_value, foreign_value, framing_value, header_line, locate_value, value, xray_value,
};
use super::framing::{cut, flag, give_up, line_done, not_http, phase, step, Cursor, Framing, TAIL_BYTES};
use crate::abi::{Settings, PATH_BYTES};

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

/// Bits of [`Request::signed`].
pub mod signed {
    /// HTTP Message Signatures (RFC 9421): `signature` or `signature-input`.
    pub const MESSAGE: u8 = 1;
    /// `authorization: AWS4-...`: the headers that its SignedHeaders name must arrive as they are.
    pub const AWS4: u8 = 2;
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
    /// One of [`otlp`]: whether it is telemetry.
    pub otlp: u8,
    /// One of [`crate::abi::context_format`].
    pub context_format: u8,
    /// Bits of [`flag`](super::super::context::flag).
    pub context_flags: u8,
    /// Bits of [`signed`]: whether the head is signed.
    pub signed: u8,
    /// Header lines so far, in whichever call they came. One that is looked at twice counts twice.
    pub lines: u16,
    /// Zero.
    pub reserved: [u8; 4],
    /// Scratch while the head comes in.
    pub pending: Pending,
    /// The target's path without query and fragment, zero-filled to a whole word: `/..`, `*`, or nothing (CONNECT, or a
    /// target that has none).
    pub path: [u64; PATH_WORDS],
}

/// Values of [`Request::otlp`].
pub mod otlp {
    /// No telemetry.
    pub const NONE: u8 = 0;
    /// POST to `/v1/traces`.
    pub const TRACES: u8 = 1;
    /// POST to `/v1/metrics` or `/v1/logs`.
    pub const OTHER: u8 = 2;
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
            signed: 0,
            lines: 0,
            reserved: [0; 4],
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
    let mut next = header_line(f, r, c, w, s);
    if next == step::FIELD {
        locate_value(c, w);
        next = field_value(f, r, c, w, s);
    }
    match next {
        step::FRAMING_VALUE => framing_value(f, c, w),
        step::VALUE => value(f, r, c, w, s),
        step::FOREIGN_VALUE => foreign_value(f, r, c, w),
        step::DELIMITED_VALUE => delimited_value(f, r, c, w),
        step::XRAY_VALUE => {
            while next == step::XRAY_VALUE {
                next = xray_value(f, r, c, w);
            }
            next
        }
        other => other,
    }
}

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
    r.signed = 0;
    r.lines = 0;
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
    r.otlp = otlp_of(r);
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
fn otlp_of(r: &Request) -> u8 {
    let [first, second, ..] = r.path;
    if r.method != Method::Post as u8 {
        return otlp::NONE;
    }
    match r.path_len {
        10 if first == swar::word(*b"/v1/trac") && second == swar::word(*b"es\0\0\0\0\0\0") => otlp::TRACES,
        11 if first == swar::word(*b"/v1/metr") && second == swar::word(*b"ics\0\0\0\0\0") => otlp::OTHER,
        8 if first == swar::word(*b"/v1/logs") => otlp::OTHER,
        _ => otlp::NONE,
    }
}

const _: () = assert!(size_of::<Request>() == 312);
