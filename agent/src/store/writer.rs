//! The thread that owns the database: gathers batches, writes each gathering in one transaction, then does one bounded
//! step of retention.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rusqlite::{params, Connection, OptionalExtension};

use super::cache::{RecentAliases, Resources, ALIASES_MAX};
use super::encode;
use super::queue::{Queue, Taken};
use super::retain::{self, Retention};
use super::rollup::Rollup;
use super::schema;
use crate::span::{Span, SpanStatus, TraceAlias, TraceId};

/// How long the writer gathers after the first span of a transaction. With the settle window this keeps a span's way
/// to the store below 1.8 s (contract.md).
const GATHER: Duration = Duration::from_millis(250);
/// How often retention runs when no spans come.
const IDLE: Duration = Duration::from_secs(1);
/// Spans of one transaction at most.
const TRANSACTION_SPANS: usize = 4_096;
/// Parts in a bucket at most: its slice of the trace index then is about a megabyte.
pub(super) const BUCKET_PARTS: i64 = 32_768;
/// Buckets searched for a trace that got an alias: it was written moments ago.
const ALIAS_BUCKETS: i64 = 2;
/// Shortest time between two replacements of a file that went corrupt while in use.
const REPLACE_EVERY: Duration = Duration::from_mins(1);

/// The part of the store that writes. Owned by its thread; tests drive it directly.
pub(super) struct Writer {
    dir: PathBuf,
    pub(super) connection: Connection,
    retention: Retention,
    pub(super) bucket: Bucket,
    next_part: i64,
    newest: i64,
    resources: Resources,
    aliases: RecentAliases,
    rollup: Rollup,
    order: Vec<Placed>,
}

/// The bucket being filled; mirrors its row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    pub(super) id: i64,
    opened: i64,
    parts: i64,
    first_part: i64,
    min_start: i64,
    max_end: i64,
}

/// Where a span lies: its trace's id as a number (cheaper to sort by than bytes), its batch, its place there.
type Placed = (u128, u32, u32);

/// What a part's row says of its spans.
struct Extent {
    start: i64,
    end: i64,
    errors: i64,
}

impl Default for Extent {
    fn default() -> Self {
        Self {
            start: i64::MAX,
            end: 0,
            errors: 0,
        }
    }
}

impl Extent {
    fn add(&mut self, span: &Span) {
        self.start = self.start.min(span.start_unix_ns as i64);
        self.end = self.end.max(span.end_unix_ns as i64);
        self.errors += i64::from(span.status == SpanStatus::Error);
    }
}

impl Bucket {
    fn add(&mut self, part: &Extent) {
        self.parts += 1;
        self.min_start = self.min_start.min(part.start);
        self.max_end = self.max_end.max(part.end);
    }
}

/// The thread's body: until the queue is closed and empty.
pub(super) fn run(mut writer: Writer, queue: &Queue) {
    let mut replaced: Option<Instant> = None;
    loop {
        let taken = queue.take(IDLE, GATHER, TRANSACTION_SPANS);
        let now_ns = unix_now_ns();
        match writer.write(&taken, now_ns) {
            Ok(spans) => {
                queue.stats.sent.fetch_add(spans, Ordering::Relaxed);
                if spans > 0 && queue.stats.is_degraded.swap(false, Ordering::Relaxed) {
                    tracing::info!("the store works again");
                }
            }
            Err(error) => writer.lose(&taken, &error, queue, &mut replaced),
        }
        if taken.is_closed {
            writer.finish();
            return;
        }
        let budget = (2 * taken.batches.iter().map(|batch| batch.len()).sum::<usize>()).max(256);
        if let Err(error) = retain::step(&writer.connection, &writer.retention, writer.bucket.id, now_ns, budget) {
            report(queue, &format!("the store cannot remove old spans: {error}"), false);
        }
    }
}

/// Logs a problem once per change and remembers it for `spanwire status`.
fn report(queue: &Queue, problem: &str, is_over: bool) {
    if queue.stats.problem().as_deref() != Some(problem) || !queue.stats.is_degraded.load(Ordering::Relaxed) {
        tracing::warn!("{problem}");
    }
    queue.stats.report(problem.to_owned(), is_over);
}

fn unix_now_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64)
}

impl Writer {
    pub(super) fn new(dir: PathBuf, connection: Connection, retention: Retention) -> rusqlite::Result<Self> {
        connection.set_prepared_statement_cache_capacity(64);
        let mut writer = Self {
            dir,
            connection,
            retention,
            bucket: Bucket {
                id: 0,
                opened: 0,
                parts: 0,
                first_part: 1,
                min_start: i64::MAX,
                max_end: 0,
            },
            next_part: 1,
            newest: 0,
            resources: Resources::default(),
            aliases: RecentAliases::default(),
            rollup: Rollup::default(),
            order: Vec::new(),
        };
        writer.reload()?;
        writer.recall_aliases()?;
        Ok(writer)
    }

