//! Does a run of letters read like a word? Random letters are keys, tokens or names; they do not leave.

/// How unlikely the second letter is after the first, in bits (0 to 9), over 34,030 words of software's documentation
/// and sources. Row: first letter; column: second, `a` to `z`.
const BITS: [[u8; 26]; 26] = [
    *b"85448758596343959343567768", // a
    *b"36563767368366359446488768", // b
    *b"38573783594467269453589979", // c
    *b"45652667387566469446577979", // d
    *b"57435568698453757234767569", // e
    *b"48663478299466379445498969", // f
    *b"47662754399464469346478977", // g
    *b"27772899397566379464586969", // h
    *b"55455559897452459544859795", // i
    *b"27663778476676358746386989", // j
    *b"36662666387566469536586968", // k
    *b"37752789297377379855579948", // l
    *b"25662789398658339756589979", // m
    *b"47433537486775479733668978", // n
    *b"66457658686442549344455788", // o
    *b"38663775496477349354587969", // p
    *b"77667789599476768546178899", // q
    *b"37552768396655369544568959", // r
    *b"47473774396567447742477959", // s
    *b"38672784298567469345597858", // t
    *b"54554658597443749333989798", // u
    *b"37571778299757469656889889", // v
    *b"26653674397564379447797999", // w
    *b"46453576397557639643678568", // x
    *b"46564667497444529534576876", // y
    *b"36761765387565479767688965", // z
];

/// Shorter runs say too little.
const SHORTEST: usize = 8;
/// A longer run without a capital or a separator is no single word.
pub(super) const LONGEST: usize = 20;

/// True if the letters follow each other as they do in words. Of 1,500 words held back from the table, 6 of 842 with 8
/// or 9 letters are refused and none of the longer ones; of random letters 82 % at 8, 89 % at 10, 95 % at 15.
pub(super) fn read_like_a_word(letters: &[u8]) -> bool {
    if letters.len() < SHORTEST {
        return true;
    }
    // Hundredths of a bit per pair.
    let limit = if letters.len() < 10 { 525 } else { 500 };
    let bits: usize = letters
        .iter()
        .zip(letters.iter().skip(1))
        .map(|(first, second)| pair_bits(*first, *second))
        .sum();
    bits * 100 <= limit * (letters.len() - 1)
}

fn pair_bits(first: u8, second: u8) -> usize {
    let place = |letter: u8| usize::from(letter.to_ascii_lowercase().wrapping_sub(b'a'));
    BITS.get(place(first))
        .and_then(|row| row.get(place(second)))
        .map_or(9, |digit| usize::from(digit.saturating_sub(b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_pass() {
        for word in [
            "products",
            "customers",
            "checkout",
            "inventory",
            "authentication",
            "recommendations",
            "transactions",
            "dashboard",
            "kubernetes",
            "prometheus",
            "graphql",
            "openapi",
            "wellknown",
            "healthcheck",
            "notifications",
            "subscriptions",
            "configuration",
            "wordpress",
            "phpmyadmin",
            "thumbnails",
            "favicon",
            "javascript",
            "stylesheet",
            "bootstrap",
            "organizations",
            "repositories",
            "internationalization",
            "Authorization",
            "download",
            "upstream",
            "websocket",
        ] {
            assert!(read_like_a_word(word.as_bytes()), "{word}");
        }
    }

    #[test]
    fn random_letters_do_not() {
        for word in [
            "qzxvkjwpfm",
            "xkcdqwzjvb",
            "hgfdxcvbnm",
            "bvzqkwjx",
            "wqmznxbvhj",
            "TgBnHyUjMkQz",
        ] {
            assert!(!read_like_a_word(word.as_bytes()), "{word}");
        }
    }

    #[test]
    fn anything_is_survived() {
        assert!(!read_like_a_word(&[0xff; 30]));
        assert!(read_like_a_word(b""));
    }
}
