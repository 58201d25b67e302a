//! What is never a span, and is counted.

use spanwire_common::abi::{flag, side, text, ExchangeRecord, ProcessClass};
use spanwire_common::drop::UserDrop;

use crate::assemble::testing::{by, client, server, text_of, Replay, ROOT};
use crate::assemble::{Exclusion, Options};
use crate::span::ParentSource;

fn excluded_only(replay: &Replay, count: u64) {
    assert_eq!(replay.dropped.get(&UserDrop::ExcludedProcess), Some(&count));
    assert_eq!(replay.dropped(), count);
}

#[test]
fn flags_of_the_kernel_side() {
    for flags in [flag::EXCLUDED_USER_AGENT, flag::OWN_TRAFFIC] {
        let replay = Replay::of([
            client(1).flags(flags).event(),
            server(2).flags(flags).event(),
            server(3).event(),
        ]);
        assert_eq!(replay.settled.len(), 1);
        excluded_only(&replay, 2);
    }
}

#[test]
fn telemetry_is_not_traced() {
    for path in ["/v1/traces", "/v1/metrics", "/v1/logs"] {
        let replay = Replay::of([client(1).method("POST").path(path).event()]);
        assert!(replay.settled.is_empty(), "{path}");
        excluded_only(&replay, 1);
    }
    for path in ["/v1/tracesx", "/v1/users", "/v1/traces/7"] {
        assert_eq!(Replay::of([client(1).path(path).event()]).settled.len(), 1, "{path}");
    }
}

#[test]
fn a_process_that_turns_out_excluded_leaves_no_span_and_is_no_parent() {
    let mut replay = Replay::default();
    let call = client(1).class(ProcessClass::Unclassified);
    replay.feed([call.event(), server(2).trace(1).wire(1, 1).event()]);
    replay.assembler.set_class(101, ProcessClass::Other, true);
    let later = client(3).pid(101).class(ProcessClass::Other);
    replay.feed([later.event(), server(4).trace(3).wire(3, 3).event()]);
    replay.settle();
    excluded_only(&replay, 2);
    assert_eq!(replay.parent(2), ROOT, "its peer is local and not captured");
    assert_eq!(replay.parent(4), ROOT);
    // Excluded by mistake, for want of knowledge that came a moment later.
    let mut corrected = Replay::default();
    corrected.feed([call.event(), server(2).trace(1).wire(1, 1).event()]);
    corrected.assembler.set_class(101, ProcessClass::Other, true);
    corrected.assembler.set_class(101, ProcessClass::Other, false);
    corrected.settle();
    assert_eq!(corrected.parent(2), by(ParentSource::Wire, 1));
    // Included again by another configuration.
    replay.assembler.set_class(101, ProcessClass::Other, false);
    replay.feed([client(5).pid(101).event(), server(6).trace(5).wire(5, 5).event()]);
    replay.settle();
    assert_eq!(replay.parent(6), by(ParentSource::Wire, 5));
}

#[test]
fn what_was_observed_provisionally_counts_once_its_process_is_captured() {
    let provisional = |n| client(n).class(ProcessClass::Unclassified).flags(flag::UNCLASSIFIED);
    let mut replay = Replay::default();
    replay.feed([
        provisional(1).event(),
        provisional(2).event(),
        provisional(3).path("/v1/logs").event(),
    ]);
    replay.assembler.set_class(101, ProcessClass::Other, true);
    replay.assembler.set_class(102, ProcessClass::Other, false);
    replay.settle();
    assert_eq!(replay.settled.len(), 1, "the other one was never captured");
    excluded_only(&replay, 1);
    assert_eq!(replay.kept, 2, "a span and a counted drop");
}

#[test]
fn a_process_never_classified_is_kept_or_dropped_as_the_configuration_has_it() {
    for keep_unclassified in [true, false] {
        let mut replay = Replay::new(Options {
            keep_unclassified,
            ..Options::default()
        });
        replay.feed([client(1).class(ProcessClass::Unclassified).event(), client(2).event()]);
        replay.settle();
        assert_eq!(replay.settled.len(), 1 + usize::from(keep_unclassified));
        assert_eq!(replay.dropped(), u64::from(!keep_unclassified));
    }
}

#[test]
fn exclusions_by_path_and_user_agent() {
    let exclusion: Exclusion = Box::new(|record: &ExchangeRecord, user_agent: Option<&str>| {
        record.path.starts_with(b"/health") || user_agent.is_some_and(|agent| agent.contains("probe"))
    });
    let mut replay = Replay::new(Options {
        exclusion: Some(exclusion),
        ..Options::default()
    });
    replay.feed([
        client(1).path("/health").event(),
        text_of(2, text::USER_AGENT, 0, "a probe"),
        client(2).event(),
        client(3).event(),
        text_of(3, text::USER_AGENT, 0, "another probe, whose text came after"),
        text_of(4, text::USER_AGENT, 0, "a browser"),
        client(4).event(),
        server(5).trace(1).wire(1, 1).path("/health?").event(),
    ]);
    replay.settle();
    assert_eq!(replay.order.len(), 1);
    assert_eq!(replay.span(4).record.side, side::CLIENT);
    excluded_only(&replay, 4);
    replay.assembler.set_exclusion(None, true);
    replay.feed([client(6).path("/health").event()]);
    replay.settle();
    assert_eq!(replay.parent(6), ROOT);
}
