//! A part's body: `varint resource id, varint length, OTLP Span message`, for each of its spans. The attributes' names are
//! shortened (`keys`).
//!
//! The trace id in a message is the one the span came with; the row's is right, since a trace that joins another is
//! moved by changing the row alone.

use opentelemetry_proto::tonic::trace::v1::Span as ProtoSpan;
use prost::Message;

use super::keys;
use crate::export::wire;
use crate::span::{Resource, Span};

/// OTLP `STATUS_CODE_ERROR`.
pub(super) const STATUS_ERROR: i32 = 2;

/// Appends the resource's OTLP message.
pub(super) fn resource(resource: &Resource, out: &mut Vec<u8>) {
    wire::encode_resource(resource, out);
}

/// Appends one span to a body. `scratch` is reused between calls.
pub(super) fn span(span: &Span, resource_id: i64, scratch: &mut Vec<u8>, out: &mut Vec<u8>) {
    scratch.clear();
    wire::encode_span_with(span, keys::short, scratch);
    varint(resource_id as u64, out);
    varint(scratch.len() as u64, out);
    out.extend_from_slice(scratch);
}

/// Reads a body back: each span with its resource's id. Ends at the first malformed byte.
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
        Some((resource_id, decode(message)?))
    }
}

/// Decodes a message of [`Spans::next_raw`]; `None` where it is malformed.
pub(super) fn decode(message: &[u8]) -> Option<ProtoSpan> {
    let mut span = ProtoSpan::decode(message).ok()?;
    keys::expand(&mut span);
    Some(span)
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "test")]
    use super::super::sample::SpanBuilder;
    use super::*;

    #[test]
    fn spans_and_their_resources_read_back_in_order() {
        let (mut scratch, mut body) = (Vec::new(), Vec::new());
        span(
            &SpanBuilder::server(1, 2).parent(9).error().build(),
            300,
            &mut scratch,
            &mut body,
        );
        span(&SpanBuilder::client(1, 3).name("").build(), 1, &mut scratch, &mut body);
        let read: Vec<_> = spans(&body).collect();
        let ids: Vec<_> = read
            .iter()
            .map(|(resource, span)| (*resource, span.span_id[7]))
            .collect();
        assert_eq!(ids, [(300, 2), (1, 3)]);
        assert_eq!(read[0].1.status.as_ref().unwrap().code, STATUS_ERROR);
        assert_eq!(
            read[0].1.attributes.len(),
            SpanBuilder::server(1, 2).build().attributes.len()
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
                assert_eq!(read_varint(&mut &out[..]), Some(value));
            }
        }
    }
}
