//! What both sides have seen so far: a line of JSON every few milliseconds on their standard output, which the test reads.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::wire::LANES;

/// From one line to the next.
pub const EVERY: Duration = Duration::from_millis(20);
/// Faults told in words; the rest is counted.
const TOLD: usize = 5;
/// No line is longer.
const LINE_BYTES: u64 = 16 << 10;

/// What went wrong: how often, and the first few in words.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Faults {
    pub count: u64,
    pub first: Vec<String>,
}

impl Faults {
    pub fn add(&mut self, fault: &str) {
        self.count += 1;
        if self.first.len() < TOLD {
            self.first.push(fault.chars().take(600).collect());
        }
    }
}

/// What the side that asks has seen. Numbers are of all time unless told.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Called {
    pub at_ms: u64,
    /// Connections that are established now.
    pub open: u64,
    /// Threads that are in the middle of sending now.
    pub sending: u64,
    pub asked: u64,
    /// Answered with exactly the bytes that belong to the request.
    pub answered: u64,
    /// Of those, with a header added to the response.
    pub returned: u64,
    /// Connections on which a response came as it was sent, behind one with a header added.
    pub went_on: u64,
    pub faults: Faults,
    /// The longest time from a request to its whole response, uploads apart.
    pub slowest_ms: u64,
    /// Requests, uploads apart, whose whole response came no sooner than a delayed acknowledgement does.
    pub stalled: u64,
    /// Connections made.
    pub connections: u64,
    /// No request is under way and none will be.
    pub done: bool,
}

/// What the side that answers has seen.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Served {
    pub at_ms: u64,
    pub open: u64,
    /// Heads by lane ([`super::wire::Lane`]): all of them, and those with an added header.
    pub heads: [u64; LANES],
    pub rewritten: [u64; LANES],
    /// Connections, open now, whose last head was rewritten.
    pub rewritten_open: u64,
    /// Connections by lane on which a head came as it was sent, behind one that was rewritten.
    pub went_on: [u64; LANES],
    pub faults: Faults,
}

/// Milliseconds that all processes of the machine agree on.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as u64
}

/// Writes a line.
pub fn tell(line: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string(line)?;
    text.push('\n');
    // One write for each line.
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

/// The last whole line of a file, if there is one.
pub fn last<T: DeserializeOwned>(file: &Path) -> Result<Option<T>> {
    let mut file = File::open(file)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LINE_BYTES)))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    let text = String::from_utf8_lossy(&tail);
    let Some((whole, _)) = text.rsplit_once('\n') else {
        return Ok(None);
    };
    let line = whole.rsplit('\n').next().unwrap_or_default();
    let read = serde_json::from_str(line);
    read.map(Some).with_context(|| format!("not a line of counts: {line}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;

    #[test]
    fn the_last_whole_line_is_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(last::<Called>(file.path()).unwrap().is_none());
        let line = |answered| {
            let called = Called {
                answered,
                ..Called::default()
            };
            serde_json::to_string(&called).unwrap()
        };
        std::fs::write(file.path(), format!("{}\n{}\n{}", line(1), line(2), &line(3)[..20])).unwrap();
        assert_eq!(last::<Called>(file.path()).unwrap().unwrap().answered, 2);
        std::fs::write(file.path(), "thread panicked\n").unwrap();
        assert!(last::<Called>(file.path()).is_err());
    }

    #[test]
    fn faults_are_counted_and_the_first_are_told() {
        let mut faults = Faults::default();
        for number in 0..20 {
            faults.add(&number.to_string());
        }
        assert_eq!((faults.count, faults.first.len()), (20, TOLD));
    }
}
