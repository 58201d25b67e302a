//! Globs: `*` matches any characters, `/` included; everything else stands for itself.

use std::fmt;

/// Longest pattern, in bytes.
const PATTERN_BYTES_MAX: usize = 256;

/// A pattern. Matching is of bytes and takes at most `pattern * text` steps, without recursion.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Glob(String);

impl Glob {
    /// Reads a pattern: not empty, at most 256 bytes, no control characters.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.len() > PATTERN_BYTES_MAX || text.chars().any(char::is_control) {
            return Err(format!("expected a glob of 1 to {PATTERN_BYTES_MAX} bytes"));
        }
        Ok(Self(text.to_owned()))
    }

    /// Reads a pattern for paths: one that begins with neither `/` nor `*` would match none.
    pub fn parse_path(text: &str) -> Result<Self, String> {
        let glob = Self::parse(text)?;
        if !text.starts_with(['/', '*']) {
            return Err("expected a glob that begins with / or * (paths are matched whole)".to_owned());
        }
        Ok(glob)
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True if the whole text matches.
    pub fn matches(&self, text: &str) -> bool {
        matches_by(self.0.as_bytes(), text.as_bytes(), |a, b| a == b)
    }

    /// As `matches`, upper and lower case of ASCII letters alike.
    pub fn matches_any_case(&self, text: &str) -> bool {
        matches_by(self.0.as_bytes(), text.as_bytes(), |a, b| a.eq_ignore_ascii_case(&b))
    }

    /// What comes before the star of a `prefix*`; `None` for any other shape.
    pub fn as_prefix(&self) -> Option<&str> {
        let prefix = self.0.trim_end_matches('*');
        (prefix.len() < self.0.len() && !prefix.is_empty() && !prefix.contains('*')).then_some(prefix)
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Walks both once; on a mismatch the last star takes one byte more.
fn matches_by(pattern: &[u8], text: &[u8], same: impl Fn(u8, u8) -> bool) -> bool {
    let (mut at, mut in_text) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while in_text < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                at += 1;
                retry = Some((at, in_text));
            }
            Some(byte) if same(*byte, text[in_text]) => {
                at += 1;
                in_text += 1;
            }
            _ => match retry {
                Some((after_star, star_end)) => {
                    at = after_star;
                    in_text = star_end + 1;
                    retry = Some((after_star, in_text));
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

    use super::*;

    /// The definition, written as the recursion it is.
    fn defined(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => (0..=text.len()).any(|taken| defined(rest, &text[taken..])),
            (Some((byte, rest)), Some((first, tail))) => byte == first && defined(rest, tail),
            (None, Some(_)) | (Some(_), None) => false,
        }
    }

    fn glob(text: &str) -> Glob {
        Glob::parse(text).unwrap()
    }

    #[test]
    fn a_star_crosses_slashes() {
        assert!(glob("*/nginx").matches("/usr/sbin/nginx"));
        assert!(glob("/usr/*").matches("/usr/local/bin/x"));
        assert!(glob("*").matches(""));
        assert!(!glob("*/nginx").matches("/usr/sbin/nginx-debug"));
        assert!(!glob("/usr/sbin/nginx").matches("/usr/sbin/nginx2"));
        assert!(!glob("a?c").matches("abc"), "only * is special");
    }

    #[test]
    fn any_case() {
        assert!(glob("kube-probe/*").matches_any_case("Kube-Probe/1.31"));
        assert!(!glob("kube-probe/*").matches("Kube-Probe/1.31"));
    }

    #[test]
    fn prefixes() {
        assert_eq!(glob("kube-probe/*").as_prefix(), Some("kube-probe/"));
        assert_eq!(glob("a**").as_prefix(), Some("a"));
        for other in ["*", "abc", "*abc*", "a*b*", "**"] {
            assert_eq!(glob(other).as_prefix(), None, "{other}");
        }
    }

    #[test]
    fn what_is_no_pattern() {
        assert!(Glob::parse("").is_err());
        assert!(Glob::parse("a\nb").is_err());
        assert!(Glob::parse(&"a".repeat(257)).is_err());
        assert!(Glob::parse_path("nginx").is_err());
        assert!(Glob::parse_path("*nginx").is_ok());
    }

    #[test]
    fn many_stars_end_soon() {
        let pattern = glob(&"a*".repeat(128));
        assert!(!pattern.matches(&format!("{}b", "a".repeat(4096)).replace('a', "b")));
        let started = std::time::Instant::now();
        assert!(!glob(&format!("{}b", "a*".repeat(120))).matches(&"a".repeat(4096)));
        assert!(started.elapsed() < std::time::Duration::from_secs(5));
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(pattern in "[ab*/]{1,8}", text in "[ab/]{0,10}") {
            prop_assert_eq!(glob(&pattern).matches(&text), defined(pattern.as_bytes(), text.as_bytes()));
        }

        #[test]
        fn a_text_with_parts_starred_out_matches(text in "[a-c/]{1,20}", from in 0usize..20, to in 0usize..20) {
            let (from, to) = (from.min(text.len()), to.min(text.len()));
            let pattern = format!("{}*{}", &text[..from.min(to)], &text[from.max(to)..]);
            prop_assert!(glob(&pattern).matches(&text));
        }
    }
}
