//! What a header line's name and value have in common in both directions, and the two headers that frame a body.

use super::super::window::Window;
use super::super::{number, swar};
use super::framing::{cut, flag, give_up, line_done, step, Cursor, Framing};

/// A header line's name: its length and its first eight bytes in lower case, zero behind the name's end.
#[derive(Clone, Copy)]
pub(super) struct Name {
    pub(super) start: u32,
    pub(super) len: u32,
    pub(super) key: u64,
}

/// Whether a line's beginning can be a header line's; its name if so.
#[inline(always)]
pub(super) fn name(c: &Cursor, w: &Window) -> Option<Name> {
    let start = c.line_start;
    let len = c.colon.wrapping_sub(start);
    let first = w.byte(start);
    let before = w.byte(c.colon.wrapping_sub(1));
    if len == 0 || c.colon >= c.line_end || first <= b' ' || before <= b' ' || w.byte(c.colon) != b':' {
        return None;
    }
    let key = w.load8_folded(start) & swar::keep(len);
    Some(Name { start, len, key })
}

impl Name {
    /// Whether the bytes of the name from `at` on are `text` (in lower case).
    #[inline(always)]
    pub(super) fn has(self, w: &Window, at: u32, text: [u8; 8]) -> bool {
        w.load8_folded(self.start + at) == swar::word(text)
    }

    #[inline(always)]
    pub(super) fn is_content_length(self, w: &Window) -> bool {
        self.len == 14 && self.key == swar::word(*b"content-") && self.has(w, 6, *b"t-length")
    }

    #[inline(always)]
    pub(super) fn is_transfer_encoding(self, w: &Window) -> bool {
        self.len == 17
            && self.key == swar::word(*b"transfer")
            && self.has(w, 8, *b"-encodin")
            && self.has(w, 9, *b"encoding")
    }

    #[inline(always)]
    pub(super) fn is_server_timing(self, w: &Window) -> bool {
        self.len == 13 && self.key == swar::word(*b"server-t") && self.has(w, 5, *b"r-timing")
    }
}

/// Finds the value: its first byte and the position behind its last, blanks around it left out.
#[inline(always)]
pub fn locate_value(c: &mut Cursor, w: &Window) {
    let mut from = c.colon + 1;
    if w.byte(from) == b' ' {
        from += 1;
    }
    if w.byte(from) <= b' ' {
        from = w.find_text(from, c.line_end);
    }
    let mut to = c.line_end;
    if w.byte(to.wrapping_sub(1)) <= b' ' {
        to = w.trim_end(from, to);
    }
    c.value_from = if from < to { from } else { to };
    c.value_to = to;
}

/// A Content-Length.
#[inline(always)]
pub(super) fn content_length(f: &mut Framing, c: &mut Cursor, w: &Window) -> u32 {
    let (from, to) = (c.value_from, c.value_to);
    let length = number::decimal(w, to, to - from);
    let differs = f.flags & flag::LENGTH != 0 && f.left != length.value;
    if c.cut != cut::WHOLE || length.bad != 0 || to - from > 19 || differs || f.flags & flag::CHUNKED != 0 {
        return give_up(f, step::OPAQUE_FRAMING);
    }
    f.left = length.value;
    f.flags |= flag::LENGTH;
    line_done(f, c)
}

/// A Transfer-Encoding: `chunked`, or one other coding, a comma and `chunked`.
#[inline(always)]
pub(super) fn transfer_encoding(f: &mut Framing, c: &mut Cursor, w: &Window) -> u32 {
    let (from, to) = (c.value_from, c.value_to);
    let len = to - from;
    let chunked = (w.load8_folded(to.wrapping_sub(8)) >> 8) == (swar::word(*b"\0chunked") >> 8);
    let alone = len == 7 || (len > 8 && len <= 32 && one_coding_before(w, from, to - 7));
    let twice = f.flags & (flag::LENGTH | flag::CHUNKED | flag::HTTP10) != 0;
    if c.cut != cut::WHOLE || !chunked || !alone || twice {
        return give_up(f, step::OPAQUE_FRAMING);
    }
    f.flags |= flag::CHUNKED;
    line_done(f, c)
}

/// Whether `from..to` is one coding that is not `chunked`, and a comma behind it.
#[inline(always)]
fn one_coding_before(w: &Window, from: u32, to: u32) -> bool {
    let comma = w.find_byte(from, to, b',');
    let chunked = w.load8_folded(from) & swar::keep(7) == swar::word(*b"chunked\0");
    comma > from && comma < to && !chunked && w.find_text(comma + 1, to) == to
}
