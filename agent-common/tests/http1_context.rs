//! Trace context in request heads: what is adopted, and what is not.
#![cfg(feature = "host")]

mod support;

use spanwire_common::abi::context_format as format;
use spanwire_common::protocol::context::flag;
use support::*;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// Format, trace id, parent id and flags that come of these header lines.
fn context(lines: &[&str]) -> (u8, String, String, u8) {
    let head = format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n\r\n", lines.join("\r\n"));
    let events = requests(head.as_bytes());
    assert_eq!(events, requests_by(head.as_bytes(), 7), "{lines:?} in pieces");
    let r = first_request(&events);
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
    };
    (r.context_format, hex(&r.trace_id), hex(&r.parent_id), r.context_flags)
}

fn none(flags: u8) -> (u8, String, String, u8) {
    (format::NONE, "0".repeat(32), "0".repeat(16), flags)
}

fn adopted(format: u8, flags: u8) -> (u8, String, String, u8) {
    (format, TRACE.into(), PARENT.into(), flags)
}

const YES: u8 = flag::SAMPLED | flag::DECIDED;
const NO: u8 = flag::DECIDED;

#[test]
fn a_valid_traceparent_is_adopted() {
    for line in [
        format!("traceparent: 00-{TRACE}-{PARENT}-01"),
        format!("TraceParent:00-{TRACE}-{PARENT}-01"),
        format!("TRACEPARENT: \t 00-{TRACE}-{PARENT}-01 \t "),
        format!("traceparent: cc-{TRACE}-{PARENT}-01"),
        format!("traceparent: cc-{TRACE}-{PARENT}-01-what-the-future-will-be-like"),
        format!("traceparent: cc-{TRACE}-{PARENT}-01-"),
        format!("traceparent: 01-{TRACE}-{PARENT}-03"),
    ] {
        assert_eq!(context(&[&line]), adopted(format::W3C, YES), "{line}");
    }
    let spaced = format!(
        "traceparent: {}00-{TRACE}-{PARENT}-00{}",
        " ".repeat(300),
        "\t".repeat(300)
    );
    assert_eq!(context(&[&spaced]), adopted(format::W3C, NO));
    let random = format!("traceparent: 00-{TRACE}-{PARENT}-03");
    assert_eq!(context(&[&random]), adopted(format::W3C, YES | flag::RANDOM));
    let unknown_flags = format!("traceparent: 00-{TRACE}-{PARENT}-fd");
    assert_eq!(context(&[&unknown_flags]), adopted(format::W3C, YES));
}

#[test]
fn an_invalid_traceparent_is_refused() {
    let upper = TRACE.to_uppercase();
    for value in [
        String::new(),
        format!("00-{TRACE}-{PARENT}-01-"),
        format!("00-{TRACE}-{PARENT}-01-x"),
        format!("00-{TRACE}-{PARENT}-01."),
        format!("00-{TRACE}-{PARENT}-011"),
        format!("00-{TRACE}-{PARENT}-1"),
        format!("00-{TRACE}-{PARENT}-"),
        format!("00-{TRACE}-{PARENT}"),
        format!("00-{TRACE}-{PARENT}-0x"),
        format!("00-{TRACE}-{PARENT}-.0"),
        format!("00-{TRACE}-{PARENT}-0A"),
        format!("cc-{TRACE}-{PARENT}-01.what"),
        format!("cc-{TRACE}-{PARENT}-011"),
        format!("ff-{TRACE}-{PARENT}-01"),
        format!("0-{TRACE}-{PARENT}-01"),
        format!("000-{TRACE}-{PARENT}-01"),
        format!(".0-{TRACE}-{PARENT}-01"),
        format!("0.-{TRACE}-{PARENT}-01"),
        format!("CC-{TRACE}-{PARENT}-01"),
        format!("00-{}-{PARENT}-01", "0".repeat(32)),
        format!("00-{TRACE}-{}-01", "0".repeat(16)),
        format!("00-{upper}-{PARENT}-01"),
        format!("00-{TRACE}-{}-01", PARENT.to_uppercase()),
        format!("00-.{}-{PARENT}-01", &TRACE[1..]),
        format!("00-{}.-{PARENT}-01", &TRACE[..31]),
        format!("00-{}-{PARENT}-01", &TRACE[1..]),
        format!("00-{TRACE}0-{PARENT}-01"),
        format!("00-{TRACE}-{}-01", &PARENT[1..]),
        format!("00-{TRACE}-{PARENT}0-01"),
        format!("00_{TRACE}_{PARENT}_01"),
        format!("00-{TRACE}-{PARENT}-01, 00-{TRACE}-{PARENT}-01"),
        "x".repeat(2000),
    ] {
        assert_eq!(
            context(&[&format!("traceparent: {value}")]),
            none(flag::INVALID),
            "{value}"
        );
    }
}

