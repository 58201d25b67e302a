//! What one request has to make, span by span, by the rules of docs/rewriting.md ("Beside an SDK").

use std::collections::{BTreeMap, BTreeSet};

use spanwire_tests::judge::exchange_of;
use spanwire_tests::spans::{Kind, Span};

/// Who tells of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Maker {
    Agent,
    Sdk,
}

/// A span of a request: whose it is, which end, and of which hop.
pub(crate) type Key = (Maker, Kind, &'static str);

/// What an application's own SDK does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sdk {
    None,
    /// It writes context, and tells nobody of its spans.
    Silent,
    Exports,
}

/// A service, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Service(pub(crate) &'static str, pub(crate) Sdk);

/// One exchange that each request causes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hop {
    /// `r` for the client's own request, else the last segment of the path.
    pub(crate) name: &'static str,
    /// Nobody that is traced, or the caller and the hop whose server makes the call.
    pub(crate) caller: Option<(Service, &'static str)>,
    /// `None`: whoever answers is not traced.
    pub(crate) callee: Option<Service>,
    /// The caller's SDK does not know of the call.
    pub(crate) plain: bool,
    /// A context comes in with the client's own request.
    pub(crate) given: bool,
}

impl Hop {
    pub(crate) fn ingress(callee: Service, given: bool) -> Self {
        Self {
            name: "r",
            caller: None,
            callee: Some(callee),
            plain: false,
            given,
        }
    }

    pub(crate) fn call(name: &'static str, caller: Service, cause: &'static str, callee: Option<Service>) -> Self {
        Self {
            name,
            caller: Some((caller, cause)),
            callee,
            plain: false,
            given: false,
        }
    }

    pub(crate) fn plain(self) -> Self {
        Self { plain: true, ..self }
    }

    /// The caller's SDK makes a span of it and writes the header.
    fn is_sdk_made(&self) -> bool {
        self.caller.is_some_and(|(caller, _)| caller.1 != Sdk::None) && !self.plain
    }
}

/// `capture.sdk`; `Auto` is the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Keep,
    Skip,
    Auto,
}

/// The parent that a span must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parent {
    Root,
    Of(Key),
    /// A span that nobody tells of: the caller's of this hop, or whatever the client's context names (`r`).
    Untold(&'static str),
}

#[derive(Clone, Copy, Debug)]
struct Wanted {
    service: &'static str,
    parent: Parent,
    /// `spanwire.sdk=true`.
    marked: bool,
}

/// The spans of one request.
pub(crate) struct Tree(BTreeMap<Key, Wanted>);

impl Tree {
    pub(crate) fn of(hops: &[Hop], mode: Mode) -> Self {
        let mut tree = BTreeMap::new();
        for hop in hops {
            let on_the_wire = on_the_wire(hop);
            if let Some((Service(service, sdk), cause)) = hop.caller {
                let marked = hop.is_sdk_made();
                if !(marked && leaves_out(mode, sdk)) {
                    let cause = Parent::Of((Maker::Agent, Kind::Server, cause));
                    let parent = if marked { on_the_wire } else { cause };
                    tree.insert(
                        (Maker::Agent, Kind::Client, hop.name),
                        Wanted {
                            service,
                            parent,
                            marked,
                        },
                    );
                }
                if marked && sdk == Sdk::Exports {
                    let parent = Parent::Of((Maker::Sdk, Kind::Server, cause));
                    tree.insert((Maker::Sdk, Kind::Client, hop.name), of_sdk(service, parent));
                }
            }
            if let Some(Service(service, sdk)) = hop.callee {
                let causes = |plain: bool| hops.iter().any(|call| is_for(call, hop) && call.plain == plain);
                // That an SDK goes on with the context that came shows in what it calls, and in nothing else.
                let marked = sdk != Sdk::None && on_the_wire != Parent::Root && causes(false);
                // A call that the SDK knows nothing of has no other parent.
                if !(marked && leaves_out(mode, sdk)) || causes(true) {
                    let wanted = Wanted {
                        service,
                        parent: on_the_wire,
                        marked,
                    };
                    tree.insert((Maker::Agent, Kind::Server, hop.name), wanted);
                }
                if sdk == Sdk::Exports {
                    tree.insert((Maker::Sdk, Kind::Server, hop.name), of_sdk(service, on_the_wire));
                }
            }
        }
        Self(tree)
    }

