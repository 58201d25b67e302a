//! What arrives is what was sent: every field, through either transport, packed or not.

use std::collections::BTreeMap;
use std::time::Duration;

use opentelemetry_proto::tonic::common::v1::{any_value, KeyValue};
use opentelemetry_proto::tonic::trace::v1 as otlp;
use spanwire::export::{ExportError, Exporters, Protocol, Tuning};
use spanwire::span::{Attribute, Span, SpanBatch, SpanKind, SpanStatus, Value};

use crate::receiver::{Arrival, GrpcBackend, HttpBackend};
use crate::sample::{batch, quick, settings, until, Bench};

const SPANS: u64 = 1_300;

#[tokio::test]
async fn grpc_delivers_every_field() {
    let backend = GrpcBackend::default();
    let server = backend.serve().await;
    let bench = Bench::single(Protocol::Grpc, &server.url());
    let spans = batch(0..SPANS);
    bench.exporters.push(&spans);
    assert_eq!(bench.settled("main", SPANS).await, (SPANS, 0, 0));
    check_arrivals(&backend.arrivals.lock().unwrap(), &spans);
}

#[tokio::test]
async fn grpc_delivers_every_field_with_gzip() {
    let backend = GrpcBackend::default();
    let server = backend.serve().await;
    let mut packed = settings("main", Protocol::Grpc, &server.url());
    packed.gzip = true;
    let bench = Bench::new(&[packed], quick());
    let spans = batch(0..SPANS);
    bench.exporters.push(&spans);
    assert_eq!(bench.settled("main", SPANS).await, (SPANS, 0, 0));
    let arrivals = backend.arrivals.lock().unwrap();
    assert_eq!(arrivals[0].headers["grpc-encoding"], "gzip");
    check_arrivals(&arrivals, &spans);
}

#[tokio::test]
async fn http_delivers_every_field() {
    let backend = HttpBackend::default();
    let server = backend.serve().await;
    let bench = Bench::single(Protocol::Http, &format!("{}/otlp?tenant=a", server.url()));
    let spans = batch(0..SPANS);
    bench.exporters.push(&spans);
    assert_eq!(bench.settled("main", SPANS).await, (SPANS, 0, 0));
    let arrivals = backend.arrivals.lock().unwrap();
    assert_eq!(arrivals[0].path, "/otlp/v1/traces?tenant=a");
    assert_eq!(arrivals[0].headers["content-type"], "application/x-protobuf");
    check_arrivals(&arrivals, &spans);
}

#[tokio::test]
async fn http_delivers_every_field_with_gzip() {
    let backend = HttpBackend::default();
    let server = backend.serve().await;
    let mut packed = settings("main", Protocol::Http, &server.url());
    packed.gzip = true;
    let bench = Bench::new(&[packed], quick());
    let spans = batch(0..SPANS);
    bench.exporters.push(&spans);
    assert_eq!(bench.settled("main", SPANS).await, (SPANS, 0, 0));
    let arrivals = backend.arrivals.lock().unwrap();
    assert_eq!(arrivals[0].headers["content-encoding"], "gzip");
    check_arrivals(&arrivals, &spans);
}

/// Every span once, under its own resource, with its own values; requests within their bound and with the header.
fn check_arrivals(arrivals: &[Arrival], sent: &SpanBatch) {
    let mut by_id: BTreeMap<Vec<u8>, &Span> = sent.iter().map(|span| (span.span_id.0.to_vec(), span)).collect();
    for arrival in arrivals {
        assert!((1..=512).contains(&arrival.spans()));
        assert_eq!(arrival.headers["x-api-key"], "s3cr3t-value");
        assert!(arrival.headers["user-agent"].to_str().unwrap().starts_with("spanwire/"));
        assert!(arrival.request.resource_spans.len() <= 3);
        for group in &arrival.request.resource_spans {
            let resource = group.resource.as_ref().unwrap();
            for scope_spans in &group.scope_spans {
                assert_eq!(scope_spans.scope.as_ref().unwrap().name, "spanwire");
                assert_eq!(scope_spans.scope.as_ref().unwrap().version, env!("CARGO_PKG_VERSION"));
                for got in &scope_spans.spans {
                    let span = by_id.remove(&got.span_id).expect("each span once");
                    check_span(got, span);
                    check_attributes(&resource.attributes, &span.resource.attributes);
                }
            }
        }
    }
    assert!(by_id.is_empty(), "{} spans did not arrive", by_id.len());
}

