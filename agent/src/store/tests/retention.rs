//! What is removed, and what is not.

use super::*;

const HOUR: Duration = Duration::from_hours(1);

fn steps(bench: &Bench, retention: &Retention, now_ns: u64, budget: usize) -> usize {
    let step = || {
        retain::step(
            &bench.writer.connection,
            retention,
            bench.writer.bucket.id,
            now_ns,
            budget,
        )
        .unwrap()
    };
    (0..10_000).take_while(|_| step()).count()
}

fn ns(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}

#[test]
fn old_traces_go_and_those_with_errors_stay_whole_until_their_own_age() {
    let retention = Retention {
        age: HOUR,
        errors: HOUR * 10,
        ..Retention::default()
    };
    let mut bench = Bench::new(retention);
    for number in 0..100 {
        bench.write(vec![SpanBuilder::server(number, 1).build()]);
    }
    // The error comes with the second part: the first has none, and stays with it.
    bench.write(vec![SpanBuilder::server(100, 1).build()]);
    bench.write(vec![SpanBuilder::server(100, 2).parent(1).error().build()]);
    bench.alias(200, 100);
    // A newer bucket.
    bench.now_ns += ns(HOUR);
    bench.write(vec![SpanBuilder::server(300, 1).at_ms(3_600_000, 1).build()]);
    assert_eq!(
        steps(&bench, &retention, bench.now_ns, 16),
        0,
        "not yet older than an hour"
    );
    let later = bench.now_ns + ns(HOUR / 2);
    assert!(steps(&bench, &retention, later, 16) >= 100 / 16, "in several steps");
    assert_eq!(
        bench.list(&TraceFilter {
            limit: 200,
            ..TraceFilter::default()
        }),
        [300, 100]
    );
    assert_eq!(bench.spans_of(100), [1, 2]);
    assert_eq!(bench.spans_of(200), [1, 2]);
    let much_later = bench.now_ns + ns(HOUR * 10);
    steps(&bench, &retention, much_later, 16);
    assert_eq!(bench.spans_of(100), [0; 0]);
    assert_eq!(bench.spans_of(200), [0; 0]);
    let count = |table: &str| -> i64 {
        bench
            .writer
            .connection
            .query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))
            .unwrap()
    };
    assert_eq!((count("alias"), count("rollup")), (0, 0));
    // Still written to, after all of that.
    bench.write(vec![SpanBuilder::server(400, 1).build()]);
    assert_eq!(bench.spans_of(400), [1]);
}

#[test]
fn a_resource_goes_with_the_last_bucket_that_used_it() {
    let retention = Retention {
        age: HOUR,
        errors: HOUR,
        ..Retention::default()
    };
    let mut bench = Bench::new(retention);
    bench.write(vec![
        SpanBuilder::server(1, 1).resource(&service("gone")).build(),
        SpanBuilder::server(1, 2).resource(&service("kept")).build(),
    ]);
    bench.now_ns += ns(HOUR);
    bench.write(vec![SpanBuilder::server(2, 1)
        .resource(&service("kept"))
        .at_ms(3_600_000, 1)
        .build()]);
    steps(&bench, &retention, bench.now_ns + ns(HOUR / 2), 16);
    let mut names = bench.writer.connection.prepare("SELECT service FROM resource").unwrap();
    let names: Vec<String> = names
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(names, ["kept"]);
    assert_eq!(bench.spans_of(2), [1]);
}

#[test]
fn the_file_stays_near_its_bound_and_the_newest_stay_in_it() {
    let size_bytes = 2 << 20;
    let retention = Retention {
        size_bytes,
        ..Retention::default()
    };
    let mut bench = Bench::new(retention);
    let filling = Value::Str("x".repeat(600).into());
    let mut largest = 0;
    for number in 0..200u64 {
        let spans = (0..100u64).map(|n| {
            SpanBuilder::server(number * 100 + n, 1)
                .at_ms(number, 1)
                .attribute("fill", filling.clone())
                .build()
        });
        bench.write(spans.collect());
        retain::step(
            &bench.writer.connection,
            &retention,
            bench.writer.bucket.id,
            bench.now_ns,
            256,
        )
        .unwrap();
        largest = largest.max(std::fs::metadata(bench.dir.path().join(FILE_NAME)).unwrap().len());
    }
    assert!(
        largest < size_bytes * 5 / 4,
        "{largest} bytes for a bound of {size_bytes}"
    );
    assert_eq!(bench.spans_of(19_999), [1]);
    assert_eq!(bench.spans_of(0), [0; 0]);
    let kept: i64 = bench
        .writer
        .connection
        .query_row("SELECT count(*) FROM part", [], |row| row.get(0))
        .unwrap();
    assert!(kept > 1_000, "{kept} parts in 2 MiB");
}

#[test]
fn a_lower_bound_shrinks_the_file() {
    let mut bench = Bench::new(Retention::default());
    let filling = Value::Str("x".repeat(600).into());
    for number in 0..100u64 {
        let spans = (0..100u64).map(|n| {
            SpanBuilder::server(number * 100 + n, 1)
                .attribute("fill", filling.clone())
                .build()
        });
        bench.write(spans.collect());
    }
    let smaller = Retention {
        size_bytes: 1 << 20,
        ..Retention::default()
    };
    for _ in 0..200 {
        retain::step(
            &bench.writer.connection,
            &smaller,
            bench.writer.bucket.id,
            bench.now_ns,
            256,
        )
        .unwrap();
    }
    bench
        .writer
        .connection
        .execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
        .unwrap();
    let length = std::fs::metadata(bench.dir.path().join(FILE_NAME)).unwrap().len();
    assert!(length <= 5 << 18, "{length}");
    assert_eq!(bench.spans_of(9_999), [1]);
}
