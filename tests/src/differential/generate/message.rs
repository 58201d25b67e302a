//! Heads and bodies as they are met.

use rand::rngs::StdRng;
use rand::Rng;

const METHODS: [&str; 6] = ["GET", "GET", "GET", "DELETE", "OPTIONS", "PATCH"];
const AGENTS: [&str; 4] = [
    "curl/8.5.0",
    "python-requests/2.34.2",
    "Go-http-client/1.1",
    "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
];
const NAMES: [&str; 12] = [
    "Accept",
    "accept-language",
    "Cookie",
    "X-Request-Id",
    "Cache-Control",
    "X-FORWARDED-FOR",
    "Trace",
    "tracepoint",
    "traceparents",
    "x-traceparent",
    "Via",
    "If-None-Match",
];

/// A request head being written; [`Request::done`] ends it.
pub(super) struct Request(pub(super) Vec<u8>);

impl Request {
    pub(super) fn new(method: &str, target: &str) -> Self {
        Self(format!("{method} {target} HTTP/1.1\r\nHost: service.test:8080\r\n").into_bytes())
    }

    /// A request without a body, with what clients send.
    pub(super) fn any(rng: &mut StdRng) -> Self {
        let method = METHODS[rng.random_range(0..METHODS.len())];
        Self::new(method, &target(rng)).usual(rng)
    }

    /// The headers that clients send.
    pub(super) fn usual(mut self, rng: &mut StdRng) -> Self {
        if rng.random() {
            self = self.field("User-Agent", AGENTS[rng.random_range(0..AGENTS.len())]);
        }
        for _ in 0..rng.random_range(0..8) {
            let value = text(rng, 60);
            self = self.field(NAMES[rng.random_range(0..NAMES.len())], &value);
        }
        self
    }

    pub(super) fn field(mut self, name: &str, value: &str) -> Self {
        self.0.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        self
    }

    /// Fills up with headers until the head, its blank line included, has exactly this many bytes.
    pub(super) fn of_size(mut self, size: usize, rng: &mut StdRng) -> Self {
        const LEAST: usize = 40;
        while self.0.len() + 2 + LEAST <= size {
            let room = size - 2 - self.0.len();
            // What is left must be nothing, or hold another header.
            let line = if room < 2 * LEAST + 400 {
                room
            } else {
                rng.random_range(LEAST..400)
            };
            let value = text_of(rng, line - "x-fill: \r\n".len());
            self = self.field("x-fill", &value);
        }
        self
    }

    pub(super) fn done(mut self) -> Vec<u8> {
        self.0.extend_from_slice(b"\r\n");
        self.0
    }
}

/// A path, sometimes with a query, sometimes a whole URL.
pub(super) fn target(rng: &mut StdRng) -> String {
    let mut target = String::new();
    if rng.random_ratio(1, 20) {
        target.push_str("http://service.test:8080");
    }
    for _ in 0..rng.random_range(1..4) {
        target.push('/');
        target.push_str(&word(rng, 12));
    }
    if rng.random_ratio(1, 4) {
        target.push_str("?q=");
        target.push_str(&word(rng, 40));
    }
    target
}

/// Letters and digits.
pub(super) fn word(rng: &mut StdRng, longest: usize) -> String {
    let length = rng.random_range(1..=longest);
    (0..length)
        .map(|_| char::from(b"abcdefghij0123456789"[rng.random_range(0..20)]))
        .collect()
}

/// Printable text without a blank at either end.
pub(super) fn text(rng: &mut StdRng, longest: usize) -> String {
    let length = rng.random_range(1..=longest);
    text_of(rng, length)
}

fn text_of(rng: &mut StdRng, length: usize) -> String {
    (0..length)
        .map(|at| match rng.random_range(0..12) {
            0 if at > 0 && at + 1 < length => ' ',
            1 => ':',
            2 => '=',
            _ => char::from(rng.random_range(b'a'..=b'z')),
        })
        .collect()
}

/// Any bytes; some bodies hold line ends.
pub(super) fn body(rng: &mut StdRng, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    rng.fill(bytes.as_mut_slice());
    if rng.random() {
        for byte in &mut bytes {
            if *byte % 16 == 0 {
                *byte = [b'\r', b'\n', b'\n', b' '][usize::from(*byte >> 4) % 4];
            }
        }
    }
    bytes
}

/// `bytes` as chunks, some with extensions, sometimes with a trailer.
pub(super) fn chunks(rng: &mut StdRng, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(rng.random_range(1..=rest.len()));
        let extension = if rng.random_ratio(1, 8) { ";a=b" } else { "" };
        out.extend_from_slice(format!("{:x}{extension}\r\n", now.len()).as_bytes());
        out.extend_from_slice(now);
        out.extend_from_slice(b"\r\n");
        rest = later;
    }
    out.extend_from_slice(if rng.random_ratio(1, 8) {
        b"0\r\nx-sum: 1\r\n\r\n"
    } else {
        b"0\r\n\r\n"
    });
    out
}

/// A response head, with its blank line.
pub(super) fn response(status: &str, fields: &str, rng: &mut StdRng) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status}\r\nServer: test\r\n{fields}").into_bytes();
    for _ in 0..rng.random_range(0..4) {
        let value = text(rng, 40);
        head.extend_from_slice(format!("x-{}: {value}\r\n", word(rng, 6)).as_bytes());
    }
    head.extend_from_slice(b"\r\n");
    head
}
