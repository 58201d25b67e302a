//! The direct encoder against prost over opentelemetry-proto's types.
#![allow(clippy::unwrap_used, reason = "test")]

use std::sync::Arc;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value;
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::encode_request;
use crate::export::otlp;
use crate::span::{Attribute, ParentSource, Resource, Span, SpanId, SpanKind, SpanStatus, TraceId, Value};

fn resource(name: &str, pid: i64) -> Arc<Resource> {
    Arc::new(Resource {
        service_name: name.into(),
        attributes: vec![
            ("service.name".into(), Value::Str(name.into())),
            ("process.pid".into(), Value::Int(pid)),
            ("telemetry.distro.name".into(), Value::Static("spanwire")),
        ],
    })
}

fn span(resource: &Arc<Resource>, number: u8) -> Span {
    Span {
        trace_id: TraceId([number; 16]),
        span_id: SpanId([number; 8]),
        parent_span_id: None,
        parent_source: ParentSource::Root,
        trace_flags: 3,
        trace_state: None,
        kind: SpanKind::Server,
        name: "GET /cart/{id}".into(),
        start_unix_ns: 1_790_000_000_000_000_000,
        end_unix_ns: 1_790_000_000_000_250_000,
        status: SpanStatus::Unset,
        attributes: vec![("http.response.status_code".into(), Value::Int(200))],
        resource: Arc::clone(resource),
        tenant: None,
    }
}

fn assert_same_bytes(spans: &[Span]) {
    let direct = encode_request(spans.iter());
    let typed = otlp::to_request(spans);
    assert_eq!(ExportTraceServiceRequest::decode(direct.clone()).unwrap(), typed);
    assert_eq!(direct.as_ref(), typed.encode_to_vec());
}

#[test]
fn nothing_encodes_to_nothing() {
    assert!(encode_request([].iter()).is_empty());
}

#[test]
fn every_value_type_and_its_empty_form() {
    let resource = resource("cart", -7);
    let mut span = span(&resource, 1);
    span.parent_span_id = Some(SpanId([9; 8]));
    span.trace_state = Some("vendor=1,other=2".into());
    span.status = SpanStatus::Error;
    span.tenant = Some("acme".into());
    span.attributes = vec![
        ("empty.string".into(), Value::Str("".into())),
        ("empty.static".into(), Value::Static("")),
        ("zero".into(), Value::Int(0)),
        ("negative".into(), Value::Int(-1)),
        ("large".into(), Value::Int(i64::MAX)),
        ("no".into(), Value::Bool(false)),
        ("yes".into(), Value::Bool(true)),
        ("no.elements".into(), Value::StrArray(Vec::new())),
        (
            "elements".into(),
            Value::StrArray(vec!["".into(), "a".into(), "x".repeat(300).into()]),
        ),
        (String::new().into(), Value::Static("no key")),
        ("k".repeat(200).into(), Value::Str("v".repeat(40_000).into())),
        ("umlaut".into(), Value::Static("\u{e4}\u{1f980}")),
    ];
    assert_same_bytes(&[span]);
}

#[test]
fn defaults_that_proto3_leaves_out() {
    let resource = Arc::new(Resource {
        service_name: "".into(),
        attributes: Vec::new(),
    });
    let mut span = span(&resource, 0);
    span.trace_flags = 0;
    span.name = "".into();
    span.start_unix_ns = 0;
    span.end_unix_ns = 0;
    span.attributes.clear();
    assert_same_bytes(&[span]);
}

#[test]
fn one_group_per_resource_whether_shared_or_equal() {
    let cart = resource("cart", 1);
    let shop = resource("shop", 2);
    let cart_again = resource("cart", 1);
    let spans = [
        span(&cart, 1),
        span(&shop, 2),
        span(&cart_again, 3),
        span(&cart, 4),
        span(&shop, 5),
    ];
    assert_same_bytes(&spans);
    let groups = otlp::to_resource_spans(&spans);
    let ids: Vec<Vec<u8>> = groups
        .iter()
        .map(|group| group.scope_spans[0].spans.iter().map(|span| span.span_id[0]).collect())
        .collect();
    assert_eq!(ids, [vec![1, 3, 4], vec![2, 5]]);
}

#[test]
fn random_batches_encode_alike() {
    let mut random = StdRng::seed_from_u64(3);
    for _ in 0..60 {
        let resources: Vec<_> = (0..random.random_range(1..6)).map(|pid| resource("svc", pid)).collect();
        let spans: Vec<Span> = (0..random.random_range(0..40))
            .map(|_| random_span(&mut random, &resources))
            .collect();
        assert_same_bytes(&spans);
    }
}

