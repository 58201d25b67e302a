//! Path templating: `/users/4711/orders` becomes `/users/{id}/orders`.
//!
//! A segment stays only where it reads like a name that a programmer gave; everything else is replaced by what it
//! looks like. docs/templating.md has the rules with examples, `segment` has them in code. What is written here
//! bounds both cardinality and privacy, and the second wins: in doubt a segment is replaced.

mod letters;
mod segment;

use zeroize::Zeroize;

pub(super) use segment::{classify, Segment};

/// Deeper segments are not looked at: `{*}` stands for all of them.
const DEPTH: usize = 16;
/// For the rest of a path that is too deep or was cut, and for a position with too many names.
pub(super) const REST: &str = "{*}";

/// Splits a path as it came over the wire into decoded segments, one buffer for all paths.
#[derive(Default)]
pub(super) struct Splitter {
    decoded: Vec<u8>,
}

impl Splitter {
    /// The segments of `raw`, percent-decoded and judged; `{*}` for what is too deep and, if the path was `cut`, for
    /// its last segment. `None` if the target is no path (`*`).
    pub(super) fn split<'a>(&'a mut self, raw: &'a [u8], cut: bool) -> Option<impl Iterator<Item = Segment<'a>>> {
        let mut path = path_of(raw);
        if path == b"*" {
            return None;
        }
        if path.contains(&b'%') {
            percent_decode(path, &mut self.decoded);
            path = &self.decoded;
        }
        let mut parts = path
            .strip_prefix(b"/")
            .unwrap_or(path)
            .split(|byte| *byte == b'/')
            .peekable();
        let mut depth = 0;
        Some(std::iter::from_fn(move || {
            let part = if depth > DEPTH { None } else { parts.next() }?;
            depth += 1;
            let unknown = depth > DEPTH || (cut && parts.peek().is_none());
            Some(if unknown {
                Segment::Placeholder(REST, "")
            } else {
                classify(part)
            })
        }))
    }

    /// Overwrites the buffer, which holds what a client sent.
    pub(super) fn wipe(&mut self) {
        self.decoded.zeroize();
    }
}

/// The path of a request target: origin form as it is, absolute form without scheme and authority (which may hold
/// credentials), and never a query or fragment.
fn path_of(raw: &[u8]) -> &[u8] {
    let end = raw
        .iter()
        .position(|byte| matches!(byte, b'?' | b'#'))
        .unwrap_or(raw.len());
    let target = raw.get(..end).unwrap_or_default();
    if target.first() == Some(&b'/') {
        return target;
    }
    let Some(scheme) = target.windows(3).position(|part| part == b"://") else {
        return target;
    };
    let after = target.get(scheme + 3..).unwrap_or_default();
    let slash = after.iter().position(|byte| *byte == b'/');
    slash.and_then(|slash| after.get(slash..)).unwrap_or(b"/")
}

/// Decodes once; a `%` that is no escape stays (and no segment that holds one does).
fn percent_decode(path: &[u8], into: &mut Vec<u8>) {
    into.clear();
    into.reserve(path.len());
    let mut rest = path;
    while let Some((byte, after)) = rest.split_first() {
        let escape = match (byte, after) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)),
            _ => None,
        };
        if let Some((high, low)) = escape {
            into.push(high << 4 | low);
            rest = after.get(2..).unwrap_or_default();
        } else {
            into.push(*byte);
            rest = after;
        }
    }
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

/// The template of one path by itself, without the cardinality guard.
#[cfg(test)]
pub(super) fn template(raw: &str) -> String {
    let mut out = String::new();
    match Splitter::default().split(raw.as_bytes(), false) {
        Some(segments) => segments.for_each(|segment| segment.write(&mut out)),
        None => out.push('*'),
    }
    out
}

#[cfg(test)]
mod tests;
