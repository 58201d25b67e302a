//! What a real program sent: messages, with every byte of their heads.

use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::net::TcpStream;

use super::align::{is_traceparent, Align, Head};

/// A longer body is kept as its length and a sum.
const LONGEST_BODY: usize = 1 << 16;
/// Header values that are another every time.
const MASKED: [&str; 2] = ["date", "expires"];

/// A request or a response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    pub head: Vec<u8>,
    /// The body as it came, chunk sizes included; a long one as its length and a sum.
    pub body: Vec<u8>,
    /// The body without chunk sizes, which a proxy chooses as the bytes come; a long one as its length and a sum.
    pub payload: Vec<u8>,
    /// How reading it ended, when it did not end as it says it does.
    pub broken: Option<String>,
}

/// What is compared of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    EveryByte,
    /// All but the sizes of chunks.
    Payload,
}

/// Which messages come, and what a response's length depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    Request,
    Response,
    /// A response without a body, whatever its head says.
    ResponseToHead,
}

impl Message {
    /// The request target, or the status.
    pub fn second_word(&self) -> String {
        let first = self.head.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let word = first.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
        String::from_utf8_lossy(word).into_owned()
    }

    pub fn field(&self, name: &str) -> Option<String> {
        let text = String::from_utf8_lossy(&self.head);
        text.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim().to_owned())
    }

    /// What `with` is other than this message, or how many lines were added and parent ids corrected.
    pub fn difference(
        &self,
        with: &Self,
        names: &[String],
        compare: Compare,
        corrected: bool,
    ) -> Result<Added, String> {
        let (expected, received) = (masked(&self.head), masked(&with.head));
        let own = self.field("traceparent");
        let head = Head {
            blank: expected.len().saturating_sub(2),
            may_insert: own.is_none(),
            parent_id: own
                .filter(|value| corrected && is_traceparent(value))
                .and_then(|value| {
                    let value = memchr::memmem::find(&expected, value.as_bytes())?;
                    Some(value + "00-0af7651916cd43dd8448eb211c80319c-".len())
                }),
        };
        let heads = [head];
        let mut align = Align::new(&expected, &heads, names);
        align.push(&received).map_err(|difference| difference.to_string())?;
        if align.position() != expected.len() || align.unfinished().is_some() {
            return Err(format!(
                "the head ends after {} of {} bytes",
                align.position(),
                expected.len()
            ));
        }
        let same = match compare {
            Compare::EveryByte => self.body == with.body,
            Compare::Payload => self.payload == with.payload,
        };
        if !same || self.broken != with.broken {
            let shown = |message: &Self| {
                let bytes = message.payload.get(..message.payload.len().min(60)).unwrap_or_default();
                format!(
                    "{} bytes \"{}\" {:?}",
                    message.body.len(),
                    bytes.escape_ascii(),
                    message.broken
                )
            };
            return Err(format!("body {} was {}", shown(with), shown(self)));
        }
        Ok(Added {
            inserted: align.inserted,
            corrected: align.corrected,
        })
    }
}

/// What the agent did to a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Added {
    pub inserted: u32,
    pub corrected: u32,
}

fn masked(head: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(head.len());
    for line in head.split_inclusive(|byte| *byte == b'\n') {
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
        if MASKED.iter().any(|masked| name.eq_ignore_ascii_case(masked.as_bytes())) {
            out.extend_from_slice(name);
            out.extend_from_slice(b": masked\r\n");
        } else {
            out.extend_from_slice(line);
        }
    }
    out
}

/// A body being read.
#[derive(Default)]
struct Body {
    raw: Kept,
    payload: Kept,
}

/// The first bytes, the length and a sum of all.
#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    length: usize,
    /// Adler's sum, good enough to see a byte that is another or elsewhere.
    low: u64,
    high: u64,
}

impl Kept {
    fn add(&mut self, bytes: &[u8]) {
        const MODULUS: u64 = 65_521;
        for chunk in bytes.chunks(1 << 20) {
            for byte in chunk {
                self.low += u64::from(*byte);
                self.high += self.low;
            }
            self.low %= MODULUS;
            self.high %= MODULUS;
        }
        self.length += bytes.len();
        let room = (LONGEST_BODY + 1).saturating_sub(self.bytes.len());
        self.bytes
            .extend_from_slice(bytes.get(..room.min(bytes.len())).unwrap_or_default());
    }

    fn into_bytes(self) -> Vec<u8> {
        if self.length <= LONGEST_BODY {
            return self.bytes;
        }
        format!("{} bytes, sum {:x}{:04x}", self.length, self.high, self.low).into_bytes()
    }
}

/// Messages as they come on a connection.
pub struct Messages<'a> {
    stream: BufReader<&'a TcpStream>,
}

impl<'a> Messages<'a> {
    pub fn new(stream: &'a TcpStream) -> Self {
        Self {
            stream: BufReader::with_capacity(1 << 16, stream),
        }
    }

    /// The next message, `Err` with how the connection ended when none begins. `at_head` is called between head and body.
    pub fn next(&mut self, expected: Expected, at_head: impl FnOnce(&Message)) -> Result<Message, String> {
        let mut message = Message::default();
        loop {
            let before = message.head.len();
            if let Err(end) = self.line(&mut message.head) {
                if message.head.is_empty() {
                    return Err(end);
                }
                message.broken = Some(end);
                return Ok(message);
            }
            if before > 0 && matches!(message.head.get(before..), Some(b"\r\n" | b"\n")) {
                break;
            }
        }
        at_head(&message);
        let mut body = Body::default();
        message.broken = self.body(&message, expected, &mut body).err();
        message.body = body.raw.into_bytes();
        message.payload = body.payload.into_bytes();
        Ok(message)
    }

