//! OTLP over HTTP/1.1 with binary protobuf.

use std::io::Write;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use flate2::{write::GzEncoder, Compression};
use http::header::{HeaderMap, HeaderValue, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTracePartialSuccess, ExportTraceServiceResponse};
use prost::Message;
use serde_json::Value;

use super::client::{self, BoundedClient, FullBody};
use super::endpoint::{Endpoint, ExportError, ExporterSettings};
use super::retry::{self, Outcome};

const PROTOBUF: &str = "application/x-protobuf";
const JSON: &str = "application/json";

/// How long the words of an error answer are waited for. Its status and headers are known by then.
const ERROR_BODY_WAIT: Duration = Duration::from_millis(500);

pub(super) struct HttpTransport {
    client: BoundedClient<FullBody>,
    endpoint: Endpoint,
    gzip: bool,
}

impl HttpTransport {
    pub(super) fn new(settings: &ExporterSettings, mut endpoint: Endpoint) -> Result<Self, ExportError> {
        let client = BoundedClient::new(settings, &endpoint)?;
        let headers = &mut endpoint.headers;
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROTOBUF));
        headers
            .entry(USER_AGENT)
            .or_insert(HeaderValue::from_static(client::USER_AGENT));
        if settings.gzip {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        Ok(Self {
            client,
            endpoint,
            gzip: settings.gzip,
        })
    }

    /// What goes over the wire for an encoded request, once for all attempts.
    pub(super) fn payload(&self, encoded: Bytes) -> Bytes {
        if !self.gzip {
            return encoded;
        }
        // Spans repeat themselves so much that the fastest level already takes nine tenths away.
        let mut encoder = GzEncoder::new(Vec::with_capacity(encoded.len() / 8), Compression::fast());
        let written = encoder.write_all(&encoded).and_then(|()| encoder.finish());
        // Writing into memory does not fail; were it to, an empty body would be refused and counted.
        written.map(Bytes::from).unwrap_or_default()
    }

    pub(super) async fn send(&self, payload: Bytes) -> Outcome {
        let mut request = Request::new(FullBody::new(payload));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.endpoint.uri.clone();
        *request.headers_mut() = self.endpoint.headers.clone();
        match self.client.send(request).await {
            Ok(response) if response.status().is_success() => accepted(response).await,
            Ok(response) => refused(response).await,
            Err(error) => Outcome::Retry {
                reason: client::chain(&error),
                after: None,
            },
        }
    }
}

/// 2xx. The body decides: empty or an OTLP answer is a success, anything else comes from something that is no OTLP
/// backend, and calling that delivered would be a lie.
async fn accepted(response: Response<Limited<Incoming>>) -> Outcome {
    let status = response.status().as_u16();
    let (parts, body) = response.into_parts();
    let body = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if client::is_too_long(error.as_ref()) => {
            let reason = format!("HTTP {status} with an answer of over {} bytes", client::ANSWER_BYTES);
            return Outcome::Refused { reason };
        }
        Err(error) => {
            return Outcome::Retry {
                reason: format!("answer cut off: {}", client::chain(error.as_ref())),
                after: None,
            };
        }
    };
    match parse_answer(&parts.headers, &body) {
        Some(answer) => from_answer(answer),
        None => Outcome::Refused {
            reason: format!("HTTP {status}, but the answer is not OTLP: no OTLP receiver there"),
        },
    }
}

fn parse_answer(headers: &HeaderMap, body: &Bytes) -> Option<ExportTraceServiceResponse> {
    let content_type = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or(PROTOBUF);
    let media_type = content_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    if body.is_empty() {
        return Some(ExportTraceServiceResponse::default());
    }
    match media_type.as_str() {
        PROTOBUF | "application/protobuf" => ExportTraceServiceResponse::decode(body.clone()).ok(),
        // Some backends answer in JSON whatever they were sent; `{}` is the usual one.
        JSON => parse_json_answer(body),
        _ => None,
    }
}

/// OTLP/JSON writes the 64-bit count as a string or as a number, and leaves out what is zero.
fn parse_json_answer(body: &[u8]) -> Option<ExportTraceServiceResponse> {
    let answer: serde_json::Map<String, Value> = serde_json::from_slice(body).ok()?;
    let Some(partial) = answer.get("partialSuccess") else {
        return Some(ExportTraceServiceResponse::default());
    };
    let rejected_spans = match &partial["rejectedSpans"] {
        Value::String(text) => text.parse().ok()?,
        number => number.as_i64().unwrap_or(0),
    };
    let error_message = partial["errorMessage"].as_str().unwrap_or_default().to_owned();
    Some(ExportTraceServiceResponse {
        partial_success: Some(ExportTracePartialSuccess {
            rejected_spans,
            error_message,
        }),
    })
}

/// What an OTLP answer says, over either transport.
pub(super) fn from_answer(answer: ExportTraceServiceResponse) -> Outcome {
    let partial = answer.partial_success.unwrap_or_default();
    Outcome::Accepted {
        rejected: u64::try_from(partial.rejected_spans).unwrap_or(0),
        message: retry::printable(&partial.error_message),
    }
}

async fn refused(response: Response<Limited<Incoming>>) -> Outcome {
    let status = response.status();
    let after = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| retry::parse_retry_after(value, SystemTime::now()));
    let is_protobuf = response
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|value| value == PROTOBUF);
    let body = tokio::time::timeout(ERROR_BODY_WAIT, response.into_body().collect()).await;
    let body = body
        .ok()
        .and_then(Result::ok)
        .map(http_body_util::Collected::to_bytes)
        .unwrap_or_default();
    let message = if is_protobuf {
        // The specification's error body: a google.rpc.Status.
        tonic_types::Status::decode(body)
            .map(|status| status.message)
            .unwrap_or_default()
    } else {
        String::from_utf8_lossy(&body).into_owned()
    };
    retry::from_http_status(status, after, &message)
}