    /// How many spans `maker` tells of.
    pub(crate) fn count(&self, maker: Maker) -> usize {
        self.0.keys().filter(|key| key.0 == maker).count()
    }

    /// Everything in which the spans of request `id` are other than they must be.
    pub(crate) fn faults(&self, id: &str, spans: &[&Span], untold: &BTreeMap<&str, String>) -> Vec<String> {
        let mut faults = Vec::new();
        let mut found: BTreeMap<Key, &Span> = BTreeMap::new();
        for span in spans {
            let key = key_of(span).and_then(|key| self.0.keys().find(|wanted| **wanted == key).copied());
            match key.map(|key| (key, found.insert(key, span))) {
                None => faults.push(format!("{id}: one too many: {span:?}")),
                Some((key, Some(_))) => faults.push(format!("{id}: {key:?} is there twice")),
                Some((_, None)) => {}
            }
        }
        let traces: BTreeSet<&str> = found.values().map(|span| span.trace_id.as_str()).collect();
        if traces.len() > 1 {
            faults.push(format!("{id}: {} traces: {traces:?}", traces.len()));
        }
        for (key, wanted) in &self.0 {
            let Some(span) = found.get(key) else {
                faults.push(format!("{id}: {key:?} of {} is missing", wanted.service));
                continue;
            };
            let parent = match wanted.parent {
                Parent::Root => None,
                Parent::Of(parent) => Some(found.get(&parent).map_or("missing", |span| &span.span_id)),
                Parent::Untold(hop) => untold
                    .get(hop)
                    .map(String::as_str)
                    // What went to a traced service, both ends have read alike.
                    .or_else(|| {
                        let end = |kind| found.get(&(Maker::Agent, kind, hop));
                        end(Kind::Client).or(end(Kind::Server))?.parent_span_id.as_deref()
                    })
                    .filter(|untold| found.values().all(|span| span.span_id != *untold))
                    .or(Some("not told by anybody")),
            };
            if span.parent_span_id.as_deref() != parent {
                let found = &span.parent_span_id;
                let source = span.parent_source();
                faults.push(format!(
                    "{id}: {key:?}: parent {found:?} by {source:?}, and not {:?} {parent:?}",
                    wanted.parent
                ));
            }
            let marked = span.attribute("spanwire.sdk").as_deref() == Some("true");
            if span.service() != wanted.service || marked != wanted.marked {
                faults.push(format!(
                    "{id}: {key:?} of {}, spanwire.sdk={marked}; wanted {wanted:?}",
                    span.service()
                ));
            }
        }
        faults
    }
}

fn of_sdk(service: &'static str, parent: Parent) -> Wanted {
    Wanted {
        service,
        parent,
        marked: false,
    }
}

/// The span that the request's traceparent names.
fn on_the_wire(hop: &Hop) -> Parent {
    match hop.caller {
        None if hop.given => Parent::Untold(hop.name),
        None => Parent::Root,
        Some((Service(_, Sdk::Exports), _)) if !hop.plain => Parent::Of((Maker::Sdk, Kind::Client, hop.name)),
        Some(_) if hop.is_sdk_made() => Parent::Untold(hop.name),
        Some(_) => Parent::Of((Maker::Agent, Kind::Client, hop.name)),
    }
}

fn is_for(call: &Hop, served: &Hop) -> bool {
    call.caller.is_some_and(|(_, cause)| cause == served.name)
}

fn leaves_out(mode: Mode, sdk: Sdk) -> bool {
    mode == Mode::Skip || (mode == Mode::Auto && sdk == Sdk::Exports)
}

/// Who made a span, which end it is, and of which hop.
pub(crate) fn key_of(span: &Span) -> Option<(Maker, Kind, &str)> {
    let maker = if span.resource.contains_key("telemetry.sdk.name") {
        Maker::Sdk
    } else {
        Maker::Agent
    };
    Some((maker, span.kind, exchange_of(path_of(span)?)?.1))
}

/// `url.path`, or what follows the authority in `url.full`, which is all that an SDK's client spans have.
fn path_of(span: &Span) -> Option<&str> {
    let text = |key: &str| span.attributes.get(key).and_then(|value| value.as_str());
    text("url.path").or_else(|| {
        let (_, rest) = text("url.full")?.split_once("://")?;
        rest.find('/').and_then(|at| rest.get(at..))
    })
}

/// The request that a span belongs to.
pub(crate) fn request_of(span: &Span) -> Option<&str> {
    Some(exchange_of(path_of(span)?)?.0)
}
