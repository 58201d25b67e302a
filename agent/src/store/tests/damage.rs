//! Files and disks that do not do as they should.

use std::fs;
use std::process::Command;

use super::*;

fn message(result: Result<Store, StoreError>) -> String {
    result.err().map(|error| error.to_string()).unwrap_or_default()
}

#[test]
fn a_corrupt_file_is_moved_aside_and_a_new_one_begun() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    fs::write(&path, "this is no database, whatever its name says".repeat(500)).unwrap();
    let store = Store::open(dir.path(), forever()).unwrap();
    let problem = store.stats().problem().unwrap();
    assert!(
        problem.contains("was corrupt: moved to") && problem.contains("spans.db.corrupt"),
        "{problem}"
    );
    assert!(!store.stats().is_degraded.load(Ordering::Relaxed));
    assert!(fs::read_to_string(dir.path().join("spans.db.corrupt"))
        .unwrap()
        .starts_with("this is no database"));
    store.push(vec![SpanBuilder::server(1, 1).build()].into());
    assert!(store.close(Duration::from_secs(5)));
    assert!(StoreReader::open(dir.path())
        .unwrap()
        .trace(trace_id(1))
        .unwrap()
        .is_some());
}

#[test]
fn damage_inside_the_file_is_found_at_the_start_or_survived() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), forever()).unwrap();
    for number in 0..2_000 {
        store.push(vec![SpanBuilder::server(number, 1).build()].into());
    }
    assert!(store.close(Duration::from_secs(5)));
    let path = dir.path().join(FILE_NAME);
    let mut bytes = fs::read(&path).unwrap();
    let length = bytes.len();
    // Everything behind the first page, where the schema is.
    bytes[8192..].fill(0x5a);
    fs::write(&path, &bytes).unwrap();
    let store = Store::open(dir.path(), forever()).unwrap();
    assert!(dir.path().join("spans.db.corrupt").exists(), "of {length} bytes");
    store.push(vec![SpanBuilder::server(1, 1).build()].into());
    assert!(store.close(Duration::from_secs(5)));
    assert!(StoreReader::open(dir.path())
        .unwrap()
        .trace(trace_id(1))
        .unwrap()
        .is_some());
}

#[test]
fn a_file_that_goes_corrupt_in_use_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), forever()).unwrap();
    let stats = store.stats();
    store.push(vec![SpanBuilder::server(1, 1).build()].into());
    wait_until("the first span is written", || stats.sent.load(Ordering::Relaxed) == 1);
    {
        // Another hand ruins the pages behind SQLite's back: a checkpoint empties the log first.
        let other = rusqlite::Connection::open(dir.path().join(FILE_NAME)).unwrap();
        other.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        // A schema change makes the writer read the file again instead of its cache.
        other
            .execute_batch("CREATE TABLE intruder(x); DROP TABLE intruder; PRAGMA wal_checkpoint(TRUNCATE)")
            .unwrap();
    }
    let path = dir.path().join(FILE_NAME);
    let mut bytes = fs::read(&path).unwrap();
    bytes[8192..].fill(0x5a);
    fs::write(&path, &bytes).unwrap();
    for number in 0..50 {
        store.push(vec![SpanBuilder::server(100 + number, 1).build()].into());
        std::thread::sleep(Duration::from_millis(50));
        if stats.problem().is_some() {
            break;
        }
    }
    wait_until("the damage is noticed", || stats.problem().is_some());
    assert!(stats.problem().unwrap().contains("corrupt"), "{:?}", stats.problem());
    assert!(stats.failed.load(Ordering::Relaxed) > 0, "what was lost is counted");
    store.push(vec![SpanBuilder::server(2, 1).build()].into());
    let reader = store.reader();
    wait_until("the new file has the new span", || {
        reader.trace(trace_id(2)).is_ok_and(|trace| trace.is_some())
    });
}

