//! Serves the API and the page over a store of made-up traces, to work on the page without an agent:
//! `cargo run -p spanwire --example page -- 127.0.0.1:4319`. Ends with Ctrl-C.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde_json::json;
use spanwire::span::{ParentSource, Resource, Span, SpanId, SpanKind, SpanStatus, TraceId, Value};
use spanwire::store::{Retention, Store};
use spanwire::web::{ApiState, Readiness, Server};

/// Depth, service, client or server, name, start and length in ms, parent source, failed.
type Line = (
    usize,
    &'static str,
    SpanKind,
    &'static str,
    u64,
    u64,
    ParentSource,
    bool,
);

const CHECKOUT: &[Line] = &[
    (
        0,
        "gateway",
        SpanKind::Server,
        "POST /checkout",
        0,
        412,
        ParentSource::Root,
        true,
    ),
    (
        1,
        "gateway",
        SpanKind::Client,
        "POST /orders",
        4,
        396,
        ParentSource::Io,
        true,
    ),
    (
        2,
        "orders",
        SpanKind::Server,
        "POST /orders",
        6,
        390,
        ParentSource::Wire,
        true,
    ),
    (
        3,
        "orders",
        SpanKind::Client,
        "GET /carts/{id}",
        12,
        48,
        ParentSource::Thread,
        false,
    ),
    (
        4,
        "cart",
        SpanKind::Server,
        "GET /carts/{id}",
        14,
        44,
        ParentSource::Wire,
        false,
    ),
    (
        5,
        "cart",
        SpanKind::Client,
        "GET /prices",
        20,
        31,
        ParentSource::Unknown,
        false,
    ),
    (
        3,
        "orders",
        SpanKind::Client,
        "POST /payments",
        70,
        150,
        ParentSource::Thread,
        true,
    ),
    (
        4,
        "payment",
        SpanKind::Server,
        "POST /payments",
        72,
        146,
        ParentSource::Wire,
        true,
    ),
    (
        3,
        "orders",
        SpanKind::Client,
        "POST /payments",
        225,
        165,
        ParentSource::Thread,
        false,
    ),
    (
        4,
        "payment",
        SpanKind::Server,
        "POST /payments",
        227,
        161,
        ParentSource::Wire,
        false,
    ),
    (
        3,
        "orders",
        SpanKind::Client,
        "GET /flags",
        391,
        0,
        ParentSource::Thread,
        false,
    ),
];

const EVIL: &[Line] = &[(
    0,
    "<b>shop</b>",
    SpanKind::Server,
    "GET /<img src=x onerror=\"document.title='owned'\">",
    0,
    3,
    ParentSource::Header,
    false,
)];

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:4319".to_owned());
    let address: SocketAddr = address.parse().context("expected ADDR:PORT")?;
    let dir = tempfile::tempdir()?;
    let store = Store::open(dir.path(), Retention::default())?;
    let now_ns = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
    for number in 0..30u64 {
        let lines = if number == 20 {
            EVIL
        } else {
            &CHECKOUT[..=(number as usize * 7) % CHECKOUT.len()]
        };
        store.push(trace(number + 1, lines, now_ns - number * 3_700_000_000).into());
    }
    store.push(trace(100, CHECKOUT, now_ns - 1_000_000_000).into());
    let written = store.stats();
    while written.queued.load(Ordering::Relaxed) > 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let state = ApiState {
        store: Some(store.reader()),
        metrics: Arc::new(String::new),
        status: Arc::new(|| json!({ "sample": true })),
        ready: Arc::new(|| Readiness {
            is_ready: true,
            body: json!({}),
        }),
        token: None,
        names: Vec::new(),
    };
    let server = Server::api(address, state).await?;
    println!("http://{}/  and http://{0}/#/trace/{}", server.address()?, id(100));
    server
        .run(async {
            // Without a signal handler Ctrl-C ends the process all the same.
            let _ = tokio::signal::ctrl_c().await;
        })
        .await;
    Ok(())
}

fn id(number: u64) -> TraceId {
    let mut bytes = [0x4b; 16];
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    TraceId(bytes)
}

fn trace(number: u64, lines: &[Line], start_ns: u64) -> Vec<Span> {
    let mut above: Vec<SpanId> = Vec::new();
    let mut spans = Vec::new();
    for (place, (depth, service, kind, name, at_ms, length_ms, source, failed)) in lines.iter().enumerate() {
        let span_id = SpanId((number * 1_000 + place as u64 + 1).to_be_bytes());
        above.truncate(*depth);
        let parent = above.last().copied().filter(|_| *source != ParentSource::Unknown);
        above.push(span_id);
        let mut attributes = vec![
            (
                "http.request.method".into(),
                Value::Str(name.split(' ').next().unwrap_or_default().into()),
            ),
            (
                "http.response.status_code".into(),
                Value::Int(if *failed { 503 } else { 200 }),
            ),
            ("server.address".into(), Value::Static("10.0.0.7")),
            ("spanwire.parent.source".into(), Value::Static(source.as_str())),
        ];
        if *source == ParentSource::Unknown {
            attributes.push(("spanwire.parent.reason".into(), Value::Static("runtime")));
        }
        spans.push(Span {
            trace_id: id(number),
            span_id,
            parent_span_id: parent,
            parent_source: *source,
            trace_flags: 3,
            trace_state: None,
            kind: *kind,
            name: (*name).into(),
            start_unix_ns: start_ns + at_ms * 1_000_000,
            end_unix_ns: start_ns + (at_ms + length_ms) * 1_000_000 + 40_000,
            status: if *failed { SpanStatus::Error } else { SpanStatus::Unset },
            attributes,
            resource: Arc::new(Resource {
                service_name: (*service).into(),
                attributes: vec![
                    ("service.name".into(), Value::Static(service)),
                    ("host.name".into(), Value::Static("node-1")),
                ],
            }),
            tenant: None,
        });
    }
    spans
}
