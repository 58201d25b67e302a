//! Trace ids that turned out to name one trace.
//!
//! A fragment is what one trace id was made for: the exchange that found no context at its start, and all it caused. The
//! union is fed with evidence about such a first exchange only: its parent became known, so its fragment belongs to
//! the parent's trace. Which id survives: the one that more of the world knows ([`Known`]), else the parent's, which is the
//! older one. An id adopted from a header never loses: a fragment with such an id is not merged into another.
//!
//! Ids that lose are announced once each as aliases. Their canonical id may lose later, and is then announced itself:
//! whoever resolves follows the chain.

use super::recent::{Recent, FOREVER_NS};
use crate::span::{TraceAlias, TraceId};

/// Follows chains at most so far: deeper ones are compressed long before.
const MAX_DEPTH: usize = 64;

/// Who knows a trace id beside this agent, the least first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Known {
    /// Nobody.
    #[default]
    Here,
    /// Whoever made it: it came in a header, and did not go out in one of ours before.
    Adopted,
    /// The server that a request with it went to, for which it was made.
    Injected,
    /// The client that a response with it went to.
    Returned,
}

impl Known {
    /// How strong a claim to survival it is.
    const fn rank(self) -> u8 {
        match self {
            Self::Here => 0,
            Self::Injected => 1,
            Self::Returned => 2,
            Self::Adopted => 3,
        }
    }
}

#[derive(Debug)]
pub(super) struct Union {
    /// Ids that lost, and who stands for them.
    lost: Recent<TraceId, Winner>,
    /// Ids that somebody else knows.
    known: Recent<TraceId, Known>,
    merged: u64,
    cut: u64,
}

#[derive(Clone, Copy, Debug)]
struct Winner {
    id: TraceId,
    announced: bool,
}

impl Union {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            lost: Recent::new(capacity, FOREVER_NS),
            known: Recent::new(capacity, FOREVER_NS),
            merged: 0,
            cut: 0,
        }
    }

    /// Somebody knows this id. An id that we made for a request comes in with it at the other end: that is no adoption, whichever
    /// of the two is told first.
    pub(super) fn note(&mut self, id: TraceId, known: Known) {
        let noted = self.known.entry(id, Known::default);
        *noted = known.max(*noted);
    }

    fn known(&self, id: TraceId) -> Known {
        self.known.peek(&id).copied().unwrap_or_default()
    }

    /// The id that stands for `id`.
    pub(super) fn find(&mut self, id: TraceId) -> TraceId {
        if self.lost.is_empty() {
            return id;
        }
        let Some(first) = self.lost.peek(&id).copied() else {
            return id;
        };
        let mut top = first.id;
        for _ in 0..MAX_DEPTH {
            match self.lost.peek(&top) {
                Some(next) => top = next.id,
                None => break,
            }
        }
        if let Some(winner) = self.lost.get_mut(&id) {
            winner.id = top;
        }
        top
    }

    /// As [`Self::find`] for a span that leaves now: also says what must be announced first, if anything.
    pub(super) fn leave(&mut self, id: TraceId) -> (TraceId, Option<TraceAlias>) {
        let canonical = self.find(id);
        if canonical == id {
            return (id, None);
        }
        (canonical, self.announce(id))
    }

    /// Makes the fragment `child` part of the trace `parent`. True if they were two until now.
    pub(super) fn merge(&mut self, parent: TraceId, child: TraceId) -> bool {
        let (mut winner, mut loser) = (self.find(parent), self.find(child));
        let is_adopted = self.known(loser) == Known::Adopted;
        if winner == loser || is_adopted || !winner.is_valid() || !loser.is_valid() {
            return false;
        }
        if self.known(loser).rank() > self.known(winner).rank() {
            (winner, loser) = (loser, winner);
        }
        self.lost.insert(
            loser,
            Winner {
                id: winner,
                announced: false,
            },
        );
        self.merged += 1;
        true
    }

    /// The alias to make known for `id`, the first time it is asked for.
    fn announce(&mut self, id: TraceId) -> Option<TraceAlias> {
        let winner = self.lost.get_mut(&id).filter(|winner| !winner.announced)?;
        winner.announced = true;
        Some(TraceAlias {
            alias: id,
            canonical: winner.id,
        })
    }

    /// Takes a merge back: `child` was adopted from a header, and is never rewritten.
    pub(super) fn cut(&mut self, child: TraceId) {
        if self.lost.remove(&child).is_some() {
            self.cut += 1;
        }
    }

    pub(super) fn len(&self) -> usize {
        self.lost.len()
    }

    pub(super) fn merged(&self) -> u64 {
        self.merged
    }

    pub(super) fn evicted(&self) -> u64 {
        self.lost.evicted()
    }

    /// Merges taken back.
    pub(super) fn taken_back(&self) -> u64 {
        self.cut
    }
}

