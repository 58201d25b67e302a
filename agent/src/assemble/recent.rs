//! A map that forgets, so that nothing assemble remembers can grow without bound.

use std::hash::Hash;

use foldhash::fast::RandomState;

/// Seeded per process: some keys are chosen by peers.
pub(super) type Map<K, V> = std::collections::HashMap<K, V, RandomState>;

/// Two generations of a map. When the young one is full, or older than `span_ns`, it becomes the old one and the old
/// one is forgotten. Whatever is read moves to the young one. So an entry stays for at least `span_ns` after its last
/// use, unless more than `half` others came meanwhile; and there are never more than `2 * half`.
#[derive(Debug)]
pub(super) struct Recent<K, V> {
    young: Map<K, V>,
    old: Map<K, V>,
    half: usize,
    span_ns: u64,
    turned_ns: u64,
    evicted: u64,
}

/// For [`Recent::new`]: forget for want of room only.
pub(super) const FOREVER_NS: u64 = u64::MAX;

impl<K: Hash + Eq, V> Recent<K, V> {
    pub(super) fn new(capacity: usize, span_ns: u64) -> Self {
        Self {
            young: Map::default(),
            old: Map::default(),
            half: (capacity / 2).max(1),
            span_ns,
            turned_ns: 0,
            evicted: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.young.is_empty() && self.old.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// Entries forgotten for want of room, before their time.
    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }

    pub(super) fn contains(&self, key: &K) -> bool {
        self.young.contains_key(key) || (!self.old.is_empty() && self.old.contains_key(key))
    }

    /// As [`Self::get_mut`], without keeping the entry young.
    pub(super) fn peek(&self, key: &K) -> Option<&V> {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    /// The entry, which counts as used and so becomes young.
    pub(super) fn get_mut(&mut self, key: &K) -> Option<&mut V>
    where
        K: Copy,
    {
        if !self.old.is_empty() && !self.young.contains_key(key) {
            let value = self.old.remove(key)?;
            self.insert(*key, value);
        }
        self.young.get_mut(key)
    }

    /// The entry, made by `make` if there is none.
    pub(super) fn entry(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        if !self.young.contains_key(&key) {
            let value = if self.old.is_empty() {
                None
            } else {
                self.old.remove(&key)
            };
            self.make_room();
            return self.young.entry(key).or_insert_with(|| value.unwrap_or_else(make));
        }
        self.young.entry(key).or_insert_with(make)
    }

    /// Puts an entry in, in the place of any other under this key.
    pub(super) fn insert(&mut self, key: K, value: V) {
        if !self.old.is_empty() {
            self.old.remove(&key);
        }
        self.make_room();
        self.young.insert(key, value);
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let value = self.young.remove(key);
        if self.old.is_empty() {
            return value;
        }
        value.or(self.old.remove(key))
    }

    /// Forgets what is too old.
    pub(super) fn advance(&mut self, now_ns: u64) {
        if now_ns.saturating_sub(self.turned_ns) >= self.span_ns {
            self.turn();
            self.turned_ns = now_ns;
        }
    }

    fn make_room(&mut self) {
        if self.young.len() >= self.half {
            self.evicted += self.old.len() as u64;
            self.turn();
        }
    }

    fn turn(&mut self) {
        std::mem::swap(&mut self.young, &mut self.old);
        self.young.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::{Recent, FOREVER_NS};

    #[test]
    fn an_entry_lives_for_its_span_after_its_last_use() {
        let mut recent = Recent::new(100, 10);
        recent.advance(10);
        recent.insert(1, "used");
        recent.insert(2, "unused");
        recent.advance(20);
        assert_eq!(recent.get_mut(&1), Some(&mut "used"));
        recent.advance(30);
        assert!(recent.contains(&1));
        assert!(!recent.contains(&2));
        recent.advance(40);
        assert!(recent.is_empty());
        assert_eq!(recent.evicted(), 0, "time took them, not want of room");
    }

    #[test]
    fn there_are_never_more_than_its_capacity_and_what_goes_early_is_counted() {
        let mut recent = Recent::new(10, FOREVER_NS);
        for key in 0..100 {
            recent.insert(key, ());
            assert!(recent.len() <= 10);
        }
        assert!(recent.contains(&99));
        assert_eq!(recent.evicted() as usize + recent.len(), 100);
    }

    #[test]
    fn an_entry_is_in_one_generation_only() {
        let mut recent = Recent::new(4, FOREVER_NS);
        for key in [1, 2, 3] {
            recent.insert(key, "first");
        }
        recent.insert(1, "second");
        assert_eq!(recent.len(), 3);
        assert_eq!(recent.peek(&1), Some(&"second"));
        *recent.entry(2, || "made") = "third";
        assert_eq!(recent.remove(&2), Some("third"));
        assert_eq!(recent.peek(&2), None);
    }
}
