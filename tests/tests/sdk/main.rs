//! Beside OpenTelemetry's own SDK: Flask services with it, before and behind services that nobody instrumented.
//!
//! Each span that is told of a request, by an SDK or by the agent, is held against the whole tree that must be: who its parent is,
//! whether it is marked, and that no other was made. What goes out on the wire is read by the test itself.
#![allow(clippy::unwrap_used, reason = "test")]

mod scene;
mod tree;

use anyhow::Result;
use spanwire_tests::apps::Calls;
use spanwire_tests::cases::Cases;
use spanwire_tests::http;

use scene::{Scene, Watched, Way};
use tree::{Hop, Maker, Mode, Sdk, Service};

const MODES: [Mode; 3] = [Mode::Keep, Mode::Skip, Mode::Auto];

const EDGE: Service = Service("edge", Sdk::Exports);
const BEFORE: Service = Service("before", Sdk::None);
const MIDDLE: Service = Service("middle", Sdk::Exports);
const LEAF: Service = Service("leaf", Sdk::Exports);
const BEHIND: Service = Service("behind", Sdk::None);

/// What `before` causes, asked in hop `cause`.
fn from_before(cause: &'static str) -> [Hop; 4] {
    [
        Hop::call("a", BEFORE, cause, Some(MIDDLE)),
        Hop::call("b", MIDDLE, "a", Some(BEHIND)),
        Hop::call("c", MIDDLE, "a", Some(LEAF)),
        Hop::call("d", BEHIND, "b", None),
    ]
}

/// What `edge` causes, asked by a client with a context or without.
fn from_edge(given: bool) -> Vec<Hop> {
    let mut hops = vec![Hop::ingress(EDGE, given), Hop::call("x", EDGE, "r", Some(BEFORE))];
    hops.extend(from_before("x"));
    hops
}

fn from_plain() -> Vec<Hop> {
    let mut hops = vec![Hop::ingress(BEFORE, false)];
    hops.extend(from_before("r"));
    hops
}

/// Client, then `edge` (SDK), `before` (none), `middle` (SDK), `behind` (none) and the test; `middle` also calls `leaf` (SDK).
fn both_directions(cases: &mut Cases, mode: Mode) -> Result<()> {
    let scene = Scene::new()?;
    let none = Calls::none();
    let behind = scene.plain(BEHIND, &none.clone().to_url("d", scene.wire.url()))?;
    let leaf = scene.exporting(LEAF, &none)?;
    let middle = scene.exporting(MIDDLE, &none.clone().to("b", &behind)?.to("c", &leaf)?)?;
    let before = scene.plain(BEFORE, &none.clone().to("a", &middle)?)?;
    let edge = scene.exporting(EDGE, &none.to("x", &before)?)?;
    let watched = Watched::start(&[&behind, &leaf, &middle, &before, &edge], mode)?;
    let way = |name, prefix, entry, hops, given| Way {
        name,
        prefix,
        entry,
        hops,
        given,
        sampled: true,
        arrives: vec![("d", Some(Maker::Agent))],
    };
    let ways = [
        way("none, SDK, none", "a", &before.target, from_plain(), None),
        way("SDK, none, SDK", "b", &edge.target, from_edge(false), None),
        way(
            "SDK, none, SDK in a client's trace",
            "g",
            &edge.target,
            from_edge(true),
            Some("01"),
        ),
    ];
    watched.judge(cases, &scene, &ways)
}

#[test]
fn every_parent_is_exact_in_both_directions() {
    let mut cases = Cases::new("sdk: both directions");
    for mode in MODES {
        both_directions(&mut cases, mode).unwrap();
    }
    cases.finish();
}

const ASKER: Service = Service("asker", Sdk::None);
const UNSAMPLED: Service = Service("unsampled", Sdk::Silent);
const METRICS: Service = Service("metrics", Sdk::Silent);
const MIXED: Service = Service("mixed", Sdk::Exports);
/// What it does in a trace that its client has not sampled.
const MIXED_UNSAMPLED: Service = Service("mixed", Sdk::Silent);

