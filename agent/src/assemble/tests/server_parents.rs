//! The parent of a server span: the wire, the header, or contract.md's table.

use spanwire_common::abi::{cause, context_format, family, flag, ProcessClass};

use crate::assemble::testing::{by, client, link, server, span, trace, unknown, Exchange, Replay, ROOT};
use crate::assemble::{LocalAddrs, Options};
use crate::span::{ParentSource, UnknownReason};

const WIRE: ParentSource = ParentSource::Wire;
const HEADER: ParentSource = ParentSource::Header;

#[test]
fn the_end_the_kernel_met_is_the_parent() {
    let replay = Replay::of([
        client(1).event(),
        server(2).trace(1).wire(1, 1).flags(flag::ADOPTED_WIRE).event(),
    ]);
    assert_eq!(replay.parent(2), by(WIRE, 1));
    assert_eq!(replay.parent(1), ROOT);
    assert_eq!((replay.trace(1), replay.trace(2)), (trace(1), trace(1)));
    assert!(replay.aliases.is_empty());
}

#[test]
fn a_server_whose_sender_may_come_second_is_looked_for() {
    let mut replay = Replay::default();
    replay.feed([
        client(1).event(),
        server(2).trace(1).wire(1, 1).event(),
        server(3).wire_key(7).event(),
        server(4).wire_key(8).remote("203.0.113.7").event(),
    ]);
    assert_eq!(replay.unmet, [span(3)], "neither the met one nor the stranger");
    replay.feed([link((5, 5), (3, 3))]);
    replay.settle();
    assert_eq!(replay.parent(3), by(WIRE, 5));
    assert_eq!(replay.trace(3), trace(5));
}

#[test]
fn a_unix_peer_is_known_by_its_cookie() {
    let unix = |exchange: Exchange| exchange.with(|record| record.family = family::UNIX);
    let peer = |cookie: u64| {
        move |record: &mut spanwire_common::abi::ExchangeRecord| {
            record.remote_addr[..8].copy_from_slice(&cookie.to_ne_bytes());
        }
    };
    let replay = Replay::of([
        unix(client(1).with(|record| record.cookie = 77)).event(),
        unix(server(2).with(peer(77))).event(),
        unix(server(3).with(peer(78))).event(),
        unix(server(4).with(peer(78)).flags(flag::LATE_JOIN)).event(),
    ]);
    assert_eq!(
        replay.parent(2),
        unknown(UnknownReason::LostEvent),
        "captured, and not met"
    );
    assert_eq!(replay.parent(3), ROOT, "not captured");
    assert_eq!(replay.parent(4), unknown(UnknownReason::AttachedLate), "nothing tells");
}

#[test]
fn a_header_from_outside_is_the_parent() {
    let replay = Replay::of([server(2).w3c(9, 8).remote("203.0.113.7").event()]);
    assert_eq!(replay.parent(2), by(HEADER, 8));
    assert_eq!(replay.trace(2), trace(9));
}

#[test]
fn a_forwarded_header_gives_way_to_the_wire() {
    // 8 -> request 1 of a proxy -> call 2, which carries 8's header on -> request 3.
    let events = [
        server(1).pid(50).w3c(9, 8).remote("203.0.113.7"),
        client(2)
            .pid(50)
            .class(ProcessClass::Proxy)
            .w3c(9, 8)
            .cause(cause::HEADER, 1, 9),
        server(3).w3c(9, 8).wire(2, 9),
    ];
    for_every_order(&events, |replay| {
        assert_eq!(replay.parent(1), by(HEADER, 8));
        assert_eq!(replay.parent(2), by(HEADER, 1));
        assert_eq!(replay.parent(3), by(WIRE, 2));
    });
}

