//! Bounds, order and accounting of the queue.
#![allow(clippy::unwrap_used, reason = "test")]

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::span::{ParentSource, Resource, SpanId, SpanKind, SpanStatus, TraceId};

const WAIT: Duration = Duration::from_millis(500);

fn queue(spans: usize, bytes: usize, batch_spans: usize, batch_bytes: usize) -> Queue {
    let batching = Batching {
        spans: batch_spans,
        bytes: batch_bytes,
        wait: WAIT,
    };
    Queue::new(Limits { spans, bytes }, batching)
}

/// Spans numbered by their id, each with `padding` bytes of text.
fn batch(numbers: Range<u64>, padding: usize) -> SpanBatch {
    let resource = Arc::new(Resource {
        service_name: "svc".into(),
        attributes: Vec::new(),
    });
    let span = |number: u64| Span {
        trace_id: TraceId([1; 16]),
        span_id: SpanId(number.to_be_bytes()),
        parent_span_id: None,
        parent_source: ParentSource::Root,
        trace_flags: 1,
        trace_state: None,
        kind: SpanKind::Server,
        name: "GET".into(),
        start_unix_ns: 1,
        end_unix_ns: 2,
        status: SpanStatus::Unset,
        attributes: vec![("pad".into(), Value::Str("x".repeat(padding).into()))],
        resource: Arc::clone(&resource),
        tenant: None,
    };
    numbers.map(span).collect()
}

fn numbers(taken: &Taken) -> Vec<u64> {
    taken.spans().map(|span| u64::from_be_bytes(span.span_id.0)).collect()
}

#[test]
fn the_oldest_spans_are_dropped_at_the_bound_by_count() {
    let mut queue = queue(10, usize::MAX, 100, usize::MAX);
    let now = Instant::now();
    assert_eq!(queue.push(batch(0..6, 0), now), 0);
    assert_eq!(queue.push(batch(6..12, 0), now), 2);
    assert_eq!(queue.len(), 10);
    assert_eq!(queue.push(batch(12..20, 0), now), 8);
    let taken = queue.take().unwrap();
    assert_eq!(numbers(&taken), (10..20).collect::<Vec<_>>());
    queue.finish(taken);
    assert!(queue.is_empty());
    assert_eq!(queue.bytes(), 0);
}

#[test]
fn the_oldest_spans_are_dropped_at_the_bound_by_bytes() {
    let one = span_bytes(&batch(0..1, 1_000)[0]);
    assert!(one > 1_000);
    let mut queue = queue(1_000, one * 5, 100, usize::MAX);
    let now = Instant::now();
    assert_eq!(queue.push(batch(0..4, 1_000), now), 0);
    assert_eq!(queue.push(batch(4..8, 1_000), now), 3);
    assert_eq!(queue.bytes(), one * 5);
    let taken = queue.take().unwrap();
    assert_eq!(numbers(&taken), [3, 4, 5, 6, 7]);
    queue.finish(taken);
}

#[test]
fn a_batch_larger_than_the_queue_leaves_its_newest_spans() {
    let mut queue = queue(10, usize::MAX, 100, usize::MAX);
    assert_eq!(queue.push(batch(0..1_000, 0), Instant::now()), 990);
    assert_eq!(numbers(&queue.take().unwrap()), (990..1_000).collect::<Vec<_>>());
}

#[test]
fn a_span_larger_than_the_queue_is_dropped_itself() {
    let mut queue = queue(10, 5_000, 100, usize::MAX);
    let now = Instant::now();
    assert_eq!(queue.push(batch(0..2, 0), now), 0);
    assert_eq!(queue.push(batch(2..3, 10_000), now), 3);
    assert!(queue.is_empty());
    assert!(queue.take().is_none());
    assert_eq!(queue.push(batch(3..4, 0), now), 0);
    assert_eq!(queue.len(), 1);
}

