//! Hexadecimal and decimal numbers out of a window: checked and packed eight digits at a time, without branches.
//!
//! Numbers are addressed by their end: the digits are taken from the right and what stands in front of them in the
//! word is overwritten by `0`, so every length is the same straight line of code.

use super::swar;
use super::window::Window;

/// A number and what was wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digits {
    /// The value; means nothing unless `bad` is 0.
    pub value: u64,
    /// Not 0: some byte was no digit, or the number did not fit.
    pub bad: u64,
}

/// The word's last `count` bytes (at most 8), with `0` digits in front.
#[inline(always)]
fn right_aligned(word: u64, count: u32) -> u64 {
    let front = swar::keep(8 - if count > 8 { 8 } else { count });
    (word & !front) | (swar::splat(b'0') & front)
}

/// Marks the bytes that are not 0-9 or a-f, nor A-F where `upper` is set.
#[inline(always)]
pub fn not_hex(word: u64, upper: bool) -> u64 {
    let letters = if upper { swar::lower(word) } else { word };
    !(swar::between(word, b'0', b'9') | swar::between(letters, b'a', b'f')) & swar::HIGH
}

/// Eight hexadecimal digits as four bytes, the first byte lowest. The digits must have been checked.
#[inline(always)]
pub fn pack_hex(word: u64) -> u32 {
    let digits = (word & swar::splat(0x0f)) + ((word >> 6) & swar::splat(1)) * 9;
    let pairs = ((digits << 4) | (digits >> 8)) & 0x00ff_00ff_00ff_00ff;
    let quads = (pairs | (pairs >> 8)) & 0x0000_ffff_0000_ffff;
    (quads | (quads >> 16)) as u32
}

/// Up to 16 hexadecimal digits that end at `end`, of either case where `upper` is set. The value holds the bytes in the
/// order they are written (first byte lowest), zero-filled in front.
#[inline(always)]
pub fn hex(window: &Window, end: u32, count: u32, upper: bool) -> Digits {
    let last = right_aligned(window.load8(end.wrapping_sub(8)), count);
    let first = right_aligned(window.load8(end.wrapping_sub(16)), count.saturating_sub(8));
    Digits {
        value: pack_hex(first) as u64 | ((pack_hex(last) as u64) << 32),
        bad: not_hex(first, upper) | not_hex(last, upper) | (count > 16) as u64,
    }
}

/// Eight decimal digits, checked: the value and the marks of what is no digit.
#[inline(always)]
fn eight_digits(word: u64) -> Digits {
    let bad = !swar::between(word, b'0', b'9') & swar::HIGH;
    let ones = word & swar::splat(0x0f);
    let tens = (ones.wrapping_mul(10) + (ones >> 8)) & 0x00ff_00ff_00ff_00ff;
    let hundreds = (tens.wrapping_mul(100) + (tens >> 16)) & 0x0000_ffff_0000_ffff;
    let value = (hundreds.wrapping_mul(10_000) + (hundreds >> 32)) & 0xffff_ffff;
    Digits { value, bad }
}

/// Up to 20 decimal digits that end at `end`; bad if there is none, or the value does not fit.
#[inline(always)]
pub fn decimal(window: &Window, end: u32, count: u32) -> Digits {
    let low = eight_digits(right_aligned(window.load8(end.wrapping_sub(8)), count));
    let middle = eight_digits(right_aligned(
        window.load8(end.wrapping_sub(16)),
        count.saturating_sub(8),
    ));
    let high = eight_digits(right_aligned(
        window.load8(end.wrapping_sub(24)),
        count.saturating_sub(16),
    ));
    let rest = middle.value.wrapping_mul(100_000_000).wrapping_add(low.value);
    // u64::MAX is 1844 * 10^16 + 6744073709551615.
    let over = high.value > 1844 || (high.value == 1844 && rest > 6_744_073_709_551_615);
    Digits {
        value: high.value.wrapping_mul(10_000_000_000_000_000).wrapping_add(rest),
        bad: low.bad | middle.bad | high.bad | (count == 0 || count > 20 || over) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::http1::test_window;
    use proptest::prelude::*;
    use std::format;

    proptest! {
        #[test]
        fn hex_agrees_with_the_standard_library(value: u64, digits in 1_usize..=16, offset in 0_usize..9) {
            let value = if digits == 16 { value } else { value & ((1 << (digits * 4)) - 1) };
            let text = format!("{}{value:0digits$x}", "~".repeat(offset + 16));
            let window = test_window(text.as_bytes());
            let read = hex(&window, text.len() as u32, digits as u32, false);
            prop_assert_eq!((read.bad, read.value.swap_bytes()), (0, value));
            let upper = test_window(text.to_uppercase().as_bytes());
            prop_assert_eq!(hex(&upper, text.len() as u32, digits as u32, true), read);
        }

        #[test]
        fn decimal_agrees_with_the_standard_library(text in "[0-9]{1,22}", offset in 0_usize..9) {
            let line = format!("{}{text}", "~".repeat(offset + 24));
            let read = decimal(&test_window(line.as_bytes()), line.len() as u32, text.len() as u32);
            match text.parse::<u64>() {
                Ok(value) if text.len() <= 20 => prop_assert_eq!((read.bad, read.value), (0, value)),
                _ => prop_assert!(read.bad != 0),
            }
        }

        #[test]
        fn one_wrong_byte_is_noticed(wrong: u8, at in 0_usize..16) {
            let mut text = *b"~~~~~~~~~~~~~~~~00112233445566778899";
            let end = text.len();
            let place = end - 1 - at;
            text[place] = wrong;
            let window = test_window(&text);
            prop_assert_eq!(hex(&window, end as u32, 16, true).bad == 0, wrong.is_ascii_hexdigit());
            let lower = wrong.is_ascii_digit() || (b'a'..=b'f').contains(&wrong);
            prop_assert_eq!(hex(&window, end as u32, 16, false).bad == 0, lower);
            prop_assert_eq!(decimal(&window, end as u32, 16).bad == 0, wrong.is_ascii_digit());
        }
    }
}
