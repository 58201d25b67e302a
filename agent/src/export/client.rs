//! The HTTP client under both transports: one connector, plain or TLS, with bounded patience.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::{ClientConfig, RootCertStore};

use super::endpoint::{Endpoint, ExportError, ExporterSettings, Protocol};

/// An answer to an export says "done" or names an error; a longer one is not read.
pub(super) const ANSWER_BYTES: usize = 64 * 1024;

/// Heads of an answer; hyper's smallest allowed buffer is 8 KiB.
const ANSWER_HEAD_BYTES: usize = 16 * 1024;

/// How long a connection without requests is kept.
const IDLE: Duration = Duration::from_secs(90);

/// Idle connections kept to one backend: as many as an exporter has requests under way.
const IDLE_CONNECTIONS: usize = super::sender::CONCURRENT_REQUESTS;

pub(super) const USER_AGENT: &str = concat!("spanwire/", env!("CARGO_PKG_VERSION"));

/// A pooled client whose answers are cut off at `ANSWER_BYTES`.
pub(super) struct BoundedClient<B>(Client<HttpsConnector<HttpConnector>, B>);

// By hand: the derive would ask for `B: Clone`.
impl<B> Clone for BoundedClient<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B> BoundedClient<B>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    pub(super) fn new(settings: &ExporterSettings, endpoint: &Endpoint) -> Result<Self, ExportError> {
        let tls = tls_config(&settings.name, endpoint.is_https())?;
        let schemes = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
        let tcp = tcp_connector(settings.timeout);
        let mut builder = Client::builder(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(IDLE_CONNECTIONS);
        let connector = match settings.protocol {
            Protocol::Http => {
                builder.http1_max_buf_size(ANSWER_HEAD_BYTES);
                schemes.enable_http1().wrap_connector(tcp)
            }
            Protocol::Grpc => {
                // A ping leaves only while a request waits: a backend that is gone without a word loses its connection
                // about when it loses the request, and the next attempt makes a new one.
                let patience = (settings.timeout / 2).max(Duration::from_secs(1));
                builder
                    .http2_only(true)
                    .http2_max_header_list_size(ANSWER_HEAD_BYTES as u32)
                    .http2_initial_stream_window_size(ANSWER_BYTES as u32)
                    .http2_initial_connection_window_size(ANSWER_BYTES as u32)
                    .http2_keep_alive_interval(patience)
                    .http2_keep_alive_timeout(patience);
                schemes.enable_http2().wrap_connector(tcp)
            }
        };
        Ok(Self(builder.build(connector)))
    }

    pub(super) async fn send(&self, request: Request<B>) -> Result<Response<Limited<Incoming>>, ClientError> {
        let response = self.0.request(request).await?;
        Ok(response.map(|body| Limited::new(body, ANSWER_BYTES)))
    }
}

/// As tonic wants it.
impl<B> tower_service::Service<Request<B>> for BoundedClient<B>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Response = Response<Limited<Incoming>>;
    type Error = ClientError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ClientError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let client = self.clone();
        Box::pin(async move { client.send(request).await })
    }
}

fn tcp_connector(timeout: Duration) -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(timeout));
    tcp.set_keepalive(Some(Duration::from_mins(1)));
    // Bytes that nobody acknowledges for this long end the connection.
    tcp.set_tcp_user_timeout(Some(timeout.max(Duration::from_secs(1))));
    tcp
}

/// The system's roots are read only where https is spoken: that costs time and memory.
fn tls_config(name: &str, https: bool) -> Result<ClientConfig, ExportError> {
    let failed = |problem: String| ExportError::NoCertificates {
        name: name.to_owned(),
        problem,
    };
    let roots = if https {
        native_roots().map_err(&failed)?
    } else {
        RootCertStore::empty()
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

fn native_roots() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    if usable > 0 {
        return Ok(roots);
    }
    Err(found
        .errors
        .first()
        .map_or_else(|| "none were found".to_owned(), ToString::to_string))
}

/// The answer was cut off at `ANSWER_BYTES`.
pub(super) fn is_too_long(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(<dyn Error>::is::<LengthLimitError>)
}

/// The whole chain of causes in one line: hyper's own messages say little ("client error (Connect)").
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut line = String::new();
    for cause in causes(error) {
        let text = cause.to_string();
        // Some errors repeat their source in their own text.
        if !line.contains(&text) {
            if !line.is_empty() {
                line.push_str(": ");
            }
            line.push_str(&text);
        }
    }
    line
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// The body of a request over HTTP/1.
pub(super) type FullBody = http_body_util::Full<Bytes>;
