//! What the self-test's verdicts allow. A row that is faulty, or of which nothing is known, stands against every mode
//! whose sockets it would harm, and against no other.

use std::fmt;

use crate::sys::selftest::{Row, SelfTest, Verdict};

/// What may be done with sockets on this node, each with the reason where it may not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Modes {
    /// A client's socket is enrolled as it connects, and removed as its first request leaves.
    pub one_shot: Result<(), Reason>,
    /// Non-blocking sockets of processes that never ask FIONREAD stay enrolled.
    pub persistent_nonblocking: Result<(), Reason>,
    /// Non-blocking sockets stay enrolled, whatever their process asks.
    pub persistent_fionread: Result<(), Reason>,
    /// Blocking sockets stay enrolled, too.
    pub persistent_blocking: Result<(), Reason>,
    /// Sockets with SO_ZEROCOPY may be enrolled; where not, every mode must keep them out.
    pub zero_copy: Result<(), Reason>,
    /// Messages that are longer than one piece of the kernel's must be made one piece, else they are held up.
    pub linearise_large: bool,
}

/// The rows that stand against a mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    against: Vec<Against>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Against {
    row: Row,
    verdict: Verdict,
    detail: String,
}

/// Text reaches a message whole or not at all, and a socket can be let go.
const ONE_SHOT: [Row; 2] = [Row::Insertion, Row::Removal];
/// What an event loop does with a socket while it is enrolled.
const NON_BLOCKING: [Row; 2] = [Row::NonBlocking, Row::Splice];
/// What a thread meets that waits in `recv`.
const BLOCKING: [Row; 4] = [Row::RecvReset, Row::RecvSignal, Row::RecvShutdown, Row::RecvWriteSpace];

impl Modes {
    /// Decides; from the verdicts and nothing else.
    pub fn of(test: &SelfTest) -> Self {
        let mut standing = against(test, &ONE_SHOT);
        let linearise_large = !against(test, &[Row::LargeWrites]).is_empty();
        if linearise_large {
            // The remedy has to work, then.
            standing.extend(against(test, &[Row::LargeWritesLinearised]));
        }
        let one_shot = decided(&standing);
        standing.extend(against(test, &NON_BLOCKING));
        let persistent_nonblocking = decided(&standing);
        standing.extend(against(test, &[Row::Fionread]));
        let persistent_fionread = decided(&standing);
        standing.extend(against(test, &BLOCKING));
        Self {
            one_shot,
            persistent_nonblocking,
            persistent_fionread,
            persistent_blocking: decided(&standing),
            zero_copy: decided(&against(test, &[Row::ZeroCopy])),
            linearise_large,
        }
    }

    /// Nothing is allowed, for this reason: where there was no test.
    pub fn none(reason: &str) -> Self {
        Self::of(&SelfTest::without_answers(reason))
    }

    /// A row has no answer: on a busy machine it may have one later.
    pub fn is_open(&self) -> bool {
        let modes = self.each().map(|(_, mode)| mode.as_ref().err());
        let mut against = modes.into_iter().flatten().flat_map(|reason| &reason.against);
        against.any(|against| against.verdict == Verdict::Unknown)
    }

    /// Each mode with its name, from the narrowest to the widest.
    pub fn each(&self) -> [(&'static str, &Result<(), Reason>); 4] {
        [
            ("one_shot", &self.one_shot),
            ("persistent_nonblocking", &self.persistent_nonblocking),
            ("persistent_fionread", &self.persistent_fionread),
            ("persistent_blocking", &self.persistent_blocking),
        ]
    }
}

/// The answers to these rows that are not clean; one that is missing counts as unknown.
fn against(test: &SelfTest, rows: &[Row]) -> Vec<Against> {
    let not_clean = |row: &Row| {
        let outcome = test.outcomes.iter().find(|outcome| outcome.row == *row);
        let (verdict, detail) = outcome.map_or((Verdict::Unknown, "not tried"), |outcome| {
            (outcome.verdict, outcome.detail.as_str())
        });
        (verdict != Verdict::Clean).then(|| Against {
            row: *row,
            verdict,
            detail: detail.to_owned(),
        })
    };
    rows.iter().filter_map(not_clean).collect()
}

fn decided(against: &[Against]) -> Result<(), Reason> {
    if against.is_empty() {
        return Ok(());
    }
    Err(Reason {
        against: against.to_vec(),
    })
}

impl Reason {
    /// The rows, by their names with commas between them: a metric's label.
    pub fn label(&self) -> String {
        let names: Vec<&str> = self.against.iter().map(|against| against.row.name()).collect();
        names.join(",")
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, against) in self.against.iter().enumerate() {
            let comma = if index == 0 { "" } else { "; " };
            let (name, verdict) = (against.row.name(), against.verdict);
            write!(f, "{comma}{name} is {verdict} ({})", against.detail)?;
        }
        Ok(())
    }
}

