//! Which listening sockets' connections are enrolled for their responses: those of processes that may have them written.

use std::collections::{HashMap, HashSet};

use foldhash::fast::RandomState;

use crate::discover::listeners::Listener;

/// Listening sockets remembered; the kernel side has room for as many.
const LISTENERS: usize = 4096;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Ingress {
    /// By whom each is held.
    holders: HashMap<Listener, HashSet<u32, RandomState>, RandomState>,
    /// Whose listening sockets have been looked for, and whether that is to be done again.
    looked: HashMap<u32, bool, RandomState>,
}

/// What the kernel side is to be told of a listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) listener: Listener,
    pub(super) is_one: bool,
}

impl Ingress {
    /// Whose sockets have not been looked for, since it began or since it listened anew.
    pub(super) fn is_new(&self, pid: u32) -> bool {
        self.looked.get(&pid).copied().unwrap_or(true)
    }

    /// Has begun to listen, or has become another program.
    pub(super) fn look_again(&mut self, pid: u32) {
        if let Some(again) = self.looked.get_mut(&pid) {
            *again = true;
        }
    }

    /// Holds none that is enrolled: it may not have its responses written, or has ended.
    pub(super) fn forget(&mut self, pid: u32) -> Vec<Change> {
        if !self.looked.contains_key(&pid) {
            return Vec::new();
        }
        let changes = self.holds(pid, &[]);
        self.looked.remove(&pid);
        changes
    }

    /// From now on `pid` holds these, and no others. One that several processes hold is enrolled as long as any of them is.
    pub(super) fn holds(&mut self, pid: u32, listeners: &[Listener]) -> Vec<Change> {
        let mut changes = Vec::new();
        self.looked.insert(pid, false);
        self.holders.retain(|listener, holders| {
            if !listeners.contains(listener) && holders.remove(&pid) && holders.is_empty() {
                changes.push(Change {
                    listener: *listener,
                    is_one: false,
                });
                return false;
            }
            true
        });
        for listener in listeners {
            if self.holders.len() >= LISTENERS && !self.holders.contains_key(listener) {
                break;
            }
            let holders = self.holders.entry(*listener).or_default();
            if holders.is_empty() {
                changes.push(Change {
                    listener: *listener,
                    is_one: true,
                });
            }
            holders.insert(pid);
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> Listener {
        Listener { netns: 1, port }
    }

    fn change(port: u16, is_one: bool) -> Change {
        Change {
            listener: at(port),
            is_one,
        }
    }

    #[test]
    fn a_socket_is_enrolled_as_long_as_anybody_holds_it() {
        let mut ingress = Ingress::default();
        assert_eq!(ingress.holds(7, &[at(80)]), [change(80, true)]);
        assert_eq!(ingress.holds(7, &[at(80)]), []);
        assert_eq!(ingress.holds(8, &[at(80), at(81)]), [change(81, true)]);
        assert_eq!(ingress.holds(7, &[]), []);
        assert_eq!(ingress.holds(8, &[at(81)]), [change(80, false)]);
        assert_eq!(ingress.holds(8, &[]), [change(81, false)]);
    }

    #[test]
    fn a_process_is_looked_at_once() {
        let mut ingress = Ingress::default();
        assert!(ingress.is_new(7));
        ingress.holds(7, &[at(80)]);
        assert!(!ingress.is_new(7));
        ingress.look_again(7);
        assert!(ingress.is_new(7));
        assert_eq!(ingress.holds(7, &[at(80), at(81)]), [change(81, true)]);
        let mut changes = ingress.forget(7);
        changes.sort_unstable_by_key(|change| change.listener.port);
        assert_eq!(changes, [change(80, false), change(81, false)]);
        assert!(ingress.is_new(7) && ingress.forget(7).is_empty());
    }
}
