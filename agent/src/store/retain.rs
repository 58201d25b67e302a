//! Retention: by age, errors longer, and by size. One step does a bounded amount of work, so the writer never pauses.

use std::time::Duration;

use rusqlite::{params, Connection, OptionalExtension};

use super::rollup::SLOT_NS;

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Traces without an error.
    pub age: Duration,
    /// Traces with an error; never shorter than `age`.
    pub errors: Duration,
    /// The database file, within a few percent. Its log (`-wal`) comes on top, at most 16 MiB.
    pub size_bytes: u64,
}

impl Default for Retention {
    fn default() -> Self {
        const HOUR: Duration = Duration::from_hours(1);
        Self {
            age: HOUR * 24,
            errors: HOUR * 24 * 14,
            size_bytes: 1 << 30,
        }
    }
}

impl Retention {
    /// How long one bucket is filled: the grain of the age rule. A lookup visits every bucket, so the grain grows with
    /// the errors' age.
    pub(super) fn bucket_ns(&self) -> i64 {
        const HOUR_NS: u128 = 3_600_000_000_000;
        let grain = (self.age.as_nanos() / 24).max(self.errors.as_nanos() / 512);
        grain.clamp(1_000_000_000, HOUR_NS) as i64
    }

    fn errors_age(&self) -> Duration {
        self.errors.max(self.age)
    }
}

/// A bucket's row, as far as retention cares.
struct Oldest {
    id: i64,
    first_part: i64,
    last_part: i64,
    swept: i64,
}

/// Pages freed per step when the file is larger than it may be.
const VACUUM_PAGES: u32 = 64;

/// One step: looks at no more than `budget` parts. True when it removed something.
pub(super) fn step(
    connection: &Connection,
    retention: &Retention,
    current_bucket: i64,
    now_ns: u64,
    budget: usize,
) -> rusqlite::Result<bool> {
    let number = |pragma: &str| -> rusqlite::Result<u64> {
        connection
            .prepare_cached(pragma)?
            .query_row([], |row| row.get::<_, i64>(0))
            .map(|value| value as u64)
    };
    let page_bytes = number("PRAGMA page_size")?;
    let pages = number("PRAGMA page_count")?;
    let free = number("PRAGMA freelist_count")?;
    let is_over = (pages - free.min(pages)) * page_bytes > retention.size_bytes;
    let before = |age: Duration| now_ns.saturating_sub(age.as_nanos() as u64) as i64;

    connection.execute_batch("BEGIN IMMEDIATE")?;
    let done = (|| {
        let (mut removed, mut worked) = (0, None);
        if is_over {
            removed += drop_oldest(connection, budget)?;
        } else if let Some(bucket) = oldest(connection, "max_end < ?1", before(retention.errors_age()))? {
            removed += drop_parts(connection, &bucket, budget)?;
            worked = Some(bucket.id);
        } else if let Some(bucket) = oldest(connection, "max_end < ?1 AND swept < last_part", before(retention.age))? {
            removed += sweep(connection, &bucket, budget)?;
            worked = Some(bucket.id);
        }
        for bucket in [worked, lowest_bucket(connection)?].into_iter().flatten() {
            if bucket < current_bucket {
                removed += drop_if_empty(connection, bucket)?;
            }
        }
        removed += drop_rollup(connection, retention, now_ns)?;
        Ok(removed > 0)
    })();
    let end = if done.is_ok() { "COMMIT" } else { "ROLLBACK" };
    if !connection.is_autocommit() {
        connection.execute_batch(end)?;
    }
    if free > 0 && pages * page_bytes > retention.size_bytes {
        // The statement gives back one page per step.
        let mut vacuum = connection.prepare(&format!("PRAGMA incremental_vacuum({VACUUM_PAGES})"))?;
        let mut pages = vacuum.query([])?;
        while pages.next()?.is_some() {}
    }
    done
}

/// The oldest bucket for which `condition` holds.
fn oldest(connection: &Connection, condition: &str, limit: i64) -> rusqlite::Result<Option<Oldest>> {
    connection
        .prepare_cached(&format!(
            "SELECT id, first_part, last_part, swept FROM bucket WHERE {condition} ORDER BY id LIMIT 1"
        ))?
        .query_row([limit], |row| {
            Ok(Oldest {
                id: row.get(0)?,
                first_part: row.get(1)?,
                last_part: row.get(2)?,
                swept: row.get(3)?,
            })
        })
        .optional()
}

