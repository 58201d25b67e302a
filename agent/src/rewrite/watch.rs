//! When rewriting is to end by itself: the signs that it does harm, or that it does not work.

use spanwire_common::abi::{flag, outcome, side, ExchangeRecord};

/// What is looked at is what came in the last so many looks, one a second.
const LOOKS: usize = 10;
/// Fewer signs than these are chance.
const LEAST_FAILURES: u64 = 16;
const LEAST_RESETS: u64 = 50;
const LEAST_TOO_LARGE: u64 = 5;
/// `431 Request Header Fields Too Large` (RFC 6585, 5).
const TOO_LARGE: u16 = 431;

/// What happened between two looks.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    written: u64,
    failed: u64,
    /// Exchanges whose request bore what we put in, and those that bore nothing of ours; of each, those that were reset without
    /// an answer.
    rewritten: u64,
    rewritten_reset: u64,
    rewritten_too_large: u64,
    others: u64,
    others_reset: u64,
    others_too_large: u64,
}

/// Looks at counters and exchanges; says when it is enough.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    now: Tally,
    before: [Tally; LOOKS],
    next: usize,
    totals: (u64, u64),
}

impl Watch {
    /// A client's exchange is over.
    pub fn ended(&mut self, record: &ExchangeRecord) {
        if record.side != side::CLIENT {
            return;
        }
        let is_reset = record.outcome == outcome::RESET && record.status == 0;
        let is_too_large = record.status == TOO_LARGE;
        let tally = &mut self.now;
        let (all, reset, too_large) = if record.flags & (flag::INJECTED | flag::CORRECTED) != 0 {
            (
                &mut tally.rewritten,
                &mut tally.rewritten_reset,
                &mut tally.rewritten_too_large,
            )
        } else {
            (&mut tally.others, &mut tally.others_reset, &mut tally.others_too_large)
        };
        *all += 1;
        *reset += u64::from(is_reset);
        *too_large += u64::from(is_too_large);
    }

    /// Once a second, with the kernel side's totals: of what was written, and of what it failed at. A reason to end it.
    pub fn look(&mut self, written: u64, failed: u64) -> Option<String> {
        self.now.written = written.saturating_sub(self.totals.0);
        self.now.failed = failed.saturating_sub(self.totals.1);
        self.totals = (written, failed);
        self.before[self.next] = std::mem::take(&mut self.now);
        self.next = (self.next + 1) % LOOKS;
        let sum = |of: fn(&Tally) -> u64| self.before.iter().map(of).sum::<u64>();
        let (written, failed) = (sum(|t| t.written), sum(|t| t.failed));
        if failed >= LEAST_FAILURES && failed * 100 > written {
            return Some(format!("{failed} of {} messages could not be rewritten", written + failed));
        }
        let (rewritten, others) = (sum(|t| t.rewritten), sum(|t| t.others));
        let worse = |ours: u64, least: u64, theirs: u64| {
            // More than half of them, and more than four times as often as without us.
            let by_itself = theirs * rewritten.max(1) * 4;
            ours >= least && ours * 2 > rewritten && ours * others.max(1) > by_itself && others >= least
        };
        let (resets, resets_without) = (sum(|t| t.rewritten_reset), sum(|t| t.others_reset));
        if worse(resets, LEAST_RESETS, resets_without) {
            return Some(format!(
                "{resets} of {rewritten} rewritten requests were answered with a reset, {resets_without} of {others} others"
            ));
        }
        let (too_large, without) = (sum(|t| t.rewritten_too_large), sum(|t| t.others_too_large));
        if too_large >= LEAST_TOO_LARGE && too_large * 100 > rewritten && without * rewritten < too_large * others.max(1) {
            return Some(format!(
                "{too_large} of {rewritten} rewritten requests were answered with 431, {without} of {others} others"
            ));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    fn exchange(flags: u32, status: u16, outcome: u8) -> ExchangeRecord {
        ExchangeRecord {
            side: side::CLIENT,
            flags,
            status,
            outcome,
            ..ExchangeRecord::new_zeroed()
        }
    }

    fn ended(watch: &mut Watch, times: u64, flags: u32, status: u16, outcome: u8) {
        for _ in 0..times {
            watch.ended(&exchange(flags, status, outcome));
        }
    }

    #[test]
    fn failures_are_counted_over_the_last_seconds_only() {
        let mut watch = Watch::default();
        assert_eq!(watch.look(1_000, 15), None);
        assert!(watch.look(1_100, 40).is_some_and(|reason| reason.contains("40 of 1140")));
        for _ in 0..LOOKS {
            watch.look(1_100, 40);
        }
        assert_eq!(watch.look(1_200, 41), None);
    }

    #[test]
    fn resets_count_where_they_come_more_often_than_without_us() {
        let mut watch = Watch::default();
        ended(&mut watch, 100, flag::INJECTED, 0, outcome::RESET);
        ended(&mut watch, 100, 0, 0, outcome::RESET);
        assert_eq!(watch.look(100, 0), None, "the server resets everybody");
        let mut watch = Watch::default();
        ended(&mut watch, 100, flag::INJECTED, 0, outcome::RESET);
        ended(&mut watch, 100, 0, 200, outcome::COMPLETE);
        assert!(watch.look(100, 0).is_some_and(|reason| reason.contains("100 of 100")));
        let mut watch = Watch::default();
        ended(&mut watch, 49, flag::INJECTED, 0, outcome::RESET);
        ended(&mut watch, 100, 0, 200, outcome::COMPLETE);
        assert_eq!(watch.look(100, 0), None, "chance");
    }

    #[test]
    fn heads_that_have_become_too_large_end_it() {
        let mut watch = Watch::default();
        ended(&mut watch, 95, flag::INJECTED, 200, outcome::COMPLETE);
        ended(&mut watch, 5, flag::INJECTED, 431, outcome::COMPLETE);
        assert!(watch.look(100, 0).is_some_and(|reason| reason.contains("431")));
        let mut watch = Watch::default();
        ended(&mut watch, 5, flag::INJECTED, 431, outcome::COMPLETE);
        ended(&mut watch, 5, 0, 431, outcome::COMPLETE);
        assert_eq!(watch.look(5, 0), None, "they were too large before");
    }
}
