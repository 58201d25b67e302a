//! Spans as bytes: OTLP protobuf, written straight from the span without building the generated structs first.
//!
//! A stored body is a sequence of `varint resource id, varint length, Span message`. The message lacks its trace id:
//! the row has it, and a trace that joins another is moved by changing the row alone.

use opentelemetry_proto::tonic::trace::v1::Span as ProtoSpan;
use prost::Message;

use crate::span::{Attribute, Resource, Span, SpanKind, SpanStatus, Value};

/// `spanwire.parent.source`, written from the span's field when no attribute says it already.
const PARENT_SOURCE: &str = "spanwire.parent.source";
/// `spanwire.tenant`, likewise.
const TENANT: &str = "spanwire.tenant";
/// OTLP `STATUS_CODE_ERROR`.
pub(super) const STATUS_ERROR: i32 = 2;

/// Protobuf wire types.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

/// Appends the resource's OTLP message.
pub(super) fn resource(resource: &Resource, out: &mut Vec<u8>) {
    for attribute in &resource.attributes {
        key_value(1, attribute, out);
    }
    if !has(&resource.attributes, "service.name") {
        string_pair(1, "service.name", &resource.service_name, out);
    }
}

/// Appends one span to a body. `scratch` is reused between calls.
pub(super) fn span(span: &Span, resource_id: i64, scratch: &mut Vec<u8>, out: &mut Vec<u8>) {
    scratch.clear();
    message(span, scratch);
    varint(resource_id as u64, out);
    varint(scratch.len() as u64, out);
    out.extend_from_slice(scratch);
}

/// Appends an OTLP Span message without its trace id (trace.proto gives the field numbers).
fn message(span: &Span, out: &mut Vec<u8>) {
    bytes_field(2, &span.span_id.0, out);
    if let Some(state) = &span.trace_state {
        bytes_field(3, state.as_bytes(), out);
    }
    if let Some(parent) = span.parent_span_id {
        bytes_field(4, &parent.0, out);
    }
    bytes_field(5, span.name.as_bytes(), out);
    varint_field(6, span.kind.otlp() as u64, out);
    fixed64_field(7, span.start_unix_ns, out);
    fixed64_field(8, span.end_unix_ns, out);
    for attribute in &span.attributes {
        key_value(9, attribute, out);
    }
    if !has(&span.attributes, PARENT_SOURCE) {
        string_pair(9, PARENT_SOURCE, span.parent_source.as_str(), out);
    }
    if let Some(tenant) = &span.tenant {
        if !has(&span.attributes, TENANT) {
            string_pair(9, TENANT, tenant, out);
        }
    }
    if span.status == SpanStatus::Error {
        // Status { code: 3 => ERROR }
        bytes_field(15, &[3 << 3, STATUS_ERROR as u8], out);
    }
    tag(16, FIXED32, out);
    out.extend_from_slice(&flags(span).to_le_bytes());
}

/// The W3C trace flags, and above them where the parent lives (trace.proto, `SpanFlags`): what was received was sent by
/// another process, what is sent is caused inside this one.
fn flags(span: &Span) -> u32 {
    const HAS_IS_REMOTE: u32 = 0x100;
    const IS_REMOTE: u32 = 0x200;
    let flags = u32::from(span.trace_flags);
    match (span.parent_span_id, span.kind) {
        (None, _) => flags,
        (Some(_), SpanKind::Server | SpanKind::Consumer) => flags | HAS_IS_REMOTE | IS_REMOTE,
        (Some(_), SpanKind::Client | SpanKind::Producer) => flags | HAS_IS_REMOTE,
    }
}

/// Reads a body back: each span with its resource's id and an empty trace id. Ends at the first malformed byte.
pub(super) fn spans(body: &[u8]) -> Spans<'_> {
    Spans { rest: body }
}

/// See [`spans`].
pub(super) struct Spans<'a> {
    rest: &'a [u8],
}

