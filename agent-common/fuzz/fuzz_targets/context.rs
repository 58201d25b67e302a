//! Any header lines behind a request line: what is adopted as W3C context is what a reader written from the
//! Recommendation, byte by byte, adopts.
#![no_main]

mod settings;

use libfuzzer_sys::fuzz_target;
use spanwire_common::abi::context_format;
use spanwire_common::protocol::http1::stream::{events, Direction, Event};

/// Trace id and parent id of a traceparent's value, blanks around it taken off.
fn traceparent(value: &[u8]) -> Option<([u8; 16], [u8; 8])> {
    let lower_hex = |bytes: &[u8]| bytes.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let parts: Vec<&[u8]> = value.splitn(5, |byte| *byte == b'-').collect();
    let [version, trace, parent, flags, rest @ ..] = parts.as_slice() else {
        return None;
    };
    let sizes = (version.len(), trace.len(), parent.len(), flags.len()) == (2, 32, 16, 2);
    let digits = [version, trace, parent, flags].iter().all(|part| lower_hex(part));
    if !sizes || !digits || *version == b"ff" || (*version == b"00" && !rest.is_empty()) {
        return None;
    }
    let number = |digits: &[u8]| u128::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
    let (trace, parent) = (number(trace)?, number(parent)? as u64);
    (trace != 0 && parent != 0).then(|| (trace.to_be_bytes(), parent.to_be_bytes()))
}

/// Without the spaces and tabs around it.
fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

fuzz_target!(|lines: &[u8]| {
    let mut head = b"GET / HTTP/1.1\r\n".to_vec();
    head.extend(lines);
    head.extend(b"\r\n\r\n");
    let events = events(Direction::Requests, settings::everything(), &head, &[]);
    let Some(Event::Request(request)) = events.iter().find(|event| matches!(event, Event::Request(_))) else {
        return;
    };

    // The head was accepted: it ends at its first empty line, and its lines are well formed.
    let end = head
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap_or(head.len());
    let mut values = Vec::new();
    for line in head[16..end.max(16)].split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        if line[..colon].eq_ignore_ascii_case(b"traceparent") {
            values.push((line.len(), trim(&line[colon + 1..])));
        }
    }
    // Blanks beyond what anyone sends are not taken off, and a line is not read beyond 1008 bytes.
    if values.iter().any(|(len, _)| *len > 400) {
        return;
    }
    let expected = match values.as_slice() {
        [(_, value)] => traceparent(value),
        _ => None,
    };
    if let Some((trace, parent)) = expected {
        assert_eq!(
            (request.context_format, request.trace_id, request.parent_id),
            (context_format::W3C, trace, parent)
        );
    } else {
        assert_ne!(request.context_format, context_format::W3C);
        assert!(values.is_empty() || request.context_format == context_format::NONE);
    }
});
