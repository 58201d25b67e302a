//! Where messages begin and end: everything but the contents of lines.

use super::super::window::{Window, CARRY_BYTES};

/// Longest head (start line, header lines and blank line), trailer section or chunk-size line, in bytes.
pub const HEAD_BYTES: u32 = 16 * 1024;
/// Longest line looked at whole. Of a longer one the first `LINE_BYTES` are looked at and the rest is passed over, so
/// that what comes out does not depend on how the bytes were cut into reads.
pub const LINE_BYTES: u32 = CARRY_BYTES as u32 - TAIL_BYTES;
/// Bytes kept in front when the rest of a long request line is passed over: its end must still be ` HTTP/1.x`.
pub const TAIL_BYTES: u32 = 16;

/// What a function of the parser asks of its caller.
pub mod step {
    /// Call again.
    pub const MORE: u32 = 0;
    /// The window is used up, the call's bytes are not: keep `line_start..end` (`Framing::carry` bytes) in front, fill up
    /// from the call's next bytes (its length less `Cursor::beyond`), call [`super::Cursor::filled`], go on.
    pub const FILL: u32 = 1;
    /// The call's bytes are used up: save `line_start..end` (`Framing::carry` bytes, may be 0) for the next call.
    pub const END: u32 = 2;
    /// A head's first byte is in view and nothing of it is consumed. Comes again for the head after an interim
    /// response or a PROXY line: the later one is the message's.
    pub const HEAD_BEGIN: u32 = 3;
    /// The head is complete and valid.
    pub const HEAD_END: u32 = 4;
    /// The head of an interim (1xx) response is complete: another head of the same message follows.
    pub const INTERIM: u32 = 5;
    /// The head is complete, and what follows in both directions is not HTTP: 101, or 2xx to a CONNECT.
    pub const UPGRADED: u32 = 6;
    /// The message's last byte has been passed.
    pub const MESSAGE_END: u32 = 7;
    /// `Cursor::text_*` describes a header value in the window.
    pub const TEXT: u32 = 8;
    /// `line_start..line_end` is a line of a head: call `request_line_or_header` or `response_line`.
    pub const LINE: u32 = 9;
    /// `line_start..line_end` is a chunk-size line: call `chunk_line`.
    pub const CHUNK_LINE: u32 = 10;
    /// A header whose value matters is in hand: call `locate_value`, then `field_value`.
    pub const FIELD: u32 = 32;
    /// ... of an `x-amzn-trace-id`: call `xray_value`.
    pub const XRAY_VALUE: u32 = 33;
    /// `Cursor::value_*` is the value of a header that frames the body: call `framing_value`.
    pub const FRAMING_VALUE: u32 = 11;
    /// ... of one of the request's own headers, or of W3C trace context: call `value`.
    pub const VALUE: u32 = 12;
    /// ... of another vendor's trace context: call `foreign_value`.
    pub const FOREIGN_VALUE: u32 = 13;
    /// ... of another vendor's trace context in one delimited value: call `delimited_value`.
    pub const DELIMITED_VALUE: u32 = 15;
    /// The request line in hand is one; `Cursor::value_*` is its target: call `request::target`.
    pub const TARGET: u32 = 14;
    /// Plus a reason: give the socket up.
    pub const OPAQUE_BASE: u32 = 16;
    /// The stream began with a TLS record.
    pub const OPAQUE_TLS: u32 = OPAQUE_BASE;
    /// The stream began with the HTTP/2 preface.
    pub const OPAQUE_HTTP2: u32 = OPAQUE_BASE + 1;
    /// Out of step, or a head that is not to be trusted.
    pub const OPAQUE_FRAMING: u32 = OPAQUE_BASE + 2;
    /// Not HTTP/1.
    pub const OPAQUE_PROTOCOL: u32 = OPAQUE_BASE + 3;
}

/// Where in a message the stream stands: [`Framing::phase`].
pub mod phase {
    /// A start line is expected or under way.
    pub const START: u8 = 0;
    /// Header lines.
    pub const HEADERS: u8 = 1;
    /// A chunk-size line.
    pub const CHUNK_SIZE: u8 = 2;
    /// The line end behind a chunk's data.
    pub const CHUNK_END: u8 = 3;
    /// Trailer lines.
    pub const TRAILERS: u8 = 4;
    /// `left` bytes of body.
    pub const BODY: u8 = 5;
    /// `left` bytes of a chunk.
    pub const CHUNK_DATA: u8 = 6;
    /// A response that ends when the connection does: the caller ends it.
    pub const UNTIL_CLOSE: u8 = 7;
    /// Given up or upgraded: everything is passed over.
    pub const OPAQUE: u8 = 8;
}

