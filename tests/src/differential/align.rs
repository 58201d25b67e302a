//! Received bytes held against the expected ones. Lines of the agent may stand before a head's blank line, nowhere else.

use std::fmt;

/// Where in an expected stream the agent may do something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Offset of the blank line (its CR) that ends the head.
    pub blank: usize,
    /// Whether lines may come in before the blank line.
    pub may_insert: bool,
    /// Offset of the parent id in a `traceparent` that may be corrected.
    pub parent_id: Option<usize>,
}

/// Hex digits of a parent id.
const PARENT_ID: usize = 16;
/// No line of the agent is longer; a tracestate of 512 characters fits.
const LONGEST_LINE: usize = 1_024;

/// The first byte that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Offset in the expected stream.
    pub at: usize,
    pub expected: Vec<u8>,
    pub received: Vec<u8>,
}

impl fmt::Display for Difference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "at {}: expected \"{}\", received \"{}\"",
            self.at,
            self.expected.escape_ascii(),
            self.received.escape_ascii()
        )
    }
}

/// Bytes of context printed with a difference.
const EXCERPT: usize = 80;

fn excerpt(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().copied().take(EXCERPT).collect()
}

/// A stream being received, in any pieces.
#[derive(Debug)]
pub struct Align<'a> {
    expected: &'a [u8],
    heads: &'a [Head],
    names: &'a [String],
    position: usize,
    /// The beginning of a line that may be one of the agent's.
    pending: Vec<u8>,
    /// Names added to the head at hand.
    added: Vec<String>,
    /// Heads with an added `traceparent`, or in responses any added line.
    pub inserted: u32,
    pub corrected: u32,
    /// Bytes of all added lines.
    pub inserted_bytes: usize,
}

impl<'a> Align<'a> {
    /// `names`: the headers the agent may add, in lower case.
    pub fn new(expected: &'a [u8], heads: &'a [Head], names: &'a [String]) -> Self {
        Self {
            expected,
            heads,
            names,
            position: 0,
            pending: Vec::new(),
            added: Vec::new(),
            inserted: 0,
            corrected: 0,
            inserted_bytes: 0,
        }
    }

    /// How much of the expected stream has come.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Takes the next received bytes.
    pub fn push(&mut self, received: &[u8]) -> Result<(), Difference> {
        let mut joined;
        let mut rest = received;
        if !self.pending.is_empty() {
            joined = std::mem::take(&mut self.pending);
            joined.extend_from_slice(received);
            rest = &joined;
        }
        while !rest.is_empty() {
            self.pass_heads();
            let next = self.heads.first();
            if next.is_some_and(|head| head.blank == self.position && head.may_insert && rest.first() != Some(&b'\r')) {
                let Some(length) = self.added_line(rest)? else {
                    self.pending = rest.to_vec();
                    return Ok(());
                };
                rest = rest.get(length..).unwrap_or_default();
                continue;
            }
            // Up to the next place where a line may come in, or the end of both.
            let boundary = next.map_or(self.expected.len(), |head| {
                if head.blank > self.position {
                    head.blank
                } else {
                    head.blank + 1
                }
            });
            let expected = self.expected.get(self.position..boundary).unwrap_or_default();
            let length = expected.len().min(rest.len());
            if length == 0 {
                return Err(self.difference(rest));
            }
            let (now, later) = rest.split_at(length);
            self.equal(now)?;
            rest = later;
        }
        Ok(())
    }

    /// Says what is wrong when the stream ends here.
    pub fn unfinished(&self) -> Option<Difference> {
        (!self.pending.is_empty()).then(|| self.difference(&self.pending))
    }

    fn pass_heads(&mut self) {
        while let Some((head, later)) = self.heads.split_first() {
            if head.blank >= self.position {
                return;
            }
            self.heads = later;
            self.added.clear();
        }
    }

    /// Takes `now`, which is as long as what is left before the next boundary, or shorter.
    fn equal(&mut self, now: &[u8]) -> Result<(), Difference> {
        let expected = self
            .expected
            .get(self.position..self.position + now.len())
            .unwrap_or_default();
        if expected != now {
            let same = expected.iter().zip(now).take_while(|(a, b)| a == b).count();
            if !self.correction(same, now) {
                self.position += same;
                return Err(self.difference(now.get(same..).unwrap_or_default()));
            }
        }
        self.position += now.len();
        Ok(())
    }

    /// Whether everything from `same` on that differs lies inside a parent id that may be corrected.
    fn correction(&mut self, same: usize, now: &[u8]) -> bool {
        let Some(start) = self.heads.first().and_then(|head| head.parent_id) else {
            return false;
        };
        let expected = self.expected.get(self.position..).unwrap_or_default();
        let only_there = expected.iter().zip(now).enumerate().skip(same).all(|(offset, (a, b))| {
            let at = self.position + offset;
            a == b || ((start..start + PARENT_ID).contains(&at) && b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
        });
        if only_there && (start..start + PARENT_ID).contains(&(self.position + same)) {
            self.corrected += 1;
        }
        only_there
    }

    /// The length of the agent's line at the beginning of `rest`, `None` when it has not come whole yet.
    fn added_line(&mut self, rest: &[u8]) -> Result<Option<usize>, Difference> {
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
            if rest.len() > LONGEST_LINE {
                return Err(self.difference(rest));
            }
            return Ok(None);
        };
        let line = rest.get(..=end).unwrap_or_default();
        let text = std::str::from_utf8(line)
            .ok()
            .and_then(|line| line.strip_suffix("\r\n"));
        let field = text.and_then(|text| text.split_once(": "));
        match field {
            Some((name, value)) if self.names.iter().any(|known| known == name) && well_formed(name, value) => {
                if self.added.iter().any(|added| added == name) {
                    return Err(self.difference(rest));
                }
                if name != "tracestate" {
                    self.inserted += 1;
                }
                self.inserted_bytes += line.len();
                self.added.push(name.to_owned());
                Ok(Some(line.len()))
            }
            _ => Err(self.difference(rest)),
        }
    }

