//! Any bytes as requests: no panic, a bounded number of steps, and events in an order that makes sense.
#![no_main]

mod settings;

use libfuzzer_sys::fuzz_target;
use spanwire_common::abi::PATH_BYTES;
use spanwire_common::protocol::http1::stream::{Direction, Event, Stream};

fuzz_target!(|bytes: &[u8]| {
    let mut stream = Stream::new(Direction::Requests, settings::everything());
    let mut events = Vec::new();
    stream.feed(bytes, &mut events);
    assert!(
        stream.steps <= 16 + 4 * bytes.len() as u64,
        "{} steps for {} bytes",
        stream.steps,
        bytes.len()
    );
    let (mut begun, mut whole) = (false, false);
    for (i, event) in events.iter().enumerate() {
        match event {
            Event::HeadBegin => {
                assert!(!whole, "a head within a message");
                begun = true;
            }
            Event::Request(request) => {
                assert!(begun && !whole);
                assert!(usize::from(request.path_len) <= PATH_BYTES);
                let adopted = request.context_format != 0;
                assert_eq!(adopted, request.trace_id != [0; 16]);
                assert_eq!(adopted, request.parent_id != [0; 8]);
                whole = true;
            }
            Event::Text { bytes, .. } => assert!(begun && !whole && bytes.len() <= 768),
            Event::MessageEnd { .. } => {
                assert!(whole);
                (begun, whole) = (false, false);
            }
            Event::Response { .. } => panic!("a response among requests"),
            Event::Opaque(_) => assert_eq!(i + 1, events.len(), "an event behind the end"),
        }
    }
});