#[test]
fn two_traceparents_are_none() {
    let line = format!("traceparent: 00-{TRACE}-{PARENT}-01");
    assert_eq!(context(&[&line, &line]), none(flag::INVALID));
    assert_eq!(context(&["traceparent: nonsense", &line]), none(flag::INVALID));
    assert_eq!(
        context(&[&line, &format!("b3: {TRACE}-{PARENT}-1"), "Traceparent:"]),
        none(flag::INVALID)
    );
}

#[test]
fn names_that_are_not_ours() {
    for name in [
        "trace-parent",
        "trace.parent",
        "traceparen",
        "traceparentt",
        "xtraceparent",
        "tracepa-ent",
    ] {
        assert_eq!(
            context(&[&format!("{name}: 00-{TRACE}-{PARENT}-01")]),
            none(0),
            "{name}"
        );
    }
}

#[test]
fn tracestate_lines_come_in_order_and_trimmed() {
    let head = b"GET / HTTP/1.1\r\nTraceState: foo=1, bar=2 \r\ntracestate:\r\ntracestate: \t\r\ntrace-state: no=1\r\ntracestate:\tx=y\r\n\r\n";
    assert_eq!(
        shape(&requests(head)),
        "begin text:1:0:foo=1, bar=2 text:1:0:x=y GET / end:0"
    );
    for (len, kept, cut) in [(768, 768, false), (769, 768, true), (3000, 768, true)] {
        let long = format!("GET / HTTP/1.1\r\ntracestate: {}\r\n\r\n", "t".repeat(len));
        let text = Event::Text {
            what: 1,
            index: 0,
            cut,
            hash: 0,
            bytes: vec![b't'; kept],
        };
        assert!(requests(long.as_bytes()).contains(&text), "{len}");
        assert!(requests_by(long.as_bytes(), 100).contains(&text), "{len} in pieces");
    }
}

#[test]
fn b3() {
    for (line, expected) in [
        (format!("b3: {TRACE}-{PARENT}"), adopted(format::B3, 0)),
        (format!("B3: {TRACE}-{PARENT}-1"), adopted(format::B3, YES)),
        (format!("b3: {TRACE}-{PARENT}-d"), adopted(format::B3, YES)),
        (
            format!("b3: {TRACE}-{PARENT}-0-05e3ac9a4f6e3b90"),
            adopted(format::B3, NO),
        ),
        (
            format!("b3: {}-{PARENT}-1", TRACE.to_uppercase()),
            adopted(format::B3, YES),
        ),
        ("b3: 0".into(), none(0)),
        ("b3: 1".into(), none(0)),
        ("b3:".into(), none(0)),
        (format!("b3: {TRACE}"), none(0)),
        (format!("b3: {TRACE}-"), none(0)),
        (format!("b3: {TRACE}-{PARENT}-"), none(0)),
        (format!("b3: {TRACE}-{PARENT}-11"), none(0)),
        (format!("b3: {TRACE}-{PARENT}0"), none(0)),
        (format!("b3: {TRACE}-{PARENT}-1-"), none(0)),
        (format!("b3: {}-{PARENT}-1", &TRACE[1..]), none(0)),
        (format!("b3: {TRACE}-{}-1", &PARENT[1..]), none(0)),
        (format!("b3: {TRACE}-{}-1", "0".repeat(16)), none(0)),
        (format!("b3: {}-{PARENT}-1", "0".repeat(32)), none(0)),
        (
            format!("b3: {TRACE}-{PARENT}-1\r\nb3: {TRACE}-{TRACE}"),
            adopted(format::B3, YES),
        ),
        (
            format!("b3: {TRACE}-{PARENT}-1\r\nb3: {TRACE}-1{}-1", &PARENT[1..]),
            none(0),
        ),
    ] {
        assert_eq!(context(&[&line]), expected, "{line}");
    }
    let short = context(&[&format!("b3: {}-{PARENT}-1", &TRACE[16..])]);
    assert_eq!(short.1, format!("{}{}", "0".repeat(16), &TRACE[16..]));
}

#[test]
fn b3_in_several_headers() {
    let trace = format!("X-B3-TraceId: {TRACE}");
    let span = format!("X-B3-SpanId: {PARENT}");
    assert_eq!(context(&[&trace, &span]), adopted(format::B3, 0));
    assert_eq!(
        context(&["x-b3-sampled: 1", &span, "x-b3-parentspanid: 05e3ac9a4f6e3b90", &trace]),
        adopted(format::B3, YES)
    );
    assert_eq!(
        context(&[&trace, &span, "x-b3-sampled: false"]),
        adopted(format::B3, NO)
    );
    assert_eq!(context(&[&trace, &span, "x-b3-flags: 1"]), adopted(format::B3, YES));
    assert_eq!(context(&[&trace, "x-b3-sampled: 1"]), none(0));
    assert_eq!(context(&[&span]), none(0));
    assert_eq!(
        context(&[&trace, &span, &format!("b3: {TRACE}-{PARENT}-1")]),
        adopted(format::B3, YES)
    );
}

