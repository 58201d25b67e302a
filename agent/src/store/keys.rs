//! Short forms of the attributes' names in a part's body. The names are half of what a span would take, and every
//! span has the same ones: a code of one character stands for each, so a body is still made of OTLP's messages, and a
//! name without a code stands for itself. No attribute has a name of one character.

use opentelemetry_proto::tonic::trace::v1::Span as ProtoSpan;

/// A name's place is its code. Files hold codes: append, and never move or remove one.
const KEYS: [&str; 27] = [
    "http.request.method",
    "http.response.status_code",
    "url.scheme",
    "network.protocol.version",
    "http.request.body.size",
    "http.response.body.size",
    "http.route",
    "url.template",
    "url.path",
    "network.transport",
    "server.address",
    "server.port",
    "client.address",
    "client.port",
    "network.peer.address",
    "network.peer.port",
    "http.request.resend_count",
    "error.type",
    "spanwire.outcome",
    "spanwire.parent.source",
    "spanwire.parent.reason",
    "spanwire.tenant",
    "spanwire.wire.key",
    "spanwire.request.read_ns",
    "spanwire.response.first_byte_ns",
    "spanwire.sent_bytes",
    "spanwire.received_bytes",
];

/// Every code, one after the other. Zero is none.
const CODES: &str =
    "\u{1}\u{2}\u{3}\u{4}\u{5}\u{6}\u{7}\u{8}\u{9}\u{a}\u{b}\u{c}\u{d}\u{e}\u{f}\u{10}\u{11}\u{12}\u{13}\
                     \u{14}\u{15}\u{16}\u{17}\u{18}\u{19}\u{1a}\u{1b}";

/// Places of [`TABLE`]; far more than names, so that few share one.
const SLOTS: usize = 256;
/// Codes by [`slot`]; the next place where two names would have the same; 0 where there is none.
const TABLE: [u8; SLOTS] = table();

const fn table() -> [u8; SLOTS] {
    let mut table = [0; SLOTS];
    let mut place = 0;
    while place < KEYS.len() {
        let mut at = slot(KEYS[place].as_bytes());
        while table[at] != 0 {
            at = (at + 1) % SLOTS;
        }
        table[at] = place as u8 + 1;
        place += 1;
    }
    table
}

/// By length, last byte and the one in the middle.
const fn slot(key: &[u8]) -> usize {
    if key.is_empty() {
        return 0;
    }
    (key.len() * 7 + key[key.len() - 1] as usize * 3 + key[key.len() / 2] as usize) % SLOTS
}

/// What is stored for a name.
pub(super) fn short(key: &str) -> &str {
    let mut at = slot(key.as_bytes());
    while let Some(place) = usize::from(TABLE[at]).checked_sub(1) {
        if KEYS[place] == key {
            return &CODES[place..=place];
        }
        at = (at + 1) % SLOTS;
    }
    key
}

/// Puts the names back.
pub(super) fn expand(span: &mut ProtoSpan) {
    for attribute in &mut span.attributes {
        if let [code] = attribute.key.as_bytes() {
            let name = usize::from(*code).checked_sub(1).and_then(|place| KEYS.get(place));
            if let Some(name) = name {
                (*name).clone_into(&mut attribute.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{expand, short, CODES, KEYS};
    use opentelemetry_proto::tonic::common::v1::KeyValue;
    use opentelemetry_proto::tonic::trace::v1::Span as ProtoSpan;

    fn expanded(key: &str) -> String {
        let mut span = ProtoSpan {
            attributes: vec![KeyValue {
                key: key.to_owned(),
                ..KeyValue::default()
            }],
            ..ProtoSpan::default()
        };
        expand(&mut span);
        span.attributes.remove(0).key
    }

    #[test]
    fn every_name_has_a_code_of_its_own_and_comes_back() {
        assert_eq!(CODES.len(), KEYS.len());
        for (place, key) in KEYS.iter().enumerate() {
            assert_eq!(short(key).as_bytes(), [place as u8 + 1]);
            assert_eq!(expanded(short(key)), *key);
        }
    }

    #[test]
    fn a_name_without_a_code_stands_for_itself() {
        for key in [
            "",
            "x",
            "http.request.header.x-tenant",
            "server.addresx",
            "\u{1c}",
            "\u{0}",
        ] {
            assert_eq!(short(key), key);
            assert_eq!(expanded(key), key);
        }
    }
}
