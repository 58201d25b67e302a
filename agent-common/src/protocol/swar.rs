//! Eight bytes at a time: marks in bit 7 of each byte of a word, without a branch and without a loop.

/// Bit 7 of every byte.
pub const HIGH: u64 = 0x8080_8080_8080_8080;
/// Bit 5 of every byte: sets a letter to lower case.
pub const FOLD: u64 = 0x2020_2020_2020_2020;
const ONES: u64 = 0x0101_0101_0101_0101;
const LOW7: u64 = 0x7f7f_7f7f_7f7f_7f7f;

/// Every byte is `byte`.
#[inline(always)]
pub const fn splat(byte: u8) -> u64 {
    ONES * byte as u64
}

/// Marks bytes below `limit` (at most 0x80). Right up to and including the first marked byte: a borrow may mark a
/// byte after it wrongly.
#[inline(always)]
pub const fn below(word: u64, limit: u8) -> u64 {
    word.wrapping_sub(splat(limit)) & !word & HIGH
}

/// Marks bytes equal to `byte`. Right up to and including the first marked byte.
#[inline(always)]
pub const fn equal(word: u64, byte: u8) -> u64 {
    below(word ^ splat(byte), 1)
}

/// Marks bytes that are neither space nor tab. Exact for every byte.
#[inline(always)]
pub const fn not_blank(word: u64) -> u64 {
    nonzero(word ^ splat(b' ')) & nonzero(word ^ splat(b'\t'))
}

/// Marks bytes that are not zero. Exact for every byte.
#[inline(always)]
pub const fn nonzero(word: u64) -> u64 {
    (((word & LOW7) + LOW7) | word) & HIGH
}

/// Marks bytes in `first..=last` (both below 0x80). Exact for every byte.
#[inline(always)]
pub const fn between(word: u64, first: u8, last: u8) -> u64 {
    let low = word & LOW7;
    (low + splat(0x80 - first)) & !(low + splat(0x7f - last)) & !word & HIGH
}

/// A-Z as a-z, every other byte as it is.
#[inline(always)]
pub const fn lower(word: u64) -> u64 {
    word | (between(word, b'A', b'Z') >> 2)
}

/// Number of the first marked byte; `marks` has bit 7 of some byte set and nothing but such bits. The processor has a
/// bit scan, BPF has not: the lowest mark, multiplied, brings its own number to the top byte.
#[inline(always)]
pub const fn first(marks: u64) -> u32 {
    let lowest = (marks & marks.wrapping_neg()) >> 7;
    (lowest.wrapping_mul(0x0001_0203_0405_0607) >> 56) as u32
}

/// How many bytes stand behind the last marked one, 8 if none is; `marks` has nothing but bits 7 set.
#[inline(always)]
pub const fn behind_last(marks: u64) -> u32 {
    let two = marks | (marks >> 8);
    let four = two | (two >> 16);
    let all = four | (four >> 32);
    8 - ((all >> 7).wrapping_mul(ONES) >> 56) as u32
}

/// A word with the lowest `bytes` bytes set (all of them from 8 on).
#[inline(always)]
pub const fn keep(bytes: u32) -> u64 {
    if bytes >= 8 {
        !0
    } else {
        !(!0 << (bytes * 8))
    }
}

/// Eight bytes as the word they are loaded as.
pub const fn word(bytes: [u8; 8]) -> u64 {
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn marked(marks: u64) -> std::vec::Vec<bool> {
        marks.to_le_bytes().iter().map(|byte| *byte == 0x80).collect()
    }

    proptest! {
        #[test]
        fn exact_marks_agree_with_bytes(bytes: [u8; 8], a in 0_u8..0x80, b in 0_u8..0x80) {
            let (first, last) = (a.min(b), a.max(b));
            let word = word(bytes);
            let by_bytes = |f: &dyn Fn(u8) -> bool| bytes.iter().map(|byte| f(*byte)).collect::<std::vec::Vec<_>>();
            prop_assert_eq!(marked(between(word, first, last)), by_bytes(&|x| (first..=last).contains(&x)));
            prop_assert_eq!(marked(nonzero(word)), by_bytes(&|x| x != 0));
            prop_assert_eq!(marked(not_blank(word)), by_bytes(&|x| x != b' ' && x != b'\t'));
            prop_assert_eq!(lower(word).to_le_bytes(), bytes.map(|x| x.to_ascii_lowercase()));
        }

        #[test]
        fn the_first_mark_is_the_first_byte(bytes: [u8; 8], limit in 1_u8..=0x80, wanted: u8) {
            let at = |marks: u64| (marks != 0).then(|| first(marks) as usize);
            prop_assert_eq!(at(below(word(bytes), limit)), bytes.iter().position(|x| *x < limit));
            prop_assert_eq!(at(equal(word(bytes), wanted)), bytes.iter().position(|x| *x == wanted));
        }
    }

    #[test]
    fn keep_counts_bytes() {
        assert_eq!(keep(0), 0);
        assert_eq!(keep(3), 0xff_ffff);
        assert_eq!(keep(8), !0);
        assert_eq!(keep(9), !0);
    }
}
