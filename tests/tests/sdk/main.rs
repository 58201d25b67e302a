//! Beside OpenTelemetry's own SDK: Flask services with it, before and behind services that nobody instrumented.
//!
//! Each span that is told of a request, by an SDK or by the agent, is held against the whole tree that must be: who its parent is,
//! whether it is marked, and that no other was made. What goes out on the wire is read by the test itself.
#![allow(clippy::unwrap_used, reason = "test")]

mod scene;
mod tree;

use anyhow::Result;
use spanwire_tests::apps::{App, Calls};
use spanwire_tests::cases::Cases;
use spanwire_tests::http;

use scene::{Scene, Watched, Way};
use tree::{Hop, Maker, Mode, Sdk, Service};

const MODES: [Mode; 3] = [Mode::Keep, Mode::Skip, Mode::Auto];

/// Exports spans, as the SDK's own variable says.
const SPANS: (&str, &str) = ("OTEL_TRACES_EXPORTER", "otlp");

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

const ASKER: Service = Service("asker", Sdk::None);
const UNSAMPLED: Service = Service("unsampled", Sdk::Silent);
const METRICS: Service = Service("metrics", Sdk::Silent);
const MIXED: Service = Service("mixed", Sdk::Exports);
/// What it does in a trace that its client has not sampled.
const MIXED_UNSAMPLED: Service = Service("mixed", Sdk::Silent);

/// A call that the SDK knows, after one that it does not know.
fn mixed_hops(service: Service, given: bool) -> Vec<Hop> {
    vec![
        Hop::ingress(service, given),
        Hop::call("p", service, "r", None).plain(),
        Hop::call("m", service, "r", None),
    ]
}

/// The services, which outlive the agents.
struct Apps {
    /// Client, then `edge` (SDK), `before` (none), `middle` (SDK), `behind` (none) and the test; `middle` also calls `leaf` (SDK).
    edge: App,
    before: App,
    middle: App,
    leaf: App,
    behind: App,
    /// Client, then `asker` (none) and `unsampled` (an SDK that samples nothing), which calls `behind`.
    asker: App,
    unsampled: App,
    metrics: App,
    mixed: App,
}

impl Apps {
    fn start(scene: &Scene) -> Result<Self> {
        let none = Calls::none();
        let to = |hop, app| none.clone().to(hop, app);
        let to_wire = |hop| none.clone().to_url(hop, scene.wire.url());
        let with = |service, calls: &Calls, settings: &[(&str, &str)]| scene.with_sdk(service, calls, &none, settings);
        let behind = scene.plain(BEHIND, &to_wire("d"))?;
        let leaf = with(LEAF, &none, &[SPANS])?;
        let middle = with(MIDDLE, &to("b", &behind)?.to("c", &leaf)?, &[SPANS])?;
        let before = scene.plain(BEFORE, &to("a", &middle)?)?;
        let nothing = ("OTEL_TRACES_SAMPLER", "always_off");
        let unsampled = with(UNSAMPLED, &to_wire("s").to("b", &behind)?, &[SPANS, nothing])?;
        let apps = Self {
            edge: with(EDGE, &to("x", &before)?, &[SPANS])?,
            asker: scene.plain(ASKER, &to("a", &unsampled)?)?,
            metrics: with(METRICS, &to_wire("s"), &[("OTEL_METRICS_EXPORTER", "otlp")])?,
            mixed: scene.with_sdk(MIXED, &to_wire("m"), &to_wire("p"), &[SPANS])?,
            before,
            middle,
            leaf,
            behind,
            unsampled,
        };
        // There are metrics from the first request on.
        http::get(&apps.metrics.target, "/r/first")?;
        scene.wait_for_export("/v1/metrics")?;
        Ok(apps)
    }

    fn all(&self) -> [&App; 9] {
        [
            &self.edge,
            &self.before,
            &self.middle,
            &self.leaf,
            &self.behind,
            &self.asker,
            &self.unsampled,
            &self.metrics,
            &self.mixed,
        ]
    }

    fn both_directions<'a>(&'a self) -> Vec<Way<'a>> {
        let way = |name, prefix, app: &'a App, hops, given| Way {
            name,
            prefix,
            entry: &app.target,
            hops,
            given,
            sampled: true,
            arrives: vec![("d", Some(Maker::Agent))],
        };
        let (plain, sdk) = (&self.before, &self.edge);
        vec![
            way("none, SDK, none", "a", plain, from_plain(), None),
            way("SDK, none, SDK", "b", sdk, from_edge(false), None),
            way(
                "SDK, none, SDK, in a client's trace",
                "g",
                sdk,
                from_edge(true),
                Some("01"),
            ),
        ]
    }

    /// SDKs that tell nobody of a call: by their own decision, by their client's, for want of an exporter. And calls that an
    /// SDK knows nothing of.
    fn untold(&self) -> Vec<Way<'_>> {
        let mixed = |name, prefix, hops, given, arrives| Way {
            name,
            prefix,
            entry: &self.mixed.target,
            hops,
            given,
            sampled: given != Some("00"),
            arrives: vec![("p", Some(Maker::Agent)), ("m", arrives)],
        };
        let sdk = Some(Maker::Sdk);
        vec![
            Way {
                name: "an SDK that samples nothing",
                prefix: "u",
                entry: &self.asker.target,
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
                entry: &self.metrics.target,
                hops: vec![Hop::ingress(METRICS, true), Hop::call("s", METRICS, "r", None)],
                given: Some("01"),
                sampled: true,
                arrives: vec![("s", None)],
            },
            mixed(
                "a call that the SDK does not know",
                "p",
                mixed_hops(MIXED, true),
                Some("01"),
                sdk,
            ),
            mixed(
                "such a call in a trace that the SDK begins",
                "e",
                mixed_hops(MIXED, false),
                None,
                sdk,
            ),
            mixed(
                "a trace that the client has not sampled",
                "n",
                mixed_hops(MIXED_UNSAMPLED, true),
                Some("00"),
                None,
            ),
        ]
    }
}

#[test]
fn every_parent_is_exact_and_no_call_is_lost() {
    let mut cases = Cases::new("sdk");
    let scene = Scene::new().unwrap();
    let apps = Apps::start(&scene).unwrap();
    for mode in MODES {
        let mut ways = apps.both_directions();
        ways.extend(apps.untold());
        let watched = Watched::start(&apps.all(), mode).unwrap();
        watched.judge(&mut cases, &scene, &ways).unwrap();
    }
    cases.finish();
}