impl<'a> Spans<'a> {
    /// The next span undecoded: resource id and message.
    pub(super) fn next_raw(&mut self) -> Option<(i64, &'a [u8])> {
        let resource_id = read_varint(&mut self.rest)?;
        let length = usize::try_from(read_varint(&mut self.rest)?).ok()?;
        let (message, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some((resource_id as i64, message))
    }
}

impl Iterator for Spans<'_> {
    type Item = (i64, ProtoSpan);

    fn next(&mut self) -> Option<Self::Item> {
        let (resource_id, message) = self.next_raw()?;
        Some((resource_id, ProtoSpan::decode(message).ok()?))
    }
}

/// Appends an unsigned varint.
pub(super) fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Takes an unsigned varint off the front.
pub(super) fn read_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn has(attributes: &[Attribute], key: &str) -> bool {
    attributes.iter().any(|(name, _)| name == key)
}

fn tag(field: u64, wire_type: u64, out: &mut Vec<u8>) {
    varint(field << 3 | wire_type, out);
}

fn varint_field(field: u64, value: u64, out: &mut Vec<u8>) {
    tag(field, VARINT, out);
    varint(value, out);
}

fn fixed64_field(field: u64, value: u64, out: &mut Vec<u8>) {
    tag(field, FIXED64, out);
    out.extend_from_slice(&value.to_le_bytes());
}

/// `field` is below 16: its tag takes one byte.
fn bytes_field(field: u64, value: &[u8], out: &mut Vec<u8>) {
    length_field(field, value.len(), out);
    out.extend_from_slice(value);
}

/// Tag and length of a field that follows. Nearly all are shorter than 128 bytes, and a span has some sixty of them.
#[inline]
fn length_field(field: u64, length: usize, out: &mut Vec<u8>) {
    let tag = (field << 3 | BYTES) as u8;
    if length < 0x80 {
        out.extend_from_slice(&[tag, length as u8]);
    } else {
        out.push(tag);
        varint(length as u64, out);
    }
}

/// Bytes a varint takes.
const fn varint_len(value: u64) -> usize {
    (70 - (value | 1).leading_zeros() as usize) / 7
}

/// Bytes a length-delimited field with a one-byte tag takes.
const fn field_len(payload: usize) -> usize {
    1 + varint_len(payload as u64) + payload
}

fn string_pair(field: u64, key: &str, text: &str, out: &mut Vec<u8>) {
    pair(field, key, field_len(text.len()), out);
    bytes_field(1, text.as_bytes(), out);
}

fn key_value(field: u64, (key, value): &Attribute, out: &mut Vec<u8>) {
    match value {
        Value::Str(text) => string_pair(field, key, text, out),
        Value::Static(text) => string_pair(field, key, text, out),
        Value::Bool(flag) => {
            pair(field, key, 2, out);
            varint_field(2, u64::from(*flag), out);
        }
        Value::Int(number) => {
            let number = *number as u64;
            pair(field, key, 1 + varint_len(number), out);
            varint_field(3, number, out);
        }
        Value::StrArray(items) => {
            let inner = items.iter().map(|item| field_len(field_len(item.len()))).sum();
            pair(field, key, field_len(inner), out);
            length_field(5, inner, out);
            for item in items {
                length_field(1, field_len(item.len()), out);
                bytes_field(1, item.as_bytes(), out);
            }
        }
    }
}

