//! Spans straight to the bytes of an `ExportTraceServiceRequest`.
//!
//! The typed way (`otlp::to_request`, then prost) allocates a `String` for every key and value of every span, which alone
//! costs more than everything else an export does. Here a span is written from where it lies. The bytes are those
//! that prost writes for `otlp::to_request`, which the tests assert; `docs/export.md` has both costs.

use bytes::Bytes;
use prost::encoding::{encode_key, encode_varint, encoded_len_varint, WireType};

use super::otlp::{self, Group};
use crate::span::{Attribute, Resource, Span, Value};

/// Field numbers of trace.proto, resource.proto and common.proto.
mod tag {
    pub(super) const REQUEST_RESOURCE_SPANS: u32 = 1;
    pub(super) const RESOURCE_SPANS_RESOURCE: u32 = 1;
    pub(super) const RESOURCE_SPANS_SCOPE_SPANS: u32 = 2;
    pub(super) const RESOURCE_ATTRIBUTES: u32 = 1;
    pub(super) const SCOPE_SPANS_SCOPE: u32 = 1;
    pub(super) const SCOPE_SPANS_SPANS: u32 = 2;
    pub(super) const SCOPE_NAME: u32 = 1;
    pub(super) const SCOPE_VERSION: u32 = 2;
    pub(super) const SPAN_TRACE_ID: u32 = 1;
    pub(super) const SPAN_SPAN_ID: u32 = 2;
    pub(super) const SPAN_TRACE_STATE: u32 = 3;
    pub(super) const SPAN_PARENT_SPAN_ID: u32 = 4;
    pub(super) const SPAN_NAME: u32 = 5;
    pub(super) const SPAN_KIND: u32 = 6;
    pub(super) const SPAN_START: u32 = 7;
    pub(super) const SPAN_END: u32 = 8;
    pub(super) const SPAN_ATTRIBUTES: u32 = 9;
    pub(super) const SPAN_STATUS: u32 = 15;
    pub(super) const SPAN_FLAGS: u32 = 16;
    pub(super) const STATUS_CODE: u32 = 3;
    pub(super) const KEY_VALUE_KEY: u32 = 1;
    pub(super) const KEY_VALUE_VALUE: u32 = 2;
    pub(super) const ANY_STRING: u32 = 1;
    pub(super) const ANY_BOOL: u32 = 2;
    pub(super) const ANY_INT: u32 = 3;
    pub(super) const ANY_ARRAY: u32 = 5;
    pub(super) const ARRAY_VALUES: u32 = 1;
}

/// Bytes of a field's key for field numbers up to 15.
const KEY_BYTES: usize = 1;

/// Encodes one request for `spans`, grouped by resource.
pub fn encode_request<'a>(spans: impl Iterator<Item = &'a Span>) -> Bytes {
    let groups = otlp::group_by_resource(spans);
    let scope = scope_bytes();
    let span_count: usize = groups.iter().map(|group| group.spans.len()).sum();
    // A span of the usual attributes has about 700 bytes.
    let mut request = Vec::with_capacity(span_count * 1024 + groups.len() * 512);
    let mut scratch = Scratch::default();
    for group in &groups {
        encode_group(group, &scope, &mut scratch, &mut request);
    }
    Bytes::from(request)
}

/// Buffers that are filled and emptied per group and per span: a length goes before its message, so the message is
/// written here first and then copied, which is cheaper than computing every length twice.
#[derive(Default)]
struct Scratch {
    resource: Vec<u8>,
    spans: Vec<u8>,
    span: Vec<u8>,
}

fn encode_group(group: &Group<'_>, scope: &[u8], scratch: &mut Scratch, out: &mut Vec<u8>) {
    let Scratch {
        resource,
        spans,
        span: one,
    } = scratch;
    resource.clear();
    encode_resource(group.resource, resource);
    spans.clear();
    put_bytes(tag::SCOPE_SPANS_SCOPE, scope, spans);
    for span in &group.spans {
        one.clear();
        encode_span(span, one);
        put_bytes(tag::SCOPE_SPANS_SPANS, one, spans);
    }
    let length = field_len(resource.len()) + field_len(spans.len());
    put_key_and_length(tag::REQUEST_RESOURCE_SPANS, length, out);
    put_bytes(tag::RESOURCE_SPANS_RESOURCE, resource, out);
    put_bytes(tag::RESOURCE_SPANS_SCOPE_SPANS, spans, out);
}