/// Bits of [`Framing::flags`].
pub mod flag {
    /// A whole head was seen on this stream: what is wrong now is out of step, not another protocol.
    pub const SEEN: u8 = 1;
    /// `HEAD_BEGIN` was given for the head under way.
    pub const BEGUN: u8 = 1 << 1;
    /// The rest of the line is passed over.
    pub const SKIP: u8 = 1 << 2;
    /// ... and its end is to be checked: a long request line.
    pub const TAIL: u8 = 1 << 3;
    /// `left` is the Content-Length of the head under way.
    pub const LENGTH: u8 = 1 << 4;
    /// The head under way has a Transfer-Encoding that ends in `chunked`.
    pub const CHUNKED: u8 = 1 << 5;
    /// The head under way is HTTP/1.0.
    pub const HTTP10: u8 = 1 << 6;
    /// The empty line or PROXY line in front of the head under way was passed.
    pub const PREAMBLE: u8 = 1 << 7;
}

/// State of one direction of a stream. All zero: a start line is expected.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Framing {
    /// Bytes of body or chunk still to come; within a head its Content-Length.
    pub left: u64,
    /// Bytes of content passed in this message, chunk framing not counted. Stands until the next `HEAD_BEGIN`.
    pub body_bytes: u64,
    /// One of [`phase`].
    pub phase: u8,
    /// Bits of [`flag`].
    pub flags: u8,
    /// Bytes consumed of the head, trailer section or chunk-size line under way.
    pub head_bytes: u16,
    /// Bytes of a partial line the caller keeps: at most [`CARRY_BYTES`].
    pub carry: u16,
    /// Status code of the response under way. Stands until the next `HEAD_BEGIN`.
    pub status: u16,
}

/// One call's view of its bytes. Made anew for every call ([`Self::begin`]), so it may lie in scratch memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Bytes of this call that lie behind `end` and are not in the window.
    pub beyond: u64,
    /// Hash of the text ([`crate::abi::text::TENANT`]), never 0 there.
    pub text_hash: u64,
    /// Response: the span id in a `server-timing: traceparent` of its head (a word in memory order), 0 if none has come.
    pub returned: u64,
    /// Next unparsed byte in the window.
    pub pos: u32,
    /// End of the valid bytes in the window.
    pub end: u32,
    /// Where the line under way begins.
    pub line_start: u32,
    /// Where the line in hand ends, its line end not included.
    pub line_end: u32,
    /// Where the line after the one in hand begins.
    pub line_next: u32,
    /// Up to where the line under way has been searched.
    pub scan: u32,
    /// The first colon of a header line, else its end.
    pub colon: u32,
    /// First byte of the header's value in the window.
    pub value_from: u32,
    /// Position behind its last.
    pub value_to: u32,
    /// First byte of the text in the window.
    pub text_from: u32,
    /// Its length in bytes.
    pub text_len: u32,
    /// Status code, from `HEAD_END`, `INTERIM` or `UPGRADED` of a response on.
    pub status: u16,
    /// The two bytes the search stopped at, the first one lowest.
    pub control: u16,
    /// One of [`crate::abi::text`].
    pub text_what: u8,
    /// Place in the configuration's list ([`crate::abi::text::HEADER`]).
    pub text_index: u8,
    /// 1 if the value is longer than the text.
    pub text_cut: u8,
    /// What of a line is in hand: one of [`cut`].
    pub cut: u8,
    /// Texts already given for the line in hand.
    pub pass: u8,
    /// 1: the partial line at the end of the window must be kept.
    pub hold: u8,
    /// Whose value it is: the request parser's own code.
    pub field: u8,
    /// Its place in the configuration's list, `KEPT_HEADERS` if it is not listed.
    pub listed: u8,
    /// Lines skimmed in this call.
    pub lines: u32,
    /// Zero.
    pub reserved: u32,
}

