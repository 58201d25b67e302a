//! Spans as opentelemetry-proto's types: for OTLP/JSON (the store, the API, the command line) and as the reference that
//! `wire`, the encoder of the hot path, is tested against byte by byte.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{any_value, AnyValue, ArrayValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1 as resource;
use opentelemetry_proto::tonic::trace::v1::{status::StatusCode, ResourceSpans, ScopeSpans, Span as OtlpSpan, Status};

use crate::span::{Attribute, Resource, Span, SpanKind, SpanStatus, Value};

/// Name of the instrumentation scope on every span.
pub const SCOPE_NAME: &str = "spanwire";
/// Version of the instrumentation scope: this build's.
pub const SCOPE_VERSION: &str = env!("CARGO_PKG_VERSION");
/// The attribute that carries the trace's tenant.
pub const TENANT_KEY: &str = "spanwire.tenant";

/// The parent's place is known: bit 8 of the span's flags (trace.proto, `SpanFlags`).
const HAS_IS_REMOTE: u32 = 0x100;
/// The parent lives in another process: bit 9.
const IS_REMOTE: u32 = 0x200;

/// One OTLP request for all of `spans`.
pub fn to_request(spans: &[Span]) -> ExportTraceServiceRequest {
    ExportTraceServiceRequest {
        resource_spans: to_resource_spans(spans),
    }
}

/// The spans as OTLP groups them: one entry per distinct resource, resources and spans in order of first appearance.
///
/// With `serde_json` this is OTLP/JSON: hex ids, 64-bit integers as strings, enums as numbers.
pub fn to_resource_spans(spans: &[Span]) -> Vec<ResourceSpans> {
    let groups = group_by_resource(spans.iter());
    groups
        .iter()
        .map(|group| ResourceSpans {
            resource: Some(resource::Resource {
                attributes: group.resource.attributes.iter().map(key_value).collect(),
                ..Default::default()
            }),
            scope_spans: vec![ScopeSpans {
                scope: Some(InstrumentationScope {
                    name: SCOPE_NAME.to_owned(),
                    version: SCOPE_VERSION.to_owned(),
                    ..Default::default()
                }),
                spans: group.spans.iter().map(|span| otlp_span(span)).collect(),
                schema_url: String::new(),
            }],
            schema_url: String::new(),
        })
        .collect()
}

/// Spans of one resource.
pub(super) struct Group<'a> {
    pub(super) resource: &'a Resource,
    pub(super) spans: Vec<&'a Span>,
}

/// Groups by the resource's content. Spans of one process share the `Arc`, so the content is looked at once per
/// `Arc` and not once per span.
pub(super) fn group_by_resource<'a>(spans: impl Iterator<Item = &'a Span>) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    let mut by_address: HashMap<*const Resource, usize> = HashMap::new();
    let mut by_content: HashMap<ByContent<'a>, usize> = HashMap::new();
    let mut last: Option<(*const Resource, usize)> = None;
    for span in spans {
        let address = Arc::as_ptr(&span.resource);
        let index = match last {
            Some((seen, index)) if seen == address => index,
            _ => *by_address.entry(address).or_insert_with(|| {
                *by_content.entry(ByContent(&span.resource)).or_insert_with(|| {
                    groups.push(Group {
                        resource: &span.resource,
                        spans: Vec::new(),
                    });
                    groups.len() - 1
                })
            }),
        };
        last = Some((address, index));
        groups[index].spans.push(span);
    }
    groups
}

/// A resource as a map key. Equal resources have the same attributes in the same order, so keys and service name are
/// hash enough, and equality decides.
struct ByContent<'a>(&'a Resource);

impl PartialEq for ByContent<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for ByContent<'_> {}

impl Hash for ByContent<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.service_name.hash(state);
        for (_, value) in &self.0.attributes {
            match value {
                Value::Str(text) => text.hash(state),
                Value::Int(number) => number.hash(state),
                // Rare in resources; equality tells them apart.
                Value::Static(_) | Value::Bool(_) | Value::StrArray(_) => {}
            }
        }
    }
}

/// Bits 0-7: W3C trace flags; above them, where the parent lives, when there is one.
pub(super) fn span_flags(span: &Span) -> u32 {
    let trace_flags = u32::from(span.trace_flags);
    match (span.parent_span_id, span.kind) {
        (None, _) => trace_flags,
        // Whatever is received was sent by another process; whatever is sent is caused inside this one.
        (Some(_), SpanKind::Server | SpanKind::Consumer) => trace_flags | HAS_IS_REMOTE | IS_REMOTE,
        (Some(_), SpanKind::Client | SpanKind::Producer) => trace_flags | HAS_IS_REMOTE,
    }
}

/// The span's tenant, unless it is among the attributes already.
pub(super) fn missing_tenant(span: &Span) -> Option<&str> {
    let tenant = span.tenant.as_deref()?;
    let listed = span.attributes.iter().any(|(key, _)| key == TENANT_KEY);
    (!listed).then_some(tenant)
}

/// The number of the status code (trace.proto, `Status.StatusCode`).
pub(super) const fn status_code(status: SpanStatus) -> i32 {
    match status {
        SpanStatus::Unset => StatusCode::Unset as i32,
        SpanStatus::Error => StatusCode::Error as i32,
    }
}

fn otlp_span(span: &Span) -> OtlpSpan {
    let mut attributes: Vec<KeyValue> = span.attributes.iter().map(key_value).collect();
    if let Some(tenant) = missing_tenant(span) {
        attributes.push(KeyValue {
            key: TENANT_KEY.to_owned(),
            value: Some(string_value(tenant)),
            ..Default::default()
        });
    }
    OtlpSpan {
        trace_id: span.trace_id.0.to_vec(),
        span_id: span.span_id.0.to_vec(),
        trace_state: span.trace_state.as_deref().unwrap_or_default().to_owned(),
        parent_span_id: span.parent_span_id.map(|id| id.0.to_vec()).unwrap_or_default(),
        flags: span_flags(span),
        name: span.name.as_ref().to_owned(),
        kind: span.kind.otlp(),
        start_time_unix_nano: span.start_unix_ns,
        end_time_unix_nano: span.end_unix_ns,
        attributes,
        status: Some(Status {
            message: String::new(),
            code: status_code(span.status),
        }),
        ..Default::default()
    }
}

fn key_value((key, value): &Attribute) -> KeyValue {
    let value = match value {
        Value::Str(text) => string_value(text),
        Value::Static(text) => string_value(text),
        Value::Int(number) => AnyValue {
            value: Some(any_value::Value::IntValue(*number)),
        },
        Value::Bool(flag) => AnyValue {
            value: Some(any_value::Value::BoolValue(*flag)),
        },
        Value::StrArray(texts) => AnyValue {
            value: Some(any_value::Value::ArrayValue(ArrayValue {
                values: texts.iter().map(|text| string_value(text)).collect(),
            })),
        },
    };
    KeyValue {
        key: key.as_ref().to_owned(),
        value: Some(value),
        ..Default::default()
    }
}

fn string_value(text: &str) -> AnyValue {
    AnyValue {
        value: Some(any_value::Value::StringValue(text.to_owned())),
    }
}
