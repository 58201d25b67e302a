//! An exporter's queue: bounded by spans and by bytes, the oldest go first, nothing blocks.
//!
//! A plain struct without clock, lock or task. Spans are not copied: an entry holds the batch that every exporter and the
//! store share, and how far into it this exporter has come. A batch's memory is free when its last span has left every
//! queue, so what a queue can keep alive beyond its bounds is the sent part of its oldest batch.

use std::collections::VecDeque;
use std::mem::size_of;
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::span::{Attribute, Span, SpanBatch, Value};

/// How much a queue holds, spans on their way to the backend included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub spans: usize,
    pub bytes: usize,
}

/// How spans are put together for one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batching {
    /// Spans in a request at most.
    pub spans: usize,
    /// Estimated bytes in a request at most; a single span may exceed it.
    pub bytes: usize,
    /// How long the first span waits for others.
    pub wait: Duration,
}

/// When the next request is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    Now,
    At(Instant),
    /// Nothing waits.
    Never,
}

/// Spans waiting for an exporter.
#[derive(Debug)]
pub struct Queue {
    limits: Limits,
    batching: Batching,
    waiting: VecDeque<Entry>,
    /// Waiting and taken.
    held: Amount,
    /// Taken and not yet `finish`ed.
    taken: Amount,
}

#[derive(Debug)]
struct Entry {
    batch: SpanBatch,
    /// The first span of `batch` that still waits; below `batch.len()`.
    next: usize,
    /// Estimated bytes of those that wait.
    bytes: usize,
    since: Instant,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Amount {
    spans: usize,
    bytes: usize,
}

/// Spans for one request. They count against the bounds until the queue is told how they ended (`Queue::finish`).
#[derive(Debug)]
#[must_use = "the queue counts taken spans until they are finished"]
pub struct Taken {
    parts: Vec<(SpanBatch, Range<usize>)>,
    amount: Amount,
}

impl Taken {
    /// The spans, oldest first.
    pub fn spans(&self) -> impl Iterator<Item = &Span> {
        self.parts.iter().flat_map(|(batch, range)| &batch[range.clone()])
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        self.amount.spans
    }

    /// Lets the spans go, once they are encoded. They still count.
    pub fn release_spans(&mut self) {
        self.parts = Vec::new();
    }

    /// Never true for what a queue hands out.
    pub fn is_empty(&self) -> bool {
        self.amount.spans == 0
    }
}

impl Queue {
    /// An empty queue.
    pub fn new(limits: Limits, batching: Batching) -> Self {
        Self {
            limits,
            batching,
            waiting: VecDeque::new(),
            held: Amount::default(),
            taken: Amount::default(),
        }
    }

    /// Appends; returns how many spans were dropped, oldest first, to keep the bounds.
    pub fn push(&mut self, batch: SpanBatch, now: Instant) -> usize {
        if batch.is_empty() {
            return 0;
        }
        let bytes = batch.iter().map(span_bytes).sum();
        self.held.spans += batch.len();
        self.held.bytes += bytes;
        self.waiting.push_back(Entry {
            batch,
            next: 0,
            bytes,
            since: now,
        });
        let mut dropped = 0;
        while self.held.spans > self.limits.spans || self.held.bytes > self.limits.bytes {
            let Some(lost) = self.drop_oldest() else {
                break;
            };
            dropped += lost;
        }
        dropped
    }

    /// Drops the oldest waiting batch if the bounds ask for all of it, else its first span.
    fn drop_oldest(&mut self) -> Option<usize> {
        let entry = self.waiting.front_mut()?;
        let spans = entry.batch.len() - entry.next;
        let still_over =
            self.held.spans - spans >= self.limits.spans || self.held.bytes - entry.bytes >= self.limits.bytes;
        let lost = if still_over || spans == 1 {
            let amount = Amount {
                spans,
                bytes: entry.bytes,
            };
            self.waiting.pop_front();
            amount
        } else {
            let bytes = span_bytes(&entry.batch[entry.next]);
            entry.next += 1;
            entry.bytes -= bytes;
            Amount { spans: 1, bytes }
        };
        self.held.spans -= lost.spans;
        self.held.bytes -= lost.bytes;
        Some(lost.spans)
    }

