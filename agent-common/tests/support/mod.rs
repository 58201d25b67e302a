//! What the parser's tests share.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]
#![allow(clippy::panic, reason = "test")]

use std::fmt::Write as _;

pub use spanwire_common::abi::Settings;
use spanwire_common::protocol::http1::skim::set_initials;
pub use spanwire_common::protocol::http1::stream::{events, Direction, Event, Stream};
pub use spanwire_common::protocol::http1::{step, Request};

/// The events of requests that come in one call.
pub fn requests(bytes: &[u8]) -> Vec<Event> {
    requests_with(&Settings::default(), bytes)
}

/// ... with these settings.
pub fn requests_with(settings: &Settings, bytes: &[u8]) -> Vec<Event> {
    events(Direction::Requests, *settings, bytes, &[])
}

/// ... in calls of `size` bytes.
pub fn requests_by(bytes: &[u8], size: usize) -> Vec<Event> {
    events(
        Direction::Requests,
        Settings::default(),
        bytes,
        &vec![size; bytes.len() / size],
    )
}

/// The events of responses that come in one call; `methods` are those of the requests they answer.
pub fn responses(methods: &[u8], bytes: &[u8]) -> Vec<Event> {
    events(Direction::Responses(methods.to_vec()), Settings::default(), bytes, &[])
}

pub fn request_stream() -> Stream {
    Stream::new(Direction::Requests, Settings::default())
}

/// Settings that list headers: name, whether it is the tenant's, whether it is kept. Excludes kube-probe/.
pub fn settings(names: &[(&str, bool, bool)]) -> Settings {
    let mut settings = Settings {
        name_count: names.len() as u32,
        user_agent_count: 1,
        ..Settings::default()
    };
    settings.user_agents[0] = [u64::from_le_bytes(*b"kube-pro"), u64::from_le_bytes(*b"be/\0\0\0\0\0")];
    for (slot, (name, tenant, keep)) in settings.names.iter_mut().zip(names) {
        for (i, byte) in name.bytes().enumerate() {
            slot.words[i / 8] |= u64::from(byte) << (i % 8 * 8);
        }
        slot.len = name.len() as u32;
        slot.tenant = u8::from(*tenant);
        slot.keep = u8::from(*keep);
    }
    set_initials(&mut settings);
    settings
}

const METHODS: [&str; 11] = [
    "OTHER", "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY",
];

pub fn path_of(request: &Request) -> String {
    let bytes: Vec<u8> = request
        .path
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .take(request.path_len as usize)
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The events in one line.
pub fn shape(events: &[Event]) -> String {
    let mut line = String::new();
    for event in events {
        let _ = match event {
            Event::HeadBegin => write!(line, "begin "),
            Event::Request(r) => write!(line, "{} {} ", METHODS[r.method as usize], path_of(r)),
            Event::Response {
                status,
                step: step::INTERIM,
            } => write!(line, "interim:{status} "),
            Event::Response {
                status,
                step: step::UPGRADED,
            } => write!(line, "upgraded:{status} "),
            Event::Response { status, .. } => write!(line, "{status} "),
            Event::Text { what, index, bytes, .. } => {
                write!(line, "text:{what}:{index}:{} ", String::from_utf8_lossy(bytes))
            }
            Event::MessageEnd { body_bytes } => write!(line, "end:{body_bytes} "),
            Event::Opaque(reason) => {
                write!(
                    line,
                    "opaque:{} ",
                    ["tls", "http2", "framing", "protocol"][(reason - step::OPAQUE_BASE) as usize]
                )
            }
        };
    }
    line.trim_end().to_owned()
}

pub fn is_opaque(events: &[Event]) -> bool {
    matches!(events.last(), Some(Event::Opaque(_)))
}

pub fn first_request(events: &[Event]) -> &Request {
    let request = events
        .iter()
        .find_map(|event| if let Event::Request(r) = event { Some(r) } else { None });
    request.unwrap_or_else(|| panic!("no request in {}", shape(events)))
}

pub fn last_request(events: &[Event]) -> &Request {
    let request = events
        .iter()
        .rev()
        .find_map(|event| if let Event::Request(r) = event { Some(r) } else { None });
    request.unwrap_or_else(|| panic!("no request in {}", shape(events)))
}