#[test]
fn a_forwarded_header_gives_way_to_the_wire_where_the_forwarder_is_unknown_too() {
    // Forwarded after its request was answered, and forwarded while two had it: neither is an SDK's.
    let request = server(1).pid(50).w3c(9, 8).remote("203.0.113.7");
    let late = client(2).pid(50).class(ProcessClass::EventLoop).w3c(9, 8);
    for_every_order(&[request, late, server(3).w3c(9, 8).wire(2, 9)], |replay| {
        assert_eq!(replay.parent(2), unknown(UnknownReason::Handoff));
        assert_eq!(replay.parent(3), by(WIRE, 2));
    });
    let both = late.flags(flag::AMBIGUOUS);
    for_every_order(&[both, server(3).w3c(9, 8).wire(2, 9)], |replay| {
        assert_eq!(replay.parent(2), unknown(UnknownReason::Overlap));
        assert_eq!(replay.parent(3), by(WIRE, 2));
    });
}

#[test]
fn a_header_of_the_senders_sdk_is_nearer_than_the_wire() {
    let events = [
        client(2).class(ProcessClass::EventLoop).w3c(9, 8),
        server(3).w3c(9, 8).wire(2, 9),
    ];
    for_every_order(&events, |replay| {
        assert_eq!(replay.parent(2), by(HEADER, 8));
        assert_eq!(replay.parent(3), by(HEADER, 8));
    });
}

#[test]
fn where_the_senders_record_was_lost_the_wire_holds() {
    let replay = Replay::of([server(3).w3c(9, 8).wire(2, 9).event()]);
    assert_eq!(replay.parent(3), by(WIRE, 2));
}

#[test]
fn a_header_of_another_trace_than_the_senders_holds_and_both_traces_stay() {
    let events = [client(2), server(3).w3c(9, 8).wire(2, 2)];
    for_every_order(&events, |replay| {
        assert_eq!(replay.parent(3), by(HEADER, 8));
        assert_eq!((replay.trace(2), replay.trace(3)), (trace(2), trace(9)));
        assert!(replay.aliases.is_empty());
    });
}

#[test]
fn an_adopted_trace_id_without_parent_id_takes_the_wire_of_the_same_trace() {
    let xray = |exchange: Exchange| {
        exchange
            .trace(9)
            .flags(flag::ADOPTED_HEADER)
            .with(|r| r.context_format = context_format::XRAY)
    };
    for_every_order(&[xray(client(2)), xray(server(3)).wire(2, 9)], |replay| {
        assert_eq!(replay.parent(3), by(WIRE, 2));
        assert_eq!(replay.trace(3), trace(9));
    });
    let replay = Replay::of([xray(server(3)).remote("203.0.113.7").event()]);
    assert_eq!(replay.parent(3), ROOT);
    assert_eq!(replay.trace(3), trace(9));
}

#[test]
fn the_table_of_those_without_an_exact_parent() {
    let mut local = LocalAddrs::default();
    local.addresses.insert("10.0.0.5".parse().unwrap());
    let mut replay = Replay::new(Options {
        local,
        ..Options::default()
    });
    let request = |n: u64, peer: &str| server(n).local("10.0.0.5").remote(peer);
    let lost = unknown(UnknownReason::LostEvent);
    let remote = unknown(UnknownReason::Remote);
    let cases = [
        // Local and not captured.
        (server(1), ROOT),
        (request(2, "10.0.0.5"), ROOT),
        (server(3).local("::1").remote("::1"), ROOT),
        (server(4).with(|r| r.family = family::UNIX), ROOT),
        // Outside the local ranges.
        (request(5, "203.0.113.7"), ROOT),
        (server(6).local("2001:db8::5").remote("2001:db8::9"), ROOT),
        // Local and captured, as the kernel says.
        (server(7).flags(flag::WIRE_MATCHED), lost),
        (
            server(8).with(|r| r.family = family::UNIX).flags(flag::WIRE_MATCHED),
            lost,
        ),
        // Another peer inside the local ranges.
        (request(9, "10.0.0.6"), remote),
        (request(10, "192.168.1.1"), remote),
        (server(11).local("fd00::5").remote("fd00::6"), remote),
        (server(12).local("10.0.0.5").remote("::ffff:10.0.0.6"), remote),
    ];
    replay.feed(cases.iter().map(|(exchange, _)| exchange.event()));
    replay.settle();
    for (n, (_, expected)) in cases.iter().enumerate() {
        assert_eq!(replay.parent(n as u64 + 1), *expected, "case {}", n + 1);
    }
    assert_eq!(replay.assembler.stats().wire_missed, 2);
}

