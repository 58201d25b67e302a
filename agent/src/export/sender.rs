//! From an exporter's queue to its backend: batching, sending, retrying, counting, stopping.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{watch, Notify};
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout, timeout_at, Instant};
use tracing::{info, warn};

use super::endpoint::{Endpoint, ExportError, ExporterSettings, Protocol};
use super::grpc::GrpcTransport;
use super::http::HttpTransport;
use super::queue::{Batching, Due, Limits, Queue, Taken};
use super::retry::{Outcome, RetryPolicy};
use super::wire;
use crate::counters::{Cell, Counters, ExporterCounters};
use crate::span::SpanBatch;

/// Requests that one exporter has under way at most. More than one, so that a distant backend does not bound the
/// rate by its round trip.
pub(super) const CONCURRENT_REQUESTS: usize = 4;

/// Attempts for one batch once the agent stops.
const CLOSING_ATTEMPTS: u32 = 3;

/// Between those attempts.
const CLOSING_WAIT: Duration = Duration::from_millis(300);

/// Lines of the same kind about one exporter are this far apart.
const LOG_INTERVAL: Duration = Duration::from_mins(1);

/// Bounds and patience. The default is what contract and specification ask for; tests shorten it.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    pub queue: Limits,
    pub batching: Batching,
    pub retry: RetryPolicy,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            queue: Limits {
                spans: 8_192,
                bytes: 8 << 20,
            },
            // Backends commonly refuse more than 4 MiB; a span's estimate is above its encoded size.
            batching: Batching {
                spans: 512,
                bytes: 2 << 20,
                wait: Duration::from_millis(500),
            },
            retry: RetryPolicy::default(),
        }
    }
}

/// All configured exporters, running.
pub struct Exporters {
    running: Vec<Running>,
    closing: watch::Sender<bool>,
}

struct Running {
    exporter: Arc<Exporter>,
    workers: JoinSet<()>,
}

/// Where `route` puts spans for one exporter.
#[derive(Clone)]
pub struct ExporterHandle(Arc<Exporter>);

impl ExporterHandle {
    /// The exporter's configured name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Hands spans over. Never blocks: at the bounds the oldest are dropped and counted.
    pub fn push(&self, batch: SpanBatch) {
        self.0.push(batch);
    }
}

impl Exporters {
    /// Checks all settings, then starts all exporters on the current tokio runtime. Nothing is connected before the first
    /// spans come, and a backend that is not there is no error.
    pub fn start(settings: &[ExporterSettings], tuning: Tuning, counters: &Counters) -> Result<Self, ExportError> {
        let (closing, closing_seen) = watch::channel(false);
        let mut names = HashSet::new();
        let mut exporters = Vec::new();
        for one in settings {
            if !names.insert(one.name.as_str()) {
                return Err(ExportError::NameTwice { name: one.name.clone() });
            }
            exporters.push(Arc::new(Exporter::new(one, tuning, counters, closing_seen.clone())?));
        }
        let running = exporters.into_iter().map(Running::start).collect();
        Ok(Self { running, closing })
    }

    /// One handle per exporter, in the order of the settings.
    pub fn handles(&self) -> Vec<ExporterHandle> {
        self.running
            .iter()
            .map(|running| ExporterHandle(Arc::clone(&running.exporter)))
            .collect()
    }

    /// Hands spans to every exporter.
    pub fn push(&self, batch: &SpanBatch) {
        for running in &self.running {
            running.exporter.push(Arc::clone(batch));
        }
    }

    /// Sends what is queued, all exporters at once, for at most `within`; returns how many spans were dropped because
    /// that did not suffice. Spans pushed afterwards count as dropped.
    pub async fn shutdown(self, within: Duration) -> u64 {
        let deadline = Instant::now() + within;
        // No receiver means no exporter.
        let _ = self.closing.send(true);
        let mut dropped = 0;
        for mut running in self.running {
            // They all flush meanwhile; whoever is looked at last has had as long as the first.
            let finished = async { while running.workers.join_next().await.is_some() {} };
            let _ = timeout_at(deadline, finished).await;
            running.workers.shutdown().await;
            dropped += running.exporter.close();
        }
        dropped
    }
}

impl Running {
    fn start(exporter: Arc<Exporter>) -> Self {
        let mut workers = JoinSet::new();
        for _ in 0..CONCURRENT_REQUESTS {
            workers.spawn(work(Arc::clone(&exporter)));
        }
        Self { exporter, workers }
    }
}

struct Exporter {
    name: String,
    /// For logs.
    backend: String,
    transport: Transport,
    timeout: Duration,
    retry: RetryPolicy,
    queue: Mutex<Closable>,
    /// A request may be due, or the first span has come.
    work: Notify,
    closing: watch::Receiver<bool>,
    /// The backend asked for a pause until then: no request leaves before.
    paused_until: Mutex<Option<Instant>>,
    /// The last attempt failed.
    failing: AtomicBool,
    counts: Arc<ExporterCounters>,
    length: Arc<Cell>,
    log: LogLimits,
}