/// What of a line is in hand: [`Cursor::cut`].
pub mod cut {
    /// All of it.
    pub const WHOLE: u8 = 0;
    /// The first `LINE_BYTES` of a longer one.
    pub const LONG: u8 = 1;
    /// What has come of it so far: is it worth keeping?
    pub const PARTIAL: u8 = 2;
    /// The end of a long request line.
    pub const TAIL: u8 = 3;
    /// A start line up to a control byte that has no place there.
    pub const BROKEN: u8 = 4;
}

impl Cursor {
    /// For a call of `bytes` bytes, of which the first `filled` were copied into the window behind the `framing.carry`
    /// bytes saved from before.
    #[inline(always)]
    pub fn begin(framing: &Framing, bytes: u64, filled: u32) -> Self {
        let mut cursor = Self {
            beyond: bytes,
            ..Self::default()
        };
        cursor.filled(framing, filled);
        cursor
    }

    /// After `FILL`: `framing.carry` bytes were moved to the front and `filled` bytes were copied behind them.
    #[inline(always)]
    pub fn filled(&mut self, framing: &Framing, filled: u32) {
        let carry = framing.carry as u32;
        self.beyond = self.beyond.saturating_sub(filled as u64);
        self.pos = 0;
        self.line_start = 0;
        // What was carried has been searched, but for a last byte that waited for the one behind it.
        self.scan = carry.saturating_sub(1);
        self.end = carry + filled;
        self.pass = 0;
        self.hold = 0;
    }
}

/// Whether [`scan`] is to be called before [`advance`]. It need not be called inside bodies.
#[inline(always)]
pub fn needs_scan(f: &Framing, c: &Cursor) -> bool {
    f.phase <= phase::TRAILERS && c.scan < c.end
}

/// Searches the line under way: the position of the next control byte, `c.end` if there is none. Its results lie in
/// the cursor, so that the verifier, which follows this function's loops, knows nothing of them afterwards.
#[inline(always)]
pub fn scan(f: &Framing, c: &mut Cursor, w: &Window) -> u32 {
    let found = w.find_control(c.scan, c.end);
    c.control = w.load8(found) as u16;
    if f.phase == phase::HEADERS && f.flags & flag::SKIP == 0 {
        c.colon = w.find_byte(c.line_start, found, b':');
    }
    c.scan = found;
    found
}

/// Takes the next step that needs no line's contents. `ctl` is what [`scan`] found, or `c.end` where it was not needed.
#[inline(always)]
pub fn advance(f: &mut Framing, c: &mut Cursor, ctl: u32) -> u32 {
    if f.phase > phase::TRAILERS {
        return pass_body(f, c);
    }
    if c.line_start >= c.end {
        return need_more(f, c);
    }
    if f.phase == phase::START && f.flags & flag::BEGUN == 0 && ctl != c.line_start {
        f.flags |= flag::BEGUN;
        f.body_bytes = 0;
        f.status = 0;
        return step::HEAD_BEGIN;
    }
    if f.phase == phase::CHUNK_END && ctl != c.line_start {
        return give_up(f, step::OPAQUE_FRAMING);
    }
    if f.flags & flag::SKIP == 0 && ctl.wrapping_sub(c.line_start) > LINE_BYTES {
        return long_line(f, c);
    }
    let more = ctl + 1 < c.end;
    let stopped_at = c.control as u8;
    if ctl >= c.end || (!more && (stopped_at == b'\r' || is_tls(f, c, ctl))) {
        return partial_line(f, c, ctl);
    }
    match stopped_at {
        b'\t' => {
            c.scan = ctl + 1;
            step::MORE
        }
        b'\r' if c.control == u16::from_le_bytes(*b"\r\n") => whole_line(f, c, ctl),
        _ => broken_line(f, c, ctl),
    }
}

/// A TLS record's first byte where a stream's first byte is expected.
#[inline(always)]
fn is_tls(f: &Framing, c: &Cursor, ctl: u32) -> bool {
    f.phase == phase::START
        && f.flags & (flag::SEEN | flag::BEGUN) == 0
        && ctl == c.line_start
        && c.control as u8 == 0x16
}

