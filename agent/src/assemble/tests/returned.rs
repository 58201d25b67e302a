//! The parent of a proxy's call by the id that came back through it.

use spanwire_common::abi::{flag, ProcessClass};

use crate::assemble::testing::{by, client, server, unknown, Exchange, Replay};
use crate::span::{ParentSource, UnknownReason};

const PROXY: u32 = 50;

#[allow(
    clippy::large_types_passed_by_value,
    reason = "builders hand it on by value, and so read as one line"
)]
fn passes(exchange: Exchange, id: u64) -> Exchange {
    let exchange = exchange
        .pid(PROXY)
        .class(ProcessClass::Proxy)
        .flags(flag::PROCESS_SERVES);
    exchange.with(|record| record.returned_span_id = id.to_be_bytes())
}

#[test]
fn an_id_that_is_passed_on_names_the_request() {
    let request = passes(server(1), 9).at(0, 10);
    let call = passes(client(2), 9).at(1, 9);
    for records in [[request, call], [call, request]] {
        let replay = Replay::of(records.map(Exchange::event));
        assert_eq!(replay.parent(2), by(ParentSource::Header, 1));
        assert_eq!(replay.trace(2), replay.trace(1));
    }
}

#[test]
fn another_process_or_another_id_names_nobody() {
    let call = passes(client(2), 9).at(1, 9);
    let elsewhere = passes(server(1), 9).pid(51).at(0, 10);
    let other = passes(server(3), 8).at(0, 10);
    let none = passes(server(4), 0).at(0, 10);
    let replay = Replay::of([elsewhere, other, none, call].map(Exchange::event));
    assert_eq!(replay.parent(2), unknown(UnknownReason::Runtime));
    assert_ne!(replay.trace(2), replay.trace(1));
}

#[test]
fn a_response_out_of_a_cache_names_nobody() {
    let first = passes(server(1), 9).at(0, 10);
    let call = passes(client(2), 9).at(1, 9);
    let cached = (0..8).map(|nth| passes(server(10 + nth), 9).at(20 + nth, 21 + nth).event());
    let records = [call.event(), first.event()].into_iter().chain(cached);
    let replay = Replay::of(records);
    assert_eq!(replay.parent(2), by(ParentSource::Header, 1));
    assert_ne!(replay.trace(2), replay.trace(10));
}

#[test]
fn an_id_with_two_bearers_names_nobody() {
    let overlap = unknown(UnknownReason::Overlap);
    // Two requests waited for the same call.
    let waiting = [passes(server(1), 9).at(0, 10), passes(server(3), 9).at(0, 10)];
    let call = passes(client(2), 9).at(1, 9);
    let replay = Replay::of([waiting[0], waiting[1], call].map(Exchange::event));
    assert_eq!(replay.parent(2), overlap);
    // An upstream that always says the same.
    let first = [passes(client(2), 9).at(1, 9), passes(server(1), 9).at(0, 10)];
    let second = [passes(client(5), 9).at(21, 29), passes(server(4), 9).at(20, 30)];
    let replay = Replay::of([first[0], first[1], second[0], second[1]].map(Exchange::event));
    assert_eq!(replay.parent(5), overlap);
    assert_ne!(replay.trace(4), replay.trace(1));
}
