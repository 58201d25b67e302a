//! `http.request.resend_count`, and the trace that attempts share.

use spanwire_common::abi::{cause, flag, outcome, protocol_id, ProcessClass};

use crate::assemble::testing::{client, server, trace, Exchange, Replay, ROOT};

/// Call `n` of request 90, from `begin` to `end` (ms), by a thread-per-request process.
fn call(n: u64, begin: u64, end: u64) -> Exchange {
    client(n)
        .pid(50)
        .trace(90)
        .class(ProcessClass::ThreadPerRequest)
        .cause(cause::THREAD, 90, 90)
        .flags(flag::CAUSE_BLOCKING | flag::ADOPTED_CAUSE | flag::PROCESS_SERVES)
        .with(|r| r.host_hash = 7)
        .path("/orders")
        .at(begin, end)
}

/// Call `n` by one thread of a script that serves nobody.
fn script(n: u64, begin: u64, end: u64) -> Exchange {
    client(n)
        .pid(50)
        .class(ProcessClass::ThreadPerRequest)
        .path("/orders")
        .at(begin, end)
}

/// As [`call`], by an nginx worker.
fn upstream(n: u64, begin: u64, end: u64) -> Exchange {
    call(n, begin, end).class(ProcessClass::Nginx).cause(cause::IO, 90, 90)
}

fn counts(exchanges: &[Exchange]) -> Vec<u32> {
    let replay = Replay::of(exchanges.iter().map(|exchange| exchange.event()));
    exchanges
        .iter()
        .map(|exchange| replay.settled[&crate::span::SpanId(exchange.0.span_id)].resend_count)
        .collect()
}

#[test]
fn attempts_after_failures_are_numbered() {
    let attempts = [call(1, 0, 1).status(503), call(2, 2, 3).status(503), call(3, 4, 5)];
    assert_eq!(counts(&attempts), [0, 1, 2]);
    let replay = Replay::of(attempts.map(Exchange::event));
    for n in 1..=3 {
        assert_eq!(replay.trace(n), trace(90));
    }
    assert_eq!(replay.assembler.stats().attempts, 2);
}

#[test]
fn what_counts_as_a_failure() {
    for (status, repeated) in [
        (200, 0),
        (301, 0),
        (400, 0),
        (404, 0),
        (408, 1),
        (409, 0),
        (429, 1),
        (499, 0),
        (500, 1),
        (503, 1),
        (599, 1),
    ] {
        assert_eq!(
            counts(&[call(1, 0, 1).status(status), call(2, 2, 3)]),
            [0, repeated],
            "status {status}"
        );
    }
    for (ended, repeated) in [
        (outcome::COMPLETE, 0),
        (outcome::CLOSED, 1),
        (outcome::RESET, 1),
        (outcome::TIMEOUT, 1),
        (outcome::UPGRADED, 0),
        (outcome::OUT_OF_STEP, 0),
        (outcome::EXIT, 0),
    ] {
        assert_eq!(
            counts(&[call(1, 0, 1).outcome(ended), call(2, 2, 3)]),
            [0, repeated],
            "outcome {ended}"
        );
    }
}

#[test]
fn only_the_same_request_to_the_same_target_is_repeated() {
    let failed = call(1, 0, 1).status(503);
    for (name, other) in [
        ("method", call(2, 2, 3).method("POST")),
        ("path", call(2, 2, 3).path("/other")),
        ("host", call(2, 2, 3).with(|r| r.host_hash = 8)),
        ("request", call(2, 2, 3).cause(cause::THREAD, 91, 90)),
        ("begun before the failure", call(2, 0, 3)),
        ("no known request", call(2, 2, 3).flags(flag::AMBIGUOUS)),
        ("an SDK's own attempt", call(2, 2, 3).w3c(90, 33)),
    ] {
        assert_eq!(counts(&[failed, other]), [0, 0], "{name}");
    }
    // Any address of the same host is the same target; without a host it is the port.
    assert_eq!(
        counts(&[failed, call(2, 2, 3).remote("10.0.0.9").ports(1, 8080)]),
        [0, 1]
    );
    let no_host = |exchange: Exchange| exchange.with(|r| r.host_hash = 0);
    assert_eq!(
        counts(&[no_host(failed), no_host(call(2, 2, 3)).remote("10.0.0.9")]),
        [0, 1]
    );
    assert_eq!(
        counts(&[no_host(failed), no_host(call(2, 2, 3)).ports(1, 8080)]),
        [0, 0]
    );
}

#[test]
fn other_calls_of_the_request_in_between_change_nothing() {
    let attempts = [call(1, 0, 1).status(503), call(2, 2, 3).path("/token"), call(3, 4, 5)];
    assert_eq!(counts(&attempts), [0, 0, 1]);
}

#[test]
fn a_success_ends_the_row() {
    let attempts = [
        call(1, 0, 1).status(503),
        call(2, 2, 3),
        call(3, 4, 5),
        call(4, 6, 7).status(500),
        call(5, 8, 9),
    ];
    assert_eq!(counts(&attempts), [0, 1, 0, 0, 1]);
}

#[test]
fn failures_and_their_repetition_may_come_in_either_order() {
    let attempts = [call(2, 2, 3), call(1, 0, 1).status(503)];
    assert_eq!(counts(&attempts), [1, 0]);
    let attempts = [call(3, 4, 5), call(2, 2, 3).status(503), call(1, 0, 1).status(503)];
    assert_eq!(counts(&attempts), [2, 1, 0]);
}