/// Passes over content, also over what was never in the window.
#[inline(always)]
fn pass_body(f: &mut Framing, c: &mut Cursor) -> u32 {
    let seen = c.end.saturating_sub(c.pos) as u64;
    let all = seen + c.beyond;
    if f.phase >= phase::UNTIL_CLOSE {
        f.body_bytes += all;
        c.beyond = 0;
        to_end(f, c);
        return step::END;
    }
    let taken = if f.left < all { f.left } else { all };
    f.left -= taken;
    f.body_bytes += taken;
    if taken <= seen {
        c.pos += taken as u32;
        c.line_start = c.pos;
        c.scan = c.pos;
    } else {
        c.beyond -= taken - seen;
        to_end(f, c);
    }
    if f.left != 0 {
        to_end(f, c);
        return step::END;
    }
    if f.phase == phase::BODY {
        return end_message(f);
    }
    enter_lines(f, phase::CHUNK_END);
    step::MORE
}

/// Nothing in the window is of use any more.
#[inline(always)]
fn to_end(f: &mut Framing, c: &mut Cursor) {
    c.pos = c.end;
    c.line_start = c.end;
    c.scan = c.end;
    f.carry = 0;
}

/// The message is over; the next one's start line is expected.
#[inline(always)]
fn end_message(f: &mut Framing) -> u32 {
    f.flags &= flag::SEEN;
    f.left = 0;
    enter_lines(f, phase::START);
    step::MESSAGE_END
}

/// Enters a phase of lines with a count of its own.
#[inline(always)]
fn enter_lines(f: &mut Framing, phase: u8) {
    f.phase = phase;
    f.head_bytes = 0;
}

/// Gives the stream up.
#[inline(always)]
pub(super) fn give_up(f: &mut Framing, reason: u32) -> u32 {
    f.phase = phase::OPAQUE;
    f.carry = 0;
    reason
}

/// A start line that is none: another protocol, or out of step.
#[inline(always)]
pub(super) fn not_http(f: &mut Framing) -> u32 {
    let reason = if f.flags & flag::SEEN == 0 {
        step::OPAQUE_PROTOCOL
    } else {
        step::OPAQUE_FRAMING
    };
    give_up(f, reason)
}

/// More bytes are needed behind `line_start..end`.
#[inline(always)]
fn need_more(f: &mut Framing, c: &mut Cursor) -> u32 {
    c.pos = c.line_start;
    f.carry = (c.end - c.line_start) as u16;
    if c.beyond == 0 {
        step::END
    } else {
        step::FILL
    }
}

/// Consumes up to `to`: `false` if the head has grown too long.
#[inline(always)]
fn consume(f: &mut Framing, c: &mut Cursor, to: u32) -> bool {
    let bytes = f.head_bytes as u32 + (to - c.line_start);
    f.head_bytes = bytes as u16;
    c.line_start = to;
    c.pos = to;
    bytes <= HEAD_BYTES
}

/// The line under way has no end yet.
#[inline(always)]
fn partial_line(f: &mut Framing, c: &mut Cursor, ctl: u32) -> u32 {
    if f.phase == phase::TRAILERS && ctl != c.line_start {
        f.flags |= flag::SKIP;
    }
    if f.flags & flag::SKIP != 0 {
        let kept = if f.flags & flag::TAIL == 0 { 0 } else { TAIL_BYTES };
        let from = ctl.saturating_sub(kept);
        if from > c.line_start && !consume(f, c, from) {
            return give_up(f, step::OPAQUE_FRAMING);
        }
    } else if f.phase == phase::HEADERS && c.hold == 0 && c.colon < ctl {
        c.cut = cut::PARTIAL;
        c.line_end = ctl;
        c.line_next = ctl;
        return step::LINE;
    }
    need_more(f, c)
}

/// The line under way is longer than what is looked at.
#[inline(always)]
fn long_line(f: &mut Framing, c: &mut Cursor) -> u32 {
    c.line_end = c.line_start + LINE_BYTES;
    c.line_next = c.line_end - TAIL_BYTES;
    if f.head_bytes as u32 + LINE_BYTES > HEAD_BYTES {
        return give_up(f, step::OPAQUE_FRAMING);
    }
    c.cut = cut::LONG;
    match f.phase {
        phase::CHUNK_SIZE => step::CHUNK_LINE,
        phase::START | phase::HEADERS => step::LINE,
        phase::TRAILERS => line_done(f, c),
        _ => give_up(f, step::OPAQUE_FRAMING),
    }
}

