//! Header lines that nobody asks for, passed over in one go: most lines of most heads.
//!
//! What is passed over here, the parser's own steps would pass over too, one line at a time and at several times the
//! cost. Any line that is not plainly of this kind (one that is asked for, cut, folded, broken, very long, or not whole
//! in the window) is left to them, and so is the blank line.

#![allow(
    clippy::many_single_char_names,
    reason = "f, r, c, w, s are framing, request, cursor, window and settings throughout the parser"
)]

use super::super::swar;
use super::super::window::Window;
use super::framing::{flag, phase, Cursor, Framing, HEAD_BYTES, LINE_BYTES};
use super::request::Request;
use crate::abi::{setting, Settings};

/// Words and lines looked at in one call; [`may_skim`] is true again where it stopped for that.
const TURNS: u32 = 16;

/// Whether [`skim_request`] or [`skim_response`] may be called: a header line begins.
#[inline(always)]
pub fn may_skim(f: &Framing, c: &Cursor) -> bool {
    f.phase == phase::HEADERS && f.flags & flag::SKIP == 0 && c.scan == c.line_start && c.line_start < c.end
}

/// Passes over lines of a request's head.
#[inline(always)]
pub fn skim_request(f: &mut Framing, r: &mut Request, c: &mut Cursor, w: &Window, s: &Settings) {
    let before = c.lines;
    skim(f, c, w, |key, start| asked_of_request(key, start, w, s));
    r.lines = r.lines.wrapping_add((c.lines - before) as u16);
}

/// Passes over lines of a response's head.
#[inline(always)]
pub fn skim_response(f: &mut Framing, c: &mut Cursor, w: &Window) {
    skim(f, c, w, |key, start| {
        let four = key as u32;
        // `server:` comes with nearly every response.
        let timing = key << 8 == swar::word(*b"server-\0") << 8;
        (four == four_of(*b"cont") && is_length(w, start)) || four == four_of(*b"tran") || timing
    });
}

/// One bit for each letter a name may begin with, whatever its case; other bytes share bits with letters.
const fn initial(byte: u8) -> u32 {
    1 << (byte & 31)
}

/// Beginnings of the names that [`super::fields`] knows.
const INITIALS: u32 = initial(b'a')
    | initial(b'b')
    | initial(b'c')
    | initial(b'h')
    | initial(b's')
    | initial(b't')
    | initial(b'u')
    | initial(b'x');

/// Fills in what [`skim_request`] needs of the names and prefixes in `settings`: without it, lines that are asked for
/// would be passed over.
pub fn set_initials(settings: &mut Settings) {
    let of = |word: u64| if word == 0 { 0 } else { initial(word as u8) };
    let names = settings.names.iter().map(|name| of(name.words[0]));
    settings.name_initials = names.fold(0, |bits, bit| bits | bit);
    let agents = settings.user_agents.iter().map(|prefix| of(prefix[0]));
    settings.agent_initials = agents.fold(0, |bits, bit| bits | bit);
}

/// Whether a request's header line may be one that is asked for, by its first eight bytes in lower case.
#[inline(always)]
fn asked_of_request(key: u64, start: u32, w: &Window, s: &Settings) -> bool {
    let bit = initial(key as u8);
    if bit & s.name_initials != 0 {
        return true;
    }
    if bit & INITIALS == 0 {
        return false;
    }
    // By beginnings that tell: the parser's own steps look closer.
    let four = key as u32;
    match key as u8 {
        b'c' => four == four_of(*b"cont") && is_length(w, start),
        b'u' => (four == four_of(*b"user") && agent_asked(w, start, s)) || four == four_of(*b"uber"),
        b'h' => four == four_of(*b"host"),
        b't' => four == four_of(*b"trac") || four == four_of(*b"tran"),
        b'x' => four == four_of(*b"x-b3") || four == four_of(*b"x-am") || four == four_of(*b"x-da"),
        b'b' => four as u16 == u16::from_le_bytes(*b"b3"),
        b's' => four == four_of(*b"sign"),
        b'a' => four == four_of(*b"auth"),
        _ => false,
    }
}

const fn four_of(text: [u8; 4]) -> u32 {
    u32::from_le_bytes(text)
}

/// Whether the user agent of this line is of interest. With one blank behind the colon, as everybody writes it, the first
/// letter decides.
#[inline(always)]
fn agent_asked(w: &Window, start: u32, s: &Settings) -> bool {
    let value = w.load8(start + 10);
    let plain = value as u16 == u16::from_le_bytes(*b": ") && (value >> 16) as u8 > b' ';
    !plain || s.flags & setting::USER_AGENT_TEXT != 0 || initial((value >> 16) as u8) & s.agent_initials != 0
}

