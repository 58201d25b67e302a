//! The bytes in view: what was carried over of an unfinished line, then what the last user read brought.
//!
//! Everything looks at eight bytes at a time and without slices, because that is what the BPF verifier walks
//! cheaply: an index is checked against a constant, never against a length.

use super::swar;

/// Bytes that may stand in front of a fill: a partial line of earlier reads.
pub const CARRY_BYTES: usize = 1024;
/// Bytes copied per user read.
pub const FILL_BYTES: usize = 2048;
/// Words of a [`Window`]; the last two are never filled, so that an unaligned load near the end stays inside.
pub const WINDOW_WORDS: usize = (CARRY_BYTES + FILL_BYTES) / 8 + 2;

/// Bytes in memory order, eight to a little-endian word.
#[repr(C)]
#[derive(Clone, Debug)]
pub struct Window {
    /// The words. What lies behind [`super::http1::Cursor::end`] is left over from earlier use and means nothing.
    pub words: [u64; WINDOW_WORDS],
}

impl Default for Window {
    fn default() -> Self {
        Self {
            words: [0; WINDOW_WORDS],
        }
    }
}

impl Window {
    /// The byte at `pos`, 0 outside.
    #[inline(always)]
    pub fn byte(&self, pos: u32) -> u8 {
        match self.words.get((pos >> 3) as usize) {
            Some(word) => (*word >> ((pos & 7) * 8)) as u8,
            None => 0,
        }
    }

    /// The eight bytes from `pos` on, the first one lowest; 0 outside.
    #[inline(always)]
    pub fn load8(&self, pos: u32) -> u64 {
        let index = (pos >> 3) as usize;
        if index >= WINDOW_WORDS - 1 {
            return 0;
        }
        let shift = (pos & 7) * 8;
        let low = self.words.get(index).map_or(0, |word| *word);
        let high = self.words.get(index + 1).map_or(0, |word| *word);
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
        self.find(from, to, |word| swar::below(word, 0x20))
    }

    /// The first position in `from..to` whose byte is a space or below, else `to`.
    #[inline(always)]
    pub fn find_space(&self, from: u32, to: u32) -> u32 {
        self.find(from, to, |word| swar::below(word, 0x21))
    }

    /// The first position in `from..to` whose byte is `byte`, else `to`.
    #[inline(always)]
    pub fn find_byte(&self, from: u32, to: u32, byte: u8) -> u32 {
        self.find(from, to, |word| swar::equal(word, byte))
    }

    /// The first position in `from..to` whose byte is neither space nor tab, else `to`.
    #[inline(always)]
    pub fn find_text(&self, from: u32, to: u32) -> u32 {
        self.find(from, to, swar::not_blank)
    }

    /// The first position in `from..to` of a `?` or `#`, else `to`.
    #[inline(always)]
    pub fn find_query(&self, from: u32, to: u32) -> u32 {
        self.find(from, to, |word| {
            swar::equal(word, b'?') | swar::equal(word, b'#')
        })
    }

    /// The first position in `from..to` of a `/`, `?` or `#`, else `to`.
    #[inline(always)]
    pub fn find_path_mark(&self, from: u32, to: u32) -> u32 {
        let mark =
            |word| swar::equal(word, b'?') | swar::equal(word, b'#') | swar::equal(word, b'/');
        self.find(from, to, mark)
    }

    /// The first marked byte; `mark` sets bit 7 of a byte, and need be right only up to the first one it marks. Bytes
    /// in front of `from` are shown to it as 0xff, so that they can neither be marked nor borrow.
    #[inline(always)]
    fn find(&self, from: u32, to: u32, mark: impl Fn(u64) -> u64) -> u32 {
        let mut base = from & !7;
        let mut hidden = !(!0_u64 << ((from & 7) * 8));
        for _ in 0..WINDOW_WORDS {
            if base >= to {
                break;
            }
            let Some(word) = self.words.get((base >> 3) as usize) else {
                break;
            };
            let marks = mark(*word | hidden) & !hidden;
            if marks != 0 {
                let found = base + swar::first(marks);
                return if found < to { found } else { to };
            }
            hidden = 0;
            base += 8;
        }
        to
    }

    /// The position behind the last byte in `from..to` that is neither space nor tab, else `from`.
    #[inline(always)]
    pub fn trim_end(&self, from: u32, to: u32) -> u32 {
        let mut end = to;
        for _ in 0..CARRY_BYTES {
            if end <= from || !matches!(self.byte(end - 1), b' ' | b'\t') {
                break;
            }
            end -= 1;
        }
        end
    }
}
