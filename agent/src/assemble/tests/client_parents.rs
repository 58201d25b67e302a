//! The parent of a client span, rule by rule.

use spanwire_common::abi::{cause, flag, process_event, protocol_id, ProcessClass};
use spanwire_common::drop::UserDrop;

use crate::assemble::testing::{by, client, demoted, process, server, trace, unknown, Exchange, Found, Replay, ROOT};
use crate::span::{ParentSource, UnknownReason};

use ProcessClass::{
    EventLoop, Go, Jvm, Nginx, Other, ProcessPerRequest, Proxy, ThreadPerRequest, ThreadReadsWhole, Unclassified,
};

/// The flags of a cause whose request was read whole, from a blocking socket.
const SURE: u32 = flag::CAUSE_BLOCKING | flag::CAUSE_COMPLETE;

/// A client call by a process of `class` with a cause by `cause_by`: request 1 of trace 1.
fn caused(class: ProcessClass, cause_by: u8, flags: u32) -> Exchange {
    client(2)
        .class(class)
        .cause(cause_by, 1, 1)
        .flags(flags | flag::PROCESS_SERVES)
}

#[allow(
    clippy::large_types_passed_by_value,
    reason = "builders hand it on by value, and so read as one line"
)]
fn parent_of(exchange: Exchange) -> Found {
    Replay::of([exchange.event()]).parent(2)
}

#[test]
fn which_class_may_rest_on_which_cause() {
    let thread = by(ParentSource::Thread, 1);
    let inherited = by(ParentSource::Process, 1);
    let io = by(ParentSource::Io, 1);
    let runtime = unknown(UnknownReason::Runtime);
    let handoff = unknown(UnknownReason::Handoff);
    for (class, cause_by, flags, expected) in [
        (ThreadPerRequest, cause::THREAD, SURE, thread),
        (ThreadPerRequest, cause::THREAD, flag::CAUSE_BLOCKING, thread),
        (ThreadPerRequest, cause::THREAD, flag::CAUSE_COMPLETE, runtime),
        (ThreadPerRequest, cause::IO, SURE, runtime),
        (ThreadReadsWhole, cause::THREAD, flag::CAUSE_COMPLETE, thread),
        (ThreadReadsWhole, cause::THREAD, flag::CAUSE_BLOCKING, handoff),
        (ProcessPerRequest, cause::THREAD, 0, thread),
        (Nginx, cause::IO, 0, io),
        (Nginx, cause::THREAD, SURE, runtime),
        (EventLoop, cause::THREAD, SURE, runtime),
        (Go, cause::THREAD, SURE, runtime),
        (Jvm, cause::THREAD, SURE, runtime),
        (Proxy, cause::THREAD, SURE, runtime),
        (Proxy, cause::IO, SURE, runtime),
        (Other, cause::THREAD, SURE, runtime),
        (Other, cause::PROCESS, 0, inherited),
        (EventLoop, cause::PROCESS, 0, inherited),
        (ThreadPerRequest, cause::PROCESS, 0, inherited),
        (Unclassified, cause::PROCESS, 0, inherited),
    ] {
        let found = parent_of(caused(class, cause_by, flags));
        assert_eq!(found, expected, "{class:?}, cause {cause_by}, flags {flags:#x}");
    }
}

#[test]
fn a_doubtful_cause_is_no_parent() {
    let overlap = unknown(UnknownReason::Overlap);
    let contradiction = unknown(UnknownReason::Contradiction);
    for (class, cause_by) in [
        (ThreadPerRequest, cause::THREAD),
        (ThreadReadsWhole, cause::THREAD),
        (ProcessPerRequest, cause::THREAD),
        (Nginx, cause::IO),
        (Other, cause::PROCESS),
    ] {
        assert_eq!(
            parent_of(caused(class, cause_by, SURE | flag::AMBIGUOUS)),
            overlap,
            "{class:?}"
        );
        assert_eq!(
            parent_of(caused(class, cause_by, SURE | flag::DEMOTED)),
            contradiction,
            "{class:?}"
        );
        let both = SURE | flag::DEMOTED | flag::AMBIGUOUS;
        assert_eq!(parent_of(caused(class, cause_by, both)), contradiction, "{class:?}");
    }
    // The trace id may stay as the kernel took it over: only the parent is withdrawn.
    let replay = Replay::of([caused(ThreadPerRequest, cause::THREAD, SURE | flag::DEMOTED)
        .trace(1)
        .event()]);
    assert_eq!(replay.trace(2), trace(1));
}

