//! The side that answers: one thread for all connections. Every head is one that was asked, or has one header more.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::buffer::spare_capacity;
use rustix::event::{epoll, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{sockopt, RecvFlags, SendFlags, SocketFlags};

use super::count::{now_ms, tell, Served, EVERY};
use super::wire::{compare, Asked, Lane, LANES};
use crate::differential::socket::{listen, wait};

/// The header that a request may have gained.
const ADDED: &str = "traceparent";
/// Small enough that an upload does not fit into both ends' buffers.
const BUFFER: usize = 32 << 10;
/// An upload is read in pieces of this size, with pauses, so that its sender waits in its call.
const PIECE: usize = 16 << 10;
const PAUSE: Duration = Duration::from_millis(10);
const TICK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 5_000_000,
};
/// The listener's number among the events; connections have numbers from one on.
const LISTENER: u64 = 0;

struct Connection {
    stream: TcpStream,
    /// What has come and is not taken yet.
    received: Vec<u8>,
    /// The upload under way, and how much of its body has come.
    upload: Option<(Asked, usize)>,
    /// Not read before this instant.
    resumes: Option<Instant>,
    last: Option<Asked>,
    last_rewritten: bool,
    went_on: bool,
}

struct Server {
    epoll: OwnedFd,
    connections: BTreeMap<u64, Connection>,
    next: u64,
    count: Served,
}

/// What became of a connection: it goes on, or it is over as it may be.
enum Then {
    GoesOn,
    Ends,
}

/// Serves for ever.
pub fn serve(port: u16) -> Result<()> {
    let listener = listen(port)?;
    sockopt::set_socket_recv_buffer_size(&listener, BUFFER)?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(
        &epoll,
        &listener,
        epoll::EventData::new_u64(LISTENER),
        epoll::EventFlags::IN,
    )?;
    let mut server = Server {
        epoll,
        connections: BTreeMap::new(),
        next: LISTENER + 1,
        count: Served::default(),
    };
    let mut events = Vec::with_capacity(256);
    let mut told = Instant::now();
    loop {
        match epoll::wait(&server.epoll, spare_capacity(&mut events), Some(&TICK)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("epoll_wait"),
        }
        for event in events.drain(..) {
            match event.data.u64() {
                LISTENER => server.accept(&listener)?,
                number => server.ready(number),
            }
        }
        server.resume()?;
        if told.elapsed() >= EVERY {
            told = Instant::now();
            server.tell()?;
        }
    }
}

impl Server {
    fn accept(&mut self, listener: &std::net::TcpListener) -> Result<()> {
        let socket = rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        let number = self.next;
        self.next += 1;
        epoll::add(
            &self.epoll,
            &socket,
            epoll::EventData::new_u64(number),
            epoll::EventFlags::IN,
        )?;
        let connection = Connection {
            stream: TcpStream::from(socket),
            received: Vec::new(),
            upload: None,
            resumes: None,
            last: None,
            last_rewritten: false,
            went_on: false,
        };
        self.connections.insert(number, connection);
        Ok(())
    }

    fn ready(&mut self, number: u64) {
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        let then = connection.read(&mut self.count);
        if connection.resumes.is_some() {
            let nothing = epoll::EventFlags::empty();
            let _ = epoll::modify(
                &self.epoll,
                &connection.stream,
                epoll::EventData::new_u64(number),
                nothing,
            );
        }
        match then {
            Ok(Then::GoesOn) => {}
            Ok(Then::Ends) => {
                self.connections.remove(&number);
            }
            Err(fault) => {
                let last = connection.last.map_or_else(String::new, |asked| asked.path());
                self.count.faults.add(&format!("behind \"{last}\": {fault}"));
                self.connections.remove(&number);
            }
        }
    }

    /// Reads uploads on whose pause is over.
    fn resume(&mut self) -> Result<()> {
        let now = Instant::now();
        for (number, connection) in &mut self.connections {
            if connection.resumes.is_some_and(|at| at <= now) {
                connection.resumes = None;
                let data = epoll::EventData::new_u64(*number);
                epoll::modify(&self.epoll, &connection.stream, data, epoll::EventFlags::IN)?;
            }
        }
        Ok(())
    }