    /// Spans may still come under ids that lost before a restart.
    fn recall_aliases(&mut self) -> rusqlite::Result<()> {
        let mut recent = self
            .connection
            .prepare("SELECT alias, canonical FROM alias ORDER BY bucket DESC LIMIT ?1")?;
        let rows = recent.query_map([ALIASES_MAX as i64], |row| Ok((row.get(0)?, row.get(1)?)))?;
        for row in rows {
            let (alias, canonical) = row?;
            self.aliases.insert(TraceAlias {
                alias: TraceId(alias),
                canonical: TraceId(canonical),
            });
        }
        Ok(())
    }

    /// Takes over what the file says: at the start, and after a transaction that failed.
    fn reload(&mut self) -> rusqlite::Result<()> {
        self.resources.clear();
        self.rollup.discard();
        let last_part: (Option<i64>, Option<i64>) =
            self.connection
                .query_row("SELECT max(id), newest FROM part", [], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })?;
        let bucket = self
            .connection
            .query_row(
                "SELECT id, opened, parts, first_part, min_start, max_end, last_part FROM bucket ORDER BY id DESC LIMIT 1",
                [],
                |row| {
                    let bucket = Bucket {
                        id: row.get(0)?,
                        opened: row.get(1)?,
                        parts: row.get(2)?,
                        first_part: row.get(3)?,
                        min_start: row.get(4)?,
                        max_end: row.get(5)?,
                    };
                    Ok((bucket, row.get::<_, i64>(6)?))
                },
            )
            .optional()?;
        self.newest = last_part.1.unwrap_or(0);
        self.next_part = last_part.0.unwrap_or(0) + 1;
        if let Some((bucket, last_of_bucket)) = bucket {
            self.next_part = self.next_part.max(last_of_bucket + 1);
            self.bucket = bucket;
        } else {
            self.open_bucket(1, 0);
        }
        Ok(())
    }

    fn open_bucket(&mut self, id: i64, now: i64) {
        let first_part = self.next_part;
        self.bucket = Bucket {
            id,
            opened: now,
            parts: 0,
            first_part,
            min_start: i64::MAX,
            max_end: 0,
        };
    }

    /// Writes everything in one transaction; the number of spans written.
    pub(super) fn write(&mut self, taken: &Taken, now_ns: u64) -> rusqlite::Result<u64> {
        if taken.batches.is_empty() && taken.aliases.is_empty() && !self.rollup.is_due(now_ns) {
            return Ok(0);
        }
        self.connection.execute_batch("BEGIN IMMEDIATE")?;
        let written = self.write_all(taken, now_ns).and_then(|spans| {
            self.connection.execute_batch("COMMIT")?;
            Ok(spans)
        });
        if written.is_err() {
            // Some failures have ended the transaction already; then there is nothing to roll back.
            if !self.connection.is_autocommit() {
                self.connection.execute_batch("ROLLBACK")?;
            }
            self.reload()?;
        }
        written
    }

    fn write_all(&mut self, taken: &Taken, now_ns: u64) -> rusqlite::Result<u64> {
        let now = now_ns as i64;
        let age = self.retention.bucket_ns();
        if self.bucket.parts >= BUCKET_PARTS || (self.bucket.parts > 0 && now - self.bucket.opened > age) {
            self.open_bucket(self.bucket.id + 1, now);
        } else if self.bucket.parts == 0 {
            self.bucket.opened = now;
        }
        for alias in &taken.aliases {
            self.write_alias(*alias)?;
        }
        let spans = self.write_spans(&taken.batches, now_ns)?;
        if spans > 0 || !taken.aliases.is_empty() {
            self.write_bucket()?;
        }
        self.rollup.flush(&self.connection, now_ns)?;
        Ok(spans)
    }

    fn write_spans(&mut self, batches: &[Arc<[Span]>], now_ns: u64) -> rusqlite::Result<u64> {
        // Sorted by trace: one row per trace, and neighbours in the index are inserted together.
        self.order.clear();
        for (batch_index, batch) in batches.iter().enumerate() {
            for (index, span) in batch.iter().enumerate() {
                self.rollup.record(span, now_ns);
                let trace_id = u128::from_be_bytes(self.aliases.resolve(span.trace_id).0);
                self.order.push((trace_id, batch_index as u32, index as u32));
            }
        }
        self.order.sort_unstable();
        let mut insert = self
            .connection
            .prepare_cached("INSERT INTO part VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?;
        let (mut scratch, mut body) = (Vec::new(), Vec::new());
        for group in self.order.chunk_by(|one, other| one.0 == other.0) {
            body.clear();
            let mut extent = Extent::default();
            for &(_, batch, index) in group {
                let span = &batches[batch as usize][index as usize];
                let resource = self.resources.id(&self.connection, &span.resource, self.bucket.id)?;
                encode::span(span, resource, &mut scratch, &mut body);
                extent.add(span);
            }
            let trace_id = group[0].0.to_be_bytes();
            self.newest = self.newest.max(extent.start);
            insert.execute(params![
                self.next_part,
                self.bucket.id,
                &trace_id[..],
                extent.start,
                extent.end,
                self.newest,
                group.len() as i64,
                extent.errors,
                &body
            ])?;
            self.next_part += 1;
            self.bucket.add(&extent);
        }
        Ok(self.order.len() as u64)
    }

    fn write_bucket(&self) -> rusqlite::Result<()> {
        let bucket = self.bucket;
        self.connection
            .prepare_cached(
                "INSERT INTO bucket VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0) ON CONFLICT(id) DO UPDATE SET
                 opened = ?2, parts = ?3, first_part = ?4, last_part = ?5, min_start = ?6, max_end = ?7",
            )?
            .execute(params![
                bucket.id,
                bucket.opened,
                bucket.parts,
                bucket.first_part,
                self.next_part - 1,
                bucket.min_start,
                bucket.max_end
            ])?;
        Ok(())
    }

    /// Remembers the alias and moves what was written under it.
    fn write_alias(&mut self, alias: TraceAlias) -> rusqlite::Result<()> {
        if alias.alias == alias.canonical {
            return Ok(());
        }
        self.aliases.insert(alias);
        self.connection
            .prepare_cached("INSERT OR REPLACE INTO alias VALUES (?1, ?2, ?3)")?
            .execute(params![self.bucket.id, &alias.alias.0[..], &alias.canonical.0[..]])?;
        let canonical = self.aliases.resolve(alias.canonical);
        let mut moved = self
            .connection
            .prepare_cached("UPDATE part SET trace_id = ?3 WHERE bucket = ?1 AND trace_id = ?2")?;
        for bucket in (self.bucket.id - ALIAS_BUCKETS + 1)..=self.bucket.id {
            moved.execute(params![bucket, &alias.alias.0[..], &canonical.0[..]])?;
        }
        Ok(())
    }

    /// A write failed: counts what is lost, says why, and replaces the file if it is at fault.
    fn lose(&mut self, taken: &Taken, error: &rusqlite::Error, queue: &Queue, replaced: &mut Option<Instant>) {
        let spans: u64 = taken.batches.iter().map(|batch| batch.len() as u64).sum();
        queue.stats.failed.fetch_add(spans, Ordering::Relaxed);
        queue
            .stats
            .aliases_lost
            .fetch_add(taken.aliases.len() as u64, Ordering::Relaxed);
        let path = self.dir.join(schema::FILE_NAME);
        let path = path.display();
        let is_recent = replaced.is_some_and(|at| at.elapsed() < REPLACE_EVERY);
        if !schema::is_corrupt(error) || is_recent {
            let remedy = "spans are dropped and counted until it can be written again";
            report(
                queue,
                &format!("cannot write to the store {path}: {error}; {remedy}"),
                false,
            );
            return;
        }
        *replaced = Some(Instant::now());
        match self.replace() {
            Ok(aside) => {
                let aside = aside.map_or_else(|| "nowhere".to_owned(), |aside| aside.display().to_string());
                report(
                    queue,
                    &format!("the store {path} was corrupt: moved to {aside}, a new one begun"),
                    true,
                );
            }
            Err(failure) => report(queue, &format!("the store {path} is corrupt: {failure}"), false),
        }
    }

    fn replace(&mut self) -> anyhow::Result<Option<PathBuf>> {
        let path = self.dir.join(schema::FILE_NAME);
        self.connection = Connection::open_in_memory()?;
        let aside = schema::move_aside(&path)?;
        let (connection, _) = schema::open_writer(&self.dir)?;
        connection.set_prepared_statement_cache_capacity(64);
        self.connection = connection;
        self.reload()?;
        Ok(Some(aside))
    }

    /// Leaves a tidy file: the log is folded into it.
    fn finish(&self) {
        // Failing costs nothing: the log is read at the next start.
        if let Err(error) = self.connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)") {
            tracing::debug!("the store's log was not folded in: {error}");
        }
    }
}
