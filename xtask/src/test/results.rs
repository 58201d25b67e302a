//! What test programs say about themselves, summed.

use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// For output that is still in the pipe when a program has ended.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Tests that passed, failed, were skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// Reads `test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s`.
    fn parse(line: &str) -> Option<Self> {
        let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
        let count = |word: &str| {
            let field = counts.split("; ").find_map(|field| field.strip_suffix(word))?;
            field.trim().parse().ok()
        };
        Some(Self {
            passed: count("passed")?,
            failed: count("failed")?,
            skipped: count("ignored")?,
        })
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(out, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

/// Runs a test program (or a cargo that runs several), copies its output to `out` and sums its result lines. One that
/// ends badly without saying that a test failed (it crashed, or hung until its time was over) counts as one failure.
pub(crate) fn run(mut command: Command, out: &mut dyn Write) -> Result<Tally> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    let lines = lines_of(child.stdout.take().context("a child's output was not piped")?);
    let mut tally = Tally::default();
    let mut ended: Option<(ExitStatus, Instant)> = None;
    loop {
        match lines.recv_timeout(Duration::from_millis(100)) {
            Ok(line) => {
                out.write_all(&line)?;
                out.write_all(b"\n")?;
                if let Some(result) = std::str::from_utf8(&line).ok().and_then(Tally::parse) {
                    tally.add(result);
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
        // A service that a test left behind holds the pipe open, but nobody waits for it.
        if ended.is_some_and(|(_, when)| when.elapsed() > LAST_WORDS) {
            writeln!(out, "something that the tests started is still running")?;
            break;
        }
        if ended.is_none() {
            let status = child.try_wait().with_context(|| format!("cannot wait for {program}"))?;
            ended = status.map(|status| (status, Instant::now()));
        }
    }
    let status = child.wait().with_context(|| format!("cannot wait for {program}"))?;
    if !status.success() && tally.failed == 0 {
        writeln!(out, "ended badly without a failed test: {status}")?;
        tally.failed = 1;
    }
    Ok(tally)
}

/// The lines of a pipe, read aside; the channel closes when the last writer closes the pipe.
fn lines_of(pipe: ChildStdout) -> Receiver<Vec<u8>> {
    let (lines, received) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            if lines.send(line).is_err() {
                return;
            }
        }
    });
    received
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;

    fn shell(script: &str) -> Tally {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        // Not to our own output, where whoever runs this test would count it.
        run(command, &mut std::io::sink()).unwrap()
    }

    #[test]
    fn a_result_line_is_read_whole() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.01s";
        assert_eq!(
            Tally::parse(line),
            Some(Tally {
                passed: 12,
                failed: 3,
                skipped: 1
            })
        );
        assert_eq!(Tally::parse("test result: ok. many passed; 0 failed; 0 ignored"), None);
        assert_eq!(Tally::parse("test wire::key ... ok"), None);
    }

    #[test]
    fn lines_of_several_programs_add_up() {
        let line = |passed| format!("echo 'test result: ok. {passed} passed; 0 failed; 0 ignored; 0 measured';");
        let tally = shell(&format!("{}{}", line(2), line(40)));
        assert_eq!(
            tally,
            Tally {
                passed: 42,
                failed: 0,
                skipped: 0
            }
        );
    }

    #[test]
    fn a_crash_is_a_failure_even_after_a_good_line() {
        let tally = shell("echo 'test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured'; kill -SEGV $$");
        assert_eq!(
            tally,
            Tally {
                passed: 2,
                failed: 1,
                skipped: 0
            }
        );
        assert_eq!(
            shell("exit 101"),
            Tally {
                passed: 0,
                failed: 1,
                skipped: 0
            }
        );
    }

    #[test]
    fn a_failed_test_is_not_counted_twice() {
        let tally = shell("echo 'test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured'; exit 101");
        assert_eq!(
            tally,
            Tally {
                passed: 2,
                failed: 1,
                skipped: 0
            }
        );
    }

    #[test]
    fn the_closing_line_names_skipped_tests_only_where_there_are_any() {
        assert_eq!(
            Tally {
                passed: 3,
                failed: 0,
                skipped: 0
            }
            .to_string(),
            "3 passed, 0 failed"
        );
        assert_eq!(
            Tally {
                passed: 3,
                failed: 1,
                skipped: 2
            }
            .to_string(),
            "3 passed, 1 failed, 2 skipped"
        );
    }

    #[test]
    fn a_process_left_behind_is_not_waited_for() {
        let start = Instant::now();
        let tally = shell("sleep 6 & echo 'test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured'");
        assert_eq!(
            tally,
            Tally {
                passed: 1,
                failed: 0,
                skipped: 0
            }
        );
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}
