//! Any bytes as responses: the first two say what they answer.
#![no_main]

mod settings;

use libfuzzer_sys::fuzz_target;
use spanwire_common::protocol::http1::step;
use spanwire_common::protocol::http1::stream::{Direction, Event, Stream};

fuzz_target!(|bytes: &[u8]| {
    let [first, second, bytes @ ..] = bytes else { return };
    let mut stream = Stream::new(
        Direction::Responses(vec![first % 11, second % 11]),
        settings::everything(),
    );
    let mut events = Vec::new();
    stream.feed(bytes, &mut events);
    assert!(
        stream.steps <= 16 + 4 * bytes.len() as u64,
        "{} steps for {} bytes",
        stream.steps,
        bytes.len()
    );
    let (mut begun, mut whole, mut over) = (false, false, false);
    for event in &events {
        assert!(!over, "an event behind the end");
        match event {
            Event::HeadBegin => {
                assert!(!whole);
                begun = true;
            }
            Event::Response { status, step } => {
                assert!(begun && !whole);
                assert!((100..1000).contains(status));
                whole = *step == step::HEAD_END;
                over = *step == step::UPGRADED;
                begun = whole;
            }
            Event::MessageEnd { .. } => {
                assert!(whole);
                (begun, whole) = (false, false);
            }
            Event::Opaque(_) => over = true,
            Event::Request(_) | Event::Text { .. } => panic!("a request's event among responses"),
        }
    }
});
