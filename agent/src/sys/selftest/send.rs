//! Rows about sending without a change to what is sent: how long large writes take, and what zero-copy sends tell.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::program::Trial;
use super::sockets::{completions, send, set_option, wait_for, Pair, PATIENCE};
use super::{Finding, Seen, Verdict};

/// Larger than a piece of what the kernel passes on at once (32 KiB), and seldom a multiple of it.
const SIZES: [usize; 12] = [
    40_000, 70_000, 50_000, 66_000, 44_000, 60_000, 48_000, 70_000, 41_000, 58_000, 69_000, 45_000,
];
/// A receiver puts an acknowledgement off for at least 40 ms (TCP_DELACK_MIN). What takes so long has waited for one, or
/// the machine is busy: then it takes as long on the socket that is not enrolled.
const STALL: Duration = Duration::from_millis(30);
/// More exchanges where the machine is busy.
const ROUNDS: usize = 3;

/// How long an exchange took, for each of them.
#[derive(Default)]
struct Latencies(Vec<Duration>);

impl Latencies {
    fn stalls(&self) -> usize {
        self.0.iter().filter(|latency| **latency >= STALL).count()
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let worst = self.0.iter().max().copied().unwrap_or_default();
        let ms = worst.as_secs_f64() * 1e3;
        write!(f, "{} of {} held up, the worst {ms:.1} ms", self.stalls(), self.0.len())
    }
}

/// What stalls say, of so many exchanges on each socket; `None` where more of them are wanted. A fault holds up every
/// second write or so, a busy machine any exchange.
fn judged(plain: usize, enrolled: usize, exchanges: usize, is_over: bool) -> Option<Verdict> {
    let is_often = enrolled >= 3 && enrolled * 4 >= exchanges;
    if is_often && (enrolled >= 3 + 3 * plain || (is_over && enrolled >= 3 * plain)) {
        Some(Verdict::Faulty)
    } else if is_over && enrolled <= plain + 2 {
        Some(Verdict::Clean)
    } else {
        is_over.then_some(Verdict::Unknown)
    }
}

/// Writes that begin so, each answered by a byte, in turn on a socket that is not enrolled and on one that is.
pub(super) fn large_writes(trial: &Trial, begin: [u8; 8]) -> io::Result<Finding> {
    let mut plain_socket = Answered::by(Pair::open()?)?;
    let pair = Pair::open()?;
    let near = pair.near.try_clone()?;
    let _enrolled = trial.enrol(&near)?;
    let mut enrolled_socket = Answered::by(pair)?;
    let (mut plain, mut enrolled) = (Latencies::default(), Latencies::default());
    let mut verdict = None;
    for round in 1..=ROUNDS {
        for size in SIZES {
            let mut message = vec![b'x'; size];
            message[..begin.len()].copy_from_slice(&begin);
            plain.0.push(plain_socket.exchange(&message)?);
            enrolled.0.push(enrolled_socket.exchange(&message)?);
            verdict = judged(plain.stalls(), enrolled.stalls(), plain.0.len(), false);
            if verdict.is_some() {
                break;
            }
        }
        let quiet = plain.stalls() == 0 && enrolled.stalls() == 0;
        if verdict.is_some() || quiet || round == ROUNDS {
            break;
        }
    }
    let verdict = verdict.or_else(|| judged(plain.stalls(), enrolled.stalls(), plain.0.len(), true));
    let detail = format!("writes of 40 to 70 kB: {enrolled}; not enrolled: {plain}");
    Ok(Finding::of(verdict.unwrap_or(Verdict::Unknown), detail))
}

/// A socket whose peer answers each write of [`SIZES`] with a byte.
struct Answered(TcpStream);

impl Answered {
    fn by(pair: Pair) -> io::Result<Self> {
        let mut far = pair.far;
        pair.near.set_read_timeout(Some(PATIENCE))?;
        // Ends with the connection.
        std::thread::spawn(move || -> io::Result<()> {
            let mut buffer = vec![0; SIZES.iter().max().copied().unwrap_or_default()];
            for size in SIZES.into_iter().cycle() {
                far.read_exact(buffer.get_mut(..size).unwrap_or_default())?;
                far.write_all(b".")?;
            }
            Ok(())
        });
        Ok(Self(pair.near))
    }

    fn exchange(&mut self, message: &[u8]) -> io::Result<Duration> {
        let sent_at = Instant::now();
        self.0.write_all(message)?;
        self.0.read_exact(&mut [0])?;
        Ok(sent_at.elapsed())
    }
}

const ZERO_COPY_SENDS: u32 = 5;
const ZERO_COPY_BYTES: usize = 100_000;
/// How long the first completion may take, where the machine is busy, and how long none may come before there are no more.
const FIRST: Duration = Duration::from_millis(400);
const QUIET: Duration = Duration::from_millis(150);

/// Zero-copy sends whose ends the kernel tells: an application that waits for one that never comes hangs, and one that
/// is told of more loses count.
pub(super) fn zero_copy(pair: Pair) -> io::Result<Seen> {
    let (near, mut far) = (pair.near, pair.far);
    set_option(&near, libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1)?;
    std::thread::spawn(move || io::copy(&mut far, &mut io::sink()));
    let buffer = vec![b'z'; ZERO_COPY_BYTES];
    for _ in 0..ZERO_COPY_SENDS {
        let sent = send(&near, &buffer, libc::MSG_ZEROCOPY)?;
        if sent != buffer.len() {
            return Ok(Err(format!("a zero-copy send took {sent} of {} bytes", buffer.len())));
        }
    }
    let mut told = 0;
    let mut quiet_since = Instant::now();
    while quiet_since.elapsed() < if told == 0 { FIRST } else { QUIET } {
        // Errors are told whether they are asked for or not.
        wait_for(&near, 0, Duration::from_millis(10))?;
        while let Some(ended) = completions(&near)? {
            told += ended;
            quiet_since = Instant::now();
        }
    }
    let text = format!("{told} completions of {ZERO_COPY_SENDS} sends of 100 kB");
    Ok(if told == ZERO_COPY_SENDS { Ok(text) } else { Err(text) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stalls_of_a_busy_machine_are_told_from_those_of_a_fault() {
        // In the middle: a fault shows soon, where nothing else is held up.
        assert_eq!(judged(0, 3, 5, false), Some(Verdict::Faulty));
        assert_eq!(judged(0, 2, 4, false), None);
        assert_eq!(judged(1, 5, 8, false), None);
        assert_eq!(judged(1, 6, 9, false), Some(Verdict::Faulty));
        // At the end.
        assert_eq!(judged(0, 0, 12, true), Some(Verdict::Clean));
        assert_eq!(judged(1, 3, 36, true), Some(Verdict::Clean));
        assert_eq!(judged(3, 33, 36, true), Some(Verdict::Faulty));
        assert_eq!(judged(0, 4, 36, true), Some(Verdict::Unknown));
        assert_eq!(judged(6, 12, 36, true), Some(Verdict::Unknown));
    }
}