/// Of the names that begin with `cont`, whether this one goes on like `content-length`.
#[inline(always)]
fn is_length(w: &Window, start: u32) -> bool {
    w.load8_folded(start + 6) == swar::word(*b"t-length")
}

/// Bytes of a line's beginning that are looked at before the words they lie in.
const AHEAD: u32 = 7;
/// The byte of a word that is not among them, as one that is no mark.
const BEHIND: u64 = 0xff << 56;

/// [`Cursor::colon`] here: the line's name has not ended yet, or it has.
const IN_NAME: u32 = 0;
const IN_VALUE: u32 = 1;

/// One turn looks at one word, and ends a line in it.
///
/// verifier: what is known from one turn to the next lies in the cursor's memory, so that every turn begins with the same
/// knowledge, however the one before it ended.
#[inline(always)]
fn skim(f: &mut Framing, c: &mut Cursor, w: &Window, asked: impl Fn(u64, u32) -> bool) {
    let first = w.load8(c.line_start);
    if !begins(c, first, &asked) {
        c.scan = c.line_start;
        return;
    }
    for _ in 0..TURNS {
        core::hint::black_box(&mut *c);
        let at = c.scan;
        if at >= c.end {
            break;
        }
        if c.colon == IN_NAME {
            let word = w.load_aligned(at);
            let marks = name_ends(word);
            if marks == 0 {
                c.scan = at + 8;
                continue;
            }
            if !is_colon(word, marks) {
                break;
            }
            c.colon = IN_VALUE;
        }
        // What stands in front of the colon is no control byte, so the colon's own word may be searched from its beginning.
        let Some(end) = controls_in_four(w, at) else {
            c.scan = at + 32;
            continue;
        };
        let behind = w.load8(end);
        let is_end = behind as u16 == u16::from_le_bytes(*b"\r\n") && end + 1 < c.end;
        let behind = w.load8(end + 1);
        if !is_end || !take(f, c, end) || !begins(c, behind >> 8, &asked) {
            break;
        }
    }
    // Whatever line was begun, the parser's own search begins anew.
    c.scan = c.line_start;
}

/// The first control byte in the four words from `at` on.
#[inline(always)]
fn controls_in_four(w: &Window, at: u32) -> Option<u32> {
    let controls = |nth: u32| swar::below(w.load_aligned(at + nth * 8), 0x20);
    let [first, second, third, fourth] = [controls(0), controls(1), controls(2), controls(3)];
    if first | second | third | fourth == 0 {
        return None;
    }
    let (marks, from) = if first != 0 {
        (first, at)
    } else if second != 0 {
        (second, at + 8)
    } else if third != 0 {
        (third, at + 16)
    } else {
        (fourth, at + 24)
    };
    Some(from + swar::first(marks))
}

/// Marks the bytes that may end a name: colons, blanks and control bytes.
#[inline(always)]
const fn name_ends(word: u64) -> u64 {
    swar::below(word, b' ' + 1) | swar::equal(word, b':')
}

/// The first marked byte.
#[inline(always)]
const fn byte_at(word: u64, marks: u64) -> u8 {
    (word >> (swar::first(marks) * 8)) as u8
}

#[inline(always)]
const fn is_colon(word: u64, marks: u64) -> bool {
    byte_at(word, marks) == b':'
}

/// Whether a line begins at `line_start` that nobody asks for, by its first [`AHEAD`] bytes: enough of it is in view, and
/// it is neither the blank line, nor folded, nor broken there. If so, the search goes on behind them.
#[inline(always)]
fn begins(c: &mut Cursor, first: u64, asked: impl Fn(u64, u32) -> bool) -> bool {
    let ahead = first | BEHIND;
    let start = c.line_start;
    if start + 16 > c.end || swar::below(ahead, 0x20) != 0 || asked(ahead | swar::FOLD, start) {
        return false;
    }
    let marks = name_ends(ahead);
    c.colon = if marks == 0 { IN_NAME } else { IN_VALUE };
    c.scan = (start + AHEAD) & !7;
    marks == 0 || (is_colon(ahead, marks) && ahead as u8 != b':')
}

/// Takes the line that ends at `end`.
#[inline(always)]
fn take(f: &mut Framing, c: &mut Cursor, end: u32) -> bool {
    let length = end.wrapping_sub(c.line_start);
    let head_bytes = f.head_bytes as u32 + length + 2;
    if length > LINE_BYTES || head_bytes > HEAD_BYTES {
        return false;
    }
    f.head_bytes = head_bytes as u16;
    c.line_start = end + 2;
    c.pos = end + 2;
    c.lines += 1;
    true
}
