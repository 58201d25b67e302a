//! The store as its users see it: what goes in, what comes out, what goes wrong.
#![allow(clippy::unwrap_used, clippy::panic, reason = "test")]

use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

use super::queue::Taken;
use super::sample::{service, span_id, trace_id, SpanBuilder, BASE_NS};
use super::writer::Writer;
use super::*;
use crate::span::{Span, TraceAlias, Value};

mod damage;
mod graph;
mod list;
mod retention;

/// A store without its thread, so that a test decides when something is written and what time it is.
struct Bench {
    dir: tempfile::TempDir,
    writer: Writer,
    now_ns: u64,
}

impl Bench {
    fn new(retention: Retention) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let writer = Self::open(dir.path(), retention);
        Self {
            dir,
            writer,
            now_ns: BASE_NS,
        }
    }

    fn open(dir: &Path, retention: Retention) -> Writer {
        let (connection, aside) = schema::open_writer(dir).unwrap();
        assert_eq!(aside, None);
        Writer::new(dir.to_owned(), connection, retention).unwrap()
    }

    fn write(&mut self, spans: Vec<Span>) {
        let taken = Taken {
            batches: vec![spans.into()],
            ..Taken::default()
        };
        self.writer.write(&taken, self.now_ns).unwrap();
    }

    fn alias(&mut self, alias: u64, canonical: u64) {
        let alias = TraceAlias {
            alias: trace_id(alias),
            canonical: trace_id(canonical),
        };
        self.writer
            .write(
                &Taken {
                    aliases: vec![alias],
                    ..Taken::default()
                },
                self.now_ns,
            )
            .unwrap();
    }

    fn reader(&self) -> StoreReader {
        StoreReader::open(self.dir.path()).unwrap()
    }

    /// Span ids of a trace, in order.
    fn spans_of(&self, trace: u64) -> Vec<u64> {
        let Some(trace) = self.reader().trace(trace_id(trace)).unwrap() else {
            return Vec::new();
        };
        let mut ids: Vec<u64> = trace
            .resource_spans
            .iter()
            .flat_map(|group| &group.scope_spans)
            .flat_map(|scope| &scope.spans)
            .map(|span| u64::from_be_bytes(span.span_id[..].try_into().unwrap()))
            .collect();
        ids.sort_unstable();
        ids
    }

    /// Last bytes of the ids of the traces `filter` finds.
    fn list(&self, filter: &TraceFilter) -> Vec<u64> {
        let list = self.reader().traces(filter).unwrap();
        assert!(!list.partial);
        list.traces
            .iter()
            .map(|trace| u64::from_str_radix(&trace.trace_id[16..], 16).unwrap())
            .collect()
    }
}

/// For tests on the real clock: the samples' times lie long before it.
fn forever() -> Retention {
    const DAYS: Duration = Duration::from_hours(240_000);
    Retention {
        age: DAYS,
        errors: DAYS,
        ..Retention::default()
    }
}

