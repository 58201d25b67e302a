//! What membership in a sockmap, and putting text into a message, do to a socket on this kernel, found out on sockets of
//! our own: by behaviour, never by version. The same is done to a socket that is enrolled and to one that is not; the
//! kernel is at fault where only the first is wrong.
//!
//! The rows run beside each other, each with connections of its own, in a network namespace that goes with them (where
//! `CAP_SYS_ADMIN` allows one, else on the loopback interface). What follows from them is `rewrite::modes`.

mod insertion;
mod program;
mod receive;
mod removal;
mod send;
mod sockets;
mod stream;
mod waiting;

use std::fmt;
use std::io;
use std::sync::mpsc::{channel, RecvTimeoutError, Sender};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use self::program::Trial;
use self::sockets::Pair;
use super::types::KernelTypes;

/// Names of rows, with commas between them, that are told as faulty whatever came out: for tests of what follows.
pub const FAULTY_VARIABLE: &str = "SPANWIRE_SELFTEST_FAULTY";

/// A row that takes longer has no verdict. On a machine of its own all are done in less than a second.
const AT_MOST: Duration = Duration::from_secs(8);

/// What is tried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Row {
    /// FIONREAD tells how many bytes are queued.
    Fionread,
    /// A `recv` that waits ends with ECONNRESET when the peer resets the connection.
    RecvReset,
    /// A `recv` that waits goes on after a signal whose handler says so (SA_RESTART).
    RecvSignal,
    /// A `recv` that waits goes on when another thread ends the sending side.
    RecvShutdown,
    /// A `recv` that waits goes on when there is room to send again.
    RecvWriteSpace,
    /// Data, peeks, end of stream and reset as a non-blocking socket sees them.
    NonBlocking,
    /// `splice` out of a socket and into it, and `sendfile`.
    Splice,
    /// Writes of 40 to 70 kB without TCP_NODELAY are not held up.
    LargeWrites,
    /// As [`Row::LargeWrites`], where the program makes each of them one piece.
    LargeWritesLinearised,
    /// Text put into messages, the socket full and its peer slow: every byte arrives once and in order.
    Insertion,
    /// A socket that user space takes out of the map is an ordinary one again.
    Removal,
    /// As many completions of zero-copy sends as there were sends.
    ZeroCopy,
}

impl Row {
    /// In the order in which they are shown.
    pub const ALL: [Self; 12] = [
        Self::Fionread,
        Self::RecvReset,
        Self::RecvSignal,
        Self::RecvShutdown,
        Self::RecvWriteSpace,
        Self::NonBlocking,
        Self::Splice,
        Self::LargeWrites,
        Self::LargeWritesLinearised,
        Self::Insertion,
        Self::Removal,
        Self::ZeroCopy,
    ];

    /// As it is called in `SPANWIRE_SELFTEST_FAULTY`, metrics and `spanwire status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fionread => "fionread",
            Self::RecvReset => "recv_reset",
            Self::RecvSignal => "recv_signal",
            Self::RecvShutdown => "recv_shutdown",
            Self::RecvWriteSpace => "recv_write_space",
            Self::NonBlocking => "non_blocking",
            Self::Splice => "splice",
            Self::LargeWrites => "large_writes",
            Self::LargeWritesLinearised => "large_writes_linearised",
            Self::Insertion => "insertion",
            Self::Removal => "removal",
            Self::ZeroCopy => "zero_copy",
        }
    }

    /// Keeps the processors busy: begins when what is timed has ended.
    const fn is_loud(self) -> bool {
        matches!(self, Self::Insertion | Self::Removal)
    }

    const fn is_timed(self) -> bool {
        matches!(self, Self::LargeWrites | Self::LargeWritesLinearised)
    }

    fn try_out(self, trial: &Arc<Trial>) -> io::Result<Finding> {
        match self {
            Self::Fionread => compare(trial, Pair::open, receive::fionread),
            Self::RecvReset => compare(trial, Pair::open, receive::reset),
            Self::RecvSignal => compare(trial, Pair::open, receive::signal),
            Self::RecvShutdown => compare(trial, Pair::open, receive::shutdown),
            Self::RecvWriteSpace => compare(trial, || Pair::open_small(4_096, 4_096), receive::write_space),
            Self::NonBlocking => compare(trial, Pair::open, receive::non_blocking),
            Self::Splice => compare(trial, Pair::open, receive::splice),
            Self::LargeWrites => send::large_writes(trial, [0; 8]),
            Self::LargeWritesLinearised => send::large_writes(trial, spanwire_common::trial::LINEARISE),
            Self::Insertion => insertion::insertion(trial),
            Self::Removal => removal::removal(trial),
            Self::ZeroCopy => compare(trial, Pair::open, send::zero_copy),
        }
    }
}

