//! Spans to send, settings with short waits, and patience.

use std::sync::Arc;
use std::time::{Duration, Instant};

use spanwire::counters::Counters;
use spanwire::export::queue::{Batching, Limits};
use spanwire::export::{ExporterSettings, Exporters, Protocol, RetryPolicy, Tuning};
use spanwire::span::{ParentSource, Resource, Span, SpanBatch, SpanId, SpanKind, SpanStatus, TraceId, Value};

/// Spans numbered by their ids, of three processes.
pub(crate) fn batch(numbers: std::ops::Range<u64>) -> SpanBatch {
    let resources: Vec<Arc<Resource>> = (0..3).map(resource).collect();
    numbers
        .map(|number| span(number, &resources[number as usize % 3]))
        .collect()
}

fn resource(pid: i64) -> Arc<Resource> {
    let name: Arc<str> = format!("service-{pid}").into();
    Arc::new(Resource {
        service_name: Arc::clone(&name),
        attributes: vec![
            ("service.name".into(), Value::Str(name)),
            ("process.pid".into(), Value::Int(pid)),
            ("telemetry.distro.name".into(), Value::Static("spanwire")),
        ],
    })
}

fn span(number: u64, resource: &Arc<Resource>) -> Span {
    let is_server = number.is_multiple_of(2);
    Span {
        trace_id: TraceId((u128::from(number) + 1).to_be_bytes()),
        span_id: SpanId((number + 1).to_be_bytes()),
        parent_span_id: (!number.is_multiple_of(5)).then(|| SpanId((number + 1_000_000).to_be_bytes())),
        parent_source: ParentSource::Wire,
        trace_flags: 3,
        trace_state: number.is_multiple_of(7).then(|| "vendor=1".into()),
        kind: if is_server { SpanKind::Server } else { SpanKind::Client },
        name: "GET /cart/{id}".into(),
        start_unix_ns: 1_790_000_000_000_000_000 + number,
        end_unix_ns: 1_790_000_000_000_500_000 + number,
        status: if number.is_multiple_of(11) {
            SpanStatus::Error
        } else {
            SpanStatus::Unset
        },
        attributes: vec![
            ("http.request.method".into(), Value::Static("GET")),
            ("http.response.status_code".into(), Value::Int(200)),
            ("http.route".into(), Value::Str("/cart/{id}".into())),
            ("test.flag".into(), Value::Bool(is_server)),
            (
                "http.request.header.x-tenant-id".into(),
                Value::StrArray(vec!["acme".into(), "b".into()]),
            ),
        ],
        resource: Arc::clone(resource),
        tenant: Some("acme".into()),
    }
}

pub(crate) fn settings(name: &str, protocol: Protocol, endpoint: &str) -> ExporterSettings {
    ExporterSettings {
        name: name.to_owned(),
        protocol,
        endpoint: endpoint.to_owned(),
        headers: vec![("X-Api-Key".to_owned(), "s3cr3t-value".to_owned())],
        gzip: false,
        timeout: Duration::from_secs(10),
    }
}

/// The usual bounds, with waits that suit a test.
pub(crate) fn quick() -> Tuning {
    Tuning {
        queue: Limits {
            spans: 8_192,
            bytes: 8 << 20,
        },
        batching: Batching {
            spans: 512,
            bytes: 2 << 20,
            wait: Duration::from_millis(20),
        },
        retry: RetryPolicy {
            first: Duration::from_millis(20),
            factor: 1.5,
            longest: Duration::from_millis(100),
            give_up: Duration::from_secs(30),
            longest_pause: Duration::from_secs(5),
        },
    }
}

/// Exporters and the counters they write.
pub(crate) struct Bench {
    pub(crate) exporters: Exporters,
    pub(crate) counters: Arc<Counters>,
}

impl Bench {
    pub(crate) fn new(settings: &[ExporterSettings], tuning: Tuning) -> Self {
        let counters = Arc::new(Counters::new());
        let exporters = Exporters::start(settings, tuning, &counters).unwrap();
        Self { exporters, counters }
    }

    /// One exporter named `main`.
    pub(crate) fn single(protocol: Protocol, endpoint: &str) -> Self {
        Self::new(&[settings("main", protocol, endpoint)], quick())
    }

    /// (sent, failed, dropped).
    pub(crate) fn counts(&self, exporter: &str) -> (u64, u64, u64) {
        let counts = self.counters.exporter(exporter);
        (counts.sent.value(), counts.failed.value(), counts.dropped.value())
    }

    /// Waits until the exporter has accounted for this many spans and holds none.
    pub(crate) async fn settled(&self, exporter: &str, spans: u64) -> (u64, u64, u64) {
        until(|| {
            let (sent, failed, dropped) = self.counts(exporter);
            sent + failed + dropped >= spans && self.held(exporter) == 0
        })
        .await;
        self.counts(exporter)
    }

    pub(crate) fn held(&self, exporter: &str) -> u64 {
        self.counters.queue(&format!("export/{exporter}")).value()
    }
}

/// Waits for what must come; far longer than it takes on a busy machine.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_mins(1), "waited in vain");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
