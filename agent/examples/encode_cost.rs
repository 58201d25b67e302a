//! What one span costs to encode for OTLP, for `perf stat -e instructions:u`; `docs/export.md` has the commands and the numbers.
//!
//! `encode_cost MODE [ROUNDS]`: `build` makes a batch of 512 spans only (subtract it from the others), `direct` encodes it
//! ROUNDS times as the exporter does, `typed` by opentelemetry-proto's types.

use std::hint::black_box;
use std::sync::Arc;

use prost::Message;
use spanwire::export::{otlp, wire};
use spanwire::span::{ParentSource, Resource, Span, SpanId, SpanKind, SpanStatus, TraceId, Value};

const SPANS: usize = 512;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mode = arguments.next().unwrap_or_default();
    let rounds: usize = arguments
        .next()
        .and_then(|text| text.parse().ok())
        .unwrap_or(200);
    let spans = batch();
    let mut bytes = 0;
    match mode.as_str() {
        "build" => {
            black_box(&spans);
        }
        "direct" => {
            for _ in 0..rounds {
                bytes = black_box(wire::encode_request(black_box(&spans).iter())).len();
            }
        }
        "typed" => {
            for _ in 0..rounds {
                bytes = black_box(otlp::to_request(black_box(&spans)).encode_to_vec()).len();
            }
        }
        _ => {
            eprintln!("usage: encode_cost build|direct|typed [ROUNDS]");
            std::process::exit(2);
        }
    }
    println!(
        "{mode}: {} spans, {} bytes a span",
        rounds * SPANS,
        bytes / SPANS
    );
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
            (
                "spanwire.response.first_byte_ns".into(),
                Value::Int(2_210_000),
            ),
            ("spanwire.tenant".into(), text("acme")),
        ],
        resource: Arc::clone(resource),
        tenant: Some("acme".into()),
    }
}
