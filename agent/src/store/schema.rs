//! The database file: opening, schema and its versions, and what to do with a file that is not one.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::StoreError;

/// The database's name inside the store directory.
pub const FILE_NAME: &str = "spans.db";
/// "SPWR": marks the file as ours (SQLite's `application_id`).
const APPLICATION_ID: i64 = 0x5350_5752;
/// Big enough that a trace's spans mostly fit one page, small enough that a touched index page is cheap to log.
const PAGE_BYTES: u32 = 8192;

/// Each entry takes the schema from its index to the next version (`user_version`). Never edit one that was released.
const MIGRATIONS: [&str; 2] = [
    "
    -- Spans of one trace that were written together. Ids rise in the order of arrival. `newest` is the highest `start`
    -- of all parts up to and including this one: a scan from the newest part knows when nothing earlier can matter.
    CREATE TABLE part(
        id INTEGER PRIMARY KEY, bucket INTEGER NOT NULL, trace_id BLOB NOT NULL,
        start INTEGER NOT NULL, end INTEGER NOT NULL, newest INTEGER NOT NULL,
        spans INTEGER NOT NULL, errors INTEGER NOT NULL, body BLOB NOT NULL) STRICT;
    -- Trace ids are random: behind the bucket, inserts of one batch fall on few pages instead of all over the file.
    CREATE INDEX part_trace ON part(bucket, trace_id);
    -- Consecutive parts; what retention works on. `swept` is the last part the age rule has looked at.
    CREATE TABLE bucket(
        id INTEGER PRIMARY KEY, opened INTEGER NOT NULL, parts INTEGER NOT NULL,
        first_part INTEGER NOT NULL, last_part INTEGER NOT NULL,
        min_start INTEGER NOT NULL, max_end INTEGER NOT NULL, swept INTEGER NOT NULL) STRICT;
    CREATE TABLE alias(
        bucket INTEGER NOT NULL, alias BLOB NOT NULL, canonical BLOB NOT NULL,
        PRIMARY KEY(bucket, alias)) STRICT, WITHOUT ROWID;
    CREATE TABLE resource(
        id INTEGER PRIMARY KEY, hash INTEGER NOT NULL, last_bucket INTEGER NOT NULL,
        service TEXT NOT NULL, body BLOB NOT NULL) STRICT;
    CREATE INDEX resource_hash ON resource(hash);
    -- Counts and latencies per minute: `kind` 0 server, 1 client, 2 edge from service to peer, 3 edge to an address.
    CREATE TABLE rollup(
        slot INTEGER NOT NULL, kind INTEGER NOT NULL, service TEXT NOT NULL, peer TEXT NOT NULL, data BLOB NOT NULL,
        PRIMARY KEY(slot, kind, service, peer)) STRICT, WITHOUT ROWID;
    ",
    "
    -- Attributes' names in `part.body` may be codes (`keys`). What was written before is read as it is.
",
];

/// Opens the store in `dir` for writing. Creates directory and file; moves a corrupt file aside and begins a new one.
/// The second value says where the corrupt file went.
pub(super) fn open_writer(dir: &Path) -> Result<(Connection, Option<PathBuf>), StoreError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| StoreError::Directory {
            dir: dir.to_owned(),
            source,
        })?;
    let path = dir.join(FILE_NAME);
    // Created here because SQLite would use 0644, and the traces are the operator's alone.
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path)
        .map_err(|source| StoreError::Directory {
            dir: dir.to_owned(),
            source,
        })?;
    match prepare(&path) {
        Err(StoreError::Sqlite { source, .. }) if is_corrupt(&source) => {
            let aside = move_aside(&path)?;
            let (connection, _) = open_writer(dir)?;
            Ok((connection, Some(aside)))
        }
        prepared => Ok((prepared?, None)),
    }
}

/// True when the file itself is at fault, not the disk or another process.
pub(super) fn is_corrupt(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
    )
}

