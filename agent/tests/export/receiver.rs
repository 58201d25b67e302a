//! Backends: a gRPC trace service and an OTLP/HTTP receiver that do as they are told, and raw sockets for the rest.

use std::collections::VecDeque;
use std::future::Future;
use std::io::Read;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{Request as AxumRequest, State};
use axum::response::{IntoResponse, Response as AxumResponse};
use http::{HeaderMap, StatusCode};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::codec::CompressionEncoding;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// A request as it came.
pub(crate) struct Arrival {
    pub(crate) at: Instant,
    pub(crate) headers: HeaderMap,
    pub(crate) path: String,
    pub(crate) request: ExportTraceServiceRequest,
}

impl Arrival {
    pub(crate) fn spans(&self) -> usize {
        let scopes = self.request.resource_spans.iter().flat_map(|group| &group.scope_spans);
        scopes.map(|scope| scope.spans.len()).sum()
    }
}

/// A server on a port of its own until it is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

/// Runs `server` on a port of its own.
pub(crate) async fn raw<F, Served>(server: F) -> Server
where
    F: FnOnce(TcpListener) -> Served,
    Served: Future<Output = ()> + Send + 'static,
{
    serve(listener().await, server)
}

/// Runs `server` on this port.
pub(crate) fn serve<F, Served>(listener: TcpListener, server: F) -> Server
where
    F: FnOnce(TcpListener) -> Served,
    Served: Future<Output = ()> + Send + 'static,
{
    let address = listener.local_addr().unwrap();
    Server {
        address,
        task: tokio::spawn(server(listener)),
    }
}

pub(crate) fn partial_success(rejected: i64, message: &str) -> ExportTraceServiceResponse {
    ExportTraceServiceResponse {
        partial_success: Some(ExportTracePartialSuccess {
            rejected_spans: rejected,
            error_message: message.to_owned(),
        }),
    }
}

/// What the gRPC backend does with one request.
pub(crate) enum GrpcAnswer {
    Accept(ExportTraceServiceResponse),
    Fail(Status),
    Hang(Duration),
}

/// The first requests are answered from the script, all others accepted.
#[derive(Clone, Default)]
pub(crate) struct GrpcBackend {
    pub(crate) script: Arc<Mutex<VecDeque<GrpcAnswer>>>,
    pub(crate) arrivals: Arc<Mutex<Vec<Arrival>>>,
}

impl GrpcBackend {
    pub(crate) fn scripted(answers: impl IntoIterator<Item = GrpcAnswer>) -> Self {
        let backend = Self::default();
        backend.script.lock().unwrap().extend(answers);
        backend
    }

    pub(crate) async fn serve(&self) -> Server {
        self.serve_on(listener().await)
    }

    pub(crate) fn serve_on(&self, listener: TcpListener) -> Server {
        let address = listener.local_addr().unwrap();
        let service = TraceServiceServer::new(self.clone())
            .accept_compressed(CompressionEncoding::Gzip)
            .max_decoding_message_size(64 << 20);
        let server = tonic::transport::Server::builder().add_service(service);
        let task = tokio::spawn(async move {
            server.serve_with_incoming(TcpIncoming::from(listener)).await.unwrap();
        });
        Server { address, task }
    }

    pub(crate) fn requests(&self) -> usize {
        self.arrivals.lock().unwrap().len()
    }

    pub(crate) fn spans(&self) -> usize {
        self.arrivals.lock().unwrap().iter().map(Arrival::spans).sum()
    }
}

#[tonic::async_trait]
impl TraceService for GrpcBackend {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let arrival = Arrival {
            at: Instant::now(),
            headers: metadata.into_headers(),
            path: String::new(),
            request,
        };
        self.arrivals.lock().unwrap().push(arrival);
        let answer = self.script.lock().unwrap().pop_front();
        match answer {
            None => Ok(Response::new(ExportTraceServiceResponse::default())),
            Some(GrpcAnswer::Accept(answer)) => Ok(Response::new(answer)),
            Some(GrpcAnswer::Fail(status)) => Err(status),
            Some(GrpcAnswer::Hang(time)) => {
                tokio::time::sleep(time).await;
                Err(Status::internal("too late to matter"))
            }
        }
    }
}

/// What the HTTP backend does with one request.
pub(crate) struct HttpAnswer {
    pub(crate) status: StatusCode,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) after: Duration,
}

impl HttpAnswer {
    pub(crate) fn status(status: u16) -> Self {
        let status = StatusCode::from_u16(status).unwrap();
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            after: Duration::ZERO,
        }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub(crate) fn after(mut self, after: Duration) -> Self {
        self.after = after;
        self
    }

    pub(crate) fn otlp(answer: &ExportTraceServiceResponse) -> Self {
        Self::status(200)
            .with("content-type", "application/x-protobuf")
            .body(answer.encode_to_vec())
    }
}

/// The first requests are answered from the script, all others accepted.
#[derive(Clone, Default)]
pub(crate) struct HttpBackend {
    script: Arc<Mutex<VecDeque<HttpAnswer>>>,
    pub(crate) arrivals: Arc<Mutex<Vec<Arrival>>>,
}

impl HttpBackend {
    pub(crate) fn scripted(answers: impl IntoIterator<Item = HttpAnswer>) -> Self {
        let backend = Self::default();
        backend.script.lock().unwrap().extend(answers);
        backend
    }

    pub(crate) async fn serve(&self) -> Server {
        let app = axum::Router::new().fallback(answer_http).with_state(self.clone());
        raw(|listener| async move { axum::serve(listener, app).await.unwrap() }).await
    }

    pub(crate) fn requests(&self) -> usize {
        self.arrivals.lock().unwrap().len()
    }

    pub(crate) fn spans(&self) -> usize {
        self.arrivals.lock().unwrap().iter().map(Arrival::spans).sum()
    }
}

async fn answer_http(State(backend): State<HttpBackend>, request: AxumRequest) -> AxumResponse {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 64 << 20).await.unwrap();
    let arrival = Arrival {
        at: Instant::now(),
        request: ExportTraceServiceRequest::decode(unpacked(&parts.headers, body)).unwrap(),
        headers: parts.headers,
        path: parts.uri.to_string(),
    };
    backend.arrivals.lock().unwrap().push(arrival);
    let answer = backend.script.lock().unwrap().pop_front();
    let answer = answer.unwrap_or_else(|| HttpAnswer::otlp(&ExportTraceServiceResponse::default()));
    tokio::time::sleep(answer.after).await;
    let mut response = (answer.status, answer.body).into_response();
    response.headers_mut().remove("content-type");
    for (name, value) in answer.headers {
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    response
}

fn unpacked(headers: &HeaderMap, body: Bytes) -> Bytes {
    if !headers.contains_key("content-encoding") {
        return body;
    }
    assert_eq!(headers["content-encoding"], "gzip");
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(&body[..]).read_to_end(&mut plain).unwrap();
    plain.into()
}