/// A call that the SDK knows, after one that it does not know.
fn mixed(service: Service, given: bool) -> Vec<Hop> {
    vec![
        Hop::ingress(service, given),
        Hop::call("p", service, "r", None).plain(),
        Hop::call("m", service, "r", None),
    ]
}

/// SDKs that tell nobody of a call: by their own decision, by their client's, for want of an exporter. And calls that an SDK
/// knows nothing of.
fn untold(cases: &mut Cases) -> Result<()> {
    let scene = Scene::new()?;
    let none = Calls::none();
    let to_wire = |hop| Calls::none().to_url(hop, scene.wire.url());
    let behind = scene.plain(BEHIND, &to_wire("d"))?;
    let unsampled = scene.with_sdk(
        UNSAMPLED,
        &to_wire("s").to("b", &behind)?,
        &none,
        &[("OTEL_TRACES_EXPORTER", "otlp"), ("OTEL_TRACES_SAMPLER", "always_off")],
    )?;
    let asker = scene.plain(ASKER, &none.clone().to("a", &unsampled)?)?;
    let metrics = scene.with_sdk(METRICS, &to_wire("s"), &none, &[("OTEL_METRICS_EXPORTER", "otlp")])?;
    let both = scene.with_sdk(MIXED, &to_wire("m"), &to_wire("p"), &[("OTEL_TRACES_EXPORTER", "otlp")])?;
    let watched = Watched::start(&[&behind, &unsampled, &asker, &metrics, &both], Mode::Auto)?;
    // There are none before the first request.
    http::get(&metrics.target, "/r/first")?;
    scene.wait_for_export("/v1/metrics")?;
    let ways = [
        Way {
            name: "an SDK that samples nothing",
            prefix: "u",
            entry: &asker.target,
            hops: vec![
                Hop::ingress(ASKER, false),
                Hop::call("a", ASKER, "r", Some(UNSAMPLED)),
                Hop::call("s", UNSAMPLED, "a", None),
                Hop::call("b", UNSAMPLED, "a", Some(BEHIND)),
                Hop::call("d", BEHIND, "b", None),
            ],
            given: None,
            sampled: false,
            arrives: vec![("s", None), ("d", Some(Maker::Agent))],
        },
        Way {
            name: "an SDK that tells of metrics only",
            prefix: "m",
            entry: &metrics.target,
            hops: vec![Hop::ingress(METRICS, true), Hop::call("s", METRICS, "r", None)],
            given: Some("01"),
            sampled: true,
            arrives: vec![("s", None)],
        },
        Way {
            name: "calls that the SDK does not know",
            prefix: "p",
            entry: &both.target,
            hops: mixed(MIXED, true),
            given: Some("01"),
            sampled: true,
            arrives: vec![("p", Some(Maker::Agent)), ("m", Some(Maker::Sdk))],
        },
        Way {
            name: "calls that the SDK does not know, in a trace that it begins",
            prefix: "e",
            entry: &both.target,
            hops: mixed(MIXED, false),
            given: None,
            sampled: true,
            arrives: vec![("p", Some(Maker::Agent)), ("m", Some(Maker::Sdk))],
        },
        Way {
            name: "a trace that the client has not sampled",
            prefix: "n",
            entry: &both.target,
            hops: mixed(MIXED_UNSAMPLED, true),
            given: Some("00"),
            sampled: false,
            arrives: vec![("p", Some(Maker::Agent)), ("m", None)],
        },
    ];
    watched.judge(cases, &scene, &ways)
}

#[test]
fn what_no_sdk_tells_of_is_told() {
    let mut cases = Cases::new("sdk: told by nobody else");
    untold(&mut cases).unwrap();
    cases.finish();
}
