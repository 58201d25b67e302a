//! A stream of messages that ask for a line, and what must arrive of it.

use std::io::{self, ErrorKind, Read};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use spanwire_common::trial::{INSERT, LINE, LINE_AT};

use super::sockets::{send, wait_for, PATIENCE};

/// Lengths of messages, over and over: heads alone, heads with some of a body, and what fills a small buffer by itself.
const LENGTHS: [usize; 9] = [300, 140, 700, 300, 2_000, 9_000, 300, 33_000, 500];

/// What was sent: where messages begin, and every byte.
#[derive(Default)]
pub(super) struct Sent {
    pub(super) begins: Vec<usize>,
    pub(super) bytes: Vec<u8>,
    /// How often the socket was full.
    pub(super) full: u32,
}

/// How many of the messages arrived with a line, by their places in the stream; every other byte was as sent.
pub(super) type Inserted = Vec<usize>;

/// Bytes from 128 up, so that nothing in a message looks like the beginning of one, or like the line.
fn filler(state: &mut u32) -> u8 {
    *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    (*state >> 24) as u8 | 0x80
}

impl Sent {
    /// Sends messages for so long, and so many at least; `between` is told before each one how many have gone.
    pub(super) fn send(
        near: &TcpStream,
        time: Duration,
        at_least: usize,
        mut between: impl FnMut(usize),
    ) -> io::Result<Self> {
        near.set_nonblocking(true)?;
        let mut sent = Self::default();
        let begin = Instant::now();
        let mut state = 1;
        for length in LENGTHS.into_iter().cycle() {
            let messages = sent.begins.len();
            if begin.elapsed() >= time && (messages >= at_least || begin.elapsed() >= PATIENCE) {
                break;
            }
            between(messages);
            let begin = sent.bytes.len();
            sent.begins.push(begin);
            sent.bytes.extend(INSERT);
            sent.bytes.extend((INSERT.len()..length).map(|_| filler(&mut state)));
            sent.send_rest(near, begin)?;
        }
        near.shutdown(Shutdown::Write)?;
        Ok(sent)
    }

    fn send_rest(&mut self, near: &TcpStream, begin: usize) -> io::Result<()> {
        let mut at = begin;
        while let Some(rest) = self.bytes.get(at..).filter(|rest| !rest.is_empty()) {
            match send(near, rest, libc::MSG_DONTWAIT) {
                Ok(bytes) if bytes > rest.len() => {
                    return Err(io::Error::other(format!(
                        "a send of {} bytes returns {bytes}",
                        rest.len()
                    )));
                }
                Ok(bytes) => at += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.full += 1;
                    if wait_for(near, libc::POLLOUT, PATIENCE)? == 0 {
                        return Err(io::Error::other("a full socket has no room again"));
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Compares what has arrived with what was sent, lines left out.
    pub(super) fn compare(&self, received: &[u8]) -> Result<Inserted, String> {
        let mut inserted = Vec::new();
        let mut rest = received;
        let ends = self.begins.iter().skip(1).copied().chain([self.bytes.len()]);
        for (index, (begin, end)) in self.begins.iter().copied().zip(ends).enumerate() {
            let line_at = begin + LINE_AT as usize;
            rest = after(rest, &self.bytes[begin..line_at]).ok_or_else(|| self.differs(index, received, rest))?;
            if let Some(behind) = after(rest, &LINE) {
                inserted.push(index);
                rest = behind;
            }
            rest = after(rest, &self.bytes[line_at..end]).ok_or_else(|| self.differs(index, received, rest))?;
        }
        if rest.is_empty() {
            return Ok(inserted);
        }
        Err(format!("{} bytes more than were sent", rest.len()))
    }

    fn differs(&self, index: usize, received: &[u8], rest: &[u8]) -> String {
        format!(
            "other bytes than were sent, in message {} of {}, after {} bytes",
            index + 1,
            self.begins.len(),
            received.len() - rest.len()
        )
    }
}

fn after<'a>(bytes: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    bytes.strip_prefix(prefix)
}

/// Reads slowly, so that the other end's buffers are full, until it is told to hurry.
pub(super) struct SlowReader {
    hurry: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Vec<u8>>>,
}

impl SlowReader {
    pub(super) fn begin(mut far: TcpStream, at_once: usize, pause: Duration) -> Self {
        let hurry = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&hurry);
        let thread = thread::spawn(move || {
            let mut received = Vec::new();
            let mut buffer = vec![0; at_once];
            loop {
                match far.read(&mut buffer)? {
                    0 => return Ok(received),
                    bytes => received.extend(buffer.iter().take(bytes)),
                }
                if !told.load(Ordering::Relaxed) {
                    thread::sleep(pause);
                }
            }
        });
        Self { hurry, thread }
    }

    /// Everything up to the end of the stream.
    pub(super) fn rest(self) -> io::Result<Vec<u8>> {
        self.hurry.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|_| io::Error::other("the reader has ended"))?
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::super::sockets::Pair;
    use super::*;

    fn two_messages() -> Sent {
        let mut sent = Sent::default();
        let mut state = 7;
        for length in [300, 140] {
            sent.begins.push(sent.bytes.len());
            sent.bytes.extend(INSERT);
            sent.bytes.extend((INSERT.len()..length).map(|_| filler(&mut state)));
        }
        sent
    }

    fn with_line(sent: &Sent, at: usize) -> Vec<u8> {
        let mut bytes = sent.bytes.clone();
        bytes.splice(at..at, LINE);
        bytes
    }

    #[test]
    fn lines_are_taken_out_where_they_belong() {
        let sent = two_messages();
        assert_eq!(sent.compare(&sent.bytes), Ok(vec![]));
        assert_eq!(sent.compare(&with_line(&sent, 64)), Ok(vec![0]));
        assert_eq!(sent.compare(&with_line(&sent, 364)), Ok(vec![1]));
    }

    #[test]
    fn nothing_else_may_differ() {
        let sent = two_messages();
        assert!(sent.compare(&with_line(&sent, 65)).is_err(), "a line elsewhere");
        let mut twice = with_line(&sent, 64);
        twice.splice(64..64, LINE);
        assert!(sent.compare(&twice).is_err(), "two lines");
        let mut repeated = sent.bytes.clone();
        repeated.splice(100..100, sent.bytes[90..100].iter().copied());
        assert!(sent.compare(&repeated).is_err(), "bytes that come twice");
        assert!(sent.compare(&sent.bytes[..439]).is_err(), "a byte that is missing");
        let mut more = sent.bytes.clone();
        more.push(0);
        assert!(sent.compare(&more).is_err(), "a byte more");
        let mut other = sent.bytes.clone();
        other[400] ^= 1;
        assert!(sent.compare(&other).is_err(), "another byte");
    }

    #[test]
    fn an_ordinary_socket_passes_the_stream_on_and_is_full_meanwhile() {
        let pair = Pair::open_small(4_096, 4_096).unwrap();
        let reader = SlowReader::begin(pair.far, 1_024, Duration::from_millis(1));
        let sent = Sent::send(&pair.near, Duration::from_millis(100), 20, |_| {}).unwrap();
        assert!(sent.full > 0);
        assert_eq!(sent.compare(&reader.rest().unwrap()), Ok(vec![]));
    }
}
