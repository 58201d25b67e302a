//! What the store costs: instructions per span written, and the time of a lookup among many.
//!
//! `perf stat -e instructions:u store_cost write N PER_TRACE [SIZE_MIB]` less the same with `build` for `write` is the store's share;
//! `store_cost lookup N` fills a store and prints the median and the slowest of 1,000 lookups by trace id.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{bail, Context};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use spanwire::span::{ParentSource, Resource, Span, SpanBatch, SpanId, SpanKind, SpanStatus, TraceId, Value};
use spanwire::store::{Retention, Store, TraceFilter, FILE_NAME};

/// Spans handed over at once, as `route` does under load.
const BATCH: usize = 512;
/// Spans waiting at most before the producer waits: below the queue's bound, so that nothing is dropped.
const AHEAD: u64 = 4_096;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |place: usize, default: u64| -> anyhow::Result<u64> {
        let text = arguments.get(place);
        text.map_or(Ok(default), |text| text.parse().context("expected a number"))
    };
    let (spans, per_trace) = (number(1, 1_000_000)?, number(2, 2)?);
    let size_bytes = number(3, 8 << 10)? << 20;
    let dir = std::env::temp_dir().join(format!("spanwire-store-cost-{}", std::process::id()));
    match arguments.first().map(String::as_str) {
        Some("build") => build(spans, per_trace),
        Some("write") => {
            fill(&dir, spans, per_trace, size_bytes)?;
            std::fs::remove_dir_all(&dir)?;
        }
        Some("lookup") => {
            lookup(&dir, spans, per_trace)?;
            std::fs::remove_dir_all(&dir)?;
        }
        _ => bail!("usage: store_cost build|write|lookup [SPANS [PER_TRACE [SIZE_MIB]]]"),
    }
    Ok(())
}

/// Makes spans as `enrich` would, with the usual attributes.
struct Made {
    random: StdRng,
    resources: Vec<Arc<Resource>>,
    names: Vec<Arc<str>>,
    per_trace: u64,
    now_ns: u64,
    ids: Vec<TraceId>,
}

impl Made {
    fn new(per_trace: u64) -> Self {
        Self {
            random: StdRng::seed_from_u64(1),
            resources: (0..8).map(resource).collect(),
            names: (0..32)
                .map(|number| format!("GET /items/{number}/{{id}}").into())
                .collect(),
            per_trace,
            now_ns: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |now| now.as_nanos() as u64),
            ids: Vec::new(),
        }
    }

    fn batch(&mut self) -> SpanBatch {
        let mut spans = Vec::with_capacity(BATCH);
        while spans.len() < BATCH {
            let trace_id = TraceId(self.random.random());
            self.ids.push(trace_id);
            let mut parent = None;
            for depth in 0..self.per_trace {
                let span = self.span(trace_id, parent, depth);
                parent = Some(span.span_id);
                spans.push(span);
            }
        }
        spans.into()
    }

    fn span(&mut self, trace_id: TraceId, parent: Option<SpanId>, depth: u64) -> Span {
        self.now_ns += 50_000;
        let is_client = depth % 2 == 1;
        let source = if parent.is_some() {
            ParentSource::Wire
        } else {
            ParentSource::Root
        };
        Span {
            trace_id,
            span_id: SpanId(self.random.random()),
            parent_span_id: parent,
            parent_source: source,
            trace_flags: 3,
            trace_state: None,
            kind: if is_client { SpanKind::Client } else { SpanKind::Server },
            name: Arc::clone(&self.names[self.random.random_range(0..self.names.len())]),
            start_unix_ns: self.now_ns,
            end_unix_ns: self.now_ns + self.random.random_range(100_000..20_000_000),
            status: SpanStatus::Unset,
            attributes: vec![
                ("http.request.method".into(), Value::Static("GET")),
                ("http.response.status_code".into(), Value::Int(200)),
                ("http.route".into(), Value::Static("/items/{id}")),
                ("url.path".into(), Value::Static("/items/{id}")),
                ("url.scheme".into(), Value::Static("http")),
                ("server.address".into(), Value::Static("10.0.0.7")),
                ("server.port".into(), Value::Int(8080)),
                ("client.address".into(), Value::Static("10.0.0.9")),
                ("client.port".into(), Value::Int(50_123)),
                ("network.peer.address".into(), Value::Static("10.0.0.9")),
                ("network.peer.port".into(), Value::Int(50_123)),
                ("network.protocol.version".into(), Value::Static("1.1")),
                ("http.request.body.size".into(), Value::Int(0)),
                ("http.response.body.size".into(), Value::Int(612)),
                ("spanwire.parent.source".into(), Value::Static(source.as_str())),
                ("spanwire.wire.key".into(), Value::Static("9f86d081884c7d65")),
                ("spanwire.request.read_ns".into(), Value::Int(1_234)),
                ("spanwire.response.first_byte_ns".into(), Value::Int(91_234)),
            ],
            resource: Arc::clone(&self.resources[(depth / 2) as usize % self.resources.len()]),
            tenant: None,
        }
    }
}

