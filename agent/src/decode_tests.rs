#![allow(clippy::unwrap_used, clippy::panic, reason = "test")]

use proptest::collection::vec;
use proptest::prelude::any;
use proptest::{prop_assert, prop_assert_eq, proptest};
use spanwire_common::abi::{
    cause, family, kind, process_event, protocol_id, side, text, ExchangeRecord, OpaqueTurn, ProcessRecord,
    RecordHeader, TextRecord,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{decode, DecodeError, Event, Sequence, EXCHANGE_FIXED, TEXT_FIXED};
use crate::assemble::testing::{client, process, server, text_of, Exchange};

/// Bytes of a whole exchange record.
const EXCHANGE: usize = size_of::<ExchangeRecord>();

fn whole(event: &Event) -> Vec<u8> {
    match event {
        Event::Exchange(record) => record.as_bytes().to_vec(),
        Event::Text(record) => record.as_bytes().to_vec(),
        Event::Process(record) => record.as_bytes().to_vec(),
        Event::Link(_) => unreachable!("no record"),
    }
}

#[test]
fn whole_records_come_back_as_they_were() {
    for event in [
        client(1).path("/orders/7").event(),
        server(2).path("").event(),
        text_of(3, text::TRACESTATE, 0, "a=1"),
        process(4, process_event::EXEC, 1),
    ] {
        assert_eq!(decode(&whole(&event)), Ok(event));
    }
}

fn turn() -> OpaqueTurn {
    let mut turn = OpaqueTurn::new_zeroed();
    turn.header = RecordHeader {
        seq: 1,
        cpu: 0,
        kind: kind::OPAQUE_TURN,
        version: 1,
        len: size_of::<OpaqueTurn>() as u32,
    };
    (turn.sent_first_ns, turn.sent_last_ns) = (10, 20);
    (turn.received_first_ns, turn.received_last_ns) = (30, 40);
    (turn.sent_bytes, turn.received_bytes) = (5, 7);
    turn.span_id = u64::from_ne_bytes([1, 2, 3, 4, 5, 6, 7, 8]);
    turn.cause_span_id = u64::from_ne_bytes([9; 8]);
    turn.cause_trace_id = [u64::from_ne_bytes([1; 8]), u64::from_ne_bytes([2; 8])];
    turn.remote_addr[0] = u64::from_ne_bytes([10, 0, 0, 1, 0, 0, 0, 0]);
    (turn.cause, turn.family, turn.protocol) = (cause::THREAD, family::INET, protocol_id::TLS);
    turn
}

#[test]
fn a_turn_of_an_opaque_call_is_an_exchange() {
    let Ok(Event::Exchange(record)) = decode(turn().as_bytes()) else {
        panic!("an exchange")
    };
    assert_eq!((record.request_first_ns, record.request_last_ns), (10, 20));
    assert_eq!((record.response_first_ns, record.response_last_ns), (30, 40));
    assert_eq!((record.request_body_bytes, record.response_body_bytes), (5, 7));
    assert_eq!(record.span_id, [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!((record.cause_span_id, record.side), ([9; 8], side::CLIENT));
    assert_eq!(record.trace_id, [1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2]);
    assert_eq!(record.cause_trace_id, record.trace_id);
    assert_eq!(record.remote_addr[..4], [10, 0, 0, 1]);
    let unanswered = OpaqueTurn {
        received_first_ns: 0,
        received_last_ns: 0,
        ..turn()
    };
    let Ok(Event::Exchange(record)) = decode(unanswered.as_bytes()) else {
        panic!("an exchange")
    };
    assert_eq!((record.response_first_ns, record.response_last_ns), (0, 20));
}

#[test]
fn impossible_turns_are_refused_by_name() {
    for (field, turn) in [
        (
            "protocol",
            OpaqueTurn {
                protocol: protocol_id::HTTP1,
                ..turn()
            },
        ),
        ("family", OpaqueTurn { family: 3, ..turn() }),
        ("cause", OpaqueTurn { cause: 5, ..turn() }),
        (
            "cause_trace_id",
            OpaqueTurn {
                cause_trace_id: [0; 2],
                ..turn()
            },
        ),
        ("span_id", OpaqueTurn { span_id: 0, ..turn() }),
    ] {
        let refused = DecodeError::Field {
            kind: kind::OPAQUE_TURN,
            field,
        };
        assert_eq!(decode(turn.as_bytes()), Err(refused));
    }
    let whole = turn();
    let short = &mut whole.as_bytes()[..168].to_vec();
    short[12..16].copy_from_slice(&168u32.to_ne_bytes());
    assert_eq!(
        decode(short),
        Err(DecodeError::Length {
            kind: kind::OPAQUE_TURN,
            said: 168
        })
    );
}

#[test]
fn an_exchange_may_end_after_its_path() {
    for path in ["", "/", "/orders/7", &"/x".repeat(128)] {
        let exchange = client(1).path(path);
        let bytes = exchange.bytes();
        assert_eq!(bytes.len(), EXCHANGE_FIXED + path.len().next_multiple_of(8));
        let Ok(Event::Exchange(record)) = decode(&bytes) else {
            panic!("{path}")
        };
        assert_eq!(&record.path[..path.len()], path.as_bytes());
        assert_eq!(record.path[path.len()..].iter().max(), (path.len() < 256).then_some(&0));
    }
}

#[test]
fn a_text_may_end_after_its_bytes() {
    let mut bytes = whole(&text_of(3, text::HEADER, 1, "acme"));
    bytes.truncate(TEXT_FIXED + 8);
    bytes[12..16].copy_from_slice(&((TEXT_FIXED + 8) as u32).to_ne_bytes());
    let Ok(Event::Text(record)) = decode(&bytes) else {
        panic!("a text")
    };
    assert_eq!(&record.bytes[..usize::from(record.len)], b"acme");
}

#[test]
fn bytes_after_the_record_are_not_read() {
    let mut bytes = client(1).bytes();
    let alone = decode(&bytes);
    bytes.extend([0xff; 13]);
    assert_eq!(decode(&bytes), alone);
}

#[test]
fn bytes_past_the_used_ones_are_wiped() {
    let exchange = client(1).path("/a").method("GET").with(|r| {
        r.path[2..].fill(b'S');
        r.method[3..].fill(b'S');
    });
    let Ok(Event::Exchange(record)) = decode(exchange.0.as_bytes()) else {
        panic!("an exchange")
    };
    assert!(!record.as_bytes().contains(&b'S'));
}

#[test]
fn what_is_refused() {
    let bytes = client(1).bytes();
    let with_byte = |at: usize, value: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = value;
        decode(&bytes)
    };
    assert!(matches!(decode(&[]), Err(DecodeError::Short { .. })));
    assert!(matches!(decode(&bytes[..15]), Err(DecodeError::Short { .. })));
    assert!(matches!(
        decode(&bytes[..bytes.len() - 1]),
        Err(DecodeError::Short { .. })
    ));
    assert_eq!(with_byte(10, 9), Err(DecodeError::Kind(9)));
    assert_eq!(with_byte(11, 2), Err(DecodeError::Version(2)));
    let of_length = |said: usize| {
        let mut bytes = vec![0; 4096];
        bytes[..EXCHANGE_FIXED].copy_from_slice(&client(1).bytes()[..EXCHANGE_FIXED]);
        bytes[12..16].copy_from_slice(&(said as u32).to_ne_bytes());
        decode(&bytes)
    };
    assert_eq!(
        of_length(EXCHANGE_FIXED - 1),
        Err(DecodeError::Length {
            kind: kind::EXCHANGE,
            said: EXCHANGE_FIXED - 1
        })
    );
    assert_eq!(
        of_length(EXCHANGE + 1),
        Err(DecodeError::Length {
            kind: kind::EXCHANGE,
            said: EXCHANGE + 1
        })
    );
    assert!(matches!(of_length(0), Err(DecodeError::Length { .. })));
    assert!(matches!(
        of_length(5000),
        Err(DecodeError::Short { said: 5000, got: 4096 })
    ));
}

#[test]
fn impossible_fields_are_refused_by_name() {
    let refused = |exchange: Exchange| match decode(exchange.0.as_bytes()) {
        Err(DecodeError::Field { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    for (field, exchange) in [
        ("side", client(1).with(|r| r.side = 3)),
        ("side", client(1).with(|r| r.side = 0)),
        ("outcome", client(1).with(|r| r.outcome = 10)),
        ("protocol", client(1).with(|r| r.protocol = 0)),
        ("protocol", client(1).with(|r| r.protocol = 5)),
        ("family", client(1).with(|r| r.family = 3)),
        ("context_format", client(1).with(|r| r.context_format = 6)),
        ("cause", client(1).with(|r| r.cause = 5)),
        ("method_len", client(1).with(|r| r.method_len = 17)),
        ("path_len", client(1).with(|r| r.path_len = 257)),
        ("trace_id", client(1).with(|r| r.trace_id = [0; 16])),
        ("span_id", client(1).with(|r| r.span_id = [0; 8])),
    ] {
        assert_eq!(refused(exchange), field);
    }
    // A path that is said to go beyond the record that was sent.
    let mut bytes = client(1).path("/").bytes();
    let at = std::mem::offset_of!(ExchangeRecord, path_len);
    bytes[at..at + 2].copy_from_slice(&9u16.to_ne_bytes());
    assert_eq!(
        decode(&bytes),
        Err(DecodeError::Field {
            kind: kind::EXCHANGE,
            field: "path_len"
        })
    );

    let mut record = ProcessRecord::read_from_bytes(&whole(&process(1, 1, 0))).unwrap();
    record.event = process_event::LISTEN;
    assert!(matches!(decode(record.as_bytes()), Ok(Event::Process(_))));
    record.event = process_event::LISTEN + 1;
    assert_eq!(
        decode(record.as_bytes()),
        Err(DecodeError::Field {
            kind: kind::PROCESS,
            field: "event"
        })
    );
    let mut record = TextRecord::read_from_bytes(&whole(&text_of(1, 1, 0, "x"))).unwrap();
    record.len = 769;
    assert_eq!(
        decode(record.as_bytes()),
        Err(DecodeError::Field {
            kind: kind::TEXT,
            field: "len"
        })
    );
    record.len = 1;
    record.what = 5;
    assert_eq!(
        decode(record.as_bytes()),
        Err(DecodeError::Field {
            kind: kind::TEXT,
            field: "what"
        })
    );
}

#[test]
fn errors_name_the_culprit_and_the_remedy() {
    let text = DecodeError::Version(7).to_string();
    assert_eq!(
        text,
        "ring record has layout version 7, this agent reads 1: the eBPF object is of another build"
    );
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..1200)) {
        let _ = decode(&bytes);
    }

    #[test]
    fn any_body_under_a_good_header_is_read_or_refused(
        of_kind in 1u8..=5,
        said in 0u32..1000,
        body in vec(any::<u8>(), 0..1000),
    ) {
        let header = RecordHeader { seq: 1, cpu: 0, kind: of_kind, version: 1, len: said };
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend(&body);
        if let Ok(event) = decode(&bytes) {
            prop_assert!(said as usize <= bytes.len());
            if of_kind != kind::OPAQUE_TURN {
                prop_assert_eq!(decode(&whole_with_len(&event)), Ok(event));
            }
        }
    }

    #[test]
    fn any_damage_to_a_record_is_read_or_refused(at in 0usize..EXCHANGE, value: u8, path in "/[a-z/]{0,200}") {
        let mut bytes = client(1).path(&path).bytes();
        let at = at % bytes.len();
        bytes[at] = value;
        if let Ok(Event::Exchange(record)) = decode(&bytes) {
            prop_assert!(record.path[usize::from(record.path_len)..].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn every_number_is_seen_or_lost(
        // What is left out, and how far records of one CPU are displaced.
        present in vec(any::<bool>(), 1..400),
        displaced in vec(0usize..20, 400),
    ) {
        let mut numbers: Vec<usize> = (0..present.len()).filter(|n| *n == 0 || present[*n]).collect();
        let lost_before_last = numbers.last().unwrap() + 1 - numbers.len();
        numbers.sort_by_key(|n| if *n == 0 { 0 } else { n + displaced[*n] });
        let mut sequence = Sequence::new();
        let mut lost = 0;
        for n in numbers {
            lost += sequence.observe(&at(0, n as u64 + 1000));
        }
        prop_assert_eq!(lost + sequence.sweep(), lost_before_last as u64);
        prop_assert_eq!(sequence.sweep(), 0);
    }
}

/// A decoded record as bytes, with the length of the whole.
fn whole_with_len(event: &Event) -> Vec<u8> {
    let mut bytes = whole(event);
    let len = bytes.len() as u32;
    bytes[12..16].copy_from_slice(&len.to_ne_bytes());
    // The header is part of what is compared, so it must say what it said.
    let said = match event {
        Event::Exchange(record) => record.header.len,
        Event::Text(record) => record.header.len,
        Event::Process(record) => record.header.len,
        Event::Link(_) => unreachable!("no record"),
    };
    if (said as usize) < bytes.len() {
        bytes.truncate(said as usize);
        bytes[12..16].copy_from_slice(&said.to_ne_bytes());
    }
    bytes
}

fn at(cpu: u16, seq: u64) -> RecordHeader {
    RecordHeader {
        seq,
        cpu,
        kind: kind::EXCHANGE,
        version: 1,
        len: 0,
    }
}

#[test]
fn holes_are_counted_per_cpu() {
    let mut sequence = Sequence::new();
    for (cpu, seq) in [(0, 1), (1, 900), (0, 2), (1, 901), (0, 5), (1, 902), (3, 0)] {
        assert_eq!(sequence.observe(&at(cpu, seq)), 0, "the missing two may still come");
    }
    assert_eq!(sequence.sweep(), 2);
    assert_eq!(sequence.sweep(), 0);
    assert_eq!(sequence.observe(&at(1, 1_000)), 97 - 63);
    assert_eq!(sequence.sweep(), 63);
}

#[test]
fn neighbours_may_change_places() {
    let mut sequence = Sequence::new();
    for seq in [10, 12, 11, 13, 76, 14] {
        assert_eq!(sequence.observe(&at(0, seq)), 0);
    }
    assert_eq!(sequence.sweep(), 61);
}

#[test]
fn a_restart_is_no_loss() {
    let mut sequence = Sequence::new();
    sequence.observe(&at(0, 1_000_000));
    assert_eq!(sequence.observe(&at(0, 1)), 0);
    assert_eq!(sequence.observe(&at(0, 2)), 0);
    assert_eq!(sequence.sweep(), 0);
}

#[test]
fn a_cpu_that_cannot_be_is_not_believed() {
    let mut sequence = Sequence::new();
    assert_eq!(sequence.observe(&at(u16::MAX, 5)), 0);
    assert_eq!(sequence.observe(&at(u16::MAX, 50)), 0);
    assert_eq!(sequence.sweep(), 0);
}