fn random_span(random: &mut StdRng, resources: &[Arc<Resource>]) -> Span {
    let kinds = [
        SpanKind::Server,
        SpanKind::Client,
        SpanKind::Producer,
        SpanKind::Consumer,
    ];
    Span {
        trace_id: TraceId(random.random()),
        span_id: SpanId(random.random()),
        parent_span_id: random.random::<bool>().then(|| SpanId(random.random())),
        parent_source: ParentSource::Wire,
        trace_flags: random.random(),
        trace_state: random.random::<bool>().then(|| random_text(random).into()),
        kind: kinds[random.random_range(0..kinds.len())],
        name: random_text(random).into(),
        start_unix_ns: random.random(),
        end_unix_ns: random.random(),
        status: if random.random() {
            SpanStatus::Error
        } else {
            SpanStatus::Unset
        },
        attributes: (0..random.random_range(0..25))
            .map(|_| random_attribute(random))
            .collect(),
        resource: Arc::clone(&resources[random.random_range(0..resources.len())]),
        tenant: random.random::<bool>().then(|| random_text(random).into()),
    }
}

fn random_attribute(random: &mut StdRng) -> Attribute {
    let value = match random.random_range(0..5) {
        0 => Value::Str(random_text(random).into()),
        1 => Value::Static("https"),
        2 => Value::Int(random.random::<i64>() >> random.random_range(0..64)),
        3 => Value::Bool(random.random()),
        _ => Value::StrArray(
            (0..random.random_range(0..4))
                .map(|_| random_text(random).into())
                .collect(),
        ),
    };
    (random_text(random).into(), value)
}

fn random_text(random: &mut StdRng) -> String {
    let length = if random.random_range(0..10) == 0 {
        random.random_range(100..20_000)
    } else {
        random.random_range(0..40)
    };
    (0..length)
        .map(|_| char::from(random.random_range(b' '..=b'~')))
        .collect()
}

#[test]
fn a_tenant_among_the_attributes_is_not_repeated() {
    let resource = resource("cart", 1);
    let mut span = span(&resource, 1);
    span.tenant = Some("acme".into());
    let count = |span: &Span| {
        let groups = otlp::to_resource_spans(std::slice::from_ref(span));
        groups[0].scope_spans[0].spans[0]
            .attributes
            .iter()
            .filter(|pair| pair.key == otlp::TENANT_KEY)
            .count()
    };
    assert_eq!(count(&span), 1);
    span.attributes
        .push((otlp::TENANT_KEY.into(), Value::Str("acme".into())));
    assert_eq!(count(&span), 1);
    assert_same_bytes(&[span]);
}

#[test]
fn flags_say_where_the_parent_lives() {
    let resource = resource("cart", 1);
    let mut span = span(&resource, 1);
    span.trace_flags = 1;
    assert_eq!(otlp::span_flags(&span), 0x001);
    span.parent_span_id = Some(SpanId([2; 8]));
    assert_eq!(otlp::span_flags(&span), 0x301);
    span.kind = SpanKind::Client;
    assert_eq!(otlp::span_flags(&span), 0x101);
}

#[test]
fn json_follows_the_otlp_json_rules() {
    let resource = resource("cart", 4_294_967_296);
    let mut span = span(&resource, 0xab);
    span.parent_span_id = Some(SpanId([0xcd; 8]));
    span.attributes = vec![
        ("http.response.status_code".into(), Value::Int(200)),
        ("url.scheme".into(), Value::Static("http")),
        ("flag".into(), Value::Bool(true)),
        (
            "http.request.header.x-tenant-id".into(),
            Value::StrArray(vec!["acme".into()]),
        ),
    ];
    let json = serde_json::to_value(otlp::to_request(&[span])).unwrap();
    let group = &json["resourceSpans"][0];
    assert_eq!(group["resource"]["attributes"][1]["value"]["intValue"], "4294967296");
    assert_eq!(group["scopeSpans"][0]["scope"]["name"], "spanwire");
    let one = &group["scopeSpans"][0]["spans"][0];
    assert_eq!(one["traceId"], "abababababababababababababababab");
    assert_eq!(one["spanId"], "abababababababab");
    assert_eq!(one["parentSpanId"], "cdcdcdcdcdcdcdcd");
    assert_eq!(one["kind"], 2);
    assert_eq!(one["startTimeUnixNano"], "1790000000000000000");
    assert_eq!(one["endTimeUnixNano"], "1790000000000250000");
    assert_eq!(one["attributes"][0]["value"], serde_json::json!({"intValue": "200"}));
    assert_eq!(
        one["attributes"][1]["value"],
        serde_json::json!({"stringValue": "http"})
    );
    assert_eq!(one["attributes"][2]["value"], serde_json::json!({"boolValue": true}));
    assert_eq!(
        one["attributes"][3]["value"]["arrayValue"]["values"][0],
        serde_json::json!({"stringValue": "acme"})
    );
    let back: ExportTraceServiceRequest = serde_json::from_value(json).unwrap();
    let first = &back.resource_spans[0].scope_spans[0].spans[0].attributes[0];
    assert_eq!(
        first.value.as_ref().unwrap().value,
        Some(any_value::Value::IntValue(200))
    );
}