    /// Reads to the end of the connection: how it ended.
    pub fn end(&mut self) -> String {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(0) => "closed".to_owned(),
            Ok(count) => format!("{count} bytes more: \"{}\"", rest.escape_ascii()),
            Err(error) => name(&error),
        }
    }

    fn body(&mut self, message: &Message, expected: Expected, body: &mut Body) -> Result<(), String> {
        let status: u16 = message.second_word().parse().unwrap_or(0);
        let response = expected != Expected::Request;
        if expected == Expected::ResponseToHead || response && (matches!(status, 204 | 304) || status < 200) {
            return Ok(());
        }
        if message
            .field("transfer-encoding")
            .is_some_and(|coding| coding.to_ascii_lowercase().ends_with("chunked"))
        {
            return self.chunks(body);
        }
        match message.field("content-length") {
            Some(length) => self.exactly(length.parse().map_err(|_| "no length".to_owned())?, body, true),
            None if response => self.exactly(u64::MAX, body, true).or_else(|end| match end.as_str() {
                "closed" => Ok(()),
                _ => Err(end),
            }),
            None => Ok(()),
        }
    }

    fn chunks(&mut self, body: &mut Body) -> Result<(), String> {
        loop {
            let size = self.framing_line(body)?;
            let size = size.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(size, 16).map_err(|_| format!("not a chunk size: {size:?}"))?;
            if size == 0 {
                while !self.framing_line(body)?.trim().is_empty() {}
                return Ok(());
            }
            self.exactly(size, body, true)?;
            self.framing_line(body)?;
        }
    }

    fn framing_line(&mut self, body: &mut Body) -> Result<String, String> {
        let mut line = Vec::new();
        let result = self.line(&mut line);
        body.raw.add(&line);
        result.map(|()| String::from_utf8_lossy(&line).into_owned())
    }

    fn exactly(&mut self, mut left: u64, body: &mut Body, payload: bool) -> Result<(), String> {
        while left > 0 {
            let bytes = match self.stream.fill_buf() {
                Ok([]) => return Err("closed".to_owned()),
                Ok(bytes) => bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(name(&error)),
            };
            let count = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let bytes = bytes.get(..count).unwrap_or_default();
            body.raw.add(bytes);
            if payload {
                body.payload.add(bytes);
            }
            self.stream.consume(count);
            left -= count as u64;
        }
        Ok(())
    }

    fn line(&mut self, into: &mut Vec<u8>) -> Result<(), String> {
        match self.stream.read_until(b'\n', into) {
            Ok(_) if into.last() == Some(&b'\n') => Ok(()),
            Ok(_) => Err("closed".to_owned()),
            Err(error) => Err(name(&error)),
        }
    }
}

/// An error as people know it.
pub fn name(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionReset => "reset".to_owned(),
        ErrorKind::BrokenPipe => "broken pipe".to_owned(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut => "nothing came".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;

    fn message(head: &str, body: &str) -> Message {
        Message {
            head: head.as_bytes().to_vec(),
            body: body.as_bytes().to_vec(),
            payload: body.as_bytes().to_vec(),
            broken: None,
        }
    }

    const LINE: &str = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n";

    #[test]
    fn a_message_may_have_gained_a_line_and_nothing_else() {
        let names = ["traceparent".to_owned()];
        let compare = |on: &Message| {
            message("GET / HTTP/1.1\r\nDate: 1\r\n\r\n", "a").difference(on, &names, Compare::EveryByte, false)
        };
        let added = compare(&message(&format!("GET / HTTP/1.1\r\nDate: 22\r\n{LINE}\r\n"), "a"));
        assert_eq!(added.unwrap().inserted, 1);
        assert!(compare(&message("GET / HTTP/1.1\r\nDate: 1\r\n\r\n", "b")).is_err());
        assert!(compare(&message("GET / HTTP/1.1\r\nDate: 1\r\nx: y\r\n\r\n", "a")).is_err());
        assert!(compare(&message("GET / HTTP/1.1\r\n\r\n", "a")).is_err());
    }

    #[test]
    fn a_forwarded_parent_id_may_be_another() {
        let off = message(&format!("GET / HTTP/1.1\r\n{LINE}\r\n"), "");
        let on = message(&format!("GET / HTTP/1.1\r\n{}\r\n", LINE.replace("b7ad", "0000")), "");
        assert_eq!(off.difference(&on, &[], Compare::EveryByte, true).unwrap().corrected, 1);
        assert!(off.difference(&on, &[], Compare::EveryByte, false).is_err());
    }

    #[test]
    fn a_long_body_is_told_by_its_sum() {
        let kept = |bytes: &[u8]| {
            let mut kept = Kept::default();
            kept.add(bytes);
            kept.into_bytes()
        };
        let mut bytes = vec![7_u8; LONGEST_BODY + 2];
        let before = kept(&bytes);
        bytes.swap(0, 1);
        assert_eq!(kept(&bytes), before);
        bytes[LONGEST_BODY + 1] = 8;
        assert_ne!(kept(&bytes), before);
        assert!(before.starts_with(b"65538 bytes"));
    }
}
