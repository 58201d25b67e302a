//! Whether a socket that user space takes out of the map, alive and at work, is an ordinary one again: what switching
//! rewriting off rests on.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use super::program::Trial;
use super::receive;
use super::sockets::{queued_bytes, wait_for, Pair, PATIENCE};
use super::stream::{Sent, SlowReader};
use super::waiting::Waiting;
use super::Finding;

/// How long messages are sent to a socket that is removed meanwhile.
const TIME: Duration = Duration::from_millis(150);

pub(super) fn removal(trial: &Arc<Trial>) -> io::Result<Finding> {
    let mut seen = Vec::new();
    for check in [queued, waiting, after_reset, at_work] {
        match check(trial)? {
            Ok(detail) => seen.push(detail),
            Err(fault) => return Ok(Finding::faulty(fault)),
        }
    }
    Ok(Finding::clean(seen.join("; ")))
}

/// With bytes in its queue.
fn queued(trial: &Arc<Trial>) -> io::Result<super::Seen> {
    let mut pair = Pair::open()?;
    let enrolled = trial.enrol(&pair.near)?;
    pair.near.write_all(b"before")?;
    pair.far.write_all(b"bytes")?;
    wait_for(&pair.near, libc::POLLIN, PATIENCE)?;
    drop(enrolled);
    let bytes = queued_bytes(&pair.near)?;
    let told = format!("FIONREAD says {bytes} of 5 bytes after removal");
    Ok(if bytes == 5 { Ok(told) } else { Err(told) })
}

/// With a thread in `recv`.
fn waiting(trial: &Arc<Trial>) -> io::Result<super::Seen> {
    let mut pair = Pair::open()?;
    let near = Arc::new(pair.near);
    let enrolled = trial.enrol(&near)?;
    let waiting = Waiting::begin(Arc::clone(&near))?;
    drop(enrolled);
    pair.far.write_all(b".")?;
    Ok(match waiting.result(PATIENCE) {
        Some(Ok(1)) => Ok("recv goes on".into()),
        other => Err(format!("{} after removal", receive::described(other))),
    })
}

/// Reset later.
fn after_reset(trial: &Arc<Trial>) -> io::Result<super::Seen> {
    let pair = Pair::open()?;
    drop(trial.enrol(&pair.near)?);
    receive::reset(pair)
}

/// While it sends, its buffer full: nothing is lost, and no line is put into what is sent from then on.
fn at_work(trial: &Arc<Trial>) -> io::Result<super::Seen> {
    const BEFORE: usize = 20;
    const AT_LEAST: usize = 2 * BEFORE;
    let pair = Pair::open_small(4_608, 4_608)?;
    let mut enrolled = Some(trial.enrol(&pair.near)?);
    let reader = SlowReader::begin(pair.far, 2_048, Duration::from_micros(300));
    let sent = Sent::send(&pair.near, TIME, AT_LEAST, |messages| {
        if messages == BEFORE {
            enrolled = None;
        }
    })?;
    let received = reader.rest()?;
    let messages = sent.begins.len();
    if messages < AT_LEAST {
        return Err(io::Error::other("too few messages could be sent"));
    }
    Ok(sent
        .compare(&received)
        .and_then(|inserted| match inserted.iter().find(|message| **message >= BEFORE) {
            None => Ok(format!("{messages} messages exact, lines only before it")),
            Some(message) => Err(format!("message {} has a line, after removal", message + 1)),
        }))
}
