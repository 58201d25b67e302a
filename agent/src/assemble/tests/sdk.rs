//! Applications with an SDK of their own: which trace their requests are in, and which calls the SDK tells of, too.

use spanwire_common::abi::{cause, flag, ProcessClass};

use super::server_parents::for_every_order;
use crate::assemble::testing::{by, client, server, trace, Exchange, Replay, ROOT};
use crate::span::{ParentSource, SdkSpan};

/// The process whose SDK is at work.
const PID: u32 = 50;
const SURE: u32 = flag::CAUSE_BLOCKING | flag::CAUSE_COMPLETE | flag::PROCESS_SERVES;

/// A call for request 1 of trace `cause_trace`, by the thread that serves it.
fn call(n: u64, cause_trace: u64) -> Exchange {
    client(n)
        .pid(PID)
        .ports(41_000, 81)
        .class(ProcessClass::ThreadPerRequest)
        .cause(cause::THREAD, 1, cause_trace)
        .flags(SURE)
}

fn request() -> Exchange {
    server(1).pid(PID).class(ProcessClass::ThreadPerRequest)
}

const TOLD: Option<SdkSpan> = Some(SdkSpan {
    sampled: true,
    ours_is_parent: false,
});

#[test]
fn a_request_that_brought_no_context_is_in_the_trace_that_its_sdk_began() {
    let plain = call(3, 1).trace(1).flags(flag::ADOPTED_CAUSE | flag::INJECTED);
    let calls = [request(), call(2, 1).w3c(9, 8), call(4, 1).w3c(9, 7), plain];
    for_every_order(&calls, |replay| {
        assert_eq!((replay.trace(1), replay.parent(1)), (trace(9), ROOT));
        assert_eq!(replay.parent(2), by(ParentSource::Header, 8));
        assert_eq!(replay.parent(3), by(ParentSource::Thread, 1));
        assert_eq!((replay.span(2).sdk, replay.span(4).sdk), (TOLD, TOLD));
        // Nothing shows that the SDK knows the request itself.
        assert_eq!((replay.span(1).sdk, replay.span(3).sdk), (None, None));
    });
}

#[test]
fn so_is_whoever_sent_it_and_is_found_later() {
    let calls = [request().wire_key(77), client(5).wire_key(77), call(2, 1).w3c(9, 8)];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        // An SDK has been seen before.
        let mut replay = Replay::of([client(6).pid(PID).w3c(19, 18).event()]);
        replay.feed(order.map(|n: usize| calls[n].event()));
        replay.settle();
        assert_eq!(replay.parent(1), by(ParentSource::Wire, 5), "{order:?}");
        for n in [1, 2, 5] {
            assert_eq!(replay.trace(n), trace(9), "{order:?}, span {n}");
        }
    }
}

#[test]
fn no_sdk_takes_a_request_out_of_a_trace_that_came_in() {
    // The other end forwards a trace of elsewhere; nothing of it came here in a header.
    let sent = client(5).w3c(7, 6).cause(cause::HEADER, 4, 7);
    for_every_order(&[sent, request().trace(7).wire(5, 7), call(2, 7).w3c(9, 8)], |replay| {
        assert_eq!((replay.trace(1), replay.trace(2)), (trace(7), trace(9)));
        assert_eq!(replay.parent(2), by(ParentSource::Header, 8));
    });
    // One that has a trace of its own.
    for_every_order(&[request().w3c(7, 6), call(2, 7).w3c(9, 8)], |replay| {
        assert_eq!((replay.trace(1), replay.trace(2)), (trace(7), trace(9)));
        assert_eq!(replay.span(1).sdk, None, "the SDK goes on with another trace");
    });
}

#[test]
fn an_sdk_that_begins_a_trace_for_each_call_knows_nothing_of_the_request() {
    let calls = [request(), call(2, 1).w3c(9, 8), call(3, 1).w3c(19, 18)];
    let mut replay = Replay::default();
    replay.feed([calls[1].event(), calls[2].event(), calls[0].event()]);
    replay.settle();
    assert_eq!(replay.trace(1), trace(1));
    assert_eq!((replay.trace(2), replay.trace(3)), (trace(9), trace(19)));
}

#[test]
fn an_sdk_that_goes_on_with_a_trace_knows_the_request() {
    for_every_order(&[request().w3c(9, 6), call(2, 9).w3c(9, 8)], |replay| {
        assert_eq!(replay.parent(1), by(ParentSource::Header, 6));
        assert_eq!((replay.span(1).sdk, replay.span(2).sdk), (TOLD, TOLD));
    });
}

#[test]
fn a_span_on_which_another_rests_is_said_to_be_a_parent() {
    let plain = call(3, 9).trace(9).flags(flag::ADOPTED_CAUSE);
    for_every_order(&[request().w3c(9, 6), call(2, 9).w3c(9, 8), plain], |replay| {
        assert_eq!(replay.parent(3), by(ParentSource::Thread, 1));
        assert!(replay.span(1).sdk.is_some_and(|sdk| sdk.ours_is_parent));
        assert_eq!((replay.span(2).sdk, replay.span(3).sdk), (TOLD, None));
    });
}

#[test]
fn what_an_sdk_has_not_sampled_it_tells_nobody() {
    let not_sampled = |exchange: Exchange| exchange.with(|record| record.flags &= !flag::SAMPLED);
    for_every_order(&[request().w3c(9, 6), not_sampled(call(2, 9).w3c(9, 8))], |replay| {
        for n in [1, 2] {
            assert!(replay.span(n).sdk.is_some_and(|sdk| !sdk.sampled), "span {n}");
        }
    });
}

#[test]
fn a_header_that_came_in_is_no_sdks() {
    let forwarded = call(2, 9).cause(cause::NONE, 0, 0).w3c(9, 6);
    for_every_order(&[request().w3c(9, 6), call(3, 9).w3c(9, 8), forwarded], |replay| {
        assert_eq!(replay.span(2).sdk, None);
    });
}
