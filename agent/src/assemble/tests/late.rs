//! Late evidence: traces that turn out to be one.

use spanwire_common::abi::{cause, family, flag, ProcessClass};

use super::server_parents::for_every_order;
use crate::assemble::testing::{by, client, link, server, trace, unknown, Exchange, Replay, ROOT};
use crate::span::{ParentSource, TraceAlias, UnknownReason};

const WIRE: ParentSource = ParentSource::Wire;

fn alias(from: u64, to: u64) -> TraceAlias {
    TraceAlias {
        alias: trace(from),
        canonical: trace(to),
    }
}

#[test]
fn ends_the_kernel_did_not_pair_meet_by_their_key() {
    for_every_order(&[client(1).wire_key(77), server(2).wire_key(77)], |replay| {
        assert_eq!(replay.parent(2), by(WIRE, 1));
        assert_eq!((replay.trace(1), replay.trace(2)), (trace(1), trace(1)));
        assert_eq!(replay.aliases, [alias(2, 1)]);
        assert_eq!(replay.assembler.stats().wire_late, 1);
    });
}

#[test]
fn what_the_second_end_caused_comes_along() {
    // The server had a trace of its own when it called on; its own client's server met in the kernel.
    let call = client(3)
        .pid(102)
        .trace(2)
        .class(ProcessClass::ThreadPerRequest)
        .cause(cause::THREAD, 2, 2)
        .flags(flag::CAUSE_BLOCKING | flag::ADOPTED_CAUSE | flag::PROCESS_SERVES);
    let events = [
        client(1).wire_key(77),
        server(2).wire_key(77),
        call,
        server(4).trace(2).wire(3, 2).flags(flag::ADOPTED_WIRE),
    ];
    for_every_order(&events, |replay| {
        assert_eq!(replay.parent(2), by(WIRE, 1));
        assert_eq!(replay.parent(3), by(ParentSource::Thread, 2));
        assert_eq!(replay.parent(4), by(WIRE, 3));
        for n in 1..=4 {
            assert_eq!(replay.trace(n), trace(1), "span {n}");
        }
        assert_eq!(replay.aliases, [alias(2, 1)], "told once");
    });
}

#[test]
fn a_pair_must_fit() {
    let no_pair = |one: Exchange, other: Exchange| {
        for_every_order(&[one, other], |replay| {
            assert_ne!(replay.parent(2).0, WIRE);
            assert_ne!(replay.trace(1), replay.trace(2));
        });
    };
    let (sent, received) = (client(1).wire_key(77), server(2).wire_key(77));
    no_pair(sent, received.wire_key(78));
    no_pair(sent, received.path("/other"));
    no_pair(sent, received.method("POST"));
    no_pair(sent, received.with(|r| r.family = family::UNIX));
    no_pair(sent.at(500, 501), received.at(0, 1));
    no_pair(sent, received.with(|r| r.flags &= !flag::WIRE_KEY));
    no_pair(sent.with(|r| r.flags &= !flag::WIRE_KEY), received);
}

#[test]
fn the_same_key_on_one_side_twice_is_believed_on_neither() {
    let (one, two) = (client(1).wire_key(77), client(3).wire_key(77));
    let mut replay = Replay::of([one.event(), two.event(), server(2).wire_key(77).event()]);
    assert_ne!(replay.parent(2).0, WIRE);
    assert!(replay.assembler.stats().wire_doubtful >= 1);
    // A record that came twice is no second end.
    replay = Replay::default();
    replay.feed([one.event(), server(2).wire_key(77).event()]);
    replay.settle();
    assert_eq!(replay.parent(2), by(WIRE, 1));
}

#[test]
fn both_ends_saw_the_same_header() {
    // An SDK's header: one trace already, and the header's parent is nearer.
    for_every_order(
        &[client(1).w3c(9, 8).wire_key(77), server(2).w3c(9, 8).wire_key(77)],
        |replay| {
            assert_eq!(replay.parent(2), by(ParentSource::Header, 8));
            assert!(replay.aliases.is_empty());
        },
    );
    // A forwarded one.
    let forwarded = client(1).w3c(9, 8).cause(cause::HEADER, 5, 9).wire_key(77);
    for_every_order(&[forwarded, server(2).w3c(9, 8).wire_key(77)], |replay| {
        assert_eq!(replay.parent(2), by(WIRE, 1));
        assert_eq!(replay.trace(2), trace(9));
    });
}