#[test]
fn jaeger() {
    for (line, expected) in [
        (
            format!("uber-trace-id: {TRACE}:{PARENT}:0:1"),
            adopted(format::JAEGER, YES),
        ),
        (
            format!("Uber-Trace-Id: {TRACE}:{PARENT}:{PARENT}:0"),
            adopted(format::JAEGER, NO),
        ),
        (
            format!("uber-trace-id: {}:{PARENT}:0:3", &TRACE[1..]),
            adopted(format::JAEGER, YES),
        ),
        (format!("uber-trace-id: {TRACE}:{PARENT}:0"), none(0)),
        (format!("uber-trace-id: {TRACE}:{PARENT}:0:"), none(0)),
        (format!("uber-trace-id: {TRACE}:{PARENT}:0:111"), none(0)),
        (format!("uber-trace-id: 0:{PARENT}:0:1"), none(0)),
        (format!("uber-trace-id: {TRACE}:0:0:1"), none(0)),
        (format!("uber-trace-id: {TRACE}0:{PARENT}:0:1"), none(0)),
        (format!("uber-trace-id: :{PARENT}:0:1"), none(0)),
        ("uber-trace-id: ".into(), none(0)),
    ] {
        assert_eq!(context(&[&line]), expected, "{line}");
    }
    assert_eq!(context(&["uber-trace-id: 1:a:0:1"]).1, format!("{:032x}", 1));
}

#[test]
fn xray() {
    let root = format!("Root=1-{}-{}", &TRACE[..8], &TRACE[8..]);
    for (line, expected) in [
        (
            format!("X-Amzn-Trace-Id: {root};Parent={PARENT};Sampled=1"),
            adopted(format::XRAY, YES),
        ),
        (
            format!("x-amzn-trace-id: Self=1-67891234-12456789abcdef012345678;{root}; Parent={PARENT}; Sampled=0"),
            adopted(format::XRAY, NO),
        ),
        (
            format!("x-amzn-trace-id: Sampled=?;Parent={PARENT};{root}"),
            adopted(format::XRAY, 0),
        ),
        (format!("x-amzn-trace-id: {root}"), none(0)),
        (format!("x-amzn-trace-id: {root}0;Parent={PARENT}"), none(0)),
        (format!("x-amzn-trace-id: {root};Parent={PARENT}0"), none(0)),
        (
            format!("x-amzn-trace-id: {};Parent={PARENT}", root.replace("=1-", "=2-")),
            none(0),
        ),
        (format!("x-amzn-trace-id: ;;;;;;;;;;{root};Parent={PARENT}"), none(0)),
    ] {
        assert_eq!(context(&[&line]), expected, "{line}");
    }
}

#[test]
fn datadog() {
    let low = u64::from_str_radix(&TRACE[16..], 16).unwrap_or(0);
    let parent = u64::from_str_radix(PARENT, 16).unwrap_or(0);
    let trace_line = format!("X-Datadog-Trace-Id: {low}");
    let parent_line = format!("x-datadog-parent-id: {parent}");
    let expected = (
        format::DATADOG,
        format!("{:0>32}", &TRACE[16..]),
        PARENT.to_owned(),
        YES,
    );
    assert_eq!(
        context(&[&trace_line, &parent_line, "x-datadog-sampling-priority: 2"]),
        expected
    );
    assert_eq!(
        context(&["x-datadog-sampling-priority: -1", &parent_line, &trace_line]).3,
        NO
    );
    assert_eq!(context(&[&trace_line]), none(0));
    assert_eq!(
        context(&["x-datadog-trace-id: 18446744073709551616", &parent_line]),
        none(0)
    );
    assert_eq!(
        context(&["x-datadog-trace-id: 18446744073709551615", &parent_line]).1,
        format!("{:032x}", u64::MAX)
    );
}

#[test]
fn precedence_does_not_depend_on_the_order() {
    let lines = [
        format!("traceparent: 00-{TRACE}-{PARENT}-01"),
        format!("b3: {PARENT}{PARENT}-{PARENT}-0"),
        "uber-trace-id: 1:2:0:0".to_owned(),
        "x-amzn-trace-id: Root=1-00000000-000000000000000000000003;Parent=0000000000000004;Sampled=0".to_owned(),
        "x-datadog-trace-id: 5\r\nx-datadog-parent-id: 6\r\nx-datadog-sampling-priority: 0".to_owned(),
    ];
    for first in 0..lines.len() {
        let present: Vec<&str> = lines[first..].iter().map(String::as_str).collect();
        let reversed: Vec<&str> = present.iter().rev().copied().collect();
        assert_eq!(context(&present), context(&reversed));
        assert_eq!(usize::from(context(&present).0), first + 1);
    }
}

#[test]
fn nothing_is_left_over_from_the_request_before() {
    let head = format!(
        "GET /long/path HTTP/1.1\r\nHost: h\r\ntraceparent: 00-{TRACE}-{PARENT}-01\r\n\r\nGET /x HTTP/1.1\r\n\r\n"
    );
    let events = requests(head.as_bytes());
    let fresh = requests(b"GET /x HTTP/1.1\r\n\r\n");
    assert_eq!(last_request(&events), first_request(&fresh));
}
