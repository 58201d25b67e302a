//! Whom the query commands ask: the running agent's API, or a store's file when none runs. Both give the same answers.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;

use crate::span::TraceId;
use crate::store::{FilterError, ServicesView, StoreError, StoreReader, StoredTrace, TraceFilter, TraceList};

/// Where the agent's API is unless configured otherwise.
pub const DEFAULT_API: &str = "http://127.0.0.1:4319";
/// Window of the services' numbers, as the API's default.
const SERVICES_WINDOW_NS: u64 = 15 * 60 * 1_000_000_000;
/// How long an answer may take; the API ends a search by itself long before.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer that is read: a trace of a hundred thousand spans.
const ANSWER_BYTES: u64 = 256 << 20;

/// Whom to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A running agent.
    Api {
        /// `http://HOST:PORT`.
        url: String,
        /// The bearer token, if the agent wants one.
        token: Option<String>,
    },
    /// A store's directory.
    Store(PathBuf),
}

impl Default for Source {
    fn default() -> Self {
        Self::Api {
            url: DEFAULT_API.to_owned(),
            token: None,
        }
    }
}

/// Why a command could not answer; [`Self::exit_code`] is its exit status.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// Bad usage.
    #[error("{0}")]
    Usage(String),
    /// No such trace.
    #[error("no trace {0} in the store")]
    Unknown(TraceId),
    /// The agent is not there.
    #[error("no agent answers at {url}: {source}; start one with `spanwire run`, name it with --api URL, or read a store with --store DIR")]
    Unreachable {
        /// As asked.
        url: String,
        /// What went wrong.
        source: Box<ureq::Error>,
    },
    /// The agent refused.
    #[error("the agent at {url} answered {status}: {problem}")]
    Refused {
        /// As asked.
        url: String,
        /// HTTP status.
        status: u16,
        /// What it said.
        problem: String,
    },
    /// The file cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Standard output cannot be written.
    #[error("cannot write the answer: {0}")]
    Output(#[from] std::io::Error),
}

impl QueryError {
    /// 1: could not do it; 2: bad usage (contract.md).
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Unknown(_) | Self::Unreachable { .. } | Self::Refused { .. } | Self::Store(_) | Self::Output(_) => 1,
        }
    }

    /// True when the reader of a pipe has left, as `head` does: nothing to complain about.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe)
    }
}

/// Says on stderr what went wrong, if anything, and gives the exit status.
pub fn finish(answered: Result<(), QueryError>) -> ExitCode {
    match answered {
        Err(error) if !error.is_broken_pipe() => {
            // If even that cannot be written, the exit status still tells.
            let _ = writeln!(std::io::stderr(), "spanwire: {error}");
            ExitCode::from(error.exit_code())
        }
        _ => ExitCode::SUCCESS,
    }
}

impl From<serde_json::Error> for QueryError {
    fn from(error: serde_json::Error) -> Self {
        Self::Output(error.into())
    }
}

/// Names the flag instead of the API's parameter: `minDuration` is `--min-duration`.
pub(super) fn usage(error: &FilterError) -> QueryError {
    let mut flag = String::from("--");
    for letter in error.parameter.chars() {
        if letter.is_ascii_uppercase() {
            flag.push('-');
        }
        flag.push(letter.to_ascii_lowercase());
    }
    QueryError::Usage(format!("{flag}: {}", error.problem))
}

pub(super) fn unix_now_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64)
}

impl Source {
    /// Traces that meet `pairs` (the API's parameters), newest first.
    pub(super) fn traces(&self, pairs: &[(&'static str, String)]) -> Result<TraceList, QueryError> {
        let borrowed = pairs.iter().map(|(name, value)| (*name, value.as_str()));
        let filter = TraceFilter::from_pairs(borrowed, unix_now_ns()).map_err(|error| usage(&error))?;
        match self {
            Self::Store(dir) => Ok(StoreReader::open(dir)?.traces(&filter)?),
            Self::Api { url, token } => ask(url, token.as_deref(), "/api/traces", pairs),
        }
    }

    /// The trace of this id, or of the one it stands for.
    pub(super) fn trace(&self, id: TraceId) -> Result<StoredTrace, QueryError> {
        match self {
            Self::Store(dir) => StoreReader::open(dir)?.trace(id)?.ok_or(QueryError::Unknown(id)),
            Self::Api { url, token } => match ask(url, token.as_deref(), &format!("/api/traces/{id}"), &[]) {
                Err(QueryError::Refused { status: 404, .. }) => Err(QueryError::Unknown(id)),
                answer => answer,
            },
        }
    }

    /// Every service, with its numbers of the last minutes.
    pub(super) fn services(&self) -> Result<ServicesView, QueryError> {
        match self {
            Self::Store(dir) => {
                let now_ns = unix_now_ns();
                Ok(StoreReader::open(dir)?.services(now_ns.saturating_sub(SERVICES_WINDOW_NS), now_ns)?)
            }
            Self::Api { url, token } => ask(url, token.as_deref(), "/api/services", &[]),
        }
    }

    /// The agent's own account of itself.
    pub(super) fn status(&self) -> Result<serde_json::Value, QueryError> {
        match self {
            Self::Store(_) => Err(QueryError::Usage(
                "status asks a running agent; a store has none".to_owned(),
            )),
            Self::Api { url, token } => ask(url, token.as_deref(), "/api/status", &[]),
        }
    }
}

fn ask<T: DeserializeOwned>(
    url: &str,
    token: Option<&str>,
    path: &str,
    pairs: &[(&'static str, String)],
) -> Result<T, QueryError> {
    if !url.starts_with("http://") {
        let problem = format!("--api: expected http://HOST:PORT, got {url:?} (the API speaks no TLS)");
        return Err(QueryError::Usage(problem));
    }
    // No proxy: the agent is on this machine, and its answers are nobody else's.
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(TIMEOUT))
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(None)
        .build();
    let unreachable = |source| QueryError::Unreachable {
        url: url.to_owned(),
        source: Box::new(source),
    };
    let mut request = config.new_agent().get(format!("{}{path}", url.trim_end_matches('/')));
    for (name, value) in pairs {
        request = request.query(name, value);
    }
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let mut response = request.call().map_err(unreachable)?;
    let body = response
        .body_mut()
        .with_config()
        .limit(ANSWER_BYTES)
        .read_to_vec()
        .map_err(unreachable)?;
    let refused = |problem: String| QueryError::Refused {
        url: url.to_owned(),
        status: response.status().as_u16(),
        problem,
    };
    if !response.status().is_success() {
        let said: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
        let problem = said.and_then(|said| said.get("error")?.as_str().map(str::to_owned));
        return Err(refused(
            problem.unwrap_or_else(|| "nothing that can be read".to_owned()),
        ));
    }
    serde_json::from_slice(&body).map_err(|error| refused(format!("not what an agent says: {error}")))
}
