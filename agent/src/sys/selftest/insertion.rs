//! The row that matters most: a line put into messages while the socket is full and its peer slow, where a kernel that
//! counts what was put in as sent repeats bytes of the application, or leaves some out.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::program::Trial;
use super::sockets::Pair;
use super::stream::{Inserted, Sent, SlowReader};
use super::Finding;

/// How long messages are sent.
const TIME: Duration = Duration::from_millis(350);
/// Messages on each connection, where that takes longer.
const AT_LEAST: usize = 30;

/// A connection: its buffers, how much its reader takes at once, and how long it rests then.
struct Strain {
    sent: i32,
    received: i32,
    at_once: usize,
    pause: Duration,
}

/// From hardly more than a message to several of them.
const STRAINS: [Strain; 4] = [
    Strain {
        sent: 2_304,
        received: 2_304,
        at_once: 512,
        pause: Duration::from_micros(200),
    },
    Strain {
        sent: 4_608,
        received: 4_608,
        at_once: 3_000,
        pause: Duration::from_millis(1),
    },
    Strain {
        sent: 16_384,
        received: 8_192,
        at_once: 1_777,
        pause: Duration::from_micros(500),
    },
    Strain {
        sent: 65_536,
        received: 16_384,
        at_once: 8_192,
        pause: Duration::from_millis(1),
    },
];

/// What one connection saw.
struct Passed {
    messages: usize,
    lines: usize,
    bytes: usize,
    full: u32,
}

/// Several connections beside each other.
pub(super) fn insertion(trial: &Arc<Trial>) -> io::Result<Finding> {
    let (tell, told) = std::sync::mpsc::channel();
    for strain in &STRAINS {
        let (trial, tell) = (Arc::clone(trial), tell.clone());
        thread::spawn(move || tell.send(under(&trial, strain)));
    }
    drop(tell);
    let mut sum = Passed {
        messages: 0,
        lines: 0,
        bytes: 0,
        full: 0,
    };
    let mut connections = 0;
    for passed in told {
        match passed? {
            Ok(passed) => {
                sum.messages += passed.messages;
                sum.lines += passed.lines;
                sum.bytes += passed.bytes;
                sum.full += passed.full;
                connections += 1;
            }
            Err(fault) => return Ok(Finding::faulty(fault)),
        }
    }
    let detail = format!(
        "{} of {} messages with a line, {} kB exact, the socket full {} times",
        sum.lines,
        sum.messages,
        sum.bytes / 1_000,
        sum.full
    );
    Ok(if connections < STRAINS.len() || sum.full == 0 {
        Finding::unknown(detail)
    } else if sum.lines == 0 {
        // Nothing is harmed; nothing would ever be written either.
        Finding::faulty(detail)
    } else {
        Finding::clean(detail)
    })
}

fn under(trial: &Trial, strain: &Strain) -> io::Result<Result<Passed, String>> {
    let pair = Pair::open_small(strain.sent, strain.received)?;
    let _enrolled = trial.enrol(&pair.near)?;
    let reader = SlowReader::begin(pair.far, strain.at_once, strain.pause);
    let sent = Sent::send(&pair.near, TIME, AT_LEAST, |_| {})?;
    let received = reader.rest()?;
    Ok(sent.compare(&received).map(|inserted: Inserted| Passed {
        messages: sent.begins.len(),
        lines: inserted.len(),
        bytes: sent.bytes.len(),
        full: sent.full,
    }))
}
