//! The bytes in view: what was carried over of an unfinished line, then what the last user read brought.
//!
//! Everything looks at eight bytes at a time and without slices, because that is what the BPF verifier walks
//! cheaply: an index is checked against a constant, never against a length.

use core::cell::Cell;

use super::swar;

/// Bytes that may stand in front of a fill: a partial line of earlier reads.
pub const CARRY_BYTES: usize = 1024;
/// Bytes copied per user read.
pub const FILL_BYTES: usize = 2048;
/// Words of a [`Window`]: a power of two, so that an index is bounded by a mask. What is behind the fill is never
/// filled, so that an unaligned load near the end stays inside.
pub const WINDOW_WORDS: usize = 512;

/// Words that may be filled.
const FILLED_WORDS: usize = (CARRY_BYTES + FILL_BYTES) / 8 + 1;
/// Words a line touches: what is longer than a carry is cut ([`super::http1::framing::LINE_BYTES`]).
const LINE_WORDS: usize = CARRY_BYTES / 8 + 1;
/// Longest run of blanks around a value that is taken off; the rest stays part of the value, which fails its own check.
/// Counted in bytes from where it begins: in words it would depend on where the line happens to lie.
const BLANK_BYTES: u32 = 512;
/// Words such a run touches.
const BLANK_WORDS: usize = BLANK_BYTES as usize / 8 + 1;
/// Longest field of a delimited value; the same.
const FIELD_BYTES: u32 = 128;
/// Words such a field touches.
const FIELD_WORDS: usize = FIELD_BYTES as usize / 8 + 1;

const _: () = assert!(WINDOW_WORDS.is_power_of_two() && CARRY_BYTES + FILL_BYTES + 16 <= WINDOW_WORDS * 8);

/// Bytes in memory order, eight to a little-endian word.
#[repr(C)]
#[derive(Clone, Debug)]
pub struct Window {
    /// The words. What lies behind [`super::http1::Cursor::end`] is left over from earlier use and means nothing.
    pub words: [u64; WINDOW_WORDS],
    /// See [`Window::launder`].
    cell: Cell<u64>,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            words: [0; WINDOW_WORDS],
            cell: Cell::new(0),
        }
    }
}

/// The smaller one.
#[inline(always)]
const fn nearer(a: u32, b: u32) -> u32 {
    if a < b {
        a
    } else {
        b
    }
}

impl Window {
    /// The same number, by way of memory.
    ///
    /// verifier: it follows every exit of a search loop with what it knows of the position there, and verifies all
    /// that comes after once for each. A number that was stored in map memory and loaded again is one of which it
    /// knows nothing, so the exits become one.
    #[inline(always)]
    pub fn launder(&self, number: u32) -> u32 {
        self.cell.set(number as u64);
        core::hint::black_box(self);
        self.cell.get() as u32
    }

    /// The word at `index`, which wraps at the end.
    ///
    /// verifier: a mask is the bound that survives; of a comparison LLVM keeps one copy of the index checked and loads
    /// with another ("unbounded memory access").
    #[inline(always)]
    fn word(&self, index: u32) -> u64 {
        self.words
            .get(index as usize & (WINDOW_WORDS - 1))
            .map_or(0, |word| *word)
    }

    /// The word that `pos` lies in.
    #[inline(always)]
    pub fn load_aligned(&self, pos: u32) -> u64 {
        self.word(pos >> 3)
    }

    /// The byte at `pos`, which the caller knows to be inside.
    #[inline(always)]
    pub fn byte(&self, pos: u32) -> u8 {
        (self.word(pos >> 3) >> ((pos & 7) * 8)) as u8
    }

    /// The eight bytes from `pos` on, the first one lowest. The caller knows `pos` to be inside; bytes behind the end
    /// mean nothing.
    #[inline(always)]
    pub fn load8(&self, pos: u32) -> u64 {
        let index = pos >> 3;
        let shift = (pos & 7) * 8;
        let (low, high) = (self.word(index), self.word(index.wrapping_add(1)));
        (low >> shift) | ((high << 1) << (63 - shift))
    }

    /// As [`Self::load8`], with A-Z as a-z. Exact for letters, digits and `-` once control bytes are excluded, which
    /// they are inside a line.
    #[inline(always)]
    pub fn load8_folded(&self, pos: u32) -> u64 {
        self.load8(pos) | swar::FOLD
    }

