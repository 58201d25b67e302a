//! The settle window: exchanges in the order they came, each until its time.

use std::collections::VecDeque;

use spanwire_common::abi::ExchangeRecord;

/// An exchange that is held.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) record: Box<ExchangeRecord>,
    due_ns: u64,
}

/// Every exchange waits equally long, so the one that came first is due first and a queue is all it takes. An exchange
/// is found by its sequence number: its place since the start.
#[derive(Debug)]
pub(super) struct Window {
    queue: VecDeque<Held>,
    first: u64,
    settle_ns: u64,
    latest_ns: u64,
}

impl Window {
    pub(super) fn new(settle_ns: u64) -> Self {
        Self {
            queue: VecDeque::new(),
            first: 0,
            settle_ns,
            latest_ns: 0,
        }
    }

    /// Takes an exchange in and returns its sequence number.
    pub(super) fn hold(&mut self, record: Box<ExchangeRecord>, now_ns: u64) -> u64 {
        // A caller's clock that steps back must not put the queue out of order.
        self.latest_ns = self.latest_ns.max(now_ns);
        self.queue.push_back(Held {
            record,
            due_ns: self.latest_ns.saturating_add(self.settle_ns),
        });
        self.first + self.queue.len() as u64 - 1
    }

    /// The oldest exchange, if its time has come.
    pub(super) fn due(&mut self, now_ns: u64) -> Option<Held> {
        if self.queue.front()?.due_ns > now_ns {
            return None;
        }
        self.oldest()
    }

    /// The oldest exchange, whatever the time.
    pub(super) fn oldest(&mut self) -> Option<Held> {
        let held = self.queue.pop_front()?;
        self.first += 1;
        Some(held)
    }

    /// A held exchange by its sequence number.
    pub(super) fn by_sequence(&self, sequence: u64) -> Option<&ExchangeRecord> {
        let place = usize::try_from(sequence.checked_sub(self.first)?).ok()?;
        self.queue.get(place).map(|held| &*held.record)
    }

    pub(super) fn records(&self) -> impl Iterator<Item = &ExchangeRecord> {
        self.queue.iter().map(|held| &*held.record)
    }

    /// Sequence number of the oldest.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Gives back room that a burst took.
    pub(super) fn shrink(&mut self) {
        if self.queue.capacity() > 1024 && self.queue.len() < self.queue.capacity() / 8 {
            self.queue.shrink_to(self.queue.len() * 2);
        }
    }
}