/// Too big: the oldest parts go, errors or not. Ids have few gaps, so a range of them is about as many parts.
fn drop_oldest(connection: &Connection, budget: usize) -> rusqlite::Result<usize> {
    connection
        .prepare_cached("DELETE FROM part WHERE id < (SELECT min(id) FROM part) + ?1")?
        .execute([budget as i64])
}

/// Too old even for errors. A bucket's parts are the ids between its first and its last.
fn drop_parts(connection: &Connection, bucket: &Oldest, budget: usize) -> rusqlite::Result<usize> {
    let from: Option<i64> = connection
        .prepare_cached("SELECT min(id) FROM part WHERE id BETWEEN ?1 AND ?2")?
        .query_row([bucket.first_part, bucket.last_part], |row| row.get(0))?;
    let Some(from) = from else { return Ok(0) };
    let to = bucket.last_part.min(from + budget as i64);
    connection
        .prepare_cached("DELETE FROM part WHERE id BETWEEN ?1 AND ?2")?
        .execute([from, to])
}

/// Past the common age: what belongs to a trace with an error stays.
fn sweep(connection: &Connection, bucket: &Oldest, budget: usize) -> rusqlite::Result<usize> {
    let mut look = connection
        .prepare_cached("SELECT id, trace_id, errors FROM part WHERE id > ?1 AND id <= ?2 ORDER BY id LIMIT ?3")?;
    // A trace's parts are moments apart: an error lies in the same bucket or in a neighbour.
    let mut has_error = connection.prepare_cached(
        "SELECT EXISTS(SELECT 1 FROM part WHERE bucket IN (?1 - 1, ?1, ?1 + 1) AND trace_id = ?2 AND errors > 0)",
    )?;
    let mut remove = connection.prepare_cached("DELETE FROM part WHERE id = ?1")?;
    let from = bucket.swept.max(bucket.first_part - 1);
    let seen: Vec<(i64, Vec<u8>, i64)> = look
        .query_map([from, bucket.last_part, budget as i64], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })?
        .collect::<rusqlite::Result<_>>()?;
    let mut removed = 0;
    for (id, trace_id, errors) in &seen {
        if *errors == 0 && !has_error.query_row(params![bucket.id, trace_id], |row| row.get::<_, bool>(0))? {
            removed += remove.execute([id])?;
        }
    }
    let swept = if seen.len() < budget {
        bucket.last_part
    } else {
        seen.last().map_or(bucket.last_part, |last| last.0)
    };
    connection
        .prepare_cached("UPDATE bucket SET swept = ?2 WHERE id = ?1")?
        .execute([bucket.id, swept])?;
    Ok(removed)
}

fn lowest_bucket(connection: &Connection) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("SELECT min(id) FROM bucket")?
        .query_row([], |row| row.get(0))
}

/// Takes a bucket away when nothing is left in it, with its aliases and the resources that no later one uses.
fn drop_if_empty(connection: &Connection, bucket: i64) -> rusqlite::Result<usize> {
    let is_filled: bool = connection
        .prepare_cached("SELECT EXISTS(SELECT 1 FROM part WHERE bucket = ?1)")?
        .query_row([bucket], |row| row.get(0))?;
    if is_filled {
        return Ok(0);
    }
    connection
        .prepare_cached("DELETE FROM alias WHERE bucket = ?1")?
        .execute([bucket])?;
    connection
        .prepare_cached("DELETE FROM bucket WHERE id = ?1")?
        .execute([bucket])?;
    connection
        .prepare_cached("DELETE FROM resource WHERE last_bucket < (SELECT ifnull(min(id), 0) FROM bucket)")?
        .execute([])?;
    Ok(1)
}

/// The counts per minute go with the traces they were made of; an hour of them stays for the page in any case.
fn drop_rollup(connection: &Connection, retention: &Retention, now_ns: u64) -> rusqlite::Result<usize> {
    let age = retention.age.max(Duration::from_hours(1));
    let slot = now_ns.saturating_sub(age.as_nanos() as u64) / SLOT_NS;
    connection
        .prepare_cached("DELETE FROM rollup WHERE slot < ?1")?
        .execute([slot as i64])
}
