//! The side that asks: one thread for all connections but the uploads' (`upload`).

use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::buffer::spare_capacity;
use rustix::event::{epoll, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::count::{now_ms, tell, Called, EVERY};
use super::upload::upload;
use super::wire::{compare, Asked, Lane};
use crate::differential::exchange::Options;
use crate::differential::socket::{connect, wait, Mode, NUMBERS};

/// The header that a response may have gained.
pub(super) const ADDED: &str = "server-timing";
/// Between two requests of a connection, in milliseconds: together about 1,400 requests a second.
const REST_MS: std::ops::Range<u64> = 500..1_000;
/// Requests of a connection; then it is made anew.
const REQUESTS: std::ops::Range<u32> = 3..8;
/// Without a whole response for so long, a request has failed.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// A delayed acknowledgement takes 40 ms or more.
const STALL_MS: u64 = 38;
const TICK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 2_000_000,
};
pub(super) const OPTIONS: Options = Options {
    nodelay: true,
    send_buffer: None,
    receive_buffer: None,
    read_size: 1 << 16,
    peeks: false,
    asks_fionread: false,
    slow_us: 0,
};

/// What is asked for: where to, how many connections of each lane, and the file that ends it.
pub struct Plan {
    pub server: u16,
    pub proxy: u16,
    pub connections: Vec<(Lane, usize)>,
    pub stop: PathBuf,
}

/// What all threads share.
pub(super) struct Shared {
    count: Mutex<Called>,
    next: Mutex<u32>,
}

impl Shared {
    pub(super) fn count(&self) -> MutexGuard<'_, Called> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number no other connection has, which its address tells.
    pub(super) fn number(&self) -> u32 {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        *next = (*next + 1) % NUMBERS;
        *next
    }

    pub(super) fn answered(&self, returned: bool) -> MutexGuard<'_, Called> {
        let mut count = self.count();
        count.answered += 1;
        count.returned += u64::from(returned);
        count
    }
}

/// A connection, or the place of one.
struct Slot {
    lane: Lane,
    port: u16,
    stream: Option<TcpStream>,
    connection: u32,
    nth: u32,
    left: u32,
    /// A header was added to the last response.
    last_returned: bool,
    /// When the next request is due, while none is under way.
    due: Instant,
    under_way: Option<UnderWay>,
}

struct UnderWay {
    since: Instant,
    expected: Vec<u8>,
    received: Vec<u8>,
}

/// Calls until the file is there, then ends when everything is answered.
pub fn call(plan: &Plan) -> Result<()> {
    let shared = Shared {
        count: Mutex::default(),
        next: Mutex::new(0),
    };
    let uploads = plan.connections.iter().filter(|(lane, _)| *lane == Lane::Upload);
    let uploads: usize = uploads.map(|(_, count)| count).sum();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..uploads).map(|_| scope.spawn(|| upload(plan, &shared))).collect();
        let called = call_all(plan, &shared);
        for thread in threads {
            thread.join().map_err(|_| anyhow::anyhow!("an upload panicked"))?;
        }
        called
    })?;
    let mut count = shared.count();
    count.done = true;
    count.at_ms = now_ms();
    tell(&*count)
}

fn call_all(plan: &Plan, shared: &Shared) -> Result<()> {
    let mut rng = StdRng::seed_from_u64(u64::from(plan.server));
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut slots: Vec<Slot> = Vec::new();
    for (lane, count) in plan.connections.iter().filter(|(lane, _)| *lane != Lane::Upload) {
        let port = if *lane == Lane::Proxied {
            plan.proxy
        } else {
            plan.server
        };
        slots.extend((0..*count).map(|_| Slot::new(*lane, port, rest(&mut rng))));
    }
    let mut events = Vec::with_capacity(256);
    let mut told = Instant::now();
    loop {
        match epoll::wait(&epoll, spare_capacity(&mut events), Some(&TICK)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("epoll_wait"),
        }
        for event in events.drain(..) {
            if let Some(slot) = slots.get_mut(event.data.u64() as usize) {
                slot.settle(|slot| slot.receive(shared, &mut rng), shared);
            }
        }
        let ending = plan.stop.exists();
        let now = Instant::now();
        for (number, slot) in (0..).zip(&mut slots) {
            if slot.stream.is_none() && slot.due <= now {
                slot.settle(|slot| slot.open(&epoll, number, shared, &mut rng), shared);
            } else if slot.is_due(now) && !ending {
                slot.settle(|slot| slot.ask(shared), shared);
            } else if slot.is_late(now) {
                slot.settle(|_| Err(format!("no whole response within {PATIENCE:?}")), shared);
            }
        }
        if told.elapsed() >= EVERY {
            told = Instant::now();
            report(&slots, shared)?;
        }
        if ending && slots.iter().all(|slot| slot.under_way.is_none()) {
            return Ok(());
        }
    }
}

fn rest(rng: &mut StdRng) -> Duration {
    Duration::from_millis(rng.random_range(REST_MS))
}

fn report(slots: &[Slot], shared: &Shared) -> Result<()> {
    let mut count = shared.count();
    count.at_ms = now_ms();
    count.open = slots.iter().filter(|slot| slot.stream.is_some()).count() as u64;
    tell(&*count)
}

