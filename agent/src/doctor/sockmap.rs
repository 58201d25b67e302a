//! What the self-test of the sockmap has found, and what follows for writing headers.

use super::Row;
use crate::rewrite::modes::{Modes, Reason};
use crate::sys::selftest::{Outcome, Row as Tried, SelfTest, Verdict};

/// What a row of the self-test is about.
struct Meaning {
    name: &'static str,
    clean: &'static str,
    otherwise: &'static str,
    remedy: &'static str,
}

const OTHER_KERNEL: &str = "none needed to observe; other kernels are clean (docs/kernels.md)";
const REPORT: &str = "none needed to observe; report it with this output and `uname -r`";
const NONE_NEEDED: &str = "none needed";

const fn meaning(row: Tried) -> Meaning {
    match row {
        Tried::Fionread => Meaning {
            name: "sockmap FIONREAD",
            clean: "processes that ask how many bytes are queued are told",
            otherwise: "sockets of processes that ask (nginx, Java, .NET) do not stay enrolled",
            remedy: OTHER_KERNEL,
        },
        Tried::RecvReset => Meaning {
            name: "sockmap recv, reset",
            clean: "a waiting recv ends as it should",
            otherwise: "blocking sockets do not stay enrolled",
            remedy: NONE_NEEDED,
        },
        Tried::RecvSignal => Meaning {
            name: "sockmap recv, signal",
            clean: "a waiting recv goes on",
            otherwise: "blocking sockets do not stay enrolled",
            remedy: NONE_NEEDED,
        },
        Tried::RecvShutdown => Meaning {
            name: "sockmap recv, shutdown",
            clean: "a waiting recv goes on",
            otherwise: "blocking sockets do not stay enrolled",
            remedy: NONE_NEEDED,
        },
        Tried::RecvWriteSpace => Meaning {
            name: "sockmap recv, write space",
            clean: "a waiting recv goes on",
            otherwise: "blocking sockets do not stay enrolled",
            remedy: NONE_NEEDED,
        },
        Tried::NonBlocking => Meaning {
            name: "sockmap non-blocking recv",
            clean: "event loops see what they should",
            otherwise: "no socket stays enrolled",
            remedy: REPORT,
        },
        Tried::Splice => Meaning {
            name: "sockmap splice, sendfile",
            clean: "bytes arrive as they were",
            otherwise: "no socket stays enrolled",
            remedy: REPORT,
        },
        Tried::LargeWrites => Meaning {
            name: "sockmap large writes",
            clean: "large writes are not held up",
            otherwise: "large writes on enrolled sockets are made one piece",
            remedy: NONE_NEEDED,
        },
        Tried::LargeWritesLinearised => Meaning {
            name: "sockmap large writes in one piece",
            clean: "large writes in one piece are not held up",
            otherwise: "no socket is enrolled where large writes are held up otherwise, too",
            remedy: REPORT,
        },
        Tried::Insertion => Meaning {
            name: "sockmap insertion",
            clean: "a header can be written into a message",
            otherwise: "no header is written",
            remedy: REPORT,
        },
        Tried::Removal => Meaning {
            name: "sockmap removal",
            clean: "a socket can be let go while it is in use",
            otherwise: "no header is written",
            remedy: REPORT,
        },
        Tried::ZeroCopy => Meaning {
            name: "sockmap zero-copy sends",
            clean: "zero-copy sends are told of once each",
            otherwise: "sockets with SO_ZEROCOPY are left out",
            remedy: NONE_NEEDED,
        },
    }
}

/// What a mode is good for.
const MODES: [(&str, &str, &str); 4] = [
    (
        "headers: first request",
        "the first request of a client's connection can carry a header",
        "no header is written on any connection; traces are joined by wire identity all the same",
    ),
    (
        "headers: non-blocking sockets",
        "every request and response of non-blocking sockets can, where the process never asks FIONREAD",
        "no socket stays enrolled: only first requests carry a header",
    ),
    (
        "headers: with FIONREAD",
        "every request and response of non-blocking sockets can, whatever the process asks",
        "processes that ask FIONREAD have a header in first requests only",
    ),
    (
        "headers: blocking sockets",
        "every request and response of blocking sockets can",
        "blocking sockets have a header in first requests only",
    ),
];

/// A row for the test itself, one for each thing that was tried, and one for each mode of writing headers.
pub(super) fn rows(test: &SelfTest) -> Vec<Row> {
    let tried = test.outcomes.iter().map(tried);
    let modes = Modes::of(test);
    let decided = modes
        .each()
        .into_iter()
        .zip(MODES)
        .map(|((_, mode), texts)| decided(mode, texts));
    std::iter::once(whole(test)).chain(tried).chain(decided).collect()
}

const SELF_TEST: &str = "sockmap self-test";

