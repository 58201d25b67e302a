//! Services and edges.

use super::*;

const SECOND_NS: u64 = 1_000_000_000;

#[test]
fn services_have_rate_errors_latency_and_coverage() {
    let mut bench = Bench::new(Retention::default());
    let (shop, curl) = (service("shop"), service("curl"));
    for number in 0..100 {
        let server = SpanBuilder::server(number, 1).resource(&shop).at_ms(number * 100, 10);
        bench.write(vec![if number < 5 {
            server.error().build()
        } else {
            server.build()
        }]);
    }
    bench.write(vec![
        SpanBuilder::client(1, 2).resource(&shop).parent(1).at_ms(0, 40).build(),
        SpanBuilder::client(2, 3)
            .resource(&shop)
            .unknown("runtime")
            .at_ms(0, 40)
            .build(),
        SpanBuilder::client(3, 4).resource(&curl).at_ms(0, 40).build(),
    ]);
    let now = BASE_NS + 10 * SECOND_NS;
    let view = bench.reader().services(BASE_NS, now).unwrap();
    let names: Vec<_> = view.services.iter().map(|service| service.name.as_str()).collect();
    assert_eq!(names, ["curl", "shop"]);
    let (curl, shop) = (&view.services[0], &view.services[1]);
    assert_eq!((shop.requests, shop.errors), (100, 5));
    assert!((shop.rate - 10.0).abs() < 0.5, "{}", shop.rate);
    assert!(
        shop.latency_nano.p50.abs_diff(10_000_000) < 700_000,
        "{:?}",
        shop.latency_nano
    );
    assert_eq!(
        (shop.coverage.client_spans, shop.coverage.exact, shop.coverage.root),
        (2, 1, 0)
    );
    assert_eq!(shop.coverage.unknown, [("runtime".to_owned(), 1)].into());
    assert_eq!(shop.coverage.share, Some(0.5));
    assert_eq!(
        (curl.requests, curl.coverage.root, curl.coverage.share),
        (1, 1, Some(1.0))
    );
    // Later, still listed, with nothing in the window.
    let later = bench
        .reader()
        .services(now + 3_600 * SECOND_NS, now + 3_601 * SECOND_NS)
        .unwrap();
    assert_eq!((later.services.len(), later.services[1].requests), (2, 0));
    assert_eq!(later.services[1].last_seen_unix_nano, BASE_NS + 9_910_000_000);
}

#[test]
fn an_edge_needs_both_sides_in_either_order_and_in_any_batch() {
    let mut bench = Bench::new(Retention::default());
    let (shop, cart, stock) = (service("shop"), service("cart"), service("stock"));
    bench.write(vec![SpanBuilder::server(1, 3).resource(&cart).parent(2).build()]);
    bench.write(vec![SpanBuilder::client(1, 2)
        .resource(&shop)
        .parent(1)
        .at_ms(0, 80)
        .error()
        .build()]);
    bench.write(vec![
        SpanBuilder::client(2, 5).resource(&cart).build(),
        SpanBuilder::server(2, 6).resource(&stock).parent(5).build(),
    ]);
    let graph = bench.reader().graph(BASE_NS, BASE_NS + SECOND_NS).unwrap();
    let edges: Vec<_> = graph
        .edges
        .iter()
        .map(|e| (e.caller.as_str(), e.callee.as_str(), e.errors))
        .collect();
    assert_eq!(edges, [("cart", "stock", 0), ("shop", "cart", 1)]);
    assert!(graph.edges[1].latency_nano.p50 > 70_000_000, "the caller's latency");
    assert_eq!(graph.nodes.len(), 3);
    assert!(graph.edges.iter().all(|edge| !edge.external));
}

#[test]
fn a_call_nobody_answered_leads_to_an_address() {
    let mut bench = Bench::new(Retention::default());
    bench.write(vec![SpanBuilder::client(1, 2).resource(&service("shop")).build()]);
    assert_eq!(bench.reader().graph(BASE_NS, BASE_NS).unwrap().edges, []);
    bench.now_ns += 11 * SECOND_NS;
    bench.writer.write(&Taken::default(), bench.now_ns).unwrap();
    let graph = bench.reader().graph(BASE_NS, bench.now_ns).unwrap();
    assert_eq!(graph.edges.len(), 1);
    assert_eq!(
        (graph.edges[0].callee.as_str(), graph.edges[0].external),
        ("10.0.0.7", true)
    );
}
