//! Time, room and counts: everything leaves exactly once and nothing grows without bound.

use spanwire_common::abi::{cause, flag, outcome, text, ProcessClass};
use spanwire_common::drop::UserDrop;

use crate::assemble::testing::{client, link, server, tenant_text, text_of, Exchange, Replay, MS, START_NS};
use crate::assemble::{Assembler, Options, Output};
use crate::decode::Event;

#[test]
fn an_exchange_is_held_for_the_window_and_no_longer() {
    let mut replay = Replay::default();
    replay.feed([client(1).event()]);
    replay.wait_ms(950);
    assert_eq!((replay.settled.len(), replay.assembler.stats().held), (0, 1));
    replay.wait_ms(100);
    assert_eq!((replay.settled.len(), replay.assembler.stats().held), (1, 0));
}

#[test]
fn exchanges_leave_in_the_order_they_came() {
    let mut replay = Replay::default();
    for n in 1..=9 {
        replay.feed([client(n).at(9 - n, 20).event()]);
        replay.wait_ms(70);
    }
    replay.settle();
    assert_eq!(
        replay.order,
        (1..=9).map(crate::assemble::testing::span).collect::<Vec<_>>()
    );
}

#[test]
fn a_clock_that_steps_back_holds_nothing_for_ever() {
    let mut replay = Replay::default();
    replay.feed([client(1).event()]);
    replay.now_ns -= 500 * MS;
    replay.feed([client(2).event()]);
    replay.settle();
    replay.wait_ms(500);
    assert_eq!(replay.settled.len(), 2);
}

#[test]
fn flush_lets_everything_go() {
    let mut replay = Replay::default();
    replay.feed((1..=5).map(|n| client(n).event()));
    replay.flush();
    assert_eq!((replay.settled.len(), replay.assembler.stats().held), (5, 0));
}

#[test]
fn a_full_window_lets_the_oldest_go_early_and_loses_none() {
    let mut replay = Replay::new(Options {
        max_held: 10,
        ..Options::default()
    });
    replay.feed((1..=25).map(|n| client(n).event()));
    let stats = replay.assembler.stats();
    assert_eq!(
        (stats.held, stats.settled, stats.settled_early, stats.dropped),
        (10, 15, 15, 0)
    );
    replay.settle();
    assert_eq!(replay.settled.len(), 25);
    assert!(replay.dropped.is_empty());
}

#[test]
fn whoever_is_to_leave_early_is_told_before() {
    let mut replay = Replay::new(Options {
        max_held: 3,
        ..Options::default()
    });
    for n in 1..=9 {
        let leaves = replay.assembler.leaves_early();
        replay.feed([server(n).event()]);
        assert_eq!(leaves, replay.order.last().copied());
    }
    assert_eq!(replay.order.len(), 6);
}

/// A mixture of everything, different for each `n`, that hits every table.
fn flood(n: u64) -> [Event; 6] {
    let pid = 1_000 + (n % 50_000) as u32;
    let call = client(3 * n + 1)
        .pid(pid)
        .class(ProcessClass::Unclassified)
        .cause(cause::THREAD, n, 3 * n)
        .ports((n % 60_000) as u16, 80)
        .wire_key(n)
        .with(|r| r.tenant = n)
        .at(n, n + 1);
    let failed = client(3 * n + 2)
        .pid(pid)
        .class(ProcessClass::Nginx)
        .cause(cause::IO, n, n)
        .w3c(n, 7 * n)
        .outcome(outcome::RESET)
        .flags(flag::PROCESS_SERVES);
    let request = server(3 * n + 3).pid(pid).w3c(n, 5 * n).wire_key(n << 32);
    [
        text_of(n | 1 << 60, text::HEADER, 0, "never claimed"),
        tenant_text(n, "tenant"),
        link((n, 3 * n), (n + 1, 3 * n + 1)),
        call.event(),
        failed.event(),
        request.event(),
    ]
}

#[test]
fn a_flood_stays_within_bounds_and_every_exchange_is_accounted_for() {
    const ROUNDS: u64 = 100_000;
    let mut assembler = Assembler::new(Options {
        max_held: 2_000,
        ..Options::default()
    });
    let (mut settled, mut dropped, mut most) = (0, 0, 0);
    let mut now_ns = START_NS;
    for n in 1..=ROUNDS {
        let mut out = |output| match output {
            Output::Settled(_) => settled += 1,
            Output::Dropped(_, count) => dropped += count,
            Output::Alias(_) | Output::Classify { .. } | Output::Kept { .. } | Output::Unmet { .. } => {}
        };
        for event in flood(n) {
            assembler.push(event, now_ns, &mut out);
        }
        now_ns += MS / 10;
        if n % 500 == 0 {
            assembler.set_class(1_000 + (n % 50_000) as u32, ProcessClass::Other, n % 1_000 == 0);
            assembler.tick(now_ns, &mut out);
            let stats = assembler.stats();
            assert!(stats.held <= 2_000);
            most = most.max(stats.remembered);
        }
    }
    assembler.flush(&mut |output| match output {
        Output::Settled(_) => settled += 1,
        Output::Dropped(_, count) => dropped += count,
        Output::Alias(_) | Output::Classify { .. } | Output::Kept { .. } | Output::Unmet { .. } => {}
    });
    let stats = assembler.stats();
    assert_eq!(stats.exchanges, 3 * ROUNDS);
    assert_eq!(settled + dropped, stats.exchanges);
    assert_eq!((settled, dropped), (stats.settled, stats.dropped));
    assert!(stats.union_size <= 4_000 && stats.union_evicted > 0, "{stats:?}");
    assert!(stats.evicted > 0, "{stats:?}");
    assert!(most <= 120_000, "{most}");
}

#[test]
fn a_socket_joined_late_is_counted_with_its_first_exchange() {
    let joined = |n, ordinal| server(n).flags(flag::LATE_JOIN).with(move |r| r.ordinal = ordinal);
    let replay = Replay::of([
        server(1).event(),
        joined(2, 0).event(),
        joined(3, 1).event(),
        joined(4, 0).event(),
    ]);
    assert_eq!(replay.assembler.stats().joined, 2);
}

#[test]
fn every_kind_of_end_is_counted_once() {
    let exchanges: Vec<Exchange> = vec![
        client(1),
        client(2).flags(flag::OWN_TRAFFIC),
        client(3).with(|r| r.protocol = spanwire_common::abi::protocol_id::TLS),
        server(4),
    ];
    let replay = Replay::of(exchanges.iter().map(|exchange| exchange.event()));
    let stats = replay.assembler.stats();
    assert_eq!((stats.exchanges, stats.settled, stats.dropped), (4, 2, 2));
    assert_eq!(replay.dropped[&UserDrop::OpaqueUncaused], 1);
    assert_eq!(replay.dropped[&UserDrop::ExcludedProcess], 1);
}