fn prepare(path: &Path) -> Result<Connection, StoreError> {
    let failed = |source| StoreError::Sqlite {
        path: path.to_owned(),
        source,
    };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection
        .busy_timeout(std::time::Duration::from_secs(2))
        .map_err(failed)?;
    let number = |pragma: &str| connection.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get::<_, i64>(0));
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0))
        .map_err(failed)?;
    let (application, version) = (
        number("application_id").map_err(failed)?,
        number("user_version").map_err(failed)?,
    );
    if tables > 0 && application != APPLICATION_ID {
        return Err(StoreError::Foreign { path: path.to_owned() });
    }
    let version = usize::try_from(version).unwrap_or(usize::MAX);
    if version > MIGRATIONS.len() {
        return Err(StoreError::Newer {
            path: path.to_owned(),
            version,
            known: MIGRATIONS.len(),
        });
    }
    if tables == 0 {
        // Both must be set before the first table exists.
        let first = format!("PRAGMA page_size={PAGE_BYTES}; PRAGMA auto_vacuum=INCREMENTAL;");
        connection.execute_batch(&first).map_err(failed)?;
    }
    connection
        .execute_batch(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA cache_size=-4096; PRAGMA temp_store=MEMORY;
             PRAGMA journal_size_limit=16777216; PRAGMA wal_autocheckpoint=1000;",
        )
        .map_err(failed)?;
    for (from, migration) in MIGRATIONS.iter().enumerate().skip(version) {
        let to = from + 1;
        let script = format!(
            "BEGIN IMMEDIATE; {migration}; PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={to}; COMMIT;"
        );
        connection.execute_batch(&script).map_err(failed)?;
    }
    // Proves that the tables can be read and the file written: damage and a full disk are found now, not at the first span.
    connection
        .execute_batch(
            "SELECT max(id), newest FROM part; SELECT max(id) FROM bucket; SELECT max(id) FROM resource;
             SELECT count(*) FROM (SELECT 1 FROM alias LIMIT 1); SELECT max(slot) FROM rollup;",
        )
        .map_err(failed)?;
    prove_writable(&connection).map_err(failed)?;
    Ok(connection)
}

/// Writes a page and takes it back.
fn prove_writable(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(
        "BEGIN IMMEDIATE;
         INSERT OR REPLACE INTO rollup VALUES (-1, -1, '', '', zeroblob(16384));
         DELETE FROM rollup WHERE slot = -1;
         COMMIT;",
    )
}

/// Renames the database and its companions. One moved-aside file is kept: more would break the size bound.
pub(super) fn move_aside(path: &Path) -> Result<PathBuf, StoreError> {
    let aside = path.with_extension("db.corrupt");
    for suffix in ["-wal", "-shm", ""] {
        let (from, to) = (with_suffix(path, suffix), with_suffix(&aside, suffix));
        match fs::rename(&from, &to) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            renamed => renamed.map_err(|source| StoreError::MoveAside { path: from, source })?,
        }
    }
    Ok(aside)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Opens the store in `dir` for reading; works beside a running writer and on a store at rest.
pub(super) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let failed = |source| StoreError::Sqlite {
        path: path.to_owned(),
        source,
    };
    if !path.exists() {
        return Err(StoreError::Absent { path: path.to_owned() });
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || -> rusqlite::Result<(Connection, i64, i64)> {
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(std::time::Duration::from_secs(2))?;
        let application = connection.query_row("PRAGMA application_id", [], |row| row.get(0))?;
        let version = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        Ok((connection, application, version))
    };
    let opened = match open() {
        // Nobody has it open and the directory cannot be written: then nobody can change it under us either.
        Err(error) if is_unopenable(&error) && !with_suffix(path, "-wal").exists() => open_immutable(path),
        opened => opened,
    };
    let (connection, application, version) = opened.map_err(failed)?;
    if application != APPLICATION_ID {
        return Err(StoreError::Foreign { path: path.to_owned() });
    }
    // Every version so far reads the ones before it.
    if !(1..=MIGRATIONS.len()).contains(&(version as usize)) {
        return Err(StoreError::Newer {
            path: path.to_owned(),
            version: version as usize,
            known: MIGRATIONS.len(),
        });
    }
    Ok(connection)
}

fn is_unopenable(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly)
    )
}

fn open_immutable(path: &Path) -> rusqlite::Result<(Connection, i64, i64)> {
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' => {
                uri.push(char::from(*byte));
            }
            other => uri.extend(["%".to_owned(), format!("{other:02x}")]),
        }
    }
    uri.push_str("?immutable=1");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(uri, flags)?;
    let application = connection.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    let version = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    Ok((connection, application, version))
}
