//! What one exchange costs in user space from its bytes in the ring to where its span goes: instructions by callgrind.
//!
//! ```text
//! pipeline_cost build N      make N records and stop: what to subtract from the others
//! pipeline_cost none N       decode, assemble, enrich, sample, route
//! pipeline_cost otlp N       and encode for OTLP (what sending costs: export_cost)
//! pipeline_cost store N      and write into a store
//! ```

use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{bail, Context};
use spanwire::assemble::{self, Assembler, Output};
use spanwire::decode::{self, Sequence};
use spanwire::discover::{Process, ProcessInfo};
use spanwire::enrich::{self, ClientAddress, ClockOffset, Enricher, Paths};
use spanwire::export::wire;
use spanwire::route::{Batching, Router};
use spanwire::sample::Sampler;
use spanwire::span::SpanBatch;
use spanwire::store::{Retention, Store};
use spanwire_common::abi::{
    family, flag, kind, outcome, protocol_id, side, ExchangeRecord, ProcessClass, RecordHeader, ABI_VERSION,
};
use zerocopy::{FromZeros, IntoBytes};

/// Requests a second of the load that is replayed, and how often the rings are looked at.
const PER_SECOND: u64 = 2_000;
const LOOK_NS: u64 = 50_000_000;
const SECOND_NS: u64 = 1_000_000_000;
const PID: u32 = 4_711;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let count: u64 = arguments
        .get(1)
        .map_or(Ok(100_000), |text| text.parse())
        .context("expected a number")?;
    let dir = std::env::temp_dir().join(format!("spanwire-pipeline-cost-{}", std::process::id()));
    match arguments.first().map(String::as_str) {
        Some("build") => {
            let bytes: usize = (0..count)
                .map(|n| std::hint::black_box(record(n)).as_bytes().len())
                .sum();
            println!("{bytes} bytes");
        }
        Some("none") => replay(count, &mut |_| {}),
        Some("otlp") => {
            let mut bytes = 0;
            replay(count, &mut |batch| bytes += wire::encode_request(batch.iter()).len());
            println!("{} bytes a span", bytes as u64 / count.max(1));
        }
        Some("store") => {
            let store = Store::open(&dir, Retention::default())?;
            replay(count, &mut |batch| {
                while store.stats().queued.load(Ordering::Relaxed) > 4_096 {
                    std::thread::sleep(Duration::from_millis(1));
                }
                store.push(batch);
            });
            let whole = store.close(Duration::from_mins(2));
            std::fs::remove_dir_all(&dir)?;
            if !whole {
                bail!("the store was not done within two minutes");
            }
        }
        _ => bail!("usage: pipeline_cost build|none|otlp|store [EXCHANGES]"),
    }
    Ok(())
}

/// A server's exchange on one of ten kept connections from this machine.
fn record(n: u64) -> ExchangeRecord {
    let at_ns = SECOND_NS + n * SECOND_NS / PER_SECOND;
    let random = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut record = ExchangeRecord {
        header: RecordHeader {
            len: size_of::<ExchangeRecord>() as u32,
            kind: kind::EXCHANGE,
            version: ABI_VERSION,
            seq: n,
            ..RecordHeader::new_zeroed()
        },
        request_first_ns: at_ns,
        request_last_ns: at_ns,
        response_first_ns: at_ns + 30_000,
        response_last_ns: at_ns + 30_000,
        span_id: random.to_be_bytes(),
        wire_key: random,
        response_body_bytes: 3,
        cookie: 1 + n % 10,
        pid: PID,
        tid: PID,
        netns: 1,
        local_port: 8_080,
        remote_port: 50_000 + (n % 10) as u16,
        flags: flag::SAMPLED | flag::RANDOM | flag::WIRE_KEY | flag::RESPONSE_SIZE_KNOWN,
        ordinal: (n / 10) as u32,
        status: 200,
        side: side::SERVER,
        family: family::INET,
        protocol: protocol_id::HTTP1,
        outcome: outcome::COMPLETE,
        class: ProcessClass::Nginx as u8,
        ..ExchangeRecord::new_zeroed()
    };
    record.trace_id[..8].copy_from_slice(&random.rotate_left(13).to_be_bytes());
    record.trace_id[8..].copy_from_slice(&random.rotate_left(29).to_be_bytes());
    record.local_addr[..4].copy_from_slice(&[127, 0, 0, 1]);
    record.remote_addr[..4].copy_from_slice(&[127, 0, 0, 1]);
    record.method[..3].copy_from_slice(b"GET");
    record.method_len = 3;
    let path = b"/api/cart/4711/items";
    record.path[..path.len()].copy_from_slice(path);
    record.path_len = path.len() as u16;
    record
}

/// The data path's stages over so many exchanges, without what reads rings and /proc.
fn replay(count: u64, sink: &mut impl FnMut(SpanBatch)) {
    let mut sequence = Sequence::new();
    let mut assembler = Assembler::new(assemble::Options::default());
    assembler.set_class(PID, ProcessClass::Nginx, false);
    let process = Process::new(ProcessInfo {
        pid: PID,
        start_ticks: 1,
        exe: Some("/usr/sbin/nginx".into()),
        ..ProcessInfo::default()
    });
    let mut enricher = Enricher::new(enrich::Options {
        paths: Paths::default(),
        client_address: ClientAddress::default(),
        header_names: Vec::new(),
        node: enrich::Node {
            host_name: "node-1".into(),
            distro_version: env!("CARGO_PKG_VERSION"),
        },
    });
    let sampler = Sampler::default();
    let mut router = Router::new(1, Batching::default());
    let (mut spans, mut now_ns, mut outputs) = (0, SECOND_NS, Vec::new());
    let mut hand_on = |outputs: &mut Vec<Output>, now_ns: u64| {
        for output in outputs.drain(..) {
            if let Output::Settled(settled) = output {
                let span = enricher.push(settled, &process, ClockOffset(0));
                if sampler.keep(&span) {
                    spans += 1;
                    router.push(span, now_ns, &mut |_, batch| sink(batch));
                }
            }
        }
        router.tick(now_ns, &mut |_, batch| sink(batch));
    };
    for n in 0..count {
        let record = record(n);
        let bytes = record.as_bytes();
        if let Some(header) = decode::header(bytes) {
            sequence.observe(&header);
        }
        if let Ok(event) = decode::decode(bytes) {
            assembler.push(event, now_ns, &mut |output| outputs.push(output));
        }
        if record.response_last_ns >= now_ns + LOOK_NS {
            now_ns += LOOK_NS;
            assembler.tick(now_ns, &mut |output| outputs.push(output));
        }
        hand_on(&mut outputs, now_ns);
    }
    assembler.flush(&mut |output| outputs.push(output));
    hand_on(&mut outputs, now_ns + SECOND_NS);
    println!("{spans} spans");
}
