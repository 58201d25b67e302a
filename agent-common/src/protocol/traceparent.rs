//! Trace context as text: the value of a traceparent (W3C Trace Context, 3.2), in words for the kernel side to put where it
//! belongs.

/// Bytes of a traceparent of version 00.
pub const VALUE_BYTES: u32 = 55;

/// Half of a word's digits: four bytes as eight hexadecimal digits in lower case, in memory order.
#[inline(always)]
const fn digits(bytes: u32) -> u64 {
    // One nibble in each byte: the upper one of each byte first.
    let b = bytes as u64;
    let spread = (b & 0xff) | (b & 0xff00) << 8 | (b & 0xff_0000) << 16 | (b & 0xff00_0000) << 24;
    let nibbles = (spread >> 4 & 0x000f_000f_000f_000f) | (spread & 0x000f_000f_000f_000f) << 8;
    // 6 more than 9 carries into the fifth bit: a letter.
    let letters = (nibbles + 0x0606_0606_0606_0606) >> 4 & 0x0101_0101_0101_0101;
    nibbles + 0x3030_3030_3030_3030 + letters * (b'a' - b'0' - 10) as u64
}

/// An id's eight bytes (a word in memory order) as sixteen digits.
#[inline(always)]
pub const fn id(word: u64) -> [u64; 2] {
    [digits(word as u32), digits((word >> 32) as u32)]
}

/// `00-{trace id}-{parent id}-{flags}`, [`VALUE_BYTES`] of the eight words in memory order; what is behind them is zero. Ids are
/// words in memory order, as [`crate::abi::WireValue`] has them.
#[inline(always)]
pub const fn value(trace_id: [u64; 2], parent_id: u64, flags: u8) -> [u64; 7] {
    let [high, low] = trace_id;
    let ([t0, t1], [t2, t3], [p0, p1]) = (id(high), id(low), id(parent_id));
    let flags = digits(flags as u32) & 0xffff;
    let dash = b'-' as u64;
    // Three bytes of `00-` shift the trace id's words; four with the dash behind it, those of the parent id.
    [
        b'0' as u64 | (b'0' as u64) << 8 | dash << 16 | t0 << 24,
        t0 >> 40 | t1 << 24,
        t1 >> 40 | t2 << 24,
        t2 >> 40 | t3 << 24,
        t3 >> 40 | dash << 24 | p0 << 32,
        p0 >> 32 | p1 << 32,
        p1 >> 32 | dash << 32 | flags << 40,
    ]
}

#[cfg(test)]
mod tests {
    use super::{id, value, VALUE_BYTES};
    use std::string::String;
    use std::vec::Vec;

    fn text(words: &[u64], len: usize) -> String {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        String::from_utf8(bytes[..len].to_vec()).unwrap()
    }

    #[test]
    fn ids_are_digits_in_memory_order() {
        let bytes = [0x00, 0x1f, 0xa9, 0x9a, 0xff, 0x70, 0x0b, 0xe5];
        assert_eq!(text(&id(u64::from_le_bytes(bytes)), 16), "001fa99aff700be5");
        for byte in 0..=255_u8 {
            let digits = text(&id(u64::from_le_bytes([byte; 8])), 2);
            assert_eq!(u8::from_str_radix(&digits, 16), Ok(byte));
            assert_eq!(digits, digits.to_lowercase());
        }
    }

    #[test]
    fn a_value_is_a_traceparent() {
        let bytes: Vec<u8> = (1..=24).collect();
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let words = value([word(0), word(8)], word(16), 3);
        let expected = "00-0102030405060708090a0b0c0d0e0f10-1112131415161718-03";
        assert_eq!(text(&words, VALUE_BYTES as usize), expected);
        assert_eq!(words[6].to_le_bytes()[7], 0);
    }
}
