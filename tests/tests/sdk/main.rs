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
