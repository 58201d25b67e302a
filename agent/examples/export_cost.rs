//! What one span costs to encode and to export, as counted by `perf stat -e instructions:u` or callgrind; `docs/export.md`
//! has the commands and the numbers. It also feeds any OTLP backend by hand.
//!
//! ```text
//! export_cost build  [ROUNDS]                  make a batch of 512 spans and stop: what to subtract from the others
//! export_cost direct [ROUNDS]                  encode the batch ROUNDS times, as exporters do
//! export_cost typed  [ROUNDS]                  the same by opentelemetry-proto's types
//! export_cost grpc|http ROUNDS URL [gzip]      send it ROUNDS times
//! ```

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use spanwire::counters::Counters;
use spanwire::export::{otlp, wire, ExporterSettings, Exporters, Protocol, Tuning};
use spanwire::span::{ParentSource, Resource, Span, SpanBatch, SpanId, SpanKind, SpanStatus, TraceId, Value};

const SPANS: usize = 512;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |index: usize| arguments.get(index).map(String::as_str);
    let rounds: usize = argument(1).and_then(|text| text.parse().ok()).unwrap_or(200);
    let spans = batch();
    match argument(0) {
        Some("build") => {
            black_box(&spans);
        }
        Some("direct") => encode(rounds, || wire::encode_request(black_box(&spans).iter()).len()),
        Some("typed") => encode(rounds, || otlp::to_request(black_box(&spans)).encode_to_vec().len()),
        Some(transport @ ("grpc" | "http")) => {
            let protocol = if transport == "grpc" {
                Protocol::Grpc
            } else {
                Protocol::Http
            };
            let url = argument(2).unwrap_or("http://127.0.0.1:4318");
            send(
                rounds,
                &SpanBatch::from(spans),
                protocol,
                url,
                argument(3) == Some("gzip"),
            );
        }
        _ => {
            eprintln!("usage: export_cost build|direct|typed [ROUNDS] | grpc|http ROUNDS URL [gzip]");
            std::process::exit(2);
        }
    }
}

fn encode(rounds: usize, encode_once: impl Fn() -> usize) {
    let bytes: usize = (0..rounds).map(|_| black_box(encode_once())).sum();
    let spans = rounds * SPANS;
    println!("{spans} spans, {} bytes a span", bytes / spans.max(1));
}

fn send(rounds: usize, batch: &SpanBatch, protocol: Protocol, url: &str, gzip: bool) {
    let settings = ExporterSettings {
        name: "main".to_owned(),
        protocol,
        endpoint: url.to_owned(),
        headers: Vec::new(),
        gzip,
        timeout: Duration::from_secs(10),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        runtime.block_on(async {
            let counters = Counters::new();
            let exporters = Exporters::start(&[settings], Tuning::default(), &counters)?;
            for _ in 0..rounds {
                exporters.push(batch);
                while counters.queue("export/main").value() > 2_048 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            exporters.shutdown(Duration::from_mins(1)).await;
            let counts = counters.exporter("main");
            let (sent, failed, dropped) = (counts.sent.value(), counts.failed.value(), counts.dropped.value());
            println!("{sent} sent, {failed} failed, {dropped} dropped");
            Ok(())
        })
    });
    if let Err(error) = result {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

/// Spans of four processes, with the attributes that an HTTP server or client span has.
fn batch() -> Vec<Span> {
    let resources: Vec<Arc<Resource>> = (0..4).map(resource).collect();
    (0..SPANS)
        .map(|number| span(number, &resources[number % resources.len()]))
        .collect()
}

fn resource(pid: i64) -> Arc<Resource> {
    let text = |text: &str| Value::Str(text.into());
    Arc::new(Resource {
        service_name: "checkout".into(),
        attributes: vec![
            ("service.name".into(), text("checkout")),
            ("service.namespace".into(), text("shop")),
            ("service.version".into(), text("1.14.2")),
            (
                "service.instance.id".into(),
                text("0d9a6a4c-6a3e-4cf1-9d69-6a7e3bb0b4a1"),
            ),
            ("host.name".into(), text("node-7.example.internal")),
            ("process.pid".into(), Value::Int(40_000 + pid)),
            ("process.executable.name".into(), text("python3.12")),
            ("process.runtime.name".into(), text("cpython")),
            (
                "container.id".into(),
                text("3b4d0b7fbb4be5cb3aa3bb0ee2f1d93b8d0e2ee15bb1a9e4d1c1a3a2b7f0c9de"),
            ),
            ("telemetry.distro.name".into(), Value::Static("spanwire")),
            ("telemetry.distro.version".into(), Value::Static("0.1.0")),
        ],
    })
}

fn span(number: usize, resource: &Arc<Resource>) -> Span {
    let text = |text: &str| Value::Str(text.into());
    let start = 1_790_000_000_000_000_000 + number as u64 * 1_000_000;
    Span {
        trace_id: TraceId([(number % 251) as u8 + 1; 16]),
        span_id: SpanId([(number % 241) as u8 + 1; 8]),
        parent_span_id: Some(SpanId([7; 8])),
        parent_source: ParentSource::Wire,
        trace_flags: 3,
        trace_state: None,
        kind: if number.is_multiple_of(2) {
            SpanKind::Server
        } else {
            SpanKind::Client
        },
        name: "GET /api/cart/{id}/items".into(),
        start_unix_ns: start,
        end_unix_ns: start + 2_300_000,
        status: SpanStatus::Unset,
        attributes: vec![
            ("http.request.method".into(), Value::Static("GET")),
            ("http.response.status_code".into(), Value::Int(200)),
            ("http.route".into(), text("/api/cart/{id}/items")),
            ("url.path".into(), text("/api/cart/{id}/items")),
            ("url.scheme".into(), Value::Static("http")),
            ("server.address".into(), text("cart.shop.svc.cluster.local")),
            ("server.port".into(), Value::Int(8080)),
            ("client.address".into(), text("10.4.12.33")),
            ("client.port".into(), Value::Int(51_234)),
            ("network.peer.address".into(), text("10.4.12.33")),
            ("network.peer.port".into(), Value::Int(51_234)),
            ("network.protocol.version".into(), Value::Static("1.1")),
            ("http.request.body.size".into(), Value::Int(0)),
            ("http.response.body.size".into(), Value::Int(18_231)),
            ("spanwire.parent.source".into(), Value::Static("wire")),
            ("spanwire.wire.key".into(), text("8f3c2b1a9d7e6f50")),
            ("spanwire.request.read_ns".into(), Value::Int(12_345)),
            ("spanwire.response.first_byte_ns".into(), Value::Int(2_210_000)),
            ("spanwire.tenant".into(), text("acme")),
        ],
        resource: Arc::clone(resource),
        tenant: Some("acme".into()),
    }
}