/// The line under way ends in CR LF at `ctl`.
#[inline(always)]
fn whole_line(f: &mut Framing, c: &mut Cursor, ctl: u32) -> u32 {
    c.line_end = ctl;
    c.line_next = ctl + 2;
    c.cut = cut::WHOLE;
    let empty = ctl == c.line_start;
    if f.head_bytes as u32 + (c.line_next - c.line_start) > HEAD_BYTES {
        return give_up(f, step::OPAQUE_FRAMING);
    }
    if f.flags & flag::SKIP != 0 {
        if f.flags & flag::TAIL == 0 {
            f.flags &= !flag::SKIP;
            let next = line_done(f, c);
            if f.phase == phase::CHUNK_SIZE {
                enter_chunk(f);
            }
            return next;
        }
        c.cut = cut::TAIL;
        return step::LINE;
    }
    match f.phase {
        phase::START | phase::HEADERS => step::LINE,
        phase::CHUNK_SIZE => step::CHUNK_LINE,
        phase::CHUNK_END => {
            line_done(f, c);
            enter_lines(f, phase::CHUNK_SIZE);
            step::MORE
        }
        _ if empty => {
            line_done(f, c);
            end_message(f)
        }
        _ => line_done(f, c),
    }
}

/// A control byte that has no place where it stands.
#[inline(always)]
fn broken_line(f: &mut Framing, c: &mut Cursor, ctl: u32) -> u32 {
    if f.phase != phase::START || f.flags & (flag::SEEN | flag::SKIP) != 0 {
        return give_up(f, step::OPAQUE_FRAMING);
    }
    if is_tls(f, c, ctl) && c.control >> 8 == 3 {
        return give_up(f, step::OPAQUE_TLS);
    }
    c.line_end = ctl;
    c.line_next = ctl;
    c.cut = cut::BROKEN;
    step::LINE
}

/// The line in hand has been dealt with.
#[inline(always)]
pub(super) fn line_done(f: &mut Framing, c: &mut Cursor) -> u32 {
    let next = c.line_next;
    if c.cut == cut::LONG || c.cut == cut::PARTIAL {
        f.flags |= flag::SKIP;
    } else {
        c.scan = next;
    }
    c.pass = 0;
    c.hold = 0;
    if consume(f, c, next) {
        step::MORE
    } else {
        give_up(f, step::OPAQUE_FRAMING)
    }
}

/// The contents of a chunk-size line: hexadecimal digits, then nothing or an extension.
#[inline(always)]
pub fn chunk_line(f: &mut Framing, c: &mut Cursor, w: &Window) -> u32 {
    use super::super::{number, swar};
    let first = w.load8(c.line_start);
    let second = w.load8(c.line_start + 8);
    let marks = number::not_hex(first, true);
    let more = number::not_hex(second, true);
    // The line's own end is no digit, so a mark is found at it at the latest.
    let digits = if marks != 0 {
        swar::first(marks)
    } else if more != 0 {
        8 + swar::first(more)
    } else {
        return give_up(f, step::OPAQUE_FRAMING);
    };
    let end = c.line_start + digits;
    let behind = w.byte(end);
    if digits == 0 || (end != c.line_end && !matches!(behind, b';' | b' ' | b'\t')) {
        return give_up(f, step::OPAQUE_FRAMING);
    }
    let high = digits.saturating_sub(8);
    let low = digits - high;
    let size = (hex_prefix(first, low) << (high * 4)) | hex_prefix(second, high);
    if size > 1 << 48 {
        return give_up(f, step::OPAQUE_FRAMING);
    }
    f.left = size;
    let whole = c.cut == cut::WHOLE;
    let next = line_done(f, c);
    if whole && f.phase == phase::CHUNK_SIZE {
        enter_chunk(f);
    }
    next
}

/// A chunk-size line is over, `left` is the size.
#[inline(always)]
fn enter_chunk(f: &mut Framing) {
    enter_lines(
        f,
        if f.left == 0 {
            phase::TRAILERS
        } else {
            phase::CHUNK_DATA
        },
    );
}

/// The value of a word's first `count` hexadecimal digits (at most 8), which have been checked.
#[inline(always)]
fn hex_prefix(word: u64, count: u32) -> u64 {
    use super::super::{number, swar};
    let digits = (word & swar::keep(count)) | (swar::splat(b'0') & !swar::keep(count));
    number::pack_hex(digits).swap_bytes() as u64 >> ((8 - count) * 4)
}

const _: () = assert!(size_of::<Framing>() == 24 && size_of::<Cursor>() == 88);
