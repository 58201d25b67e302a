//! Plays one side of many generated exchanges, in a process of its own that an agent can trace like any other.
//!
//! `spanwire-exchanges serve MODE FIONREAD SEED PORT THREADS FILE NAMES`
//! `spanwire-exchanges call MODE FIONREAD SEED FROM TO STEP THREADS FILE NAMES PORT...`: numbers FROM, FROM + STEP, ... below
//! TO; the second half of the ports is for exchanges in which the server speaks first
//!
//! MODE is `blocking` or `polling`; FIONREAD is `asks` or `never-asks`, as a runtime does or does not.
//!
//! Every exchange is one line of FILE.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Mutex;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{bail, Context, Result};
use spanwire_tests::differential::exchange::{Exchange, Side};
use spanwire_tests::differential::generate::generate;
use spanwire_tests::differential::play::{play, Slot};
use spanwire_tests::differential::record::{Record, Seen};
use spanwire_tests::differential::socket::{accept, connect, listen, set, Mode};

/// An exchange that takes longer is broken off, and differs from one that was not.
const LIMIT: Duration = Duration::from_secs(15);

/// What both sides are started with.
struct Work {
    mode: Mode,
    asks_fionread: bool,
    seed: u64,
    names: Vec<String>,
    out: Mutex<File>,
}

impl Work {
    fn exchange(&self, number: u32) -> Exchange {
        let mut exchange = generate(self.seed, number);
        exchange.options.asks_fionread &= self.asks_fionread;
        exchange
    }

    fn write(&self, side: &str, number: u32, kind: &str, seen: Seen) {
        let record = Record {
            key: (number, format!("{side} {}", self.mode.name())),
            kind: kind.to_owned(),
            seen,
        };
        if let Ok(mut out) = self.out.lock() {
            // One write for each line: whoever kills this process still finds whole lines.
            let _ = out.write_all(format!("{record}\n").as_bytes());
        }
    }
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["serve", mode, fionread, seed, port, threads, file, names] => {
            serve(&work(mode, fionread, seed, file, names)?, port.parse()?, threads.parse()?)
        }
        ["call", mode, fionread, seed, from, to, step, threads, file, names, ports @ ..] => {
            let ports = ports.iter().map(|port| port.parse()).collect::<Result<Vec<u16>, _>>()?;
            let numbers = Numbers {
                next: AtomicU32::new(from.parse()?),
                end: to.parse()?,
                step: step.parse()?,
            };
            call(&work(mode, fionread, seed, file, names)?, &numbers, threads.parse()?, &ports)
        }
        _ => bail!(
            "usage: serve MODE FIONREAD SEED PORT THREADS FILE NAMES, or call MODE FIONREAD SEED FROM TO STEP THREADS FILE NAMES \
             PORT..."
        ),
    }
}

fn work(mode: &str, fionread: &str, seed: &str, file: &str, names: &str) -> Result<Work> {
    Ok(Work {
        mode: Mode::parse(mode).context("a mode is blocking or polling")?,
        asks_fionread: match fionread {
            "asks" => true,
            "never-asks" => false,
            other => bail!("{other} is neither asks nor never-asks"),
        },
        seed: seed.parse()?,
        names: names.split(',').map(str::to_owned).collect(),
        out: Mutex::new(OpenOptions::new().create(true).append(true).open(file)?),
    })
}

/// Numbers that nobody has taken.
struct Numbers {
    next: AtomicU32,
    end: u32,
    step: u32,
}

impl Numbers {
    fn take(&self) -> Option<u32> {
        let number = self.next.fetch_add(self.step, Ordering::Relaxed);
        (number < self.end).then_some(number)
    }
}

fn call(work: &Work, numbers: &Numbers, threads: usize, ports: &[u16]) -> Result<()> {
    if ports.is_empty() || !ports.len().is_multiple_of(2) {
        bail!("as many ports for servers that speak first as for others");
    }
    let slots: Vec<Slot> = (0..threads).map(|_| Slot::default()).collect();
    std::thread::scope(|scope| {
        let callers: Vec<_> = slots
            .iter()
            .map(|slot| scope.spawn(move || call_all(work, numbers, ports, slot)))
            .collect();
        while !callers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            break_stalled(&slots);
        }
    });
    Ok(())
}

fn call_all(work: &Work, numbers: &Numbers, ports: &[u16], slot: &Slot) {
    while let Some(number) = numbers.take() {
        let exchange = work.exchange(number);
        // A server that speaks first has a port of its own, as it would have. The numbers of this process differ by the
        // step; what is left over by that chooses among the servers of a kind.
        let (usual, first) = ports.split_at(ports.len() / 2);
        let kind = if exchange.server_speaks_first() { first } else { usual };
        let port = kind
            .get((number / numbers.step) as usize % kind.len().max(1))
            .copied()
            .unwrap_or_default();
        let server = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        let seen = match connect(number, server, work.mode, &exchange.options) {
            Ok(stream) => play(Side::Client, &exchange, stream, work.mode, &work.names, slot),
            Err(error) => Seen {
                difference: Some(format!("{error:#}")),
                ..Seen::default()
            },
        };
        work.write("client", number, exchange.kind, seen);
    }
}

fn serve(work: &Work, port: u16, threads: usize) -> Result<()> {
    let listener = listen(port)?;
    let slots: Vec<Slot> = (0..threads).map(|_| Slot::default()).collect();
    std::thread::scope(|scope| {
        for slot in &slots {
            let listener = &listener;
            scope.spawn(move || loop {
                let Ok((stream, Some(number))) = accept(listener, work.mode) else {
                    continue;
                };
                let exchange = work.exchange(number);
                // What an application sets late is set before its first byte.
                let _ = set(&stream, &exchange.options);
                let seen = play(Side::Server, &exchange, stream, work.mode, &work.names, slot);
                work.write("server", number, exchange.kind, seen);
            });
        }
        loop {
            break_stalled(&slots);
        }
    });
    Ok(())
}

fn break_stalled(slots: &[Slot]) {
    sleep(Duration::from_millis(20));
    for slot in slots {
        slot.break_if_older(LIMIT);
    }
}