#[test]
fn a_forwarded_header_names_the_request_it_came_with() {
    for class in [Proxy, EventLoop, Go, Nginx, Other, Unclassified, ThreadPerRequest] {
        let found = parent_of(client(2).class(class).w3c(9, 8).cause(cause::HEADER, 1, 9));
        assert_eq!(found, by(ParentSource::Header, 1), "{class:?}");
    }
    // Demotion is about threads; equality of headers holds all the same.
    let demoted = client(2).w3c(9, 8).cause(cause::HEADER, 1, 9).flags(flag::DEMOTED);
    assert_eq!(parent_of(demoted), by(ParentSource::Header, 1));
}

#[test]
fn a_header_two_open_requests_brought_names_neither() {
    let overlap = unknown(UnknownReason::Overlap);
    let exchange = client(2).class(Proxy).w3c(9, 8).flags(flag::AMBIGUOUS);
    assert_eq!(parent_of(exchange), overlap);
    assert_eq!(parent_of(exchange.cause(cause::HEADER, 1, 9)), overlap);
}

#[test]
fn a_header_of_an_sdk_is_its_own_evidence() {
    let header = by(ParentSource::Header, 8);
    assert_eq!(parent_of(client(2).class(EventLoop).w3c(9, 8)), header);
    // Even beside evidence by thread, doubtful or not: the SDK knows its own spans.
    assert_eq!(
        parent_of(caused(ThreadPerRequest, cause::THREAD, SURE).w3c(9, 8)),
        header
    );
    assert_eq!(
        parent_of(caused(ThreadPerRequest, cause::THREAD, SURE | flag::AMBIGUOUS).w3c(9, 8)),
        header
    );
}

#[test]
fn a_header_forwarded_after_its_request_was_answered_is_not_taken_for_an_sdks() {
    let request = server(1).pid(50).w3c(9, 8);
    let forwarded = client(2).pid(50).class(EventLoop).w3c(9, 8).flags(flag::PROCESS_SERVES);
    let found = unknown(UnknownReason::Handoff);
    assert_eq!(Replay::of([request.event(), forwarded.event()]).parent(2), found);
    assert_eq!(Replay::of([forwarded.event(), request.event()]).parent(2), found);
    // The same header in another process came from an SDK there, for all that is known.
    assert_eq!(
        Replay::of([request.pid(51).event(), forwarded.event()]).parent(2),
        by(ParentSource::Header, 8)
    );
}

#[test]
fn without_evidence_a_process_that_serves_nobody_is_a_root() {
    for class in [Other, EventLoop, Go, ThreadPerRequest, Unclassified] {
        assert_eq!(parent_of(client(2).class(class)), ROOT, "{class:?}");
    }
}

#[test]
fn without_evidence_a_process_that_serves_is_unknown_and_says_why() {
    for (class, flags, reason) in [
        (EventLoop, 0, UnknownReason::Runtime),
        (Go, 0, UnknownReason::Runtime),
        (Jvm, 0, UnknownReason::Runtime),
        (Proxy, 0, UnknownReason::Runtime),
        (Other, 0, UnknownReason::Runtime),
        (Unclassified, 0, UnknownReason::Runtime),
        (EventLoop, flag::AMBIGUOUS, UnknownReason::Runtime),
        (ThreadPerRequest, 0, UnknownReason::Handoff),
        (ThreadReadsWhole, 0, UnknownReason::Handoff),
        (ProcessPerRequest, 0, UnknownReason::Handoff),
        (Nginx, 0, UnknownReason::Handoff),
        (ThreadPerRequest, flag::LATE_JOIN, UnknownReason::AttachedLate),
        (ThreadPerRequest, flag::AMBIGUOUS, UnknownReason::Overlap),
        (ThreadPerRequest, flag::DEMOTED, UnknownReason::Contradiction),
    ] {
        let found = parent_of(client(2).class(class).flags(flags | flag::PROCESS_SERVES));
        assert_eq!(found, unknown(reason), "{class:?}, flags {flags:#x}");
    }
}

