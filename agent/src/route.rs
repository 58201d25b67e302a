//! Stage: route. Spans to the queues of the sinks (exporters and store), in batches; never changes a span.
//!
//! Every sink gets every span, and all share one batch in memory. Rules by tenant come with `route` in the configuration:
//! they make the answer to [`Router::push`] differ from sink to sink, and nothing else.

use std::sync::Arc;

use crate::span::{Span, SpanBatch};

/// Index of a sink, in the order the pipeline made them.
pub type Sink = usize;

/// When a batch is closed.
#[derive(Clone, Copy, Debug)]
pub struct Batching {
    /// This many spans.
    pub max_spans: usize,
    /// This long after its first span came.
    pub max_wait_ns: u64,
}

impl Default for Batching {
    fn default() -> Self {
        Self {
            max_spans: 512,
            max_wait_ns: 400_000_000,
        }
    }
}

/// Gathers spans into batches and gives each batch to the sinks.
#[derive(Debug)]
pub struct Router {
    sinks: usize,
    batching: Batching,
    open: Vec<Span>,
    since_ns: u64,
}

impl Router {
    /// Empty batches for so many sinks.
    pub fn new(sinks: usize, batching: Batching) -> Self {
        Self {
            sinks,
            batching,
            open: Vec::new(),
            since_ns: 0,
        }
    }

    /// Takes a span; `out` gets a batch for each sink once one is full.
    pub fn push(&mut self, span: Span, now_ns: u64, out: &mut impl FnMut(Sink, SpanBatch)) {
        if self.open.is_empty() {
            self.since_ns = now_ns;
        }
        self.open.push(span);
        if self.open.len() >= self.batching.max_spans {
            self.flush(out);
        }
    }

    /// Closes a batch that has waited long enough.
    pub fn tick(&mut self, now_ns: u64, out: &mut impl FnMut(Sink, SpanBatch)) {
        if now_ns.saturating_sub(self.since_ns) >= self.batching.max_wait_ns {
            self.flush(out);
        }
    }

    /// Closes the batch, however small.
    pub fn flush(&mut self, out: &mut impl FnMut(Sink, SpanBatch)) {
        if self.open.is_empty() {
            return;
        }
        // The open list keeps its room for the next batch.
        let batch: SpanBatch = self.open.drain(..).collect();
        for sink in 0..self.sinks {
            out(sink, Arc::clone(&batch));
        }
    }

    /// Spans in the open batch.
    pub fn waiting(&self) -> usize {
        self.open.len()
    }
}

#[cfg(test)]
mod tests {
    use super::{Batching, Router};
    use crate::span::{ParentSource, Resource, Span, SpanBatch, SpanId, SpanKind, SpanStatus, TraceId};
    use std::sync::Arc;

    fn span(n: u8) -> Span {
        Span {
            trace_id: TraceId([1; 16]),
            span_id: SpanId([n; 8]),
            parent_span_id: None,
            parent_source: ParentSource::Root,
            trace_flags: 3,
            trace_state: None,
            kind: SpanKind::Server,
            name: "GET /".into(),
            start_unix_ns: 1,
            end_unix_ns: 2,
            status: SpanStatus::Unset,
            attributes: Vec::new(),
            resource: Arc::new(Resource {
                service_name: "test".into(),
                attributes: Vec::new(),
            }),
            tenant: None,
        }
    }

    fn ids(batch: &SpanBatch) -> Vec<u8> {
        batch.iter().map(|span| span.span_id.0[0]).collect()
    }

    #[test]
    fn every_sink_gets_every_span_in_order() {
        let mut router = Router::new(
            3,
            Batching {
                max_spans: 2,
                max_wait_ns: 100,
            },
        );
        let mut got = vec![Vec::new(); 3];
        for n in 1..=5 {
            router.push(span(n), 0, &mut |sink, batch| got[sink].extend(ids(&batch)));
        }
        assert_eq!(got, vec![vec![1, 2, 3, 4]; 3]);
        assert_eq!(router.waiting(), 1);
        router.flush(&mut |sink, batch| got[sink].extend(ids(&batch)));
        router.flush(&mut |sink, batch| got[sink].extend(ids(&batch)));
        assert_eq!(got, vec![vec![1, 2, 3, 4, 5]; 3]);
    }

    #[test]
    fn a_batch_waits_no_longer_than_allowed_from_its_first_span() {
        let mut router = Router::new(
            1,
            Batching {
                max_spans: 100,
                max_wait_ns: 100,
            },
        );
        let mut batches = Vec::new();
        router.push(span(1), 1_000, &mut |_, batch| batches.push(ids(&batch)));
        router.push(span(2), 1_090, &mut |_, batch| batches.push(ids(&batch)));
        router.tick(1_099, &mut |_, batch| batches.push(ids(&batch)));
        assert!(batches.is_empty());
        router.tick(1_100, &mut |_, batch| batches.push(ids(&batch)));
        assert_eq!(batches, vec![vec![1, 2]]);
    }

    #[test]
    fn sinks_share_one_batch_in_memory() {
        let mut router = Router::new(2, Batching::default());
        router.push(span(1), 0, &mut |_, _| {});
        let mut batches = Vec::new();
        router.flush(&mut |_, batch| batches.push(batch));
        assert!(Arc::ptr_eq(&batches[0], &batches[1]));
    }
}