/// What came of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As on a socket that is not enrolled.
    Clean,
    Faulty,
    /// It could not be found out.
    Unknown,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clean => "clean",
            Self::Faulty => "faulty",
            Self::Unknown => "unknown",
        })
    }
}

/// A row's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub row: Row,
    pub verdict: Verdict,
    /// What was seen, in one line.
    pub detail: String,
    pub took: Duration,
}

/// The whole answer: every row of [`Row::ALL`], once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelfTest {
    pub outcomes: Vec<Outcome>,
    /// In a network namespace of its own; else on this one's loopback interface.
    pub own_network: bool,
    pub took: Duration,
}

/// What a row has found.
struct Finding {
    verdict: Verdict,
    detail: String,
}

impl Finding {
    fn clean(detail: impl Into<String>) -> Self {
        Self::of(Verdict::Clean, detail)
    }

    fn faulty(detail: impl Into<String>) -> Self {
        Self::of(Verdict::Faulty, detail)
    }

    fn unknown(detail: impl Into<String>) -> Self {
        Self::of(Verdict::Unknown, detail)
    }

    fn of(verdict: Verdict, detail: impl Into<String>) -> Self {
        Self {
            verdict,
            detail: detail.into(),
        }
    }
}

/// What a check saw: as it should be, or what was wrong.
type Seen = Result<String, String>;

/// Checks a socket that is not enrolled, and one that is.
fn compare(trial: &Trial, open: fn() -> io::Result<Pair>, check: fn(Pair) -> io::Result<Seen>) -> io::Result<Finding> {
    if let Err(fault) = check(open()?)? {
        return Ok(Finding::unknown(format!("a socket that is not enrolled: {fault}")));
    }
    let pair = open()?;
    let _enrolled = trial.enrol(&pair.near)?;
    Ok(match check(pair)? {
        Ok(detail) => Finding::clean(detail),
        Err(fault) => Finding::faulty(fault),
    })
}

/// Tries everything out. Takes less than a second, and comes back after eight seconds whatever happens.
pub fn run(types: &KernelTypes) -> SelfTest {
    let begin = Instant::now();
    let mut test = match Trial::load(types) {
        Ok(trial) => run_rows(&Arc::new(trial)),
        Err(refusal) => SelfTest::without_answers(&format!("the trial's program does not load: {refusal}")),
    };
    test.took = begin.elapsed();
    if let Ok(names) = std::env::var(FAULTY_VARIABLE) {
        test.make_faulty(&names);
    }
    test
}

type Answer = (Row, Finding, Duration);

fn run_rows(trial: &Arc<Trial>) -> SelfTest {
    let deadline = Instant::now() + AT_MOST;
    let (tell_network, network) = channel();
    let (tell, told) = channel();
    let own = Arc::clone(trial);
    // Threads have the network of the one that starts them.
    let started = thread::Builder::new().name("self-test".into()).spawn(move || {
        // Nobody listens any more only where all has been given up.
        let _ = tell_network.send(sockets::own_network());
        let (loud, quiet): (Vec<Row>, Vec<Row>) = Row::ALL.into_iter().partition(|row| row.is_loud());
        let timed: Vec<JoinHandle<()>> = quiet
            .into_iter()
            .filter_map(|row| begin_row(row, &own, &tell).filter(|_| row.is_timed()))
            .collect();
        for row in timed {
            // What becomes of it, it tells itself.
            let _ = row.join();
        }
        for row in loud {
            begin_row(row, &own, &tell);
        }
    });
    if let Err(error) = started {
        return SelfTest::without_answers(&format!("no thread can be started: {error}"));
    }
    let mut test = SelfTest::without_answers(&format!("no answer within {} s", AT_MOST.as_secs()));
    match network.recv_timeout(AT_MOST) {
        Ok(Ok(())) => test.own_network = true,
        Ok(Err(error)) => {
            tracing::debug!(%error, "self-test on the loopback interface: no network namespace of its own");
        }
        Err(_) => {}
    }
    loop {
        match told.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(answer) => test.take(answer),
            Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => return test,
        }
    }
}

