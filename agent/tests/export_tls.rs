//! Exporters over https. A process of its own: which certificates are trusted is said by its environment.
#![allow(clippy::unwrap_used, clippy::panic, reason = "test")]

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use prost::Message;
use rustls::pki_types::PrivateKeyDer;
use spanwire::counters::Counters;
use spanwire::export::{ExportError, ExporterSettings, Exporters, Protocol, Tuning};
use spanwire::span::{ParentSource, Resource, Span, SpanBatch, SpanId, SpanKind, SpanStatus, TraceId};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, ServerTlsConfig};
use tonic::{Request, Response, Status};

const SPANS: u64 = 20;

#[tokio::test]
async fn https_delivers_to_trusted_backends_only() {
    let trusted = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let stranger = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let bundle = directory.path().join("bundle.pem");
    std::fs::write(&bundle, "").unwrap();
    std::env::set_var("SSL_CERT_FILE", &bundle);
    std::env::remove_var("SSL_CERT_DIR");
    let refusal = Exporters::start(
        &[settings("main", Protocol::Http, 1)],
        Tuning::default(),
        &Counters::new(),
    )
    .err();
    assert!(matches!(refusal, Some(ExportError::NoCertificates { .. })));
    std::fs::write(&bundle, trusted.cert.pem()).unwrap();

    let (http_port, http_spans) = https_backend(&trusted).await;
    let (grpc_port, grpc_spans) = grpc_backend(&trusted).await;
    let (stranger_port, stranger_spans) = https_backend(&stranger).await;
    let exporters = [
        settings("http", Protocol::Http, http_port),
        settings("grpc", Protocol::Grpc, grpc_port),
        settings("stranger", Protocol::Http, stranger_port),
    ];
    let mut tuning = Tuning::default();
    tuning.retry.first = Duration::from_millis(50);
    tuning.retry.give_up = Duration::from_millis(500);
    let counters = Counters::new();
    let running = Exporters::start(&exporters, tuning, &counters).unwrap();
    running.push(&batch());
    let ended = |name: &str| {
        let counts = counters.exporter(name);
        (counts.sent.value(), counts.failed.value())
    };
    let started = Instant::now();
    while exporters.iter().any(|one| ended(&one.name) == (0, 0)) {
        assert!(started.elapsed() < Duration::from_mins(1), "waited in vain");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(ended("http"), (SPANS, 0));
    assert_eq!(ended("grpc"), (SPANS, 0));
    assert_eq!(ended("stranger"), (0, SPANS));
    let arrived = [http_spans, grpc_spans, stranger_spans].map(|spans| spans.load(SeqCst) as u64);
    assert_eq!(arrived, [SPANS, SPANS, 0]);
}

fn settings(name: &str, protocol: Protocol, port: u16) -> ExporterSettings {
    ExporterSettings {
        name: name.to_owned(),
        protocol,
        endpoint: format!("https://localhost:{port}"),
        headers: Vec::new(),
        gzip: false,
        timeout: Duration::from_secs(10),
    }
}

fn batch() -> SpanBatch {
    let resource = Arc::new(Resource {
        service_name: "svc".into(),
        attributes: Vec::new(),
    });
    let span = |number: u64| Span {
        trace_id: TraceId([1; 16]),
        span_id: SpanId((number + 1).to_be_bytes()),
        parent_span_id: None,
        parent_source: ParentSource::Root,
        trace_flags: 1,
        trace_state: None,
        kind: SpanKind::Server,
        name: "GET".into(),
        start_unix_ns: 1,
        end_unix_ns: 2,
        status: SpanStatus::Unset,
        attributes: Vec::new(),
        resource: Arc::clone(&resource),
        tenant: None,
    };
    (0..SPANS).map(span).collect()
}

fn count(request: &ExportTraceServiceRequest) -> usize {
    let scopes = request.resource_spans.iter().flat_map(|group| &group.scope_spans);
    scopes.map(|scope| scope.spans.len()).sum()
}

type Certified = rcgen::CertifiedKey<rcgen::KeyPair>;

async fn https_backend(identity: &Certified) -> (u16, Arc<AtomicUsize>) {
    let key = PrivateKeyDer::try_from(identity.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![identity.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("localhost:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let spans = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&spans);
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            // A client that does not trust us leaves in the middle of the handshake.
            let Ok(connection) = acceptor.accept(connection).await else {
                continue;
            };
            let seen = Arc::clone(&seen);
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let seen = Arc::clone(&seen);
                async move {
                    let body = request.into_body().collect().await?.to_bytes();
                    seen.fetch_add(count(&ExportTraceServiceRequest::decode(body).unwrap()), SeqCst);
                    Ok::<_, hyper::Error>(http::Response::new(Full::<bytes::Bytes>::default()))
                }
            });
            let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(connection), service);
            tokio::spawn(served);
        }
    });
    (port, spans)
}

#[derive(Clone)]
struct Backend(Arc<AtomicUsize>);

#[tonic::async_trait]
impl TraceService for Backend {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.fetch_add(count(request.get_ref()), SeqCst);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn grpc_backend(identity: &Certified) -> (u16, Arc<AtomicUsize>) {
    let spans = Arc::new(AtomicUsize::new(0));
    let listener = TcpListener::bind("localhost:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let pem = Identity::from_pem(identity.cert.pem(), identity.signing_key.serialize_pem());
    let server = tonic::transport::Server::builder()
        .tls_config(ServerTlsConfig::new().identity(pem))
        .unwrap()
        .add_service(TraceServiceServer::new(Backend(Arc::clone(&spans))));
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    (port, spans)
}