fn scope_bytes() -> Vec<u8> {
    let mut scope = Vec::new();
    put_text(tag::SCOPE_NAME, otlp::SCOPE_NAME, &mut scope);
    put_text(tag::SCOPE_VERSION, otlp::SCOPE_VERSION, &mut scope);
    scope
}

/// The content of a `Resource` message.
pub(crate) fn encode_resource(resource: &Resource, out: &mut Vec<u8>) {
    for (key, value) in &resource.attributes {
        encode_attribute(tag::RESOURCE_ATTRIBUTES, key, value, out);
    }
}

/// The content of a `Span` message, in the order of the field numbers, as prost writes.
pub(crate) fn encode_span(span: &Span, out: &mut Vec<u8>) {
    encode_span_with(span, |key| key, out);
}

/// As [`encode_span`], with another name for each attribute.
#[inline]
pub(crate) fn encode_span_with(span: &Span, name: impl Fn(&str) -> &str, out: &mut Vec<u8>) {
    put_bytes(tag::SPAN_TRACE_ID, &span.trace_id.0, out);
    put_bytes(tag::SPAN_SPAN_ID, &span.span_id.0, out);
    put_text(
        tag::SPAN_TRACE_STATE,
        span.trace_state.as_deref().unwrap_or_default(),
        out,
    );
    if let Some(parent) = span.parent_span_id {
        put_bytes(tag::SPAN_PARENT_SPAN_ID, &parent.0, out);
    }
    put_text(tag::SPAN_NAME, &span.name, out);
    put_varint(tag::SPAN_KIND, span.kind.otlp() as u64, out);
    put_fixed64(tag::SPAN_START, span.start_unix_ns, out);
    put_fixed64(tag::SPAN_END, span.end_unix_ns, out);
    for (key, value) in &span.attributes {
        encode_attribute(tag::SPAN_ATTRIBUTES, name(key), value, out);
    }
    if let Some(tenant) = otlp::missing_tenant(span) {
        let (key, value) = tenant_attribute(tenant);
        encode_attribute(tag::SPAN_ATTRIBUTES, name(&key), &value, out);
    }
    encode_status(otlp::status_code(span.status), out);
    let flags = otlp::span_flags(span);
    if flags != 0 {
        encode_key(tag::SPAN_FLAGS, WireType::ThirtyTwoBit, out);
        out.extend_from_slice(&flags.to_le_bytes());
    }
}

fn tenant_attribute(tenant: &str) -> Attribute {
    (otlp::TENANT_KEY.into(), Value::Str(tenant.into()))
}

/// Always present, like the SDKs' (unset is an empty message).
fn encode_status(code: i32, out: &mut Vec<u8>) {
    if code == 0 {
        put_key_and_length(tag::SPAN_STATUS, 0, out);
    } else {
        put_key_and_length(tag::SPAN_STATUS, KEY_BYTES + encoded_len_varint(code as u64), out);
        put_varint(tag::STATUS_CODE, code as u64, out);
    }
}

/// A `KeyValue` as field `number`: its key, then its `AnyValue`.
#[inline]
fn encode_attribute(number: u32, key: &str, value: &Value, out: &mut Vec<u8>) {
    let short = match value {
        Value::Str(text) => encode_short_text(number, key, text, out),
        Value::Static(text) => encode_short_text(number, key, text, out),
        Value::Int(_) | Value::Bool(_) | Value::StrArray(_) => false,
    };
    if short {
        return;
    }
    let value_length = value_len(value);
    // An empty key is prost's default and not written.
    let key_length = if key.is_empty() { 0 } else { field_len(key.len()) };
    put_key_and_length(number, key_length + field_len(value_length), out);
    put_text(tag::KEY_VALUE_KEY, key, out);
    put_key_and_length(tag::KEY_VALUE_VALUE, value_length, out);
    encode_value(value, out);
}

