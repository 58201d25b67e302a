//! Stage: store. The embedded database of finished spans, for the page and the command line; needed by no other stage.
//!
//! ```text
//! route -> queue (8,192 spans, 8 MiB; oldest dropped, counted) -> writer thread -> spans.db -> readers
//! ```
//!
//! One SQLite file in WAL mode: one writer, any number of readers, in this process or another. What a span costs decides
//! the layout (`schema`): spans of a trace that are written together are one row whose body is their OTLP
//! encoding; the only index is by trace id, in slices of 32,768 rows so that random ids fall on few pages; resources
//! are stored once; rates per service are counted while writing. Nothing here can delay or fail a span's
//! way to an exporter.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{mpsc, Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::span::{SpanBatch, TraceAlias};

mod cache;
mod encode;
mod filter;
mod histogram;
mod keys;
mod query;
mod queue;
mod retain;
mod rollup;
#[cfg(test)]
pub(crate) mod sample;
mod schema;
mod services;
#[cfg(test)]
mod tests;
mod writer;

pub use filter::{parse_duration, parse_instant, FilterError, TraceFilter};
pub use query::{attribute_text, StoreReader, StoredTrace, TraceList, TraceSummary};
pub use queue::{QueueBounds, StoreStats, QUEUE_ALIASES, QUEUE_BYTES, QUEUE_SPANS};
pub use retain::Retention;
pub use schema::FILE_NAME;
pub use services::{Coverage, GraphEdge, GraphView, Latency, ServiceView, ServicesView};

use queue::Queue;
use writer::Writer;

/// Why the store cannot be opened or read: each names the path and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory or file cannot be created or written.
    #[error(
        "cannot use {dir} as the store: {source}; give a writable directory with --store DIR, or run with --no-store"
    )]
    Directory {
        /// As configured.
        dir: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// SQLite refused.
    #[error("cannot use the store {path}: {source}{remedy}", remedy = remedy(source))]
    Sqlite {
        /// The database file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// A database of something else.
    #[error("{path} is a database, but not one of spanwire's; give another directory with --store DIR")]
    Foreign {
        /// The database file.
        path: PathBuf,
    },
    /// Written by another version.
    #[error(
        "the store {path} has schema {version}, this spanwire knows {known}; use the spanwire that wrote it, or another directory"
    )]
    Newer {
        /// The database file.
        path: PathBuf,
        /// Its schema.
        version: usize,
        /// The newest this build knows.
        known: usize,
    },
    /// A corrupt file could not be replaced.
    #[error("the store {path} is corrupt and cannot be moved aside: {source}; remove it, or give another directory")]
    MoveAside {
        /// The database file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Nothing to read.
    #[error("there is no store at {path}; start the agent with --store, or name its directory")]
    Absent {
        /// The database file.
        path: PathBuf,
    },
    /// The writer's thread could not be started.
    #[error("cannot start the store's thread: {0}")]
    Thread(io::Error),
}

fn remedy(error: &rusqlite::Error) -> &'static str {
    use rusqlite::ErrorCode;
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => "; make room, lower store.retention.size, or run with --no-store",
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
            "; make file and directory writable, or run with --no-store"
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => "; another process is writing to it",
        _ => "",
    }
}

/// The open store: a handle that accepts spans, and the thread behind it.
pub struct Store {
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
    finished: Mutex<mpsc::Receiver<()>>,
    path: PathBuf,
}

impl Store {
    /// Opens or creates the store in `dir` and starts its thread. A corrupt file is moved aside, logged, and shown in
    /// [`StoreStats::problem`].
    pub fn open(dir: &Path, retention: Retention) -> Result<Self, StoreError> {
        Self::open_bounded(dir, retention, QueueBounds::default())
    }

    /// As [`Store::open`], with a queue of another size.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_bounded(dir: &Path, retention: Retention, bounds: QueueBounds) -> Result<Self, StoreError> {
        let (connection, aside) = schema::open_writer(dir)?;
        let path = dir.join(FILE_NAME);
        let queue = Arc::new(Queue::new(bounds));
        if let Some(aside) = aside {
            let problem = format!(
                "the store {} was corrupt: moved to {}, a new one begun",
                path.display(),
                aside.display()
            );
            tracing::warn!("{problem}");
            queue.stats.report(problem, true);
        }
        let writer = Writer::new(dir.to_owned(), connection, retention).map_err(|source| StoreError::Sqlite {
            path: path.clone(),
            source,
        })?;
        let (done, finished) = mpsc::channel();
        let for_thread = Arc::clone(&queue);
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || {
                writer::run(writer, &for_thread);
                // The owner may have stopped waiting.
                let _ = done.send(());
            })
            .map_err(StoreError::Thread)?;
        Ok(Self {
            queue,
            thread: Some(thread),
            finished: Mutex::new(finished),
            path,
        })
    }

    /// Hands spans over. Never waits; when the queue is full the oldest are dropped and counted.
    pub fn push(&self, batch: SpanBatch) {
        self.queue.push(batch);
    }

    /// Hands an alias over; the same rules.
    pub fn push_alias(&self, alias: TraceAlias) {
        self.queue.push_alias(alias);
    }

    /// A reader of the same file.
    pub fn reader(&self) -> StoreReader {
        StoreReader::at(self.path.clone())
    }

    /// What has been written, failed and dropped.
    pub fn stats(&self) -> StoreCounters {
        StoreCounters(Arc::clone(&self.queue))
    }

    /// Writes what is queued and ends the thread, waiting at most `limit`. False when it was not done by then; the thread
    /// then ends with the process.
    pub fn close(mut self, limit: Duration) -> bool {
        self.queue.close();
        let finished = self.finished.get_mut().unwrap_or_else(PoisonError::into_inner);
        if finished.recv_timeout(limit).is_err() {
            return false;
        }
        self.thread.take().is_none_or(|thread| thread.join().is_ok())
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// The store's counters; outlives the store.
#[derive(Clone)]
pub struct StoreCounters(Arc<Queue>);

impl std::ops::Deref for StoreCounters {
    type Target = StoreStats;

    fn deref(&self) -> &StoreStats {
        &self.0.stats
    }
}
