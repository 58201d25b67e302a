//! tracestate, listed headers and tenants.

use spanwire_common::abi::{cause, context_format, flag, text, ProcessClass};

use crate::assemble::testing::{client, server, tenant_text, text_of, trace, Replay};
use crate::decode::Event;

fn tracestate(lines: &[Event]) -> Option<String> {
    let mut replay = Replay::default();
    replay.feed(lines.iter().cloned());
    replay.feed([server(1).w3c(9, 8).event()]);
    replay.settle();
    assert_eq!(replay.assembler.stats().texts_waiting, 0);
    replay.span(1).tracestate.as_deref().map(str::to_owned)
}

fn line(value: &str) -> Event {
    text_of(1, text::TRACESTATE, 0, value)
}

#[test]
fn lines_of_tracestate_are_one_list() {
    assert_eq!(tracestate(&[line("a=1,b=2")]).as_deref(), Some("a=1,b=2"));
    assert_eq!(
        tracestate(&[line("a=1"), line(""), line(" b=2 ,\t")]).as_deref(),
        Some("a=1,b=2")
    );
    assert_eq!(tracestate(&[line("a=1"), line("B=2")]), None);
    assert_eq!(tracestate(&[]), None);
    let members = |count: usize| (0..count).map(|n| format!("k{n}=1")).collect::<Vec<_>>().join(",");
    assert!(tracestate(&[line(&members(16)), line(&members(16))]).is_some());
    assert_eq!(tracestate(&[line(&members(16)), line(&members(17))]), None);
}

#[test]
fn a_cut_tracestate_loses_its_last_member() {
    let Event::Text(mut cut) = line("a=1,b=2,c=3") else {
        panic!("a text")
    };
    cut.cut = 1;
    assert_eq!(tracestate(&[Event::Text(cut)]).as_deref(), Some("a=1,b=2"));
}

#[test]
fn tracestate_needs_the_traceparent_it_came_with() {
    for exchange in [
        server(1),
        server(1).w3c(9, 8).with(|r| r.context_format = context_format::B3),
    ] {
        let replay = Replay::of([line("a=1"), exchange.event()]);
        assert_eq!(replay.span(1).tracestate, None);
    }
}

#[test]
fn listed_headers_keep_place_and_order() {
    let replay = Replay::of([
        text_of(1, text::HEADER, 2, "second"),
        text_of(1, text::HEADER, 0, "first"),
        server(1).event(),
        text_of(1, text::HEADER, 2, "after its exchange"),
        text_of(1, text::HEADER, 200, "no such place"),
        text_of(3, text::HEADER, 0, "another's"),
    ]);
    let headers: Vec<(u8, &str)> = replay
        .span(1)
        .headers
        .iter()
        .map(|(index, value)| (*index, &**value))
        .collect();
    assert_eq!(headers, [(2, "second"), (0, "first"), (2, "after its exchange")]);
}

#[test]
fn a_cut_character_is_left_out() {
    let Event::Text(mut cut) = text_of(1, text::HEADER, 0, "na\u{ef}ve \u{20ac}") else {
        panic!("a text")
    };
    cut.cut = 1;
    cut.len -= 1;
    let replay = Replay::of([Event::Text(cut), server(1).event()]);
    assert_eq!(&*replay.span(1).headers[0].1, "na\u{ef}ve ");
}

#[test]
fn a_tenant_is_the_whole_traces() {
    // Only the second span of the trace bears it; the third is joined late.
    let bears = client(2)
        .pid(101)
        .trace(1)
        .class(ProcessClass::Nginx)
        .cause(cause::IO, 1, 1)
        .flags(flag::PROCESS_SERVES)
        .wire_key(5)
        .with(|r| r.tenant = 77);
    let replay = Replay::of([
        server(3).wire_key(5).event(),
        tenant_text(77, "acme"),
        bears.event(),
        server(1).event(),
        server(4).event(),
    ]);
    for n in 1..=3 {
        assert_eq!(replay.span(n).tenant.as_deref(), Some("acme"), "span {n}");
    }
    assert_eq!(replay.span(4).tenant, None);
}

#[test]
fn a_tenant_stays_for_spans_that_come_later() {
    let mut replay = Replay::of([
        tenant_text(77, "acme"),
        client(2).trace(1).with(|r| r.tenant = 77).event(),
    ]);
    replay.wait_ms(20_000);
    replay.feed([server(1).event()]);
    replay.settle();
    assert_eq!(replay.span(1).tenant.as_deref(), Some("acme"));
}

#[test]
fn the_first_tenant_of_a_trace_holds_in_any_order() {
    let first = server(1).at(0, 9).with(|r| r.tenant = 77);
    let second = client(2).trace(1).at(2, 3).with(|r| r.tenant = 78);
    for events in [[first.event(), second.event()], [second.event(), first.event()]] {
        let texts = [tenant_text(77, "acme"), tenant_text(78, "other")];
        let replay = Replay::of(texts.into_iter().chain(events));
        for n in 1..=2 {
            assert_eq!(replay.span(n).tenant.as_deref(), Some("acme"));
        }
    }
}

#[test]
fn tenants_of_merged_traces_become_the_first() {
    let sent = client(1).at(0, 9).wire_key(5);
    let received = server(2).at(1, 8).wire_key(5).with(|r| r.tenant = 78);
    let earlier = client(3).trace(1).at(0, 1).with(|r| r.tenant = 77);
    let texts = [tenant_text(77, "acme"), tenant_text(78, "other")];
    let replay = Replay::of(
        texts
            .into_iter()
            .chain([received.event(), earlier.event(), sent.event()]),
    );
    for n in 1..=3 {
        assert_eq!(
            (replay.trace(n), replay.span(n).tenant.as_deref()),
            (trace(1), Some("acme")),
            "span {n}"
        );
    }
}

#[test]
fn texts_without_an_exchange_are_forgotten() {
    let mut replay = Replay::default();
    replay.feed([line("a=1")]);
    assert_eq!(replay.assembler.stats().texts_waiting, 1);
    replay.wait_ms(1_300_000);
    assert_eq!(replay.assembler.stats().texts_waiting, 0);
}