fn whole(test: &SelfTest) -> Row {
    let place = if test.own_network {
        "in a network namespace of its own"
    } else {
        "on the loopback interface (CAP_SYS_ADMIN gives it a network namespace of its own)"
    };
    let unknown = test
        .outcomes
        .iter()
        .filter(|outcome| outcome.verdict == Verdict::Unknown);
    let unknown = unknown.count();
    let rows = test.outcomes.len();
    let answered = format!("{} of {rows} rows answered", rows - unknown);
    Row {
        feature: SELF_TEST.to_owned(),
        state: if unknown == 0 { "yes" } else { "no" },
        consequence: format!("{answered} in {} ms, {place}", test.took.as_millis()),
        remedy: if unknown == 0 {
            ""
        } else {
            "what is unknown counts as faulty; run it again on a machine that is less busy"
        },
    }
}

/// Where sk_msg is refused, nothing else about it can be tried.
pub(super) fn not_probed() -> Row {
    Row {
        feature: SELF_TEST.to_owned(),
        state: "not probed",
        consequence: "no header is written on any connection; it needs sk_msg to find out".to_owned(),
        remedy: "",
    }
}

fn tried(outcome: &Outcome) -> Row {
    let meaning = meaning(outcome.row);
    let (state, text, remedy) = match outcome.verdict {
        Verdict::Clean => ("clean", meaning.clean, ""),
        Verdict::Faulty => ("faulty", meaning.otherwise, meaning.remedy),
        Verdict::Unknown => ("unknown", meaning.otherwise, meaning.remedy),
    };
    Row {
        feature: meaning.name.to_owned(),
        state,
        consequence: format!("{text} [{}; {} ms]", outcome.detail, outcome.took.as_millis()),
        remedy,
    }
}

fn decided(mode: &Result<(), Reason>, (feature, with, without): (&str, &str, &str)) -> Row {
    let (state, consequence) = match mode {
        Ok(()) => ("yes", with.to_owned()),
        Err(reason) => ("no", format!("{without} [{}]", reason.label())),
    };
    Row {
        feature: feature.to_owned(),
        state,
        consequence,
        remedy: if mode.is_ok() { "" } else { "see the sockmap rows" },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use std::time::Duration;

    use super::*;

    fn clean() -> SelfTest {
        let mut test = SelfTest::without_answers("as it should be");
        for outcome in &mut test.outcomes {
            (outcome.verdict, outcome.took) = (Verdict::Clean, Duration::from_millis(7));
        }
        test
    }

    fn states(test: &SelfTest) -> Vec<(String, &'static str)> {
        rows(test).into_iter().map(|row| (row.feature, row.state)).collect()
    }

    #[test]
    fn a_clean_kernel_wants_nothing() {
        for row in rows(&clean()).into_iter().skip(1) {
            let expected = if row.feature.starts_with("sockmap ") {
                "clean"
            } else {
                "yes"
            };
            assert_eq!((row.state, row.remedy), (expected, ""), "{}", row.feature);
        }
        let tried = rows(&clean()).into_iter().nth(1).unwrap();
        assert!(
            tried.consequence.ends_with(" [as it should be; 7 ms]"),
            "{}",
            tried.consequence
        );
    }

    #[test]
    fn every_row_has_a_name_of_its_own() {
        let mut names: Vec<String> = states(&clean()).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), 1 + Tried::ALL.len() + MODES.len());
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 1 + Tried::ALL.len() + MODES.len());
    }

    #[test]
    fn a_fault_is_told_with_what_follows_from_it() {
        let mut test = clean();
        for outcome in &mut test.outcomes {
            if outcome.row == Tried::Fionread {
                (outcome.verdict, outcome.detail) = (Verdict::Faulty, "FIONREAD says 0".into());
            }
        }
        let rows = rows(&test);
        let row = |name: &str| rows.iter().find(|row| row.feature == name).unwrap();
        let fionread = row("sockmap FIONREAD");
        assert_eq!(fionread.state, "faulty");
        assert!(fionread.consequence.contains("[FIONREAD says 0; 7 ms]"));
        assert!(!fionread.remedy.is_empty());
        assert_eq!(row("headers: non-blocking sockets").state, "yes");
        let with_fionread = row("headers: with FIONREAD");
        assert_eq!(with_fionread.state, "no");
        assert!(
            with_fionread.consequence.ends_with("[fionread]"),
            "{}",
            with_fionread.consequence
        );
    }

    #[test]
    fn the_test_itself_has_a_row() {
        let whole = |test: &SelfTest| rows(test).into_iter().next().unwrap();
        let mut test = clean();
        (test.own_network, test.took) = (true, Duration::from_millis(470));
        let row = whole(&test);
        assert_eq!((row.state, row.remedy), ("yes", ""));
        assert_eq!(
            row.consequence,
            "12 of 12 rows answered in 470 ms, in a network namespace of its own"
        );
        test.outcomes[0].verdict = Verdict::Unknown;
        test.own_network = false;
        let row = whole(&test);
        assert_eq!(row.state, "no");
        assert!(row
            .consequence
            .starts_with("11 of 12 rows answered in 470 ms, on the loopback"));
        assert!(!row.remedy.is_empty());
    }

    #[test]
    fn without_answers_no_mode_is_left() {
        for (feature, state) in states(&SelfTest::without_answers("refused")).into_iter().skip(1) {
            let expected = if feature.starts_with("sockmap ") {
                "unknown"
            } else {
                "no"
            };
            assert_eq!(state, expected, "{feature}");
        }
    }
}
