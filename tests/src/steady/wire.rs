//! What is asked and answered. Everything follows from the path, so either end knows what the other has to send.

use crate::differential::align::{Align, Head};
use crate::differential::recorder::large_body;

/// How a connection is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// A socket that does not block, straight to the server.
    Polling,
    /// A socket that blocks, straight to the server.
    Blocking,
    /// A socket that does not block, to a proxy that asks the server over connections of its own.
    Proxied,
    /// A socket that blocks, with a body for which the sending thread has to wait.
    Upload,
}

/// How many kinds there are.
pub const LANES: usize = 4;
/// Bytes of an upload: far more than the socket's buffers hold.
pub const UPLOAD: usize = 1 << 19;

impl Lane {
    pub const ALL: [Self; LANES] = [Self::Polling, Self::Blocking, Self::Proxied, Self::Upload];

    pub fn name(self) -> &'static str {
        match self {
            Self::Polling => "polling",
            Self::Blocking => "blocking",
            Self::Proxied => "proxied",
            Self::Upload => "upload",
        }
    }
}

/// One request: the nth of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    pub lane: Lane,
    pub connection: u32,
    pub nth: u32,
}

impl Asked {
    pub fn path(&self) -> String {
        format!("/steady/{}/{}/{}", self.lane.name(), self.connection, self.nth)
    }

    /// What a path asks.
    pub fn parse(path: &str) -> Option<Self> {
        let mut words = path.strip_prefix("/steady/")?.split('/');
        let name = words.next()?;
        let asked = Self {
            lane: Lane::ALL.into_iter().find(|lane| lane.name() == name)?,
            connection: words.next()?.parse().ok()?,
            nth: words.next()?.parse().ok()?,
        };
        // No other spelling of the same request.
        (asked.path() == path).then_some(asked)
    }

    /// The request's head, in the order in which nginx passes it on.
    pub fn head(&self) -> Vec<u8> {
        let (method, length) = match self.body().len() {
            0 => ("GET", String::new()),
            length => ("POST", format!("Content-Length: {length}\r\n")),
        };
        let path = self.path();
        format!(
            "{method} {path} HTTP/1.1\r\nHost: steady.test\r\n{length}User-Agent: steady\r\nX-Nth: {}\r\n\r\n",
            self.nth
        )
        .into_bytes()
    }

    /// The request's body.
    pub fn body(&self) -> &'static [u8] {
        match self.lane {
            Lane::Upload => excerpt(self.number(), UPLOAD),
            _ => &[],
        }
    }

    /// Head and body of the response, which is another for every request. A proxy passes on each of its fields.
    pub fn answer(&self) -> Vec<u8> {
        let number = self.number().rotate_left(17);
        let body = excerpt(number, 1 + number as usize % 2_000);
        let mut answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: keep-alive\r\n\
             Server: steady\r\nDate: Sun, 22 Nov 2026 00:00:00 GMT\r\nX-Answers: {}\r\n\r\n",
            body.len(),
            self.path()
        )
        .into_bytes();
        answer.extend_from_slice(body);
        answer
    }

    fn number(&self) -> u64 {
        let number = u64::from(self.connection) << 32 | u64::from(self.nth);
        number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ self.lane as u64
    }
}

fn excerpt(number: u64, length: usize) -> &'static [u8] {
    let all = large_body();
    let from = (number >> 20) as usize % (all.len() - length);
    all.get(from..from + length).unwrap_or_default()
}

/// Received bytes, with what may have been added before the blank line of the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whole {
    /// A header line was added.
    pub added: bool,
}

/// Holds what has come so far against the message that is expected, `None` while it is not whole. `name` is the one header
/// that may have been added.
pub fn compare(expected: &[u8], received: &[u8], name: &str) -> Result<Option<Whole>, String> {
    let blank = memchr::memmem::find(expected, b"\r\n\r\n").map_or(0, |at| at + 2);
    let heads = [Head {
        blank,
        may_insert: true,
        parent_id: None,
    }];
    let names = [name.to_owned()];
    let mut align = Align::new(expected, &heads, &names);
    align.push(received).map_err(|difference| difference.to_string())?;
    let whole = align.position() == expected.len() && align.unfinished().is_none();
    Ok(whole.then_some(Whole {
        added: align.inserted > 0,
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;

    const LINE: &[u8] = b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n";

    fn asked(lane: Lane) -> Asked {
        Asked {
            lane,
            connection: 70_000,
            nth: 3,
        }
    }

    #[test]
    fn a_path_tells_the_whole_request() {
        for lane in Lane::ALL {
            let asked = asked(lane);
            assert_eq!(Asked::parse(&asked.path()), Some(asked));
            assert!(asked.head().ends_with(b"\r\n\r\n"));
            assert_eq!(asked.body().len(), if lane == Lane::Upload { UPLOAD } else { 0 });
        }
        assert_eq!(Asked::parse("/steady/polling/07/1"), None);
        assert_eq!(Asked::parse("/steady/other/7/1"), None);
    }

    #[test]
    fn answers_differ_with_the_request() {
        let mut other = asked(Lane::Polling);
        other.nth += 1;
        assert_ne!(asked(Lane::Polling).answer(), other.answer());
        assert_ne!(asked(Lane::Polling).answer(), asked(Lane::Blocking).answer());
    }

    #[test]
    fn one_line_before_the_blank_line_and_nothing_else() {
        let head = asked(Lane::Polling).head();
        let with = |line: &[u8], at: usize| [&head[..at], line, &head[at..]].concat();
        let end = head.len() - 2;
        assert_eq!(compare(&head, &head, "traceparent"), Ok(Some(Whole { added: false })));
        let added = compare(&head, &with(LINE, end), "traceparent");
        assert_eq!(added, Ok(Some(Whole { added: true })));
        assert_eq!(compare(&head, &head[..end], "traceparent"), Ok(None));
        assert!(compare(&head, &with(&LINE.repeat(2), end), "traceparent").is_err());
        assert!(compare(&head, &with(LINE, end), "server-timing").is_err());
        assert!(compare(&head, &with(b"x", head.len()), "traceparent").is_err());
        for at in 0..head.len() {
            let mut changed = head.clone();
            changed[at] ^= 1;
            assert!(
                compare(&head, &changed, "traceparent") != Ok(Some(Whole { added: false })),
                "byte {at}"
            );
        }
    }
}