#[cfg(test)]
mod tests {
    use super::Union;
    use crate::span::{TraceAlias, TraceId};

    fn id(n: u8) -> TraceId {
        TraceId([n; 16])
    }

    #[test]
    fn the_topmost_id_stands_for_all_in_any_order_of_merges() {
        let edges = [(1, 2), (2, 3), (3, 4), (2, 5)];
        for rotation in 0..edges.len() {
            for reversed in [false, true] {
                let mut order = edges;
                order.rotate_left(rotation);
                if reversed {
                    order.reverse();
                }
                let mut union = Union::new(64);
                for (parent, child) in order {
                    assert!(union.merge(id(parent), id(child)));
                    assert!(!union.merge(id(parent), id(child)), "known already");
                }
                for n in 1..=5 {
                    assert_eq!(union.find(id(n)), id(1), "{order:?}");
                }
            }
        }
    }

    #[test]
    fn the_id_that_more_of_the_world_knows_survives() {
        use super::Known::{Adopted, Here, Injected, Returned};
        for (of_parent, of_child, survives) in [
            (Here, Here, 7),
            (Here, Injected, 2),
            (Injected, Injected, 1),
            (Injected, Returned, 2),
            (Adopted, Returned, 1),
            (Adopted, Here, 1),
        ] {
            let mut union = Union::new(64);
            union.note(id(1), of_parent);
            union.note(id(2), of_child);
            union.merge(id(7), id(1));
            union.merge(id(1), id(2));
            union.merge(id(2), id(3));
            for n in [1, 2, 3] {
                assert_eq!(union.find(id(n)), id(survives), "{of_parent:?} {of_child:?}");
            }
            let above = if of_parent == Adopted { 7 } else { survives };
            assert_eq!(union.find(id(7)), id(above), "{of_parent:?} {of_child:?}");
        }
    }

    #[test]
    fn each_alias_is_announced_once() {
        let mut union = Union::new(64);
        union.merge(id(1), id(2));
        let alias = TraceAlias {
            alias: id(2),
            canonical: id(1),
        };
        assert_eq!(union.leave(id(2)), (id(1), Some(alias)));
        assert_eq!(union.leave(id(2)), (id(1), None));
        assert_eq!(union.leave(id(1)), (id(1), None));
    }

    #[test]
    fn a_merge_taken_back_leaves_two_traces() {
        let mut union = Union::new(64);
        union.merge(id(1), id(2));
        union.merge(id(2), id(3));
        union.cut(id(2));
        assert_eq!(union.find(id(2)), id(2));
        assert_eq!(union.taken_back(), 1);
    }

    #[test]
    fn a_circle_is_not_made() {
        let mut union = Union::new(64);
        assert!(union.merge(id(1), id(2)));
        assert!(!union.merge(id(2), id(1)));
        assert!(!union.merge(id(1), id(1)));
        assert_eq!(union.find(id(2)), id(1));
    }

    #[test]
    fn its_size_is_bounded_and_evictions_are_counted() {
        let mut union = Union::new(8);
        for n in 1..=200 {
            union.merge(id(0xff), id(n));
        }
        assert!(union.len() <= 8);
        assert_eq!(union.evicted() as usize + union.len(), 200);
    }
}
