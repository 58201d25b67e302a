//! Lists of traces and their filters.

use super::*;

fn filter(change: impl FnOnce(&mut TraceFilter)) -> TraceFilter {
    let mut filter = TraceFilter::default();
    change(&mut filter);
    filter
}

#[test]
fn newest_first_by_the_start_of_the_trace_not_by_arrival() {
    let mut bench = Bench::new(Retention::default());
    bench.write(vec![SpanBuilder::server(1, 1).at_ms(1_000, 10).build()]);
    bench.write(vec![SpanBuilder::server(2, 1).at_ms(3_000, 10).build()]);
    // A slow one that began first arrives last; a part of trace 2 moves its start.
    bench.write(vec![SpanBuilder::server(3, 1).at_ms(0, 9_000).build()]);
    bench.write(vec![SpanBuilder::server(2, 2).at_ms(500, 9_000).build()]);
    assert_eq!(bench.list(&TraceFilter::default()), [1, 2, 3]);
    assert_eq!(bench.list(&filter(|f| f.limit = 1)), [1]);
    assert_eq!(bench.list(&filter(|f| f.limit = 2)), [1, 2]);
}

#[test]
fn a_line_sums_up_the_trace() {
    let mut bench = Bench::new(Retention::default());
    let (shop, cart) = (service("shop"), service("cart"));
    bench.write(vec![SpanBuilder::server(1, 3)
        .resource(&cart)
        .parent(2)
        .at_ms(20, 30)
        .error()
        .build()]);
    bench.write(vec![
        SpanBuilder::server(1, 1)
            .resource(&shop)
            .name("GET /")
            .at_ms(5, 100)
            .build(),
        SpanBuilder::client(1, 2)
            .resource(&shop)
            .parent(1)
            .at_ms(10, 50)
            .build(),
    ]);
    let list = bench.reader().traces(&TraceFilter::default()).unwrap();
    let line = &list.traces[0];
    assert_eq!((line.root_service.as_str(), line.root_name.as_str()), ("shop", "GET /"));
    assert_eq!(line.start_time_unix_nano, BASE_NS + 5_000_000);
    assert_eq!(line.duration_nano, 100_000_000);
    assert_eq!((line.span_count, line.error_count), (3, 1));
    assert_eq!(line.services, ["cart", "shop"]);
    let json = serde_json::to_value(&list).unwrap();
    assert_eq!(json["traces"][0]["durationNano"], "100000000");
    assert_eq!(
        json.as_object().unwrap().len(),
        1,
        "`partial` is there only when it is true"
    );
    assert_eq!(serde_json::from_value::<TraceList>(json).unwrap(), list);
}

#[test]
fn a_root_that_was_not_seen_is_the_span_whose_parent_is_missing() {
    let mut bench = Bench::new(Retention::default());
    bench.write(vec![
        SpanBuilder::server(1, 3).parent(2).name("child").at_ms(0, 1).build(),
        SpanBuilder::server(1, 2).parent(99).name("top").at_ms(1, 10).build(),
    ]);
    assert_eq!(
        bench.reader().traces(&TraceFilter::default()).unwrap().traces[0].root_name,
        "top"
    );
}

