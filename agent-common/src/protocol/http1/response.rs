//! Lines of a response head.

use super::super::traceparent::VALUE_BYTES;
use super::super::window::Window;
use super::super::{number, swar};
use super::framing::{cut, flag, give_up, line_done, not_http, phase, step, Cursor, Framing};
use super::header;
use super::request::Method;

/// Deals with the line in hand of a response. `request_method` is the [`Method`] of the request it answers.
#[inline(always)]
pub fn response_line(f: &mut Framing, c: &mut Cursor, w: &Window, request_method: u8) -> u32 {
    if f.phase == phase::START {
        return status_line(f, c, w);
    }
    if c.cut == cut::WHOLE && c.line_end == c.line_start {
        return head_end(f, c, request_method);
    }
    let Some(name) = header::name(c, w) else {
        if c.cut == cut::PARTIAL && w.byte(c.colon) != b':' {
            c.hold = 1;
            return step::MORE;
        }
        return give_up(f, step::OPAQUE_FRAMING);
    };
    let length = name.is_content_length(w);
    let timing = name.is_server_timing(w);
    if !length && !timing && !name.is_transfer_encoding(w) {
        return line_done(f, c);
    }
    if c.cut == cut::PARTIAL {
        c.hold = 1;
        return step::MORE;
    }
    header::locate_value(c, w);
    if timing {
        server_timing(c, w);
        return line_done(f, c);
    }
    if length {
        header::content_length(f, c, w)
    } else {
        header::transfer_encoding(f, c, w)
    }
}

/// `traceparent;desc="00-{trace id}-{span id}-{flags}"`, as we write it, alone in its line.
#[inline(always)]
fn server_timing(c: &mut Cursor, w: &Window) {
    let from = c.value_from;
    let ours = w.load8(from) == swar::word(*b"tracepar")
        && w.load8(from + 8) == swar::word(*b"ent;desc")
        && w.load8(from + 13) == swar::word(*b"esc=\"00-")
        && c.value_to == from + 18 + VALUE_BYTES + 1;
    let span_id = number::hex(w, from + 70, 16, false);
    if ours && span_id.bad == 0 {
        c.returned = span_id.value;
    }
}

/// `HTTP/1.x SP 3DIGIT`, then the line's end or a blank and anything.
#[inline(always)]
fn status_line(f: &mut Framing, c: &mut Cursor, w: &Window) -> u32 {
    let start = c.line_start;
    let version = w.load8(start);
    let http10 = version == swar::word(*b"HTTP/1.0");
    if c.cut == cut::BROKEN {
        let ours = c.line_end >= start + 8 && (http10 || version == swar::word(*b"HTTP/1.1"));
        return if ours {
            give_up(f, step::OPAQUE_FRAMING)
        } else {
            not_http(f)
        };
    }
    let code = w.load8(start + 8);
    // " NNN": the digits checked by their upper halves and for being at most 9.
    let digits = code as u32 & 0x0f0f_0f00;
    let numeric = code as u32 & 0xf0f0_f0ff == 0x3030_3020 && (digits + 0x0606_0600) & 0xf0f0_f000 == 0;
    let ended = c.line_end == start + 12 || (code >> 32) as u8 == b' ';
    let status = ((digits >> 8) & 15) * 100 + ((digits >> 16) & 15) * 10 + (digits >> 24);
    if !(http10 || version == swar::word(*b"HTTP/1.1")) || c.line_end < start + 12 || !numeric || !ended || status < 100
    {
        return not_http(f);
    }
    f.status = status as u16;
    f.flags |= if http10 { flag::HTTP10 } else { 0 };
    f.phase = phase::HEADERS;
    line_done(f, c)
}

/// The blank line: how the body is framed (RFC 9112, 6.3).
#[inline(always)]
fn head_end(f: &mut Framing, c: &mut Cursor, request_method: u8) -> u32 {
    line_done(f, c);
    let status = f.status;
    c.status = status;
    f.flags |= flag::SEEN;
    f.head_bytes = 0;
    if status == 101 || (request_method == Method::Connect as u8 && status / 100 == 2) {
        f.phase = phase::OPAQUE;
        return step::UPGRADED;
    }
    if status < 200 {
        f.phase = phase::START;
        f.flags &= flag::SEEN;
        f.left = 0;
        return step::INTERIM;
    }
    let bodyless = request_method == Method::Head as u8 || status == 204 || status == 304;
    if bodyless {
        f.left = 0;
        f.phase = phase::BODY;
    } else if f.flags & flag::CHUNKED != 0 {
        f.phase = phase::CHUNK_SIZE;
    } else if f.flags & flag::LENGTH != 0 {
        f.phase = phase::BODY;
    } else {
        f.phase = phase::UNTIL_CLOSE;
    }
    step::HEAD_END
}