fn check_span(got: &otlp::Span, sent: &Span) {
    assert_eq!(got.trace_id, sent.trace_id.0);
    assert_eq!(
        got.parent_span_id,
        sent.parent_span_id.map(|id| id.0.to_vec()).unwrap_or_default()
    );
    assert_eq!(got.trace_state, sent.trace_state.as_deref().unwrap_or_default());
    assert_eq!(got.flags & 0xff, u32::from(sent.trace_flags));
    assert_eq!(got.name, &*sent.name);
    let kind = match sent.kind {
        SpanKind::Server => otlp::span::SpanKind::Server,
        SpanKind::Client => otlp::span::SpanKind::Client,
        SpanKind::Producer | SpanKind::Consumer => panic!("not among the samples"),
    };
    assert_eq!(got.kind(), kind);
    assert_eq!(got.start_time_unix_nano, sent.start_unix_ns);
    assert_eq!(got.end_time_unix_nano, sent.end_unix_ns);
    let code = match sent.status {
        SpanStatus::Unset => otlp::status::StatusCode::Unset,
        SpanStatus::Error => otlp::status::StatusCode::Error,
    };
    assert_eq!(got.status.as_ref().unwrap().code(), code);
    let (tenant, attributes) = got.attributes.split_last().unwrap();
    assert_eq!(tenant.key, "spanwire.tenant");
    check_value(tenant, &Value::Static("acme"));
    check_attributes(attributes, &sent.attributes);
}

fn check_attributes(got: &[KeyValue], sent: &[Attribute]) {
    assert_eq!(got.len(), sent.len());
    for (got, (key, value)) in got.iter().zip(sent) {
        assert_eq!(got.key, key.as_ref());
        check_value(got, value);
    }
}

fn check_value(got: &KeyValue, sent: &Value) {
    let got = got.value.as_ref().unwrap().value.as_ref().unwrap();
    match (got, sent) {
        (any_value::Value::StringValue(got), Value::Str(sent)) => assert_eq!(got, &**sent),
        (any_value::Value::StringValue(got), Value::Static(sent)) => assert_eq!(got, sent),
        (any_value::Value::IntValue(got), Value::Int(sent)) => assert_eq!(got, sent),
        (any_value::Value::BoolValue(got), Value::Bool(sent)) => assert_eq!(got, sent),
        (any_value::Value::ArrayValue(got), Value::StrArray(sent)) => {
            assert_eq!(got.values.len(), sent.len());
            for (got, sent) in got.values.iter().zip(sent) {
                assert_eq!(got.value, Some(any_value::Value::StringValue(sent.to_string())));
            }
        }
        (got, sent) => panic!("{sent:?} arrived as {got:?}"),
    }
}

#[tokio::test]
async fn the_default_waits_no_longer_than_half_a_second_for_company() {
    assert_eq!(Tuning::default().batching.wait, Duration::from_millis(500));
    let backend = GrpcBackend::default();
    let server = backend.serve().await;
    let bench = Bench::new(&[settings("main", Protocol::Grpc, &server.url())], Tuning::default());
    bench.exporters.push(&batch(0..1));
    until(|| backend.spans() == 1).await;
}

#[tokio::test]
async fn a_dead_exporter_starves_no_other() {
    let live = GrpcBackend::default();
    let live_server = live.serve().await;
    let dead_port = crate::receiver::listener().await.local_addr().unwrap().port();
    let mute = crate::receiver::raw(|listener| async move {
        let mut held = Vec::new();
        while let Ok((connection, _)) = listener.accept().await {
            held.push(connection);
        }
    })
    .await;
    let bench = Bench::new(
        &[
            settings("dead", Protocol::Grpc, &format!("http://127.0.0.1:{dead_port}")),
            settings("mute", Protocol::Http, &mute.url()),
            settings("live", Protocol::Grpc, &live_server.url()),
        ],
        quick(),
    );
    let total = 20_000;
    for start in (0..total).step_by(500) {
        bench.exporters.push(&batch(start..start + 500));
        until(|| bench.held("live") < 4_000).await;
    }
    assert_eq!(bench.settled("live", total).await, (total, 0, 0));
    assert_eq!(live.spans() as u64, total);
    for name in ["dead", "mute"] {
        let (sent, failed, dropped) = bench.counts(name);
        let held = bench.held(name);
        assert_eq!((sent, failed), (0, 0), "{name}");
        assert!(held > 2_048 && held <= 8_192, "{name} holds {held}");
        assert_eq!(held + dropped, total, "{name}");
    }
}

#[tokio::test]
async fn wrong_settings_are_refused_before_anything_starts() {
    let counters = spanwire::counters::Counters::new();
    let good = settings("main", Protocol::Grpc, "http://127.0.0.1:4317");
    let twice = Exporters::start(&[good.clone(), good.clone()], quick(), &counters)
        .err()
        .unwrap();
    assert_eq!(
        twice,
        ExportError::NameTwice {
            name: "main".to_owned()
        }
    );
    let mut bad = settings("other", Protocol::Grpc, "localhost:4317");
    let no_scheme = Exporters::start(&[good.clone(), bad.clone()], quick(), &counters)
        .err()
        .unwrap();
    assert!(matches!(no_scheme, ExportError::NotAUrl { name, .. } if name == "other"));
    bad.endpoint = "http://127.0.0.1:4317".to_owned();
    assert!(Exporters::start(&[good, bad], quick(), &counters).is_ok());
}