struct Closable {
    queue: Queue,
    closed: bool,
}

/// How a batch ended.
enum Ended {
    Accepted {
        rejected: u64,
    },
    Failed,
    /// The agent stops and the backend does not answer.
    Dropped,
}

impl Exporter {
    fn new(
        settings: &ExporterSettings,
        tuning: Tuning,
        counters: &Counters,
        closing: watch::Receiver<bool>,
    ) -> Result<Self, ExportError> {
        let endpoint = Endpoint::parse(settings)?;
        Ok(Self {
            name: settings.name.clone(),
            backend: endpoint.shown(),
            transport: Transport::new(settings, endpoint)?,
            timeout: settings.timeout,
            retry: tuning.retry,
            queue: Mutex::new(Closable {
                queue: Queue::new(tuning.queue, tuning.batching),
                closed: false,
            }),
            work: Notify::new(),
            closing,
            paused_until: Mutex::new(None),
            failing: AtomicBool::new(false),
            counts: counters.exporter(&settings.name),
            length: counters.queue(&format!("export/{}", settings.name)),
            log: LogLimits::default(),
        })
    }

    fn push(&self, batch: SpanBatch) {
        let count = batch.len();
        let now = Instant::now().into_std();
        let (dropped, wake) = {
            let mut state = locked(&self.queue);
            if state.closed {
                (count, false)
            } else {
                let idle = state.queue.due(now) == Due::Never;
                let dropped = state.queue.push(batch, now);
                self.length.set(state.queue.len() as u64);
                (dropped, idle || state.queue.due(now) == Due::Now)
            }
        };
        if wake {
            self.work.notify_one();
        }
        if dropped > 0 {
            self.counts.dropped.add(dropped as u64);
            if self.log.overflow.allows() {
                warn!(
                    exporter = self.name,
                    backend = self.backend,
                    dropped,
                    "the queue is full: the oldest spans are dropped"
                );
            }
        }
    }

    /// Waits for the next request's spans; `None` once the agent stops and nothing is left.
    async fn next(&self) -> Option<Taken> {
        let mut closing = self.closing.clone();
        loop {
            let now = Instant::now().into_std();
            let due = {
                let queue = &mut locked(&self.queue).queue;
                if *closing.borrow() {
                    return queue.take();
                }
                match queue.due(now) {
                    Due::Now => {
                        let taken = queue.take();
                        if queue.due(now) == Due::Now {
                            self.work.notify_one();
                        }
                        return taken;
                    }
                    Due::At(at) => Some(Instant::from_std(at)),
                    Due::Never => None,
                }
            };
            tokio::select! {
                () = self.work.notified() => {}
                () = sleep_until(due.unwrap_or(now.into())), if due.is_some() => {}
                // An error means that nobody is left to say so.
                seen = closing.wait_for(|closing| *closing) => if seen.is_err() { return None },
            }
        }
    }

    /// Tries until the backend has taken or refused the payload, or it is time to give up.
    async fn deliver(&self, payload: Bytes, spans: usize) -> Ended {
        let started = Instant::now();
        let (mut attempts, mut closing_attempts) = (0, 0);
        loop {
            self.sit_out_pause().await;
            let (reason, asked) = match self.attempt(payload.clone()).await {
                Outcome::Accepted { rejected, message } => return self.accepted(rejected, &message, spans),
                Outcome::Refused { reason } => return self.refused(&reason, spans),
                Outcome::Retry { reason, after } => (reason, after),
            };
            attempts += 1;
            self.note_trouble(&reason);
            let pause = asked.map(|asked| self.retry.pause(asked));
            if let Some(pause) = pause {
                self.pause(pause);
            }
            if *self.closing.borrow() {
                closing_attempts += 1;
                if closing_attempts >= CLOSING_ATTEMPTS {
                    return Ended::Dropped;
                }
                tokio::time::sleep(CLOSING_WAIT).await;
                continue;
            }
            let wait = self.retry.wait(attempts, rand::random()).max(pause.unwrap_or_default());
            if started.elapsed() + wait > self.retry.give_up {
                return self.gave_up(&reason, started, spans);
            }
            let mut closing = self.closing.clone();
            let _ = timeout(wait, closing.wait_for(|closing| *closing)).await;
        }
    }

    async fn attempt(&self, payload: Bytes) -> Outcome {
        let sent = timeout(self.timeout, self.transport.send(payload)).await;
        sent.unwrap_or_else(|_| Outcome::Retry {
            reason: format!("no answer within {:?}", self.timeout),
            after: None,
        })
    }