fn wait_until(what: &str, mut is_true: impl FnMut() -> bool) {
    for _ in 0..500 {
        if is_true() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("not within 5 s: {what}");
}

#[test]
fn attributes_names_come_back_whole_also_from_a_file_of_the_version_before() {
    let mut bench = Bench::new(Retention::default());
    let span = SpanBuilder::server(1, 11).build();
    bench.write(vec![span.clone()]);
    let written: Vec<&str> = span.attributes.iter().map(|(name, _)| &**name).collect();
    let names = |bench: &Bench| -> Vec<String> {
        let trace = bench.reader().trace(trace_id(1)).unwrap().unwrap();
        let span = &trace.resource_spans[0].scope_spans[0].spans[0];
        span.attributes.iter().map(|pair| pair.key.clone()).collect()
    };
    assert_eq!(names(&bench), written);
    let mut message = Vec::new();
    crate::export::wire::encode_span(&span, &mut message);
    let mut body = Vec::new();
    encode::varint(1, &mut body);
    encode::varint(message.len() as u64, &mut body);
    body.extend(message);
    let connection = &bench.writer.connection;
    connection.execute("UPDATE part SET body = ?1", [&body]).unwrap();
    connection.execute_batch("PRAGMA user_version=1").unwrap();
    assert_eq!(names(&bench), written, "as another process reads it");
    bench.writer = Bench::open(bench.dir.path(), Retention::default());
    let version: i64 = bench
        .writer
        .connection
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .unwrap();
    assert_eq!(
        (names(&bench), version),
        (written.iter().map(ToString::to_string).collect(), 2)
    );
}

#[test]
fn a_trace_comes_back_whole_and_grouped_by_resource() {
    let mut bench = Bench::new(Retention::default());
    let (shop, cart) = (service("shop"), service("cart"));
    bench.write(vec![
        SpanBuilder::server(1, 11).resource(&shop).at_ms(0, 100).build(),
        SpanBuilder::client(1, 12)
            .resource(&shop)
            .parent(11)
            .at_ms(10, 50)
            .build(),
        SpanBuilder::server(2, 21).resource(&shop).build(),
    ]);
    bench.write(vec![SpanBuilder::server(1, 13)
        .resource(&cart)
        .parent(12)
        .at_ms(20, 30)
        .error()
        .build()]);
    let trace = bench.reader().trace(trace_id(1)).unwrap().unwrap();
    assert_eq!(trace.resource_spans.len(), 2);
    assert_eq!(trace.resource_spans[0].scope_spans[0].spans.len(), 2);
    assert_eq!(
        trace.resource_spans[0].scope_spans[0].scope.as_ref().unwrap().name,
        "spanwire"
    );
    let child = &trace.resource_spans[1].scope_spans[0].spans[0];
    assert_eq!(child.trace_id, trace_id(1).0);
    assert_eq!(child.parent_span_id, span_id(12).0);
    let json = serde_json::to_value(&trace).unwrap();
    let span = &json["resourceSpans"][1]["scopeSpans"][0]["spans"][0];
    assert_eq!(span["traceId"], trace_id(1).hex());
    assert_eq!(span["startTimeUnixNano"], (BASE_NS + 20_000_000).to_string());
    assert_eq!(span["status"]["code"], 2);
    let status = span["attributes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|a| a["key"] == "http.response.status_code");
    assert_eq!(status.unwrap()["value"]["intValue"], "200");
    assert_eq!(bench.spans_of(2), [21]);
    assert_eq!(bench.reader().trace(trace_id(3)).unwrap(), None);
}

#[test]
fn resources_are_stored_once_whatever_their_address() {
    let mut bench = Bench::new(Retention::default());
    for number in 0..50 {
        bench.write(vec![SpanBuilder::server(number, number + 1)
            .resource(&service("shop"))
            .build()]);
    }
    let count: i64 = bench
        .writer
        .connection
        .query_row("SELECT count(*) FROM resource", [], |row| row.get(0))
        .unwrap();
    assert_eq!(count, 1);
}

#[test]
fn any_id_that_left_resolves_to_the_whole_tree() {
    let mut bench = Bench::new(Retention::default());
    // Written under 2 before the union was known; 3 lost to 2 earlier; 4 comes late under an id that lost.
    bench.write(vec![
        SpanBuilder::server(3, 33).build(),
        SpanBuilder::server(2, 22).build(),
    ]);
    bench.alias(3, 2);
    bench.alias(2, 1);
    bench.write(vec![
        SpanBuilder::server(1, 11).build(),
        SpanBuilder::server(3, 44).build(),
    ]);
    for id in [1, 2, 3] {
        assert_eq!(bench.spans_of(id), [11, 22, 33, 44], "by id {id}");
    }
    let trace = bench.reader().trace(trace_id(3)).unwrap().unwrap();
    for span in trace
        .resource_spans
        .iter()
        .flat_map(|group| &group.scope_spans[0].spans)
    {
        assert_eq!(span.trace_id, trace_id(1).0, "one trace has one id");
    }
    assert_eq!(bench.list(&TraceFilter::default()), [1], "the list has one line for it");
}

#[test]
fn aliases_survive_a_restart_and_a_circle_ends() {
    let mut bench = Bench::new(Retention::default());
    bench.alias(2, 1);
    bench.writer = Bench::open(bench.dir.path(), Retention::default());
    bench.write(vec![SpanBuilder::server(2, 22).build()]);
    assert_eq!(bench.spans_of(1), [22]);
    bench.alias(1, 2);
    bench.alias(5, 5);
    assert_eq!(bench.spans_of(2), [22]);
    assert_eq!(bench.spans_of(5), [0; 0]);
}

#[test]
fn ids_go_on_rising_after_a_restart() {
    let mut bench = Bench::new(Retention::default());
    bench.write(vec![
        SpanBuilder::server(1, 1).build(),
        SpanBuilder::server(2, 2).at_ms(5, 1).build(),
    ]);
    bench.writer = Bench::open(bench.dir.path(), Retention::default());
    bench.write(vec![SpanBuilder::server(3, 3).at_ms(2, 1).build()]);
    assert_eq!(bench.list(&TraceFilter::default()), [2, 3, 1]);
}

#[test]
fn the_thread_writes_within_half_a_second_and_all_at_close() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), forever()).unwrap();
    let stats = store.stats();
    store.push(vec![SpanBuilder::server(1, 1).build()].into());
    let pushed = std::time::Instant::now();
    wait_until("the span is written", || stats.sent.load(Ordering::Relaxed) == 1);
    assert!(pushed.elapsed() < Duration::from_secs(2), "{:?}", pushed.elapsed());
    assert!(store.reader().trace(trace_id(1)).unwrap().is_some());
    for number in 2..1_000 {
        store.push(vec![SpanBuilder::server(number, number).build()].into());
    }
    assert!(store.close(Duration::from_secs(5)));
    assert_eq!(stats.sent.load(Ordering::Relaxed), 999);
    assert!(StoreReader::open(dir.path())
        .unwrap()
        .trace(trace_id(999))
        .unwrap()
        .is_some());
}