#[test]
fn a_database_of_something_else_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    rusqlite::Connection::open(&path)
        .unwrap()
        .execute_batch("CREATE TABLE mine(x)")
        .unwrap();
    let before = fs::read(&path).unwrap();
    let error = message(Store::open(dir.path(), forever()));
    assert!(error.contains("not one of spanwire's"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn a_newer_schema_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    Store::open(dir.path(), forever())
        .unwrap()
        .close(Duration::from_secs(5));
    rusqlite::Connection::open(dir.path().join(FILE_NAME))
        .unwrap()
        .execute_batch("PRAGMA user_version=99")
        .unwrap();
    let error = message(Store::open(dir.path(), forever()));
    assert!(error.contains("schema 99"), "{error}");
    assert!(StoreReader::open(dir.path())
        .unwrap_err()
        .to_string()
        .contains("schema 99"));
}

#[test]
fn an_unusable_directory_is_named_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    for bad in [file.as_path(), Path::new("/proc/spanwire")] {
        let error = message(Store::open(bad, forever()));
        assert!(
            error.contains(&bad.display().to_string()) && error.contains("--no-store"),
            "{error}"
        );
    }
    let error = StoreReader::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("there is no store at"), "{error}");
}

#[test]
fn a_store_at_rest_is_readable_where_nothing_can_be_written() {
    let mount = Mount::tmpfs("4m");
    let store = Store::open(mount.path(), forever()).unwrap();
    store.push(vec![SpanBuilder::server(1, 1).build()].into());
    assert!(store.close(Duration::from_secs(5)));
    mount.remount("ro");
    assert!(StoreReader::open(mount.path())
        .unwrap()
        .trace(trace_id(1))
        .unwrap()
        .is_some());
    let error = message(Store::open(mount.path(), forever()));
    assert!(
        error.contains("Read-only file system") && error.contains("--no-store"),
        "{error}"
    );
}

#[test]
fn a_full_disk_costs_counted_spans_and_heals() {
    let mount = Mount::tmpfs("1m");
    let store = Store::open(mount.path(), forever()).unwrap();
    let stats = store.stats();
    let filling = Value::Str("x".repeat(20_000).into());
    let full = |number: u64| {
        store.push(
            vec![SpanBuilder::server(number, 1)
                .attribute("fill", filling.clone())
                .build()]
            .into(),
        );
    };
    (0..200).for_each(full);
    wait_until("the disk is full", || stats.is_degraded.load(Ordering::Relaxed));
    let problem = stats.problem().unwrap();
    assert!(problem.contains("full") && problem.contains("dropped"), "{problem}");
    mount.remount("size=32m");
    full(1_000);
    wait_until("it works again", || !stats.is_degraded.load(Ordering::Relaxed));
    assert!(store.reader().trace(trace_id(1_000)).unwrap().is_some());
    assert!(store.close(Duration::from_secs(5)));
    let (sent, failed) = (stats.sent.load(Ordering::Relaxed), stats.failed.load(Ordering::Relaxed));
    assert_eq!(sent + failed, 201, "{sent} written, {failed} failed");
    assert!(failed > 0);
}

#[test]
fn a_disk_that_is_full_at_the_start_is_an_error() {
    let mount = Mount::tmpfs("64k");
    fs::write(mount.path().join("ballast"), vec![0u8; 56 << 10]).unwrap();
    let error = message(Store::open(mount.path(), forever()));
    assert!(error.contains("full") && error.contains("make room"), "{error}");
}

/// A small file system of its own, gone at the end. Needs root, as the suite does.
struct Mount(tempfile::TempDir);

impl Mount {
    fn tmpfs(size: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "none"])
            .arg(dir.path())
            .status()
            .unwrap();
        assert!(status.success(), "mount needs root");
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        assert!(Command::new("mount")
            .args(["-o", &options])
            .arg(self.path())
            .status()
            .unwrap()
            .success());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}
