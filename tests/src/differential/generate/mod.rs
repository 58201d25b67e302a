//! An exchange from a seed and a number: the same in every process, whatever else it plays.

mod field;
mod http;
mod message;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::exchange::{Draft, Exchange, Options};

type Writer = fn(&mut Draft, &mut StdRng);

/// Every kind of exchange, and how often it is drawn.
const KINDS: &[(&str, u32, Writer)] = &[
    ("get", 24, http::get),
    ("keep-alive", 10, http::keep_alive),
    ("big head", 6, http::big_head),
    ("head in two", 8, http::head_in_two),
    ("head byte by byte", 1, http::head_byte_by_byte),
    ("head in pieces", 4, http::head_in_pieces),
    ("post", 8, http::post),
    ("chunked", 5, http::chunked),
    ("large body", 1, http::large_body),
    ("pipelined", 4, http::pipelined),
    ("expect", 2, http::expect),
    ("body like a request", 3, http::body_like_a_request),
    ("answers", 5, http::answers),
    ("early answer", 2, http::early_answer),
    ("half-closed", 2, http::half_closed),
    ("reset", 3, http::reset),
    ("full buffers", 1, http::full_buffers),
    ("has context", 4, field::has_context),
    ("signed", 2, field::signed),
    ("at the limits", 1, field::at_the_limits),
    ("upgrade", 2, field::upgrade),
    ("connect", 1, field::connect),
    ("proxy protocol", 1, field::proxy_protocol),
    ("tls", 2, field::tls),
    ("h2 preface", 1, field::h2_preface),
    ("yamux", 1, field::yamux),
    ("server first", 2, field::server_first),
    ("nearly http", 4, field::nearly_http),
    ("unfinished", 1, field::unfinished),
    ("noise", 1, field::noise),
];

/// The exchange of that number.
pub fn generate(seed: u64, number: u32) -> Exchange {
    let rng = &mut StdRng::seed_from_u64(seed ^ u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let total = KINDS.iter().map(|(_, weight, _)| weight).sum();
    let mut drawn = rng.random_range(0..total);
    let mut chosen = KINDS.first();
    for kind in KINDS {
        chosen = Some(kind);
        match drawn.checked_sub(kind.1) {
            Some(left) => drawn = left,
            None => break,
        }
    }
    let Some((name, _, write)) = chosen else {
        unreachable!("there are kinds")
    };
    let mut draft = Draft::new(name, options(rng));
    write(&mut draft, rng);
    draft.done()
}

fn options(rng: &mut StdRng) -> Options {
    let read_sizes = [100, 1_000, 1_024, 4_096, 16_384, 65_536, 65_536];
    let few = rng.random_ratio(1, 24);
    Options {
        nodelay: rng.random_ratio(15, 16),
        send_buffer: None,
        receive_buffer: None,
        read_size: if few {
            rng.random_range(1..20)
        } else {
            read_sizes[rng.random_range(0..read_sizes.len())]
        },
        peeks: rng.random_ratio(1, 5),
        asks_fionread: true,
        slow_us: 0,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::differential::exchange::{Side, Step};

    #[test]
    fn an_exchange_is_the_same_every_time_and_whole() {
        let mut kinds = BTreeSet::new();
        for number in 0..3_000 {
            let exchange = generate(7, number);
            assert_eq!(exchange, generate(7, number));
            kinds.insert(exchange.kind);
            for side in [Side::Client, Side::Server] {
                let stream = exchange.stream(side);
                let says = exchange.steps.iter().filter_map(|step| match step {
                    Step::Say { from, pieces } if *from == side => Some(pieces),
                    _ => None,
                });
                let said: usize = says.flatten().map(|piece| piece.length).sum();
                assert_eq!(said, stream.bytes.len(), "{number}: {exchange:?}");
                for head in &stream.heads {
                    let blank = &stream.bytes[head.blank - 2..head.blank + 2];
                    assert_eq!(blank, b"\r\n\r\n", "{number}: {}", exchange.kind);
                }
                assert!(stream.heads.is_sorted_by_key(|head| head.blank));
            }
            let last = exchange.steps.last();
            assert!(
                matches!(last, Some(Step::Close(_) | Step::Reset(_))),
                "{number}: {last:?}"
            );
        }
        assert_eq!(kinds.len(), KINDS.len(), "{kinds:?}");
    }
}