fn begin_row(row: Row, trial: &Arc<Trial>, tell: &Sender<Answer>) -> Option<JoinHandle<()>> {
    let (own, own_tell) = (Arc::clone(trial), tell.clone());
    let started = thread::Builder::new().name(row.name().into()).spawn(move || {
        let begin = Instant::now();
        let finding = row
            .try_out(&own)
            .unwrap_or_else(|error| Finding::unknown(error.to_string()));
        let _ = own_tell.send((row, finding, begin.elapsed()));
    });
    let refused = |error| {
        let finding = Finding::unknown(format!("no thread can be started: {error}"));
        let _ = tell.send((row, finding, Duration::ZERO));
    };
    started.map_err(refused).ok()
}

impl SelfTest {
    /// Nothing is known, for this reason.
    pub fn without_answers(reason: &str) -> Self {
        let unknown = |row| Outcome {
            row,
            verdict: Verdict::Unknown,
            detail: reason.to_owned(),
            took: Duration::ZERO,
        };
        Self {
            outcomes: Row::ALL.map(unknown).to_vec(),
            own_network: false,
            took: Duration::ZERO,
        }
    }

    fn take(&mut self, (row, finding, took): Answer) {
        for outcome in self.outcomes.iter_mut().filter(|outcome| outcome.row == row) {
            *outcome = Outcome {
                row,
                verdict: finding.verdict,
                detail: finding.detail.clone(),
                took,
            };
        }
    }

    /// Everything is clean but these rows: for tests of what follows.
    #[cfg(test)]
    pub(crate) fn with_faults(names: &str) -> Self {
        let mut test = Self::without_answers("");
        for outcome in &mut test.outcomes {
            outcome.verdict = Verdict::Clean;
        }
        test.make_faulty(names);
        test
    }

    fn make_faulty(&mut self, names: &str) {
        for name in names.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let mut known = false;
            for outcome in self.outcomes.iter_mut().filter(|outcome| outcome.row.name() == name) {
                known = true;
                outcome.verdict = Verdict::Faulty;
                outcome.detail = format!("told so by {FAULTY_VARIABLE}");
            }
            if !known {
                tracing::warn!("{FAULTY_VARIABLE} names {name:?}, which is no row of the self-test");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;

    #[test]
    fn rows_have_names_of_their_own() {
        let mut names = Row::ALL.map(Row::name).to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Row::ALL.len());
    }

    #[test]
    fn the_rows_that_are_named_are_faulty_and_no_others() {
        let mut test = SelfTest::without_answers("not tried");
        test.make_faulty("fionread, zero_copy,,nonsense");
        let faulty: Vec<Row> = test
            .outcomes
            .iter()
            .filter(|outcome| outcome.verdict == Verdict::Faulty)
            .map(|outcome| outcome.row)
            .collect();
        assert_eq!(faulty, [Row::Fionread, Row::ZeroCopy]);
    }

    #[test]
    fn an_answer_goes_to_its_row() {
        let mut test = SelfTest::without_answers("not tried");
        test.take((Row::Splice, Finding::clean("seen"), Duration::from_millis(3)));
        let known: Vec<&Outcome> = test
            .outcomes
            .iter()
            .filter(|outcome| outcome.verdict != Verdict::Unknown)
            .collect();
        assert_eq!(known.len(), 1);
        assert_eq!((known[0].row, known[0].detail.as_str()), (Row::Splice, "seen"));
    }
}