#[test]
fn a_server_exchange_of_the_process_in_the_window_makes_it_one_that_serves() {
    let call = client(2).pid(50).class(Go);
    let request = server(1).pid(50).class(Go);
    let found = unknown(UnknownReason::Runtime);
    assert_eq!(Replay::of([request.event(), call.event()]).parent(2), found);
    assert_eq!(Replay::of([call.event(), request.event()]).parent(2), found);
}

#[test]
fn a_class_that_comes_late_settles_parent_and_trace() {
    let call = caused(Unclassified, cause::THREAD, SURE).pid(50);
    for (class, found, its_trace) in [
        (ThreadPerRequest, by(ParentSource::Thread, 1), trace(1)),
        (EventLoop, unknown(UnknownReason::Runtime), trace(2)),
    ] {
        let mut replay = Replay::default();
        // What the call caused downstream bears the call's own trace id.
        replay.feed([call.event(), server(3).trace(2).wire(2, 2).event()]);
        assert_eq!(replay.asked, [50,], "{class:?}");
        replay.wait_ms(80);
        replay.assembler.set_class(50, class, false);
        replay.settle();
        assert_eq!(replay.parent(2), found, "{class:?}");
        assert_eq!((replay.trace(2), replay.trace(3)), (its_trace, its_trace), "{class:?}");
        assert_eq!(replay.parent(3), by(ParentSource::Wire, 2));
    }
}

#[test]
fn a_process_is_asked_for_once_and_known_ones_not_at_all() {
    let call = caused(Unclassified, cause::THREAD, SURE);
    let mut replay = Replay::default();
    replay.assembler.set_class(60, ThreadPerRequest, false);
    replay.feed([call.pid(50).event(), client(3).pid(50).class(Unclassified).event()]);
    replay.feed([process(50, process_event::SEEN, 1), process(51, process_event::SEEN, 1)]);
    replay.feed([client(4).pid(60).class(Unclassified).event()]);
    assert_eq!(replay.asked, [50, 51]);
    replay.settle();
    assert_eq!(replay.parent(2), unknown(UnknownReason::Runtime), "never answered");
}

#[test]
fn user_space_and_kernel_must_both_allow_a_cause() {
    let call = caused(ThreadPerRequest, cause::THREAD, SURE).pid(50);
    let mut replay = Replay::default();
    replay.feed([call.event()]);
    replay.assembler.set_class(50, EventLoop, false);
    replay.settle();
    assert_eq!(replay.parent(2), unknown(UnknownReason::Runtime));
}

#[test]
fn a_demotion_reaches_what_is_held() {
    let call = caused(ThreadPerRequest, cause::THREAD, SURE).pid(50);
    let replay = Replay::of([call.event(), demoted(50)]);
    assert_eq!(replay.parent(2), unknown(UnknownReason::Contradiction));
    let replay = Replay::of([demoted(50), call.event()]);
    assert_eq!(replay.parent(2), unknown(UnknownReason::Contradiction));
    // The kernel side also says so on the exchange in which it happened.
    let elsewhere = client(3).pid(50).flags(flag::DEMOTED);
    let replay = Replay::of([call.event(), elsewhere.event()]);
    assert_eq!(replay.parent(2), unknown(UnknownReason::Contradiction));
    let replay = Replay::of([demoted(51), call.event()]);
    assert_eq!(replay.parent(2), by(ParentSource::Thread, 1));
}