impl std::error::Error for Reason {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;

    fn test_with(rows: &[(Row, Verdict)]) -> SelfTest {
        let mut test = SelfTest::without_answers("");
        for outcome in &mut test.outcomes {
            let told = rows.iter().find(|(row, _)| *row == outcome.row);
            outcome.verdict = told.map_or(Verdict::Clean, |(_, verdict)| *verdict);
            outcome.detail = "seen".into();
        }
        test
    }

    /// Which of the modes are left, from the narrowest to the widest.
    fn allowed(rows: &[(Row, Verdict)]) -> [bool; 4] {
        Modes::of(&test_with(rows)).each().map(|(_, mode)| mode.is_ok())
    }

    #[test]
    fn a_clean_kernel_may_do_everything() {
        let modes = Modes::of(&test_with(&[]));
        assert!(modes.each().iter().all(|(_, mode)| mode.is_ok()));
        assert!(modes.zero_copy.is_ok() && !modes.linearise_large);
    }

    #[test]
    fn each_row_stands_against_the_modes_it_would_harm() {
        for (rows, left) in [
            (&ONE_SHOT[..], [false; 4]),
            (&NON_BLOCKING[..], [true, false, false, false]),
            (&[Row::Fionread][..], [true, true, false, false]),
            (&BLOCKING[..], [true, true, true, false]),
            (
                &[Row::LargeWrites, Row::LargeWritesLinearised, Row::ZeroCopy][..],
                [true; 4],
            ),
        ] {
            for row in rows {
                for verdict in [Verdict::Faulty, Verdict::Unknown] {
                    assert_eq!(allowed(&[(*row, verdict)]), left, "{row:?} {verdict}");
                }
            }
        }
    }

    #[test]
    fn a_row_without_an_answer_leaves_it_open() {
        let of = |rows: &[(Row, Verdict)]| Modes::of(&test_with(rows)).is_open();
        assert!(of(&[(Row::Removal, Verdict::Unknown)]));
        assert!(!of(&[(Row::Removal, Verdict::Faulty)]) && !of(&[]));
    }

    #[test]
    fn every_row_decides_something() {
        for row in Row::ALL {
            // The remedy for large writes is asked about only where they are held up.
            let mut rows = Vec::new();
            if row == Row::LargeWritesLinearised {
                rows.push((Row::LargeWrites, Verdict::Faulty));
            }
            let before = Modes::of(&test_with(&rows));
            rows.push((row, Verdict::Faulty));
            assert_ne!(Modes::of(&test_with(&rows)), before, "{row:?}");
        }
    }

    #[test]
    fn large_writes_that_are_held_up_need_their_remedy() {
        let held_up = [(Row::LargeWrites, Verdict::Faulty)];
        let modes = Modes::of(&test_with(&held_up));
        assert!(modes.linearise_large && modes.one_shot.is_ok());
        let neither = [held_up[0], (Row::LargeWritesLinearised, Verdict::Faulty)];
        assert_eq!(allowed(&neither), [false; 4]);
    }

    #[test]
    fn sockets_with_zero_copy_are_decided_by_themselves() {
        let modes = Modes::of(&test_with(&[(Row::ZeroCopy, Verdict::Faulty)]));
        assert_eq!(modes.zero_copy.unwrap_err().label(), "zero_copy");
        assert!(modes.persistent_blocking.is_ok());
    }

    #[test]
    fn a_reason_names_its_rows_and_what_was_seen() {
        let rows = [(Row::Fionread, Verdict::Faulty), (Row::RecvSignal, Verdict::Unknown)];
        let modes = Modes::of(&test_with(&rows));
        let reason = modes.persistent_blocking.unwrap_err();
        assert_eq!(
            reason.to_string(),
            "fionread is faulty (seen); recv_signal is unknown (seen)"
        );
        assert_eq!(reason.label(), "fionread,recv_signal");
        assert_eq!(modes.persistent_fionread.unwrap_err().label(), "fionread");
    }

    #[test]
    fn without_a_test_nothing_is_allowed() {
        let modes = Modes::none("sk_msg is refused");
        assert!(modes.each().iter().all(|(_, mode)| mode.is_err()));
        let reason = modes.one_shot.unwrap_err().to_string();
        assert!(
            reason.starts_with("insertion is unknown (sk_msg is refused)"),
            "{reason}"
        );
        let mut test = test_with(&[]);
        test.outcomes.retain(|outcome| outcome.row != Row::Removal);
        assert_eq!(Modes::of(&test).one_shot.unwrap_err().label(), "removal");
    }
}
