//! Any lines of a tracestate: the list is the one that a plain reader makes of them.
#![no_main]

#[path = "../../tests/plain_tracestate/mod.rs"]
mod plain_tracestate;

use libfuzzer_sys::fuzz_target;
use spanwire_common::protocol::http1::framing::LINE_BYTES;
use spanwire_common::protocol::tracestate::TraceState;

fuzz_target!(|input: &[u8]| {
    // A line feed ends a line; one byte says whether the end of the last line is missing.
    let Some((cut, input)) = input.split_first() else {
        return;
    };
    let cut = cut & 1 == 1;
    let lines: Vec<Vec<u8>> = input.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    if lines.iter().any(|line| line.len() > LINE_BYTES as usize) {
        return;
    }
    let mut list = TraceState::default();
    for (i, line) in lines.iter().enumerate() {
        list.append(line, cut && i + 1 == lines.len());
    }
    assert_eq!(list.bytes(), plain_tracestate::read(&lines, cut));
});