    fn difference(&self, received: &[u8]) -> Difference {
        Difference {
            at: self.position,
            expected: excerpt(self.expected.get(self.position..).unwrap_or_default()),
            received: excerpt(received),
        }
    }
}

/// The value is what that header holds.
fn well_formed(name: &str, value: &str) -> bool {
    match name {
        "tracestate" => !value.is_empty() && value.contains('='),
        "server-timing" => {
            let quoted = value.strip_prefix("traceparent;desc=\"");
            quoted
                .and_then(|value| value.strip_suffix('"'))
                .is_some_and(is_traceparent)
        }
        _ => is_traceparent(value),
    }
}

/// `00-trace-parent-flags`, ids not all zero.
pub fn is_traceparent(value: &str) -> bool {
    let fields: Vec<_> = value.split('-').collect();
    let hex = |field: &str, length: usize| {
        field.len() == length
            && field
                .bytes()
                .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    let [version, trace, parent, flags] = fields.as_slice() else {
        return false;
    };
    let zero = |field: &str| field.bytes().all(|byte| byte == b'0');
    *version == "00" && hex(trace, 32) && hex(parent, 16) && hex(flags, 2) && !zero(trace) && !zero(parent)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;

    const PLAIN: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\n\r\n";
    const LINE: &[u8] = b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n";

    fn heads() -> Vec<Head> {
        let head = |blank| Head {
            blank,
            may_insert: true,
            parent_id: None,
        };
        vec![head(25), head(43)]
    }

    fn aligned(received: &[u8], heads: &[Head], step: usize) -> Result<(usize, u32), Difference> {
        let names = ["traceparent".to_owned(), "tracestate".to_owned()];
        let mut align = Align::new(PLAIN, heads, &names);
        for piece in received.chunks(step) {
            align.push(piece)?;
        }
        align.unfinished().map_or(Ok((align.position(), align.inserted)), Err)
    }

    fn with(at: usize, line: &[u8]) -> Vec<u8> {
        [&PLAIN[..at], line, &PLAIN[at..]].concat()
    }

    #[test]
    fn equal_bytes_and_added_lines_pass_in_any_pieces() {
        for step in 1..PLAIN.len() + LINE.len() {
            assert_eq!(aligned(PLAIN, &heads(), step), Ok((PLAIN.len(), 0)));
            assert_eq!(aligned(&with(25, LINE), &heads(), step), Ok((PLAIN.len(), 1)), "{step}");
            assert_eq!(aligned(&with(43, LINE), &heads(), step), Ok((PLAIN.len(), 1)), "{step}");
        }
    }

    #[test]
    fn anything_else_is_a_difference() {
        let twice = with(25, &[LINE, LINE].concat());
        assert!(aligned(&twice, &heads(), 7).is_err(), "added twice");
        assert!(
            aligned(&with(16, LINE), &heads(), 7).is_err(),
            "not before the blank line"
        );
        assert!(aligned(&with(27, LINE), &heads(), 7).is_err(), "behind the blank line");
        assert!(
            aligned(&with(25, b"x-other: 1\r\n"), &heads(), 7).is_err(),
            "another name"
        );
        assert!(
            aligned(&with(25, b"traceparent: 00-0-0-01\r\n"), &heads(), 7).is_err(),
            "malformed"
        );
        let mut denied = heads();
        denied[0].may_insert = false;
        assert!(aligned(&with(25, LINE), &denied, 7).is_err(), "not allowed there");
        assert!(aligned(&[PLAIN, b"x"].concat(), &heads(), 7).is_err(), "too much");
        for at in 0..PLAIN.len() {
            let mut changed = PLAIN.to_vec();
            changed[at] ^= 1;
            assert!(aligned(&changed, &heads(), 7).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_parent_id_is_corrected_only_where_it_may_be() {
        let expected = [b"GET / HTTP/1.1\r\n".as_slice(), LINE, b"\r\n"].concat();
        let start = 16 + "traceparent: 00-".len() + 33;
        let mut received = expected.clone();
        received[start + 3] = b'0';
        received[start + 9] = b'1';
        for (parent_id, corrected) in [(Some(start), Some(1)), (None, None)] {
            let heads = [Head {
                blank: expected.len() - 2,
                may_insert: false,
                parent_id,
            }];
            let mut align = Align::new(&expected, &heads, &[]);
            assert_eq!(align.push(&received).ok().map(|()| align.corrected), corrected);
        }
    }
}