#[test]
fn every_filter_finds_its_traces_and_no_others() {
    let mut bench = Bench::new(Retention::default());
    let (shop, cart) = (service("shop"), service("cart"));
    bench.write(vec![
        SpanBuilder::server(1, 1)
            .resource(&shop)
            .name("GET /a")
            .at_ms(0, 10)
            .tenant("acme")
            .build(),
        SpanBuilder::server(2, 1)
            .resource(&shop)
            .name("GET /b")
            .at_ms(1_000, 20)
            .error()
            .build(),
        SpanBuilder::server(3, 1)
            .resource(&cart)
            .name("GET /a")
            .at_ms(2_000, 30)
            .attribute("n", Value::Int(7))
            .build(),
        SpanBuilder::client(3, 2)
            .resource(&shop)
            .name("GET /c")
            .at_ms(2_005, 300)
            .error()
            .build(),
    ]);
    let list = |change: &dyn Fn(&mut TraceFilter)| bench.list(&filter(change));
    assert_eq!(list(&|_| {}), [3, 2, 1]);
    assert_eq!(list(&|f| f.service = Some("shop".into())), [3, 2, 1]);
    assert_eq!(list(&|f| f.service = Some("cart".into())), [3]);
    assert_eq!(list(&|f| f.service = Some("car".into())), [0; 0]);
    assert_eq!(list(&|f| f.operation = Some("GET /a".into())), [3, 1]);
    assert_eq!(list(&|f| f.is_error = true), [3, 2]);
    assert_eq!(list(&|f| f.tenant = Some("acme".into())), [1]);
    assert_eq!(list(&|f| f.attributes = vec![("n".into(), "7".into())]), [3]);
    assert_eq!(
        list(&|f| f.attributes = vec![("host.name".into(), "node-1".into())]),
        [3, 2, 1]
    );
    assert_eq!(
        list(&|f| f.attributes = vec![("n".into(), "7".into()), ("n".into(), "8".into())]),
        [0; 0]
    );
    // One span has to meet all of them.
    assert_eq!(list(&|f| (f.service, f.is_error) = (Some("cart".into()), true)), [0; 0]);
    assert_eq!(list(&|f| (f.service, f.is_error) = (Some("shop".into()), true)), [3, 2]);
    let ms = 1_000_000;
    assert_eq!(list(&|f| f.min_duration_ns = Some(20 * ms)), [3, 2]);
    assert_eq!(list(&|f| f.max_duration_ns = Some(20 * ms)), [2, 1]);
    assert_eq!(list(&|f| f.since_unix_ns = Some(BASE_NS + 1_000 * ms)), [3, 2]);
    assert_eq!(list(&|f| f.until_unix_ns = Some(BASE_NS + 1_000 * ms)), [2, 1]);
    assert_eq!(list(&|f| f.until_unix_ns = Some(BASE_NS - 1)), [0; 0]);
    assert_eq!(list(&|f| f.since_unix_ns = Some(BASE_NS + 2_001 * ms)), [0; 0]);
}

#[test]
fn a_list_attribute_is_met_by_one_item() {
    let mut bench = Bench::new(Retention::default());
    let tags = Value::StrArray(vec!["a".into(), "b".into()]);
    bench.write(vec![SpanBuilder::server(1, 1)
        .attribute("http.request.header.x", tags)
        .build()]);
    let with = |text: &str| {
        bench.list(&filter(|f| {
            f.attributes = vec![("http.request.header.x".into(), text.into())];
        }))
    };
    assert_eq!(with("b"), [1]);
    assert_eq!(with("c"), [0; 0]);
}

/// Against a plain sort of everything, with spans that arrive out of order in many batches.
#[test]
fn the_early_end_of_the_scan_changes_no_answer() {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    let mut random = StdRng::seed_from_u64(7);
    let mut bench = Bench::new(Retention::default());
    let mut starts = std::collections::BTreeMap::new();
    for batch in 0..40u64 {
        let mut spans = Vec::new();
        for _ in 0..20 {
            let trace = random.random_range(0..200u64);
            let start = (batch * 100).saturating_sub(random.random_range(0..1_500));
            spans.push(SpanBuilder::server(trace, 1).at_ms(start, 5).build());
            let earliest = starts.entry(trace).or_insert(start);
            *earliest = start.min(*earliest);
        }
        bench.write(spans);
    }
    for limit in [1, 7, 50, 500] {
        let list = bench.reader().traces(&filter(|f| f.limit = limit)).unwrap();
        let mut expected: Vec<u64> = starts.values().map(|start| BASE_NS + start * 1_000_000).collect();
        expected.sort_unstable_by(|one, other| other.cmp(one));
        expected.truncate(limit);
        let found: Vec<u64> = list.traces.iter().map(|trace| trace.start_time_unix_nano).collect();
        assert_eq!(found, expected, "limit {limit}");
    }
}