fn resource(number: usize) -> Arc<Resource> {
    let text = |text: String| Value::Str(text.into());
    Arc::new(Resource {
        service_name: format!("service-{number}").into(),
        attributes: vec![
            ("service.name".into(), text(format!("service-{number}"))),
            ("service.instance.id".into(), text(format!("node-1/{number}"))),
            ("host.name".into(), Value::Static("node-1")),
            ("process.pid".into(), Value::Int(4_000 + number as i64)),
            ("process.executable.name".into(), Value::Static("nginx")),
            ("telemetry.distro.name".into(), Value::Static("spanwire")),
        ],
    })
}

fn build(spans: u64, per_trace: u64) {
    let mut made = Made::new(per_trace);
    let mut left = spans;
    while left > 0 {
        let batch = std::hint::black_box(made.batch());
        left = left.saturating_sub(batch.len() as u64);
    }
}

fn fill(dir: &Path, spans: u64, per_trace: u64, size_bytes: u64) -> anyhow::Result<(Store, Made)> {
    let store = Store::open(
        dir,
        Retention {
            size_bytes,
            ..Retention::default()
        },
    )?;
    let stats = store.stats();
    let mut made = Made::new(per_trace);
    let begun = Instant::now();
    let mut left = spans;
    while left > 0 {
        let batch = made.batch();
        left = left.saturating_sub(batch.len() as u64);
        while stats.queued.load(Ordering::Relaxed) > AHEAD {
            std::thread::sleep(Duration::from_millis(1));
        }
        store.push(batch);
    }
    let done = || {
        let sent = stats.sent.load(Ordering::Relaxed);
        let lost = stats.dropped.load(Ordering::Relaxed) + stats.failed.load(Ordering::Relaxed);
        (sent + lost >= spans).then_some((sent, lost))
    };
    let (sent, lost) = loop {
        match done() {
            Some(counts) => break counts,
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    let rate = sent as f64 / begun.elapsed().as_secs_f64();
    let file_bytes = std::fs::metadata(dir.join(FILE_NAME))?.len();
    println!(
        "{sent} written, {lost} lost, {rate:.0} spans/s, {} bytes/span",
        file_bytes / spans.max(1)
    );
    Ok((store, made))
}

fn lookup(dir: &Path, spans: u64, per_trace: u64) -> anyhow::Result<()> {
    let (store, mut made) = fill(dir, spans, per_trace, 8 << 30)?;
    let reader = store.reader();
    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..1_000 {
        let id = made.ids[made.random.random_range(0..made.ids.len())];
        let begun = Instant::now();
        reader.trace(id)?.context("a trace that was written is not found")?;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    println!("lookup by trace id: median {:?}, slowest {:?}", times[500], times[999]);
    let nothing = |key: &str| vec![(key.to_owned(), "no".to_owned())];
    let questions = [
        ("the newest 20", TraceFilter::default()),
        (
            "an attribute nothing has",
            TraceFilter {
                attributes: nothing("no.such"),
                ..TraceFilter::default()
            },
        ),
        (
            "a duration nothing has",
            TraceFilter {
                min_duration_ns: Some(1 << 40),
                ..TraceFilter::default()
            },
        ),
    ];
    for (name, filter) in questions {
        let begun = Instant::now();
        let list = reader.traces(&filter)?;
        println!(
            "{name}: {} found in {:?}, partial {}",
            list.traces.len(),
            begun.elapsed(),
            list.partial
        );
    }
    Ok(())
}