    /// The first position in `from..to` whose byte is below 0x20, else `to`.
    #[inline(always)]
    pub fn find_control(&self, from: u32, to: u32) -> u32 {
        self.find::<FILLED_WORDS>(from, to, |word| swar::below(word, 0x20))
    }

    /// The first position in `from..to` whose byte is a space or below, else `to`.
    #[inline(always)]
    pub fn find_space(&self, from: u32, to: u32) -> u32 {
        self.find::<LINE_WORDS>(from, to, |word| swar::below(word, 0x21))
    }

    /// The first position in `from..to` whose byte is `byte`, else `to`.
    #[inline(always)]
    pub fn find_byte(&self, from: u32, to: u32, byte: u8) -> u32 {
        self.find::<LINE_WORDS>(from, to, |word| swar::equal(word, byte))
    }

    /// As [`Self::find_byte`], for a field of a delimited value; `to` where it is longer than any.
    #[inline(always)]
    pub fn find_delimiter(&self, from: u32, to: u32, byte: u8) -> u32 {
        let limit = nearer(from.wrapping_add(FIELD_BYTES), to);
        let found = self.find::<FIELD_WORDS>(from, limit, |word| swar::equal(word, byte));
        if found == limit {
            to
        } else {
            found
        }
    }

    /// The first position in `from..to` whose byte is neither space nor tab, else `to`; 512 bytes on at the most.
    #[inline(always)]
    pub fn find_text(&self, from: u32, to: u32) -> u32 {
        let limit = nearer(from.wrapping_add(BLANK_BYTES), to);
        self.find::<BLANK_WORDS>(from, limit, swar::not_blank)
    }

    /// The first position in `from..to` whose byte is neither space, tab nor comma, else `to`.
    #[inline(always)]
    pub fn find_list_text(&self, from: u32, to: u32) -> u32 {
        self.find::<LINE_WORDS>(from, to, |word| {
            swar::not_blank(word) & swar::nonzero(word ^ swar::splat(b','))
        })
    }

    /// The first position in `from..to` of a `?` or `#`, else `to`.
    #[inline(always)]
    pub fn find_query(&self, from: u32, to: u32) -> u32 {
        self.find::<LINE_WORDS>(from, to, |word| swar::equal(word, b'?') | swar::equal(word, b'#'))
    }

    /// The first position in `from..to` of a `/`, `?` or `#`, else `to`.
    #[inline(always)]
    pub fn find_path_mark(&self, from: u32, to: u32) -> u32 {
        let mark = |word| swar::equal(word, b'?') | swar::equal(word, b'#') | swar::equal(word, b'/');
        self.find::<LINE_WORDS>(from, to, mark)
    }

    /// The first marked byte; `mark` sets bit 7 of a byte, and need be right only up to the first one it marks. Bytes
    /// in front of `from` are shown to it as 0xff, so that they can neither be marked nor borrow.
    #[inline(always)]
    fn find<const WORDS: usize>(&self, from: u32, to: u32, mark: impl Fn(u64) -> u64) -> u32 {
        let mut base = from & !7;
        let mut hidden = !(!0_u64 << ((from & 7) * 8));
        let mut found = to;
        for _ in 0..WORDS {
            if base >= to {
                break;
            }
            let marks = mark(self.word(base >> 3) | hidden) & !hidden;
            if marks != 0 {
                found = base + swar::first(marks);
                break;
            }
            hidden = 0;
            base += 8;
        }
        let found = self.launder(found);
        if found < to {
            found
        } else {
            to
        }
    }

    /// The position behind the last byte in `from..to` that is neither space nor tab, else `from`.
    #[inline(always)]
    pub fn trim_end(&self, from: u32, to: u32) -> u32 {
        let mut end = to;
        for _ in 0..BLANK_BYTES / 8 {
            if end <= from {
                break;
            }
            // The eight bytes in front of `end`; those in front of `from` count as text.
            let marks = swar::not_blank(self.load8(end.wrapping_sub(8)));
            if marks != 0 {
                end -= swar::behind_last(marks);
                break;
            }
            end = end.saturating_sub(8);
        }
        let end = self.launder(end);
        if end > from {
            end
        } else {
            from
        }
    }
}