#[test]
fn a_link_joins_ends_before_or_after_their_records() {
    let events = [client(1).event(), server(2).event(), link((1, 1), (2, 2))];
    let mut order = [0, 1, 2];
    super::server_parents::permute(&mut order, 0, &mut |order| {
        let replay = Replay::of(order.iter().map(|n| events[*n].clone()));
        assert_eq!(replay.parent(2), by(WIRE, 1));
        assert_eq!(replay.trace(2), trace(1));
        assert_eq!(replay.aliases, [alias(2, 1)]);
    });
}

#[test]
fn a_link_holds_for_exchanges_longer_than_the_window() {
    let mut replay = Replay::default();
    replay.feed([link((1, 1), (2, 2))]);
    replay.wait_ms(30_000);
    // Something the server caused left long before the server's own exchange ended.
    let call = client(3)
        .trace(2)
        .class(ProcessClass::Nginx)
        .cause(cause::IO, 2, 2)
        .flags(flag::ADOPTED_CAUSE | flag::PROCESS_SERVES);
    replay.feed([call.event()]);
    replay.settle();
    assert_eq!((replay.trace(3), replay.parent(3)), (trace(1), by(ParentSource::Io, 2)));
    assert_eq!(replay.aliases, [alias(2, 1)]);
    replay.wait_ms(30_000);
    replay.feed([server(2).event()]);
    replay.settle();
    assert_eq!((replay.trace(2), replay.parent(2)), (trace(1), by(WIRE, 1)));
    replay.wait_ms(30_000);
    replay.feed([client(1).event()]);
    replay.settle();
    assert_eq!((replay.trace(1), replay.parent(1)), (trace(1), ROOT));
    assert_eq!(replay.aliases.len(), 1);
}

#[test]
fn a_link_against_an_adopted_header_is_taken_back() {
    let events = [client(1).event(), server(2).w3c(9, 8).event(), link((1, 1), (2, 9))];
    let mut order = [0, 1, 2];
    super::server_parents::permute(&mut order, 0, &mut |order| {
        let replay = Replay::of(order.iter().map(|n| events[*n].clone()));
        assert_eq!(replay.parent(2), by(ParentSource::Header, 8));
        assert_eq!((replay.trace(1), replay.trace(2)), (trace(1), trace(9)));
        assert!(replay.aliases.is_empty());
    });
}

#[test]
fn a_client_that_knows_its_server_tells_it() {
    for_every_order(&[client(1).wire(2, 2), server(2)], |replay| {
        assert_eq!(replay.parent(2), by(WIRE, 1));
        assert_eq!((replay.trace(1), replay.trace(2)), (trace(1), trace(1)));
    });
}

#[test]
fn a_server_that_met_late_in_the_kernel_comes_over() {
    for_every_order(&[client(1), server(2).wire(1, 1)], |replay| {
        assert_eq!(replay.parent(2), by(WIRE, 1));
        assert_eq!(replay.trace(2), trace(1));
        assert_eq!(replay.aliases, [alias(2, 1)]);
    });
}

#[test]
fn chains_of_unions_end_at_the_topmost() {
    // Four services, none of whose wires met in the kernel, and no class known at request time.
    let hop = |n: u64| {
        client(n + 1)
            .pid(100 + n as u32)
            .class(ProcessClass::ThreadPerRequest)
            .cause(cause::THREAD, n, n)
            .flags(flag::CAUSE_BLOCKING | flag::PROCESS_SERVES)
            .wire_key(n + 1)
    };
    let events = [
        server(1).remote("203.0.113.7"),
        hop(1),
        server(3).wire_key(2),
        hop(3),
        server(5).wire_key(4),
        hop(5),
    ];
    for_every_order(&events, |replay| {
        for n in 1..=6 {
            assert_eq!(replay.trace(n), trace(1), "span {n}");
        }
        assert_eq!(replay.parent(6), by(ParentSource::Thread, 5));
        assert_eq!(replay.parent(5), by(WIRE, 4));
        assert_eq!(replay.aliases.len(), 5);
        for alias in &replay.aliases {
            assert_eq!(alias.canonical, trace(1));
        }
    });
}

#[test]
fn an_exchange_too_late_for_the_window_is_not_joined_by_key() {
    let mut replay = Replay::of([client(1).wire_key(77).event()]);
    replay.wait_ms(3_000);
    replay.feed([server(2).wire_key(77).event()]);
    replay.settle();
    assert_eq!(
        replay.parent(2),
        unknown(UnknownReason::LostEvent),
        "its peer's socket is known, and no more"
    );
}