/// The usual attribute, a text with every length below 128: four appends instead of six. False where it is not that.
#[inline]
fn encode_short_text(number: u32, key: &str, text: &str, out: &mut Vec<u8>) -> bool {
    let length = key.len() + text.len() + 6;
    if key.is_empty() || length >= 0x80 {
        return false;
    }
    let head = [
        short_key(number),
        length as u8,
        short_key(tag::KEY_VALUE_KEY),
        key.len() as u8,
    ];
    let middle = [
        short_key(tag::KEY_VALUE_VALUE),
        text.len() as u8 + 2,
        short_key(tag::ANY_STRING),
        text.len() as u8,
    ];
    out.extend_from_slice(&head);
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(&middle);
    out.extend_from_slice(text.as_bytes());
    true
}

/// The key of a length-delimited field with a number up to 15.
const fn short_key(number: u32) -> u8 {
    (number << 3) as u8 | WireType::LengthDelimited as u8
}

/// Bytes of the `AnyValue` message. Its one field is written even where it is zero or empty: it says which type it is.
fn value_len(value: &Value) -> usize {
    match value {
        Value::Str(text) => field_len(text.len()),
        Value::Static(text) => field_len(text.len()),
        Value::Int(number) => KEY_BYTES + encoded_len_varint(*number as u64),
        Value::Bool(_) => KEY_BYTES + 1,
        Value::StrArray(texts) => field_len(array_len(texts)),
    }
}

fn array_len(texts: &[std::sync::Arc<str>]) -> usize {
    texts.iter().map(|text| field_len(field_len(text.len()))).sum()
}

fn encode_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Str(text) => put_bytes(tag::ANY_STRING, text.as_bytes(), out),
        Value::Static(text) => put_bytes(tag::ANY_STRING, text.as_bytes(), out),
        Value::Int(number) => put_varint(tag::ANY_INT, *number as u64, out),
        Value::Bool(flag) => put_varint(tag::ANY_BOOL, u64::from(*flag), out),
        Value::StrArray(texts) => {
            put_key_and_length(tag::ANY_ARRAY, array_len(texts), out);
            for text in texts {
                put_key_and_length(tag::ARRAY_VALUES, field_len(text.len()), out);
                put_bytes(tag::ANY_STRING, text.as_bytes(), out);
            }
        }
    }
}

/// Bytes of a length-delimited field with `length` bytes of content.
#[inline]
fn field_len(length: usize) -> usize {
    KEY_BYTES + encoded_len_varint(length as u64) + length
}

#[inline]
fn put_key_and_length(number: u32, length: usize, out: &mut Vec<u8>) {
    if number < 16 && length < 0x80 {
        // Nearly every field of a span: one append instead of two.
        out.extend_from_slice(&[short_key(number), length as u8]);
    } else {
        encode_key(number, WireType::LengthDelimited, out);
        encode_varint(length as u64, out);
    }
}

#[inline]
fn put_bytes(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    put_key_and_length(number, bytes.len(), out);
    out.extend_from_slice(bytes);
}

/// A proto3 string: not written when empty.
#[inline]
fn put_text(number: u32, text: &str, out: &mut Vec<u8>) {
    if !text.is_empty() {
        put_bytes(number, text.as_bytes(), out);
    }
}

#[inline]
fn put_varint(number: u32, value: u64, out: &mut Vec<u8>) {
    // At most ten bytes of value after the key, collected here: appending byte by byte costs a check each.
    let mut field = [0u8; 11];
    field[0] = (number << 3) as u8 | WireType::Varint as u8;
    let mut rest = &mut field[KEY_BYTES..];
    encode_varint(value, &mut rest);
    let unused = rest.len();
    out.extend_from_slice(&field[..field.len() - unused]);
}

/// A proto3 fixed64: not written when zero.
fn put_fixed64(number: u32, value: u64, out: &mut Vec<u8>) {
    if value != 0 {
        encode_key(number, WireType::SixtyFourBit, out);
        out.extend_from_slice(&value.to_le_bytes());
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
