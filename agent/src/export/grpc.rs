//! OTLP over gRPC.

use std::error::Error;
use std::time::Duration;

use bytes::{BufMut, Bytes};
use http::uri::PathAndQuery;
use http::HeaderMap;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use tonic::client::Grpc;
use tonic::codec::{BufferSettings, Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Request, Status};

use super::client::{self, BoundedClient, ANSWER_BYTES};
use super::endpoint::{Endpoint, ExportError, ExporterSettings};
use super::retry::{self, Outcome};

const EXPORT_METHOD: PathAndQuery =
    PathAndQuery::from_static("/opentelemetry.proto.collector.trace.v1.TraceService/Export");

/// A frame of gRPC: one byte of flags, four of length.
const FRAME_HEAD_BYTES: usize = 5;

pub(super) struct GrpcTransport {
    service: Grpc<BoundedClient<tonic::body::Body>>,
    headers: HeaderMap,
    timeout: Duration,
}

impl GrpcTransport {
    pub(super) fn new(settings: &ExporterSettings, endpoint: Endpoint) -> Result<Self, ExportError> {
        let client = BoundedClient::new(settings, &endpoint)?;
        let mut service = Grpc::with_origin(client, endpoint.uri).max_decoding_message_size(ANSWER_BYTES);
        if settings.gzip {
            service = service.send_compressed(CompressionEncoding::Gzip);
        }
        Ok(Self {
            service,
            headers: endpoint.headers,
            timeout: settings.timeout,
        })
    }

    pub(super) async fn send(&self, payload: Bytes) -> Outcome {
        let codec = EncodedCodec { bytes: payload.len() };
        let mut request = Request::new(payload);
        *request.metadata_mut() = MetadataMap::from_headers(self.headers.clone());
        let user_agent = MetadataValue::from_static(client::USER_AGENT);
        request.metadata_mut().insert("user-agent", user_agent);
        request.set_timeout(self.timeout);
        // Clones share the pool; tonic wants one of its own for the length of a call.
        let mut service = self.service.clone();
        match service.unary(request, EXPORT_METHOD, codec).await {
            Ok(answer) => super::http::from_answer(answer.into_inner()),
            Err(status) => from_status(&status),
        }
    }
}

fn from_status(status: &Status) -> Outcome {
    let source = Error::source(status);
    // Tonic's own refusal of a long answer carries a code that would be tried again, and no source.
    let announced_too_long = status.code() == Code::OutOfRange
        && source.is_none()
        && status.message().contains("decoded message length too large");
    if announced_too_long || source.is_some_and(client::is_too_long) {
        return Outcome::Refused {
            reason: format!("an answer of over {ANSWER_BYTES} bytes"),
        };
    }
    match (retry::from_grpc_status(status), source) {
        // Our side of the connection failed: its chain of causes says more than the code tonic gave it.
        (Outcome::Retry { after, .. }, Some(source)) => Outcome::Retry {
            reason: client::chain(source),
            after,
        },
        (outcome, _) => outcome,
    }
}

/// Requests are encoded already; answers are decoded by prost.
struct EncodedCodec {
    /// Of the request, so that its buffer is allocated once.
    bytes: usize,
}

impl Codec for EncodedCodec {
    type Encode = Bytes;
    type Decode = ExportTraceServiceResponse;
    type Encoder = EncodedRequest;
    type Decoder = AnswerDecoder;

    fn encoder(&mut self) -> EncodedRequest {
        EncodedRequest { bytes: self.bytes }
    }

    fn decoder(&mut self) -> AnswerDecoder {
        AnswerDecoder
    }
}

struct EncodedRequest {
    bytes: usize,
}

impl Encoder for EncodedRequest {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, request: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(request);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        let whole = self.bytes + FRAME_HEAD_BYTES;
        BufferSettings::new(whole, whole)
    }
}

struct AnswerDecoder;

impl Decoder for AnswerDecoder {
    type Item = ExportTraceServiceResponse;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let answer = ExportTraceServiceResponse::decode(buffer);
        answer
            .map(Some)
            .map_err(|error| Status::internal(format!("the answer is not OTLP: {error}")))
    }
}