#[test]
fn a_full_queue_drops_the_oldest_and_counts() {
    let queue = queue::Queue::default();
    for number in 0..(QUEUE_SPANS as u64 + 10) {
        queue.push(vec![SpanBuilder::server(number, 1).build()].into());
    }
    assert_eq!(queue.stats.dropped.load(Ordering::Relaxed), 10);
    let taken = queue.take(Duration::ZERO, Duration::ZERO, usize::MAX);
    assert_eq!(taken.batches.len(), QUEUE_SPANS);
    assert_eq!(taken.batches[0][0].trace_id, trace_id(10));
    let huge = Value::Str("x".repeat(1 << 20).into());
    for number in 0..20 {
        queue.push(vec![SpanBuilder::server(number, 1).attribute("big", huge.clone()).build()].into());
    }
    let taken = queue.take(Duration::ZERO, Duration::ZERO, usize::MAX);
    assert_eq!(
        taken.batches.len(),
        7,
        "8 MiB hold seven spans of a bit more than 1 MiB"
    );
    queue.close();
    queue.push(vec![SpanBuilder::server(1, 1).build()].into());
    assert_eq!(queue.stats.dropped.load(Ordering::Relaxed), 10 + 13 + 1);
}

#[test]
fn a_reader_of_another_connection_sees_what_is_committed_while_writing_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), forever()).unwrap();
    let reading = std::thread::spawn({
        let dir = dir.path().to_owned();
        move || {
            let (mut last, mut reads) = (0, 0);
            let end = std::time::Instant::now() + Duration::from_secs(10);
            while last < 2_000 && std::time::Instant::now() < end {
                let list = StoreReader::open(&dir).unwrap().traces(&TraceFilter {
                    limit: 1,
                    ..TraceFilter::default()
                });
                if let Some(newest) = list.unwrap().traces.first() {
                    let number = u64::from_str_radix(&newest.trace_id[16..], 16).unwrap();
                    assert!(number >= last, "{number} after {last}");
                    last = number;
                }
                reads += 1;
            }
            (last, reads)
        }
    });
    for number in 1..=2_000 {
        store.push(vec![SpanBuilder::server(number, 1).at_ms(number, 1).build()].into());
        if number % 100 == 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let stats = store.stats();
    assert_eq!(reading.join().unwrap().0, 2_000);
    assert_eq!(
        stats.dropped.load(Ordering::Relaxed) + stats.failed.load(Ordering::Relaxed),
        0
    );
}

/// The same batch many times over, as `Arc`s share it: nothing in the writer may depend on who else holds a span.
#[test]
fn a_batch_may_be_shared() {
    let mut bench = Bench::new(Retention::default());
    let batch: SpanBatch = vec![SpanBuilder::server(1, 1).build()].into();
    let taken = Taken {
        batches: vec![Arc::clone(&batch), batch],
        ..Taken::default()
    };
    bench.writer.write(&taken, BASE_NS).unwrap();
    assert_eq!(bench.spans_of(1), [1, 1]);
}
