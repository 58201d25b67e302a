//! Any bytes, cut anywhere: the same events as whole. The first byte chooses the direction, the next eight the cuts.
#![no_main]

mod settings;

use libfuzzer_sys::fuzz_target;
use spanwire_common::protocol::http1::stream::{events, Direction};

fuzz_target!(|bytes: &[u8]| {
    let [direction, cuts @ ..] = bytes else { return };
    let Some((cuts, bytes)) = cuts.split_at_checked(8) else {
        return;
    };
    let direction = match direction % 3 {
        0 => Direction::Responses(vec![direction / 3 % 11; 2]),
        _ => Direction::Requests,
    };
    let mut calls = Vec::new();
    let mut left = bytes.len();
    // Small and large pieces by turns, over and over.
    while left > 0 {
        for cut in cuts {
            let size = if cut & 1 == 0 {
                usize::from(cut >> 1)
            } else {
                usize::from(*cut) * 9
            };
            calls.push(size);
            left = left.saturating_sub(size.max(1));
        }
    }
    let whole = events(direction.clone(), settings::everything(), bytes, &[]);
    assert_eq!(
        events(direction, settings::everything(), bytes, &calls),
        whole,
        "calls of {calls:?}"
    );
});