#[test]
fn a_peer_that_turns_out_not_to_be_captured_makes_a_root() {
    let mut replay = Replay::default();
    let call = client(1).pid(77).class(ProcessClass::Unclassified).ports(51_000, 80);
    replay.feed([call.event(), server(2).ports(80, 51_000).event()]);
    replay.assembler.set_class(77, ProcessClass::Other, true);
    replay.settle();
    // On the same connection, later.
    replay.feed([server(3).ports(80, 51_000).event()]);
    replay.settle();
    assert_eq!((replay.parent(2), replay.parent(3)), (ROOT, ROOT));
}

#[test]
fn a_peer_is_captured_when_a_client_was_seen_at_its_socket() {
    let request = server(2).ports(80, 51_000);
    let same_connection = client(1).ports(51_000, 80);
    for_every_order(&[request, same_connection], |replay| {
        assert_eq!(replay.parent(2), unknown(UnknownReason::LostEvent));
    });
    // Loopback in another namespace is another socket; an address that others can reach is not.
    let elsewhere = same_connection.with(|r| r.netns = 2);
    assert_eq!(Replay::of([elsewhere.event(), request.event()]).parent(2), ROOT);
    let call = client(1)
        .local("10.9.0.1")
        .remote("10.9.0.2")
        .ports(51_000, 80)
        .with(|r| r.netns = 2);
    let request = request.local("10.9.0.2").remote("10.9.0.1");
    assert_eq!(
        Replay::of([call.event(), request.event()]).parent(2),
        unknown(UnknownReason::LostEvent)
    );
}

#[test]
fn a_containers_address_is_known_by_its_sockets() {
    let request = server(2).local("172.17.0.2").remote("172.17.0.3");
    assert_eq!(Replay::of([request.event()]).parent(2), unknown(UnknownReason::Remote));
    let neighbour = server(3).local("172.17.0.3").remote("203.0.113.7");
    let replay = Replay::of([neighbour.event(), request.event()]);
    assert_eq!(replay.parent(2), ROOT, "a process on this node that is not captured");
}

#[test]
fn addresses_can_be_changed_while_running() {
    let mut replay = Replay::default();
    let request = |n| server(n).local("10.0.0.5").remote("10.0.0.7").event();
    replay.feed([request(2)]);
    replay.settle();
    assert_eq!(replay.parent(2), unknown(UnknownReason::Remote));
    replay.feed([request(3)]);
    replay.assembler.set_addresses(["10.0.0.7".parse().unwrap()].into());
    replay.settle();
    assert_eq!(replay.parent(3), ROOT, "the peer is this node");
}

/// Replays all orders of these.
pub(super) fn for_every_order(exchanges: &[Exchange], check: impl Fn(&Replay)) {
    let mut order: Vec<usize> = (0..exchanges.len()).collect();
    permute(&mut order, 0, &mut |order| {
        check(&Replay::of(order.iter().map(|n| exchanges[*n].event())));
    });
}

/// Heap-free permutations: each place is swapped with each after it.
pub(super) fn permute(items: &mut [usize], from: usize, each: &mut impl FnMut(&[usize])) {
    if from == items.len() {
        each(items);
        return;
    }
    for other in from..items.len() {
        items.swap(from, other);
        permute(items, from + 1, each);
        items.swap(from, other);
    }
}