    fn tell(&mut self) -> Result<()> {
        self.count.at_ms = now_ms();
        self.count.open = self.connections.len() as u64;
        let rewritten = self.connections.values().filter(|connection| connection.last_rewritten);
        self.count.rewritten_open = rewritten.count() as u64;
        tell(&self.count)
    }
}

impl Connection {
    /// Takes what is there, once.
    fn read(&mut self, count: &mut Served) -> Result<Then, String> {
        let mut buffer = [0; PIECE];
        let length = match rustix::net::recv(&self.stream, buffer.as_mut_slice(), RecvFlags::empty()) {
            Ok((_, 0)) if self.received.is_empty() && self.upload.is_none() => return Ok(Then::Ends),
            Ok((_, 0)) => return Err(format!("the end came inside of \"{}\"", self.received.escape_ascii())),
            Ok((_, length)) => length,
            Err(Errno::AGAIN) => return Ok(Then::GoesOn),
            Err(error) => return Err(format!("recv: {error}")),
        };
        self.received
            .extend_from_slice(buffer.get(..length).unwrap_or_default());
        if self.upload.is_none() {
            self.head(count)?;
        }
        self.body()?;
        Ok(Then::GoesOn)
    }

    /// A head that is there whole; without a body it is answered at once.
    fn head(&mut self, count: &mut Served) -> Result<(), String> {
        let Some(end) = memchr::memmem::find(&self.received, b"\r\n\r\n") else {
            return Ok(());
        };
        let rest = self.received.split_off(end + 4);
        let head = std::mem::replace(&mut self.received, rest);
        let shown = || head.escape_ascii().to_string();
        let path = head
            .split(|byte| *byte == b' ')
            .nth(1)
            .and_then(|path| std::str::from_utf8(path).ok());
        let asked = path
            .and_then(Asked::parse)
            .ok_or_else(|| format!("nobody asked this: {}", shown()))?;
        let whole = compare(&asked.head(), &head, ADDED).map_err(|difference| format!("{difference}: {}", shown()))?;
        let added = whole.ok_or_else(|| format!("less than was asked: {}", shown()))?.added;
        if asked.lane != Lane::Proxied && !self.follows(&asked) {
            return Err(format!("not what comes next: {}", shown()));
        }
        self.note(asked, added, count);
        if asked.body().is_empty() {
            return self.answer(&asked);
        }
        self.upload = Some((asked, 0));
        Ok(())
    }

    /// It is the next request of the same connection.
    fn follows(&self, asked: &Asked) -> bool {
        let expected = self
            .last
            .map_or((asked.connection, 0), |last| (last.connection, last.nth + 1));
        (asked.connection, asked.nth) == expected
    }

    fn note(&mut self, asked: Asked, added: bool, count: &mut Served) {
        let lane = asked.lane as usize % LANES;
        count.heads[lane] += 1;
        count.rewritten[lane] += u64::from(added);
        if self.last_rewritten && !added && !self.went_on {
            self.went_on = true;
            count.went_on[lane] += 1;
        }
        self.last_rewritten = added;
        self.last = Some(asked);
    }

    /// What has come of an upload's body; behind its end it is answered.
    fn body(&mut self) -> Result<(), String> {
        let Some((asked, from)) = self.upload else {
            return Ok(());
        };
        let body = asked.body();
        let expected = body.get(from..).unwrap_or_default();
        if !expected.starts_with(&self.received) {
            let same = expected.iter().zip(&self.received).take_while(|(a, b)| a == b).count();
            return Err(format!("byte {} of the body is another", from + same));
        }
        let to = from + self.received.len();
        self.received.clear();
        if to < body.len() {
            self.upload = Some((asked, to));
            self.resumes = Some(Instant::now() + PAUSE);
            return Ok(());
        }
        self.upload = None;
        self.answer(&asked)
    }

    fn answer(&mut self, asked: &Asked) -> Result<(), String> {
        let answer = asked.answer();
        let mut sent = 0;
        while let Some(rest) = answer.get(sent..).filter(|rest| !rest.is_empty()) {
            match rustix::net::send(&self.stream, rest, SendFlags::NOSIGNAL) {
                Ok(length) => sent += length,
                Err(Errno::AGAIN) => {
                    if !wait(&self.stream, PollFlags::OUT).unwrap_or(false) {
                        return Err("no room for an answer".to_owned());
                    }
                }
                Err(error) => return Err(format!("send: {error}")),
            }
        }
        Ok(())
    }
}
