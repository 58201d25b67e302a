//! Stage: web. The HTTP API and the page, for people and scripts on this machine; read only.
//!
//! Nothing here is on the data path: questions go to the store's file, on threads of their own and few at a time.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::routing::get;
use axum::{middleware, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{watch, Semaphore};

use crate::store::StoreReader;

mod answer;
mod guard;
mod page;
#[cfg(test)]
pub(crate) mod tests;

/// Connections at once; more wait to be accepted.
const CONNECTIONS: usize = 64;
/// Questions to the store at once; more wait.
const QUESTIONS: usize = 4;
/// How long a client may take for a request's head, and how long an idle connection is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection is served at all: one that never reads its answer ends here.
const CONNECTION_TIMEOUT: Duration = Duration::from_mins(2);
/// Longest head of a request, also hyper's smallest setting.
const HEAD_BYTES: usize = 16 << 10;

/// What `/readyz` answers.
#[derive(Clone, Debug)]
pub struct Readiness {
    /// Every hook that will be used is attached: 200, else 503.
    pub is_ready: bool,
    /// Hooks and degradations by name.
    pub body: serde_json::Value,
}

/// Where the answers come from. Cheap to clone.
#[derive(Clone)]
pub struct ApiState {
    /// None with `--no-store`.
    pub store: Option<StoreReader>,
    /// The text of `/metrics`.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// The body of `/api/status`.
    pub status: Arc<dyn Fn() -> serde_json::Value + Send + Sync>,
    /// The answer of `/readyz`.
    pub ready: Arc<dyn Fn() -> Readiness + Send + Sync>,
    /// When set, `/api/*` and `/metrics` want `Authorization: Bearer` with it.
    pub token: Option<Arc<str>>,
    /// Names, beside addresses and `localhost`, under which the API may be asked; the host's own, usually.
    pub names: Vec<String>,
}

/// Why a listener cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The port is taken.
    #[error("{key}: {address} is in use by another process; stop it, or listen elsewhere ({remedy})")]
    Taken {
        /// The configuration key.
        key: &'static str,
        /// As configured.
        address: SocketAddr,
        /// How.
        remedy: &'static str,
    },
    /// Anything else.
    #[error("{key}: cannot listen on {address}: {source}; listen elsewhere ({remedy})")]
    Other {
        /// The configuration key.
        key: &'static str,
        /// As configured.
        address: SocketAddr,
        /// What the kernel said.
        source: std::io::Error,
        /// How.
        remedy: &'static str,
    },
    /// Off loopback without a token.
    #[error("api.listen: {address} can be reached from other machines, which needs a bearer token file; listen on 127.0.0.1, or give one")]
    Open {
        /// As configured.
        address: SocketAddr,
    },
}

/// A listener and what it serves.
pub struct Server {
    listener: TcpListener,
    router: Router,
}

impl Server {
    /// The API and the page (`api.listen`). Off loopback a token is required.
    pub async fn api(address: SocketAddr, state: ApiState) -> Result<Self, ListenError> {
        if !address.ip().is_loopback() && state.token.is_none() {
            return Err(ListenError::Open { address });
        }
        let listener = listen("api.listen", "--listen ADDR:PORT", address).await?;
        let local = listener.local_addr().unwrap_or(address);
        Ok(Self {
            listener,
            router: api_router(state, local),
        })
    }

    /// `/healthz`, `/readyz` and `/metrics` only, for probes and scrapers of other machines (`health`).
    pub async fn health(address: SocketAddr, state: ApiState) -> Result<Self, ListenError> {
        let listener = listen("health", "health: ADDR:PORT in the configuration", address).await?;
        let state = answer::Shared::new(
            ApiState {
                store: None,
                token: None,
                ..state
            },
            address,
        );
        let router = health_routes().fallback(answer::not_found).with_state(state);
        Ok(Self {
            listener,
            router: router.layer(middleware::from_fn(guard::headers)),
        })
    }

    /// Where it listens: tells the port when 0 was asked for.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` is done; open connections end their current request, within a second.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        let (ending, end) = watch::channel(());
        let mut stop = std::pin::pin!(stop);
        loop {
            let slot = tokio::select! {
                () = &mut stop => break,
                slot = Arc::clone(&slots).acquire_owned() => slot,
            };
            let accepted = tokio::select! {
                () = &mut stop => break,
                accepted = self.listener.accept() => accepted,
            };
            match (slot, accepted) {
                (Ok(slot), Ok((stream, _))) => {
                    let (router, end) = (self.router.clone(), end.clone());
                    tokio::spawn(async move {
                        serve(stream, router, end).await;
                        drop(slot);
                    });
                }
                // Out of descriptors, most likely: others must end first.
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
        drop(ending);
        // All slots back means that all connections have ended.
        let _ = tokio::time::timeout(Duration::from_secs(1), slots.acquire_many(CONNECTIONS as u32)).await;
    }
}

async fn listen(key: &'static str, remedy: &'static str, address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        std::io::ErrorKind::AddrInUse => ListenError::Taken { key, address, remedy },
        _ => ListenError::Other {
            key,
            address,
            source,
            remedy,
        },
    })
}

async fn serve(stream: TcpStream, router: Router, mut end: watch::Receiver<()>) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let limit = tokio::time::sleep(CONNECTION_TIMEOUT);
    let mut limit = std::pin::pin!(limit);
    loop {
        tokio::select! {
            // A client that breaks off or talks nonsense is its own affair.
            _ = connection.as_mut() => return,
            () = &mut limit => return,
            changed = end.changed() => {
                if changed.is_err() {
                    connection.as_mut().graceful_shutdown();
                    let _ = tokio::time::timeout(Duration::from_secs(1), connection.as_mut()).await;
                    return;
                }
            }
        }
    }
}

fn health_routes() -> Router<answer::Shared> {
    Router::new()
        .route("/healthz", get(answer::alive))
        .route("/readyz", get(answer::ready))
        .route("/metrics", get(answer::metrics))
}

fn api_router(state: ApiState, listening: SocketAddr) -> Router {
    let state = answer::Shared::new(state, listening);
    let guarded = Router::new()
        .route("/api/traces", get(answer::traces))
        .route("/api/traces/{id}", get(answer::trace))
        .route("/api/services", get(answer::services))
        .route("/api/graph", get(answer::graph))
        .route("/api/status", get(answer::status))
        .route("/metrics", get(answer::metrics))
        .layer(middleware::from_fn_with_state(state.clone(), guard::token));
    Router::new()
        .route("/healthz", get(answer::alive))
        .route("/readyz", get(answer::ready))
        .merge(guarded)
        .merge(page::routes())
        .fallback(answer::not_found)
        .method_not_allowed_fallback(answer::not_allowed)
        .layer(middleware::from_fn_with_state(state.clone(), guard::origin))
        .layer(middleware::from_fn(guard::headers))
        .with_state(state)
}
