//! A bounded map that forgets what was not used lately.

use std::collections::HashMap;
use std::hash::Hash;

use foldhash::fast::RandomState;

/// Two generations: what is used moves to the young one; when that is full, the old one is dropped whole and the
/// young one becomes it. At most `capacity` values, no list to maintain on a hit.
pub(super) struct Recent<K, V> {
    young: HashMap<K, V, RandomState>,
    old: HashMap<K, V, RandomState>,
    half: usize,
}

impl<K: Hash + Eq + Copy, V> Recent<K, V> {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            young: HashMap::default(),
            old: HashMap::default(),
            half: (capacity / 2).max(1),
        }
    }

    pub(super) fn get(&mut self, key: K) -> Option<&mut V> {
        if self.young.contains_key(&key) {
            return self.young.get_mut(&key);
        }
        let value = self.old.remove(&key)?;
        Some(self.insert(key, value))
    }

    pub(super) fn insert(&mut self, key: K, value: V) -> &mut V {
        if self.young.len() >= self.half {
            // The dropped generation's room is used again.
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        self.young.entry(key).insert_entry(value).into_mut()
    }

    pub(super) fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_and_keeps_what_is_used() {
        let mut recent = Recent::new(8);
        recent.insert(0, 'a');
        for key in 1..1000 {
            recent.insert(key, 'b');
            assert_eq!(recent.get(0).copied(), Some('a'), "used all the time, after {key}");
            assert!(recent.len() <= 8);
        }
        assert_eq!(recent.get(1), None);
        recent.clear();
        assert_eq!(recent.len(), 0);
    }
}
