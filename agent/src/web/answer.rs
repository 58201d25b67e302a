//! One handler per path of contract.md's table.

use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{header, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::Json;
use serde::Serialize;
use serde_json::json;
use tokio::sync::Semaphore;

use super::{guard, ApiState, QUESTIONS};
use crate::span::TraceId;
use crate::store::{parse_instant, FilterError, StoreError, StoreReader, TraceFilter};

/// Window of services and graph unless asked otherwise.
const SINCE: &str = "15m";

/// The handlers' state.
#[derive(Clone)]
pub(super) struct Shared(Arc<Inner>);

pub(super) struct Inner {
    pub(super) api: ApiState,
    listening: SocketAddr,
    questions: Semaphore,
}

impl Deref for Shared {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Shared {
    pub(super) fn new(api: ApiState, listening: SocketAddr) -> Self {
        Self(Arc::new(Inner {
            api,
            listening,
            questions: Semaphore::new(QUESTIONS),
        }))
    }

    /// See [`guard::is_ours`].
    pub(super) fn is_ours(&self, host: &str) -> bool {
        guard::is_ours(host, self.listening, &self.api.names)
    }

    /// Asks the store on a thread that may block, few at a time.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&StoreReader) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Refusal> {
        let Some(store) = self.api.store.clone() else {
            return Err(Refusal(
                StatusCode::SERVICE_UNAVAILABLE,
                "the agent runs without a store".to_owned(),
            ));
        };
        let _turn = self.questions.acquire().await;
        let answered = tokio::task::spawn_blocking(move || question(&store)).await;
        let failed = |problem: String| Refusal(StatusCode::INTERNAL_SERVER_ERROR, problem);
        answered
            .map_err(|error| failed(error.to_string()))?
            .map_err(|error| failed(error.to_string()))
    }
}

/// An answer that is none: status and `{"error": ".."}`.
pub(super) struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        refusal(self.0, &self.1)
    }
}

impl From<FilterError> for Refusal {
    fn from(error: FilterError) -> Self {
        Self(StatusCode::BAD_REQUEST, error.to_string())
    }
}

/// `{"error": problem}`.
pub(super) fn refusal(status: StatusCode, problem: &str) -> Response {
    (status, Json(json!({ "error": problem }))).into_response()
}

type Pairs = Result<Query<Vec<(String, String)>>, QueryRejection>;

fn pairs_of(query: &Pairs) -> Result<impl Iterator<Item = (&str, &str)>, Refusal> {
    match query {
        Ok(Query(pairs)) => Ok(pairs.iter().map(|(name, value)| (name.as_str(), value.as_str()))),
        Err(rejection) => Err(Refusal(StatusCode::BAD_REQUEST, rejection.body_text())),
    }
}

fn unix_now_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64)
}

pub(super) async fn traces(State(shared): State<Shared>, query: Pairs) -> Result<Response, Refusal> {
    let filter = TraceFilter::from_pairs(pairs_of(&query)?, unix_now_ns())?;
    Ok(Json(shared.ask(move |store| store.traces(&filter)).await?).into_response())
}

pub(super) async fn trace(State(shared): State<Shared>, Path(id): Path<String>) -> Result<Response, Refusal> {
    let Some(id) = TraceId::parse(&id).filter(|id| id.is_valid()) else {
        return Err(Refusal(
            StatusCode::BAD_REQUEST,
            "a trace id is 32 hex digits, not all zero".to_owned(),
        ));
    };
    match shared.ask(move |store| store.trace(id)).await? {
        Some(trace) => Ok(Json(trace).into_response()),
        None => Err(Refusal(StatusCode::NOT_FOUND, format!("no trace {id} in the store"))),
    }
}

/// The only parameter of services and graph.
fn since(query: &Pairs, now_ns: u64) -> Result<u64, Refusal> {
    let mut since = SINCE;
    for (name, value) in pairs_of(query)?.filter(|(_, value)| !value.is_empty()) {
        match name {
            "since" => since = value,
            _ => return Err(FilterError::new(name, "no such parameter").into()),
        }
    }
    Ok(parse_instant(since, now_ns).map_err(|problem| FilterError::new("since", problem))?)
}

pub(super) async fn services(State(shared): State<Shared>, query: Pairs) -> Result<Response, Refusal> {
    let now_ns = unix_now_ns();
    let since_ns = since(&query, now_ns)?;
    answer(shared.ask(move |store| store.services(since_ns, now_ns)).await)
}

pub(super) async fn graph(State(shared): State<Shared>, query: Pairs) -> Result<Response, Refusal> {
    let now_ns = unix_now_ns();
    let since_ns = since(&query, now_ns)?;
    answer(shared.ask(move |store| store.graph(since_ns, now_ns)).await)
}

fn answer(view: Result<impl Serialize, Refusal>) -> Result<Response, Refusal> {
    view.map(|view| Json(view).into_response())
}

pub(super) async fn status(State(shared): State<Shared>) -> Response {
    Json((shared.api.status)()).into_response()
}

pub(super) async fn metrics(State(shared): State<Shared>) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, (shared.api.metrics)()).into_response()
}

pub(super) async fn alive() -> Response {
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], "ok\n").into_response()
}

pub(super) async fn ready(State(shared): State<Shared>) -> Response {
    let readiness = (shared.api.ready)();
    let status = if readiness.is_ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(readiness.body)).into_response()
}

pub(super) async fn not_found() -> Response {
    refusal(StatusCode::NOT_FOUND, "no such path; docs/api.md lists them")
}

pub(super) async fn not_allowed() -> Response {
    refusal(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD")
}