impl Slot {
    fn new(lane: Lane, port: u16, after: Duration) -> Self {
        Self {
            lane,
            port,
            stream: None,
            connection: 0,
            nth: 0,
            left: 0,
            last_returned: false,
            due: Instant::now() + after,
            under_way: None,
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.under_way.is_none() && self.due <= now
    }

    fn is_late(&self, now: Instant) -> bool {
        let since = self.under_way.as_ref().map(|under_way| under_way.since);
        since.is_some_and(|since| now.saturating_duration_since(since) > PATIENCE)
    }

    /// Does something; what fails is a fault, and a new connection is made.
    fn settle(&mut self, what: impl FnOnce(&mut Self) -> Result<(), String>, shared: &Shared) {
        if let Err(fault) = what(self) {
            let asked = Asked {
                lane: self.lane,
                connection: self.connection,
                nth: self.nth,
            };
            shared.count().faults.add(&format!("{}: {fault}", asked.path()));
            self.stream = None;
            self.under_way = None;
            self.due = Instant::now() + Duration::from_secs(1);
        }
    }

    fn mode(&self) -> Mode {
        if self.lane == Lane::Blocking {
            Mode::Blocking
        } else {
            Mode::Polling
        }
    }

    /// Makes a connection in the place of the last one. Its first request comes after a rest, so that at any time some
    /// connections have not been used yet.
    fn open(&mut self, epoll: &OwnedFd, number: u64, shared: &Shared, rng: &mut StdRng) -> Result<(), String> {
        self.connection = shared.number();
        self.nth = 0;
        self.left = rng.random_range(REQUESTS);
        self.last_returned = false;
        self.due = Instant::now() + rest(rng);
        let server = SocketAddrV4::new(Ipv4Addr::LOCALHOST, self.port);
        let stream = connect(self.connection, server, self.mode(), &OPTIONS).map_err(|error| format!("{error:#}"))?;
        let data = epoll::EventData::new_u64(number);
        epoll::add(epoll, &stream, data, epoll::EventFlags::IN).map_err(|error| format!("epoll: {error}"))?;
        self.stream = Some(stream);
        shared.count().connections += 1;
        Ok(())
    }

    /// Sends the next request.
    fn ask(&mut self, shared: &Shared) -> Result<(), String> {
        let Some(stream) = &self.stream else {
            return Err("no connection".to_owned());
        };
        let asked = Asked {
            lane: self.lane,
            connection: self.connection,
            nth: self.nth,
        };
        shared.count().asked += 1;
        send_all(stream, &asked.head(), self.mode())?;
        self.under_way = Some(UnderWay {
            since: Instant::now(),
            expected: asked.answer(),
            received: Vec::new(),
        });
        Ok(())
    }

    /// Takes what is there, once.
    fn receive(&mut self, shared: &Shared, rng: &mut StdRng) -> Result<(), String> {
        let Some(stream) = &self.stream else { return Ok(()) };
        let mut buffer = [0; 4_096];
        let length = match rustix::net::recv(stream, buffer.as_mut_slice(), RecvFlags::empty()) {
            Ok((_, 0)) => return Err("closed by the other side".to_owned()),
            Ok((_, length)) => length,
            // Where a socket blocks, this is what no application expects.
            Err(Errno::AGAIN) if self.mode() == Mode::Polling => return Ok(()),
            Err(error) => return Err(format!("recv: {error}")),
        };
        let bytes = buffer.get(..length).unwrap_or_default();
        let Some(under_way) = &mut self.under_way else {
            return Err(format!("nobody asked for \"{}\"", bytes.escape_ascii()));
        };
        under_way.received.extend_from_slice(bytes);
        let Some(whole) = compare(&under_way.expected, &under_way.received, ADDED)? else {
            return Ok(());
        };
        let took = under_way.since.elapsed().as_millis() as u64;
        let mut count = shared.answered(whole.added);
        count.slowest_ms = count.slowest_ms.max(took);
        count.stalled += u64::from(took >= STALL_MS);
        count.went_on += u64::from(self.last_returned && !whole.added);
        self.last_returned = whole.added;
        self.under_way = None;
        self.due = Instant::now() + rest(rng);
        self.nth += 1;
        self.left -= 1;
        if self.left == 0 {
            // Another one at once.
            self.stream = None;
            self.due = Instant::now();
        }
        Ok(())
    }
}

/// Sends all of it, waiting for room: in the call, or for the event.
pub(super) fn send_all(stream: &TcpStream, bytes: &[u8], mode: Mode) -> Result<(), String> {
    let mut sent = 0;
    while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
        match rustix::net::send(stream, rest, SendFlags::NOSIGNAL) {
            Ok(length) => sent += length,
            Err(Errno::AGAIN) if mode == Mode::Polling => {
                if !wait(stream, PollFlags::OUT).unwrap_or(false) {
                    return Err("no room".to_owned());
                }
            }
            Err(error) => return Err(format!("send: {error}")),
        }
    }
    if sent != bytes.len() {
        return Err(format!("{sent} bytes sent of {}", bytes.len()));
    }
    Ok(())
}

/// As the command line has it: `LANE=COUNT`.
pub fn lanes(words: &[&str]) -> Result<Vec<(Lane, usize)>> {
    let parse = |word: &&str| {
        let (name, count) = word.split_once('=')?;
        let lane = Lane::ALL.into_iter().find(|lane| lane.name() == name)?;
        Some((lane, count.parse().ok()?))
    };
    let all = words
        .iter()
        .map(|word| parse(word).with_context(|| format!("not LANE=COUNT: {word}")));
    all.collect()
}
