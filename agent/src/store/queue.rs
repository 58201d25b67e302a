//! The bounded queue in front of the writer. Pushing never waits: when it is full the oldest spans go, counted.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::span::{Span, SpanBatch, TraceAlias, Value};

/// Spans that may wait; the same bounds as an exporter's queue (contract.md).
pub const QUEUE_SPANS: usize = 8_192;
/// Bytes that may wait.
pub const QUEUE_BYTES: usize = 8 << 20;
/// Aliases that may wait.
pub const QUEUE_ALIASES: usize = 8_192;

/// What the store has done so far; `spanwire_export_spans_total{exporter="store"}` is read from here.
#[derive(Debug, Default)]
pub struct StoreStats {
    /// Spans written.
    pub sent: AtomicU64,
    /// Spans lost because a write failed.
    pub failed: AtomicU64,
    /// Spans lost because the queue was full.
    pub dropped: AtomicU64,
    /// Aliases lost, for either cause.
    pub aliases_lost: AtomicU64,
    /// Spans waiting: `spanwire_queue_length{queue="store"}`.
    pub queued: AtomicU64,
    /// True while the last write failed.
    pub is_degraded: AtomicBool,
    /// Why, in words; the last failure's even after recovery.
    problem: Mutex<Option<String>>,
}

impl StoreStats {
    /// The last problem, whether or not it is over.
    pub fn problem(&self) -> Option<String> {
        unpoisoned(self.problem.lock()).clone()
    }

    /// Remembers a problem. `is_over` when the store works on all the same, as after a corrupt file was replaced.
    pub(super) fn report(&self, problem: String, is_over: bool) {
        *unpoisoned(self.problem.lock()) = Some(problem);
        self.is_degraded.store(!is_over, Ordering::Relaxed);
    }
}

/// Whatever is behind the lock is whole after every statement, so a panicking holder leaves nothing half done.
pub(super) fn unpoisoned<'a, T>(
    locked: Result<MutexGuard<'a, T>, PoisonError<MutexGuard<'a, T>>>,
) -> MutexGuard<'a, T> {
    locked.unwrap_or_else(PoisonError::into_inner)
}

#[derive(Default)]
struct Waiting {
    batches: VecDeque<(SpanBatch, usize)>,
    spans: usize,
    bytes: usize,
    aliases: VecDeque<TraceAlias>,
    is_closed: bool,
}

/// How much may wait in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueBounds {
    pub spans: usize,
    pub bytes: usize,
}

impl Default for QueueBounds {
    fn default() -> Self {
        Self {
            spans: QUEUE_SPANS,
            bytes: QUEUE_BYTES,
        }
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Queue {
    bounds: QueueBounds,
    waiting: Mutex<Waiting>,
    changed: Condvar,
    pub(super) stats: StoreStats,
}

/// What the writer takes at once.
#[derive(Default)]
pub(super) struct Taken {
    pub(super) batches: Vec<SpanBatch>,
    pub(super) aliases: Vec<TraceAlias>,
    /// No more will come.
    pub(super) is_closed: bool,
}

impl Queue {
    pub(super) fn new(bounds: QueueBounds) -> Self {
        Self {
            bounds,
            ..Self::default()
        }
    }

    pub(super) fn push(&self, batch: SpanBatch) {
        if batch.is_empty() {
            return;
        }
        let bytes = batch.iter().map(approximate_bytes).sum();
        let mut waiting = unpoisoned(self.waiting.lock());
        if waiting.is_closed {
            self.stats.dropped.fetch_add(batch.len() as u64, Ordering::Relaxed);
            return;
        }
        waiting.spans += batch.len();
        waiting.bytes += bytes;
        waiting.batches.push_back((batch, bytes));
        while waiting.spans > self.bounds.spans || waiting.bytes > self.bounds.bytes {
            let Some((oldest, bytes)) = waiting.batches.pop_front() else {
                break;
            };
            waiting.spans -= oldest.len();
            waiting.bytes -= bytes;
            self.stats.dropped.fetch_add(oldest.len() as u64, Ordering::Relaxed);
        }
        self.stats.queued.store(waiting.spans as u64, Ordering::Relaxed);
        // The writer gathers for a while after the first batch: waking it for each would only cost.
        if waiting.batches.len() == 1 || waiting.spans >= self.bounds.spans / 2 {
            self.changed.notify_one();
        }
    }

    pub(super) fn push_alias(&self, alias: TraceAlias) {
        let mut waiting = unpoisoned(self.waiting.lock());
        waiting.aliases.push_back(alias);
        if waiting.aliases.len() > QUEUE_ALIASES {
            waiting.aliases.pop_front();
            self.stats.aliases_lost.fetch_add(1, Ordering::Relaxed);
        }
        if waiting.aliases.len() == 1 {
            self.changed.notify_one();
        }
    }

    pub(super) fn close(&self) {
        unpoisoned(self.waiting.lock()).is_closed = true;
        self.changed.notify_all();
    }

    /// Waits at most `idle` for something to come, then at most `gather` for more of it, or until the queue is half full,
    /// and takes up to `most` spans.
    pub(super) fn take(&self, idle: Duration, gather: Duration, most: usize) -> Taken {
        let enough = most.min(self.bounds.spans / 2);
        let waiting = unpoisoned(self.waiting.lock());
        let waiting = self.wait_until(waiting, idle, |w| w.is_closed || w.spans > 0 || !w.aliases.is_empty());
        let mut waiting = self.wait_until(waiting, gather, |w| {
            w.is_closed || w.spans >= enough || (w.spans == 0 && w.aliases.is_empty())
        });
        let mut taken = Taken {
            aliases: waiting.aliases.drain(..).collect(),
            ..Taken::default()
        };
        let mut spans = 0;
        while spans < most {
            let Some((batch, bytes)) = waiting.batches.pop_front() else {
                break;
            };
            waiting.spans -= batch.len();
            waiting.bytes -= bytes;
            spans += batch.len();
            taken.batches.push(batch);
        }
        self.stats.queued.store(waiting.spans as u64, Ordering::Relaxed);
        taken.is_closed = waiting.is_closed && waiting.batches.is_empty();
        taken
    }

    fn wait_until<'a>(
        &self,
        mut waiting: MutexGuard<'a, Waiting>,
        most: Duration,
        is_done: impl Fn(&Waiting) -> bool,
    ) -> MutexGuard<'a, Waiting> {
        let end = Instant::now() + most;
        while !is_done(&waiting) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            waiting = match self.changed.wait_timeout(waiting, left) {
                Ok((waiting, _)) => waiting,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        waiting
    }
}

/// What a span holds in memory, within a factor of two: enough for a bound, cheap enough for every span.
fn approximate_bytes(span: &Span) -> usize {
    let lists: usize = span
        .attributes
        .iter()
        .map(|(_, value)| match value {
            Value::StrArray(items) => items.iter().map(|item| item.len() + 32).sum(),
            Value::Str(text) => text.len(),
            _ => 0,
        })
        .sum();
    size_of::<Span>() + span.attributes.len() * 48 + lists + span.trace_state.as_ref().map_or(0, |state| state.len())
}