#[test]
fn a_child_inherits_unless_its_forefather_is_a_runtime_without_threads_of_its_own() {
    let call = caused(Other, cause::PROCESS, 0).pid(52);
    for (class, found) in [
        (ProcessPerRequest, by(ParentSource::Process, 1)),
        (ThreadPerRequest, by(ParentSource::Process, 1)),
        (Other, by(ParentSource::Process, 1)),
        (EventLoop, unknown(UnknownReason::Runtime)),
        (Go, unknown(UnknownReason::Runtime)),
        (Nginx, unknown(UnknownReason::Runtime)),
    ] {
        let mut replay = Replay::default();
        replay.assembler.set_class(50, class, false);
        // Its parent is a shell, as CGI scripts often have.
        replay.assembler.set_class(51, Other, false);
        replay.feed([
            process(51, process_event::EXEC, 50),
            process(52, process_event::EXEC, 51),
            call.event(),
        ]);
        replay.settle();
        let expected = if class == Other {
            by(ParentSource::Process, 1)
        } else {
            found
        };
        assert_eq!(replay.parent(2), expected, "{class:?}");
    }
}

#[test]
fn a_forefather_may_be_named_by_whoever_classifies() {
    let mut replay = Replay::default();
    replay.assembler.set_class(50, EventLoop, false);
    replay.feed([caused(Unclassified, cause::PROCESS, 0).pid(52).event()]);
    replay.assembler.set_parent(52, 50);
    replay.assembler.set_class(52, Other, false);
    replay.settle();
    assert_eq!(replay.parent(2), unknown(UnknownReason::Runtime));
}

#[test]
fn a_new_image_is_a_new_process() {
    let mut replay = Replay::default();
    replay.assembler.set_class(50, ThreadPerRequest, false);
    replay.feed([demoted(50), process(50, process_event::EXEC, 1)]);
    replay.assembler.set_class(50, ThreadPerRequest, false);
    replay.feed([caused(Unclassified, cause::THREAD, SURE).pid(50).event()]);
    replay.settle();
    assert_eq!(
        replay.parent(2),
        by(ParentSource::Thread, 1),
        "the demotion was of the image before"
    );
}

#[test]
fn an_ended_process_is_forgotten_after_its_last_exchanges() {
    let mut replay = Replay::default();
    replay.assembler.set_class(50, ThreadPerRequest, false);
    replay.feed([
        caused(Unclassified, cause::THREAD, SURE).pid(50).event(),
        process(50, process_event::EXIT, 0),
    ]);
    replay.settle();
    assert_eq!(replay.parent(2), by(ParentSource::Thread, 1));
    replay.wait_ms(2_000);
    replay.feed([client(3).pid(50).class(Unclassified).event()]);
    assert_eq!(replay.asked, [50], "another process with that number");
}

#[test]
fn an_opaque_call_is_a_span_of_its_request_or_none() {
    for protocol in [protocol_id::OPAQUE, protocol_id::TLS] {
        let opaque = caused(ThreadPerRequest, cause::THREAD, SURE)
            .method("")
            .path("")
            .with(|r| r.protocol = protocol);
        assert_eq!(parent_of(opaque), by(ParentSource::Thread, 1));
        let lost = [
            opaque.flags(flag::AMBIGUOUS),
            opaque.class(EventLoop),
            opaque.cause(cause::NONE, 0, 0),
        ];
        for exchange in lost {
            let replay = Replay::of([exchange.event()]);
            assert!(replay.settled.is_empty());
            assert_eq!(replay.dropped.get(&UserDrop::OpaqueUncaused), Some(&1));
        }
    }
}

#[test]
fn a_cause_in_another_trace_is_no_parent() {
    // The exchange adopted a trace id that came without a parent id (X-Ray's `Root=` alone): its cause's is another.
    let call = caused(ThreadPerRequest, cause::THREAD, SURE)
        .trace(9)
        .flags(flag::ADOPTED_HEADER);
    let replay = Replay::of([call.event()]);
    assert_eq!(replay.parent(2), unknown(UnknownReason::Contradiction));
    assert_eq!(replay.trace(2), trace(9));
    assert_eq!(replay.assembler.stats().contradictions, 1);
}