    fn accepted(&self, rejected: u64, message: &str, spans: usize) -> Ended {
        if self.failing.swap(false, Relaxed) {
            info!(exporter = self.name, backend = self.backend, "delivering again");
        }
        // A backend cannot reject more than it got, whatever it says.
        let rejected = rejected.min(spans as u64);
        if (rejected > 0 || !message.is_empty()) && self.log.partial.allows() {
            warn!(
                exporter = self.name,
                backend = self.backend,
                rejected,
                message,
                "the backend did not take every span"
            );
        }
        Ended::Accepted { rejected }
    }

    fn refused(&self, reason: &str, spans: usize) -> Ended {
        if self.log.refused.allows() {
            warn!(
                exporter = self.name,
                backend = self.backend,
                reason,
                spans,
                "the backend refused spans: they are lost"
            );
        }
        Ended::Failed
    }

    fn gave_up(&self, reason: &str, started: Instant, spans: usize) -> Ended {
        if self.log.refused.allows() {
            let after = started.elapsed();
            warn!(
                exporter = self.name,
                backend = self.backend,
                reason,
                ?after,
                spans,
                "gave up on spans: they are lost"
            );
        }
        Ended::Failed
    }

    fn note_trouble(&self, reason: &str) {
        self.failing.store(true, Relaxed);
        if self.log.trouble.allows() {
            warn!(
                exporter = self.name,
                backend = self.backend,
                reason,
                "cannot deliver, trying again"
            );
        }
    }

    /// Nobody asks the backend anything for this long.
    fn pause(&self, pause: Duration) {
        let until = Instant::now() + pause;
        let mut paused = locked(&self.paused_until);
        *paused = Some(paused.map_or(until, |before| before.max(until)));
    }

    async fn sit_out_pause(&self) {
        loop {
            let until = *locked(&self.paused_until);
            match until {
                Some(until) if until > Instant::now() => sleep_until(until).await,
                _ => return,
            }
        }
    }

    fn finish(&self, taken: Taken, ended: &Ended) {
        let spans = taken.len() as u64;
        match ended {
            Ended::Accepted { rejected } => {
                self.counts.sent.add(spans - rejected);
                self.counts.failed.add(*rejected);
            }
            Ended::Failed => self.counts.failed.add(spans),
            Ended::Dropped => self.counts.dropped.add(spans),
        }
        let queue = &mut locked(&self.queue).queue;
        queue.finish(taken);
        self.length.set(queue.len() as u64);
    }

    /// After the workers: what is still held, waiting or cut off under way, is dropped.
    fn close(&self) -> u64 {
        let mut state = locked(&self.queue);
        state.closed = true;
        let dropped = state.queue.len() as u64;
        while state.queue.take().is_some() {}
        self.counts.dropped.add(dropped);
        self.length.set(0);
        if dropped > 0 {
            warn!(
                exporter = self.name,
                backend = self.backend,
                dropped,
                "stopped with spans undelivered"
            );
        }
        dropped
    }
}

/// One of an exporter's workers: a request at a time.
async fn work(exporter: Arc<Exporter>) {
    while let Some(mut taken) = exporter.next().await {
        let encoded = wire::encode_request(taken.spans());
        // From here on the encoded bytes are what is kept.
        taken.release_spans();
        let payload = exporter.transport.payload(encoded);
        let ended = exporter.deliver(payload, taken.len()).await;
        exporter.finish(taken, &ended);
        if matches!(ended, Ended::Dropped) {
            return;
        }
    }
}

enum Transport {
    Grpc(GrpcTransport),
    Http(HttpTransport),
}

impl Transport {
    fn new(settings: &ExporterSettings, endpoint: Endpoint) -> Result<Self, ExportError> {
        Ok(match settings.protocol {
            Protocol::Grpc => Self::Grpc(GrpcTransport::new(settings, endpoint)?),
            Protocol::Http => Self::Http(HttpTransport::new(settings, endpoint)?),
        })
    }

    fn payload(&self, encoded: Bytes) -> Bytes {
        match self {
            Self::Grpc(_) => encoded,
            Self::Http(http) => http.payload(encoded),
        }
    }

    async fn send(&self, payload: Bytes) -> Outcome {
        match self {
            Self::Grpc(grpc) => grpc.send(payload).await,
            Self::Http(http) => http.send(payload).await,
        }
    }
}

/// One limit per kind of line, so that a frequent kind hides no other.
#[derive(Default)]
struct LogLimits {
    trouble: LogLimit,
    refused: LogLimit,
    partial: LogLimit,
    overflow: LogLimit,
}

#[derive(Default)]
struct LogLimit(Mutex<Option<Instant>>);

impl LogLimit {
    fn allows(&self) -> bool {
        let now = Instant::now();
        let mut last = locked(&self.0);
        let allowed = last.is_none_or(|last| now - last >= LOG_INTERVAL);
        if allowed {
            *last = Some(now);
        }
        allowed
    }
}

/// No panic leaves these half changed: they hold plain values.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