#[test]
fn a_refused_connect_is_an_attempt_for_its_port() {
    let refused = call(1, 0, 1).connect(outcome::CONNECT_REFUSED);
    assert_eq!(counts(&[refused, call(2, 2, 3)]), [0, 1]);
    assert_eq!(counts(&[refused, call(2, 2, 3).ports(1, 8080)]), [0, 0]);
    let timed_out = call(2, 2, 3).connect(outcome::CONNECT_TIMEOUT);
    assert_eq!(counts(&[refused, timed_out, call(3, 4, 5)]), [0, 1, 2]);
}

#[test]
fn a_connect_without_first_byte_begins_when_it_ends() {
    let refused = call(1, 0, 1)
        .connect(outcome::CONNECT_RESET)
        .with(|r| r.request_first_ns = 0);
    assert_eq!(counts(&[refused, call(2, 2, 3)]), [0, 1]);
}

#[test]
fn nginx_tries_the_next_of_the_group_whatever_its_port() {
    let refused = upstream(1, 0, 1).connect(outcome::CONNECT_REFUSED).ports(1, 9001);
    assert_eq!(counts(&[refused, upstream(2, 2, 3).ports(2, 9002)]), [0, 1]);
    let answered = [
        upstream(1, 0, 1).status(502).ports(1, 9001),
        upstream(2, 2, 3).ports(2, 9002),
    ];
    assert_eq!(counts(&answered), [0, 1]);
}

#[test]
fn a_scripts_retry_is_in_the_trace_of_its_first_attempt() {
    let attempts = [
        script(1, 0, 1).status(503),
        script(2, 2, 3).outcome(outcome::RESET),
        script(3, 4, 5),
    ];
    assert_eq!(counts(&attempts), [0, 1, 2]);
    let mut events: Vec<_> = attempts.iter().map(|exchange| exchange.event()).collect();
    // What the last attempt reached bears its id, and left the node's kernel before it.
    events.insert(2, server(4).trace(3).wire(3, 3).event());
    let replay = Replay::of(events);
    for n in 1..=4 {
        assert_eq!(replay.trace(n), trace(1), "span {n}");
    }
    for n in 1..=3 {
        assert_eq!(replay.parent(n), ROOT, "attempt {n}");
    }
}

#[test]
fn a_scripts_next_call_is_no_retry() {
    let failed = script(1, 0, 1).status(503);
    for (name, other) in [
        ("path", script(2, 2, 3).path("/other")),
        ("thread", script(2, 2, 3).tid(51)),
        ("process", script(2, 2, 3).pid(51)),
        ("too late", script(2, 61_000, 61_001)),
        ("at the same time", script(2, 0, 3)),
        ("load generator", script(2, 2, 3).class(ProcessClass::Other)),
        ("event loop", script(2, 2, 3).class(ProcessClass::EventLoop)),
        ("serves", script(2, 2, 3).flags(flag::PROCESS_SERVES)),
    ] {
        let replay = Replay::of([failed.event(), other.event()]);
        assert_eq!(replay.span(2).resend_count, 0, "{name}");
        assert_eq!(replay.trace(2), trace(2), "{name}");
    }
    let with_another_between = [failed, script(2, 2, 3).path("/token"), script(3, 4, 5)];
    assert_eq!(counts(&with_another_between), [0, 0, 0]);
    let after_success = [failed, script(2, 2, 3), script(3, 4, 5)];
    assert_eq!(counts(&after_success), [0, 1, 0]);
}

#[test]
fn a_script_that_never_gives_up_is_not_one_endless_trace() {
    let calls: Vec<Exchange> = (1..=40).map(|n| script(n, n * 10, n * 10 + 1).status(503)).collect();
    let replay = Replay::of(calls.iter().map(|exchange| exchange.event()));
    let expected: Vec<u32> = (0..40).map(|n| n % 17).collect();
    assert_eq!(counts(&calls), expected);
    let mut of_trace = std::collections::BTreeMap::<_, u32>::new();
    for n in 1..=40 {
        *of_trace.entry(replay.trace(n)).or_default() += 1;
    }
    assert_eq!(of_trace.into_values().collect::<Vec<_>>(), [17, 17, 6]);
}

#[test]
fn a_class_that_comes_late_still_joins_a_scripts_attempts() {
    let mut replay = Replay::default();
    let unclassified = |exchange: Exchange| exchange.class(ProcessClass::Unclassified).event();
    replay.feed([unclassified(script(1, 0, 1).status(503)), unclassified(script(2, 2, 3))]);
    replay.assembler.set_class(50, ProcessClass::ThreadPerRequest, false);
    replay.settle();
    assert_eq!((replay.span(2).resend_count, replay.trace(2)), (1, trace(1)));
}

#[test]
fn opaque_calls_are_no_attempts() {
    let opaque = |exchange: Exchange| exchange.method("").path("").with(|r| r.protocol = protocol_id::OPAQUE);
    let attempts = [opaque(call(1, 0, 1)).outcome(outcome::RESET), opaque(call(2, 2, 3))];
    assert_eq!(counts(&attempts), [0, 0]);
}