/// A KeyValue message up to its AnyValue, whose `value_len` bytes the caller writes next.
fn pair(field: u64, key: &str, value_len: usize, out: &mut Vec<u8>) {
    length_field(field, field_len(key.len()) + field_len(value_len), out);
    bytes_field(1, key.as_bytes(), out);
    length_field(2, value_len, out);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "test")]
    use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
    use opentelemetry_proto::tonic::common::v1::KeyValue;
    use opentelemetry_proto::tonic::resource::v1::Resource as ProtoResource;

    use super::super::sample::SpanBuilder;
    use super::*;

    fn find<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Any> {
        attributes
            .iter()
            .find(|pair| pair.key == key)?
            .value
            .as_ref()?
            .value
            .as_ref()
    }

    #[test]
    fn a_span_reads_back_as_prost_sees_it() {
        let mut written = SpanBuilder::server(1, 2).parent(9).error().build();
        written.attributes = vec![
            ("a.text".into(), Value::Str("é\u{1}".into())),
            ("a.static".into(), Value::Static("GET")),
            ("a.int".into(), Value::Int(-5)),
            ("a.bool".into(), Value::Bool(true)),
            (
                "a.list".into(),
                Value::StrArray(vec!["x".into(), "".into(), "y".repeat(300).into()]),
            ),
        ];
        written.trace_state = Some("k=v".into());
        written.tenant = Some("acme".into());
        let (mut scratch, mut body) = (Vec::new(), Vec::new());
        span(&written, 300, &mut scratch, &mut body);
        span(&written, 1, &mut scratch, &mut body);
        let read: Vec<_> = spans(&body).collect();
        assert_eq!(read.len(), 2);
        let (resource_id, read) = &read[0];
        assert_eq!(*resource_id, 300);
        assert_eq!(read.span_id, written.span_id.0);
        assert_eq!(read.parent_span_id, written.parent_span_id.unwrap().0);
        assert_eq!(read.name, &*written.name);
        assert_eq!(read.trace_state, "k=v");
        assert_eq!(read.kind, 2);
        assert_eq!(
            (read.start_time_unix_nano, read.end_time_unix_nano),
            (written.start_unix_ns, written.end_unix_ns)
        );
        assert_eq!(read.status.as_ref().unwrap().code, STATUS_ERROR);
        assert_eq!(read.flags, 0x303, "sampled, random, parent remote");
        assert_eq!(read.attributes.len(), 7);
        assert_eq!(
            find(&read.attributes, "a.text"),
            Some(&Any::StringValue("é\u{1}".into()))
        );
        assert_eq!(find(&read.attributes, "a.int"), Some(&Any::IntValue(-5)));
        assert_eq!(find(&read.attributes, "a.bool"), Some(&Any::BoolValue(true)));
        assert_eq!(find(&read.attributes, TENANT), Some(&Any::StringValue("acme".into())));
        assert!(find(&read.attributes, PARENT_SOURCE).is_some());
        let Some(Any::ArrayValue(list)) = find(&read.attributes, "a.list") else {
            panic!("not a list")
        };
        let items: Vec<_> = list.values.iter().map(|item| item.value.clone().unwrap()).collect();
        assert_eq!(items[0], Any::StringValue("x".into()));
        assert_eq!(items[1], Any::StringValue(String::new()));
        assert_eq!(items[2], Any::StringValue("y".repeat(300)));
    }

    #[test]
    fn attributes_already_there_are_not_repeated() {
        let mut written = SpanBuilder::server(1, 2).build();
        written.tenant = Some("acme".into());
        written.attributes = vec![
            (PARENT_SOURCE.into(), Value::Static("root")),
            (TENANT.into(), Value::Static("acme")),
        ];
        let (mut scratch, mut body) = (Vec::new(), Vec::new());
        span(&written, 1, &mut scratch, &mut body);
        assert_eq!(spans(&body).next().unwrap().1.attributes.len(), 2);
    }

    #[test]
    fn a_resource_always_names_its_service() {
        let mut body = Vec::new();
        resource(
            &Resource {
                service_name: "cart".into(),
                attributes: Vec::new(),
            },
            &mut body,
        );
        let read = ProtoResource::decode(&*body).unwrap();
        assert_eq!(
            find(&read.attributes, "service.name"),
            Some(&Any::StringValue("cart".into()))
        );
    }

    #[test]
    fn a_cut_body_ends_without_a_span() {
        let (mut scratch, mut body) = (Vec::new(), Vec::new());
        span(&SpanBuilder::server(1, 2).build(), 1, &mut scratch, &mut body);
        for cut in 0..body.len() {
            assert_eq!(spans(&body[..cut]).count(), 0, "cut at {cut}");
        }
    }

    #[test]
    fn varints_of_every_length() {
        for bits in 0..64 {
            for value in [1u64 << bits, (1u64 << bits) - 1, u64::MAX >> bits] {
                let mut out = Vec::new();
                varint(value, &mut out);
                assert_eq!(out.len(), varint_len(value), "{value}");
                assert_eq!(read_varint(&mut &out[..]), Some(value));
            }
        }
    }
}
