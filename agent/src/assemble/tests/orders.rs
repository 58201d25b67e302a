//! Whatever the order in which the records of one window come, the tree is the same.

use proptest::collection::vec;
use proptest::prelude::{any, Strategy};
use proptest::test_runner::Config;
use proptest::{prop_assert_eq, proptest};
use spanwire_common::abi::{cause, flag, ProcessClass};

use crate::assemble::testing::{by, client, link, server, trace, Found, Replay, ROOT};
use crate::decode::Event;
use crate::span::ParentSource;

/// How the two ends of a hop's wire come to know of each other.
#[derive(Clone, Copy, Debug)]
enum Wire {
    /// In the kernel, before the server's head was read: one trace from the start.
    Kernel,
    /// In the kernel, after: the server's record names the client, and has a trace of its own.
    KernelLate,
    /// By a link record.
    Link,
    /// By the client's record.
    Client,
    /// By the key alone.
    Key,
}

/// A service that was called by another one of the tree.
#[derive(Clone, Copy, Debug)]
struct Hop {
    /// Which service called it (modulo those there are).
    from: usize,
    wire: Wire,
    /// The kernel knew the caller's class at request time.
    classified: bool,
    class: ProcessClass,
}

fn hop() -> impl Strategy<Value = Hop> {
    let wires = [Wire::Kernel, Wire::KernelLate, Wire::Link, Wire::Client, Wire::Key];
    let classes = [
        ProcessClass::ThreadPerRequest,
        ProcessClass::ThreadReadsWhole,
        ProcessClass::ProcessPerRequest,
        ProcessClass::Nginx,
    ];
    (any::<usize>(), 0..wires.len(), any::<bool>(), 0..classes.len()).prop_map(
        move |(from, wire, classified, class)| Hop {
            from,
            wire: wires[wire],
            classified,
            class: classes[class],
        },
    )
}

/// The records of a tree of services, and what must come of each span: service `n` has server span `2n + 2` and process
/// `n`; the call that reached it has client span `2n + 1`.
struct Tree {
    events: Vec<Event>,
    classes: Vec<(u32, ProcessClass)>,
    parents: Vec<(u64, Found)>,
}

const ROOT_TRACE: u64 = 2;

fn tree(hops: &[Hop]) -> Tree {
    let root = server(2).pid(1_000).remote("203.0.113.7").trace(ROOT_TRACE);
    let mut tree = Tree {
        events: vec![root.event()],
        classes: Vec::new(),
        parents: vec![(2, ROOT)],
    };
    // The trace each service bore at request time, and its class: whoever calls on must have one.
    let mut traces = vec![ROOT_TRACE];
    let mut classes: Vec<Option<ProcessClass>> = vec![None];
    for (index, hop) in hops.iter().enumerate() {
        let n = index as u64 + 1;
        let caller = hop.from % traces.len();
        let class = *classes[caller].get_or_insert(hop.class);
        let (call, request) = (2 * n + 1, 2 * n + 2);
        let (cause_span, cause_trace) = (2 * caller as u64 + 2, traces[caller]);
        let call_trace = if hop.classified { cause_trace } else { call };
        let (by_what, source) = match class {
            ProcessClass::Nginx => (cause::IO, ParentSource::Io),
            _ => (cause::THREAD, ParentSource::Thread),
        };
        let mut sent = client(call)
            .pid(1_000 + caller as u32)
            .trace(call_trace)
            .cause(by_what, cause_span, cause_trace)
            .class(if hop.classified {
                class
            } else {
                ProcessClass::Unclassified
            })
            .flags(flag::CAUSE_BLOCKING | flag::CAUSE_COMPLETE | flag::PROCESS_SERVES)
            .path(&format!("/{n}"));
        let mut received = server(request).pid(1_000 + n as u32).path(&format!("/{n}"));
        let mut request_trace = request;
        match hop.wire {
            Wire::Kernel => {
                request_trace = call_trace;
                received = received
                    .trace(call_trace)
                    .wire(call, call_trace)
                    .flags(flag::ADOPTED_WIRE);
            }
            Wire::KernelLate => received = received.wire(call, call_trace),
            Wire::Link => tree.events.push(link((call, call_trace), (request, request))),
            Wire::Client => sent = sent.wire(request, request),
            Wire::Key => (sent, received) = (sent.wire_key(n), received.wire_key(n)),
        }
        tree.events.extend([sent.event(), received.event()]);
        tree.classes.push((1_000 + caller as u32, class));
        tree.parents
            .extend([(call, by(source, cause_span)), (request, by(ParentSource::Wire, call))]);
        traces.push(request_trace);
        classes.push(None);
    }
    tree
}

/// A shuffle that proptest can shrink: each event gets a weight.
fn shuffled(events: &[Event], weights: &[u16]) -> Vec<Event> {
    let mut order: Vec<usize> = (0..events.len()).collect();
    order.sort_by_key(|n| weights.get(*n).copied().unwrap_or_default());
    order.into_iter().map(|n| events[n].clone()).collect()
}

proptest! {
    #![proptest_config(Config { cases: 400, failure_persistence: None, ..Config::default() })]

    #[test]
    fn any_order_gives_the_same_parents_and_one_trace(
        hops in vec(hop(), 1..12),
        weights in vec(any::<u16>(), 40),
        classes_after in 0usize..40,
    ) {
        let tree = tree(&hops);
        let mut replay = Replay::default();
        let events = shuffled(&tree.events, &weights);
        let (before, after) = events.split_at(classes_after.min(events.len()));
        replay.feed(before.iter().cloned());
        for (pid, class) in &tree.classes {
            replay.assembler.set_class(*pid, *class, false);
        }
        replay.feed(after.iter().cloned());
        replay.settle();
        prop_assert_eq!(replay.settled.len(), tree.parents.len());
        for (n, expected) in &tree.parents {
            prop_assert_eq!(replay.parent(*n), *expected, "span {}", n);
            prop_assert_eq!(replay.trace(*n), trace(ROOT_TRACE), "span {}", n);
        }
        // Whatever id a record bore can be resolved: it is the canonical one or was announced, once, before its span.
        let mut announced: Vec<_> = replay.aliases.iter().map(|alias| alias.alias).collect();
        let count = announced.len();
        announced.sort_unstable();
        announced.dedup();
        prop_assert_eq!(announced.len(), count, "told once each");
        for settled in replay.settled.values() {
            let own = crate::span::TraceId(settled.record.trace_id);
            prop_assert_eq!(own != settled.trace_id, announced.contains(&own));
        }
    }
}