    /// When a request should leave: at once if one can be filled, else when the oldest span has waited long enough.
    pub fn due(&self, now: Instant) -> Due {
        let Some(oldest) = self.waiting.front() else {
            return Due::Never;
        };
        let full =
            self.waiting_spans() >= self.batching.spans || self.held.bytes - self.taken.bytes >= self.batching.bytes;
        let at = oldest.since + self.batching.wait;
        if full || at <= now {
            Due::Now
        } else {
            Due::At(at)
        }
    }

    /// Takes the oldest spans for one request, due or not; `None` when nothing waits.
    pub fn take(&mut self) -> Option<Taken> {
        let mut taken = Taken {
            parts: Vec::new(),
            amount: Amount::default(),
        };
        while let Some(entry) = self.waiting.front_mut() {
            let part = entry.split(self.batching, &mut taken.amount);
            if part.is_empty() {
                break;
            }
            taken.parts.push((entry.batch.clone(), part));
            if entry.next == entry.batch.len() {
                self.waiting.pop_front();
            }
        }
        self.taken.spans += taken.amount.spans;
        self.taken.bytes += taken.amount.bytes;
        (!taken.is_empty()).then_some(taken)
    }

    /// The request has ended, one way or the other: its spans no longer count.
    #[allow(clippy::needless_pass_by_value, reason = "by value, so that it ends once")]
    pub fn finish(&mut self, taken: Taken) {
        for amount in [&mut self.taken, &mut self.held] {
            amount.spans -= taken.amount.spans;
            amount.bytes -= taken.amount.bytes;
        }
    }

    /// Spans held: waiting, and taken but not finished.
    pub fn len(&self) -> usize {
        self.held.spans
    }

    /// Estimated bytes held.
    pub fn bytes(&self) -> usize {
        self.held.bytes
    }

    /// Nothing waits and nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.held.spans == 0
    }

    fn waiting_spans(&self) -> usize {
        self.held.spans - self.taken.spans
    }
}

impl Entry {
    /// Moves as many spans as fit from here to `amount`, which is what the request has so far.
    fn split(&mut self, batching: Batching, amount: &mut Amount) -> Range<usize> {
        let from = self.next;
        let rest = self.batch.len() - from;
        if amount.spans + rest <= batching.spans && amount.bytes + self.bytes <= batching.bytes {
            // The usual case: all of it.
            amount.spans += rest;
            amount.bytes += self.bytes;
            self.next = self.batch.len();
            self.bytes = 0;
            return from..self.next;
        }
        while self.next < self.batch.len() && amount.spans < batching.spans {
            let bytes = span_bytes(&self.batch[self.next]);
            if amount.spans > 0 && amount.bytes + bytes > batching.bytes {
                break;
            }
            amount.spans += 1;
            amount.bytes += bytes;
            self.bytes -= bytes;
            self.next += 1;
        }
        from..self.next
    }
}

/// What a span keeps in memory, about: itself, its attributes and their text. Shared text counts in full and the resource
/// (shared by a process's spans) not at all.
pub fn span_bytes(span: &Span) -> usize {
    let attributes: usize = span.attributes.iter().map(attribute_text_bytes).sum();
    size_of::<Span>()
        + span.attributes.len() * size_of::<Attribute>()
        + span.name.len()
        + span.trace_state.as_deref().map_or(0, str::len)
        + attributes
}

fn attribute_text_bytes((key, value): &Attribute) -> usize {
    let key_bytes = match key {
        std::borrow::Cow::Borrowed(_) => 0,
        std::borrow::Cow::Owned(key) => key.len(),
    };
    let value_bytes = match value {
        Value::Str(text) => text.len(),
        Value::StrArray(texts) => texts.iter().map(|text| size_of_val(text) + text.len()).sum(),
        Value::Static(_) | Value::Int(_) | Value::Bool(_) => 0,
    };
    key_bytes + value_bytes
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
