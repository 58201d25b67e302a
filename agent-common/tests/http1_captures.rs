//! Streams from files: smuggling ends opaque, valid ones are read to their end, and no cut changes anything.
#![cfg(feature = "host")]
#![allow(clippy::panic, reason = "test")]

mod support;

use std::fs;
use std::path::Path;

use support::*;

/// Direction, name and bytes of every capture in a folder.
fn captures(folder: &str) -> Vec<(Direction, String, Vec<u8>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/captures")
        .join(folder);
    let entries = fs::read_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut captures = Vec::new();
    for entry in entries {
        let file = entry
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
            .path();
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let direction = if name.starts_with("request-") {
            Direction::Requests
        } else if name.starts_with("response-") {
            Direction::Responses(Vec::new())
        } else {
            continue;
        };
        let bytes = fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        captures.push((direction, name, bytes));
    }
    captures
}

fn whole(direction: &Direction, bytes: &[u8]) -> Vec<Event> {
    events(direction.clone(), Settings::default(), bytes, &[])
}

#[test]
fn smuggling_is_given_up() {
    let captures = captures("smuggling");
    assert!(captures.len() > 70, "only {} captures found", captures.len());
    for (direction, name, bytes) in captures {
        let events = whole(&direction, &bytes);
        let reason = events.last();
        assert_eq!(
            reason,
            Some(&Event::Opaque(step::OPAQUE_FRAMING)),
            "{name}: {}",
            shape(&events)
        );
    }
}

#[test]
fn valid_streams_are_read() {
    let captures = captures("valid");
    assert!(captures.len() > 10, "only {} captures found", captures.len());
    for (direction, name, bytes) in captures {
        let events = whole(&direction, &bytes);
        assert!(!is_opaque(&events), "{name}: {}", shape(&events));
        let heads = events
            .iter()
            .any(|event| matches!(event, Event::Request(_) | Event::Response { .. }));
        assert!(heads, "{name}: {}", shape(&events));
    }
}

#[test]
fn where_a_stream_is_cut_changes_nothing() {
    for (direction, name, bytes) in captures("smuggling").into_iter().chain(captures("valid")) {
        let expected = whole(&direction, &bytes);
        for size in [1, 2, 3, 7, 8, 9, 100, 1007, 1008, 1009, 1024, 2047, 2049] {
            let calls = vec![size; bytes.len() / size];
            let cut = events(direction.clone(), Settings::default(), &bytes, &calls);
            assert_eq!(cut, expected, "{name} in calls of {size}");
        }
        for at in 0..bytes.len().min(400) {
            let cut = events(direction.clone(), Settings::default(), &bytes, &[at]);
            assert_eq!(cut, expected, "{name} cut at {at}");
        }
    }
}
