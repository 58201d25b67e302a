//! Trace ids that turned out to name one trace.
//!
//! A fragment is what one trace id was made for: the exchange that found no context at its start, and all it caused. The
//! union is fed with evidence about such a first exchange only: its parent became known, so its fragment belongs to
//! the parent's trace. Which id survives: the one that more of the world knows ([`Known`]), else the parent's, which is the
//! older one. An id adopted from a header never loses to one of ours.
//!
//! An application's SDK begins traces of its own where no context came in. The fragment of the request it did that for joins
//! its trace ([`Union::join_begun`]), and from then on the SDK's id never loses.
//!
//! Ids that lose are announced once each as aliases. Their canonical id may lose later, and is then announced itself:
//! whoever resolves follows the chain.

use super::recent::{Recent, FOREVER_NS};
use crate::span::{TraceAlias, TraceId};

/// Follows chains at most so far: deeper ones are compressed long before.
const MAX_DEPTH: usize = 64;

/// Who knows a trace id beside this agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// The server that a request with it went to.
    Injected,
    /// The client that a response with it went to.
    Returned,
    /// Whoever made it: it came in a header. What we inject comes in so, too.
    Adopted,
}

/// All who know one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Knowers {
    injected: bool,
    returned: bool,
    adopted: bool,
    /// An SDK began it, and a fragment of ours joined it.
    begun: bool,
}

impl Knowers {
    /// How strong a claim to survival it gives the id of a parent's trace.
    const fn of_parent(self) -> u8 {
        if self.adopted {
            3
        } else {
            self.of_child()
        }
    }

    /// The same of a fragment that is to be merged into it. One adopted from elsewhere is none (`cut`).
    const fn of_child(self) -> u8 {
        if self.begun {
            4
        } else if self.returned {
            2
        } else {
            self.injected as u8
        }
    }

    /// Made elsewhere: nothing may stand for it but itself.
    const fn is_foreign(self) -> bool {
        self.adopted && !self.injected
    }
}

#[derive(Debug)]
pub(super) struct Union {
    /// Ids that lost, and who stands for them.
    lost: Recent<TraceId, Winner>,
    /// Ids that somebody else knows.
    known: Recent<TraceId, Knowers>,
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

    /// Somebody knows this id.
    pub(super) fn note(&mut self, id: TraceId, known: Known) {
        let knowers = self.known.entry(id, Knowers::default);
        match known {
            Known::Injected => knowers.injected = true,
            Known::Returned => knowers.returned = true,
            Known::Adopted => knowers.adopted = true,
        }
        if knowers.is_foreign() && self.lost.contains(&id) {
            let top = self.find(id);
            if self.knowers(top).begun {
                // It joined an SDK's trace before it was known to be of elsewhere.
                self.cut(id);
            }
        }
    }

    fn knowers(&self, id: TraceId) -> Knowers {
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
        if winner == loser || !winner.is_valid() || !loser.is_valid() {
            return false;
        }
        if self.knowers(loser).of_child() > self.knowers(winner).of_parent() {
            (winner, loser) = (loser, winner);
            if self.knowers(loser).is_foreign() {
                return false;
            }
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

    /// Makes the fragment `own` part of the trace that an SDK began for it, unless that is in a foreign trace already.
    pub(super) fn join_begun(&mut self, begun: TraceId, own: TraceId) -> bool {
        let top = self.find(own);
        if self.find(begun) == top || self.knowers(top).is_foreign() {
            return false;
        }
        self.known.entry(begun, Knowers::default).begun = true;
        self.merge(begun, own)
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
        use super::Known::{Adopted, Injected, Returned};
        for (of_parent, of_child, survives) in [
            (None, None, 7),
            (None, Some(Injected), 2),
            (Some(Injected), Some(Injected), 1),
            (Some(Injected), Some(Returned), 2),
            // One that came in stays with its own fragment until it is known whose it is (`cut`).
            (None, Some(Adopted), 7),
        ] {
            let mut union = Union::new(64);
            for (nth, known) in [(1, of_parent), (2, of_child)] {
                if let Some(known) = known {
                    union.note(id(nth), known);
                }
            }
            union.merge(id(7), id(1));
            union.merge(id(1), id(2));
            union.merge(id(2), id(3));
            for n in [1, 2, 3, 7] {
                assert_eq!(union.find(id(n)), id(survives), "{of_parent:?} {of_child:?}");
            }
        }
        let mut union = Union::new(64);
        union.note(id(1), Adopted);
        union.note(id(2), Returned);
        union.merge(id(1), id(2));
        assert_eq!(
            union.find(id(2)),
            id(1),
            "an id that came in never loses to one of ours"
        );
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