#[test]
fn spans_under_way_count_against_the_bound_and_are_not_dropped() {
    let mut queue = queue(10, usize::MAX, 8, usize::MAX);
    let now = Instant::now();
    queue.push(batch(0..8, 0), now);
    let under_way = queue.take().unwrap();
    assert_eq!(queue.len(), 8);
    assert_eq!(queue.due(now), Due::Never);
    assert_eq!(queue.push(batch(8..14, 0), now), 4);
    assert_eq!(queue.len(), 10);
    assert_eq!(numbers(&under_way), (0..8).collect::<Vec<_>>());
    queue.finish(under_way);
    assert_eq!(queue.len(), 2);
    assert_eq!(numbers(&queue.take().unwrap()), [12, 13]);
}

#[test]
fn a_request_leaves_when_it_is_full_or_the_oldest_span_has_waited() {
    let mut queue = queue(100, usize::MAX, 5, usize::MAX);
    let start = Instant::now();
    assert_eq!(queue.due(start), Due::Never);
    queue.push(batch(0..3, 0), start);
    assert_eq!(queue.due(start), Due::At(start + WAIT));
    queue.push(batch(3..4, 0), start + WAIT / 2);
    assert_eq!(queue.due(start + WAIT / 2), Due::At(start + WAIT));
    assert_eq!(queue.due(start + WAIT), Due::Now);
    queue.push(batch(4..7, 0), start + WAIT / 2);
    assert_eq!(queue.due(start + WAIT / 2), Due::Now);
    let first = queue.take().unwrap();
    assert_eq!(numbers(&first), [0, 1, 2, 3, 4]);
    assert_eq!(queue.due(start + WAIT / 2), Due::At(start + WAIT / 2 + WAIT));
    assert_eq!(numbers(&queue.take().unwrap()), [5, 6]);
}

#[test]
fn a_request_is_bounded_by_bytes_but_never_empty() {
    let one = span_bytes(&batch(0..1, 100)[0]);
    let mut queue = queue(100, usize::MAX, 50, one * 2 + 1);
    let now = Instant::now();
    queue.push(batch(0..5, 100), now);
    queue.push(batch(5..6, 10_000), now);
    assert_eq!(queue.due(now), Due::Now);
    let sizes: Vec<usize> = std::iter::from_fn(|| queue.take()).map(|taken| taken.len()).collect();
    assert_eq!(sizes, [2, 2, 1, 1]);
}

#[test]
fn an_empty_batch_is_nothing() {
    let mut queue = queue(1, 1_000_000, 1, 1_000_000);
    let now = Instant::now();
    assert_eq!(queue.push(batch(0..0, 0), now), 0);
    assert_eq!(queue.due(now), Due::Never);
    assert!(queue.take().is_none());
}

#[test]
fn random_use_loses_nothing_uncounted_and_keeps_the_order() {
    let mut random = StdRng::seed_from_u64(8);
    for _ in 0..300 {
        let limits = Limits {
            spans: random.random_range(1..60),
            bytes: random.random_range(300..20_000),
        };
        let batching = Batching {
            spans: random.random_range(1..30),
            bytes: random.random_range(1..8_000),
            wait: WAIT,
        };
        run_randomly(&mut random, limits, batching);
    }
}

fn run_randomly(random: &mut StdRng, limits: Limits, batching: Batching) {
    let mut queue = Queue::new(limits, batching);
    let (mut pushed, mut dropped, mut ended) = (0, 0, 0);
    let mut under_way: VecDeque<Taken> = VecDeque::new();
    let mut last_seen = None;
    for _ in 0..100 {
        match random.random_range(0..4) {
            0 | 1 => {
                let count = random.random_range(0..40);
                dropped += queue.push(
                    batch(pushed..pushed + count, random.random_range(0..400)),
                    Instant::now(),
                ) as u64;
                pushed += count;
            }
            2 => under_way.extend(queue.take()),
            _ => {
                if let Some(taken) = under_way.pop_front() {
                    let seen = numbers(&taken);
                    assert!(seen.len() <= batching.spans && seen.len() == taken.len());
                    for number in seen {
                        assert!(last_seen < Some(number), "out of order");
                        last_seen = Some(number);
                        ended += 1;
                    }
                    queue.finish(taken);
                }
            }
        }
        assert!(queue.len() <= limits.spans && queue.bytes() <= limits.bytes);
        let taken: usize = under_way.iter().map(Taken::len).sum();
        assert_eq!(pushed, dropped + ended + queue.len() as u64);
        assert!(taken <= queue.len());
    }
}
