//! One side of an exchange on a real socket, call by call, as an application would make them.

use std::fmt::Write as _;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, Weak};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{sockopt, RecvFlags};

use super::align::Align;
use super::exchange::{Exchange, Options, Piece, Side, Step};
use super::record::Seen;
use super::socket::{self, Mode};

/// A thread's connection, so that another can end a wait that would last for ever.
#[derive(Clone, Default)]
pub struct Slot(Arc<Mutex<Option<Held>>>);

/// Since when a thread has had which connection.
type Held = (Instant, Weak<TcpStream>);

impl Slot {
    fn hold(&self, stream: &Arc<TcpStream>) {
        if let Ok(mut slot) = self.0.lock() {
            *slot = Some((Instant::now(), Arc::downgrade(stream)));
        }
    }

    fn release(&self) {
        if let Ok(mut slot) = self.0.lock() {
            *slot = None;
        }
    }

    /// Shuts the connection down when it has been in use for longer than the limit.
    pub fn break_if_older(&self, limit: Duration) {
        let Ok(slot) = self.0.lock() else { return };
        if let Some((since, stream)) = slot.as_ref() {
            if since.elapsed() > limit {
                if let Some(stream) = stream.upgrade() {
                    let _ = stream.shutdown(Shutdown::Both);
                }
            }
        }
    }
}

/// Why an exchange does not go on.
enum Stop {
    /// The bytes are not the expected ones.
    Difference(String),
    /// A call said something that ends the exchange; it is in the tokens.
    Ended,
}

struct Player<'a> {
    side: Side,
    exchange: &'a Exchange,
    mode: Mode,
    align: Align<'a>,
    sent: usize,
    /// Where the peer's stream stands when the step at hand is over.
    target: usize,
    half_closed: [bool; 2],
    seen: Seen,
    buffer: Vec<u8>,
    paused: Duration,
}

/// Plays one side to its end. `names` are the headers that may have been added to what this side receives.
pub fn play(side: Side, exchange: &Exchange, stream: TcpStream, mode: Mode, names: &[String], slot: &Slot) -> Seen {
    let theirs = exchange.stream(side.other());
    let mut player = Player {
        side,
        exchange,
        mode,
        align: Align::new(&theirs.bytes, &theirs.heads, names),
        sent: 0,
        target: 0,
        half_closed: [false; 2],
        seen: Seen::default(),
        buffer: vec![0; exchange.options.read_size],
        paused: Duration::ZERO,
    };
    let stream = Arc::new(stream);
    slot.hold(&stream);
    let start = Instant::now();
    if let Err(Stop::Difference(difference)) = player.steps(&stream) {
        player.seen.difference = Some(difference);
        // The other side is not to wait for what will not come.
        let _ = sockopt::set_socket_linger(&*stream, Some(Duration::ZERO));
    }
    player.seen.micros = start.elapsed().saturating_sub(player.paused).as_micros() as u64;
    slot.release();
    player.seen.inserted = player.align.inserted;
    player.seen.corrected = player.align.corrected;
    player.seen
}

impl Player<'_> {
    fn steps(&mut self, stream: &TcpStream) -> Result<(), Stop> {
        for step in &self.exchange.steps {
            match step {
                Step::Say { from, pieces } if *from == self.side => self.say(stream, pieces)?,
                Step::Say { pieces, .. } => {
                    self.target += pieces.iter().map(|piece| piece.length).sum::<usize>();
                    self.listen(stream)?;
                }
                Step::HalfClose(side) => {
                    self.half_closed[*side as usize] = true;
                    if *side == self.side {
                        let result = rustix::net::shutdown(stream, rustix::net::Shutdown::Write);
                        self.result("w", result.map(|()| 0));
                    } else {
                        self.end_of_stream(stream)?;
                    }
                }
                Step::Pause(side, milliseconds) => {
                    let pause = Duration::from_millis(u64::from(*milliseconds));
                    self.paused += pause;
                    if *side == self.side {
                        sleep(pause);
                    }
                }
                Step::Reset(side) => {
                    if *side == self.side {
                        let _ = sockopt::set_socket_linger(stream, Some(Duration::ZERO));
                    } else {
                        self.end_of_stream(stream)?;
                        let late = socket::send(stream, b"x", super::exchange::How::Send);
                        self.result("late", late);
                    }
                }
                Step::Close(side) => {
                    if *side == self.side {
                        self.options(stream, &self.exchange.options);
                    } else if !self.half_closed[*side as usize] {
                        // Behind the end an error may come: where a node has too many connections in TIME_WAIT, the
                        // kernel forgets at once one that was closed, and answers with a reset.
                        self.end_of_stream(stream)?;
                    }
                }
            }
        }
        match self.align.unfinished() {
            Some(difference) => Err(Stop::Difference(difference.to_string())),
            None => Ok(()),
        }
    }

    fn say(&mut self, stream: &TcpStream, pieces: &[Piece]) -> Result<(), Stop> {
        for piece in pieces {
            let all = &self.exchange.stream(self.side).bytes;
            let bytes = all.get(self.sent..self.sent + piece.length).unwrap_or_default();
            let mut taken = 0;
            while taken < bytes.len() {
                match socket::send(stream, bytes.get(taken..).unwrap_or_default(), piece.how) {
                    Ok(count) => taken += count,
                    Err(Errno::AGAIN) if self.mode == Mode::Polling => match socket::wait(stream, PollFlags::OUT) {
                        Ok(true) => {}
                        Ok(false) => return Err(self.ended("s!STALLED")),
                        Err(error) => return Err(self.ended(&format!("s!poll {}", name(error)))),
                    },
                    Err(error) => return Err(self.ended(&format!("s{taken}!{}", name(error)))),
                }
            }
            if taken != bytes.len() {
                // The kernel said that it took more than it was given.
                let _ = write!(self.seen.tokens, " of{}", bytes.len());
            }
            let _ = write!(self.seen.tokens, " s{taken}");
            self.sent += piece.length;
        }
        Ok(())
    }

    /// Receives until the step's bytes are there.
    fn listen(&mut self, stream: &TcpStream) -> Result<(), Stop> {
        while self.align.position() < self.target {
            match self.receive(stream)? {
                Ok(0) => {
                    let at = self.align.position();
                    return Err(self.ended(&format!("r{at} EOF-EARLY")));
                }
                Ok(_) => {}
                Err(error) => {
                    let at = self.align.position();
                    return Err(self.ended(&format!("r{at}!{}", name(error))));
                }
            }
        }
        // How far beyond this step a receive went is a matter of timing.
        let _ = write!(self.seen.tokens, " r{}", self.target);
        Ok(())
    }

    /// Receives what ends the stream: nothing, or an error.
    fn end_of_stream(&mut self, stream: &TcpStream) -> Result<(), Stop> {
        loop {
            match self.receive(stream)? {
                // What comes here is too much, and the alignment has said so.
                Ok(count) if count > 0 => {}
                result => {
                    self.result("end", result);
                    return Ok(());
                }
            }
        }
    }

    /// One receive and its bytes held against the expected ones. `Ok(Err)` is what the call said.
    fn receive(&mut self, stream: &TcpStream) -> Result<Result<usize, Errno>, Stop> {
        let peeked = if self.exchange.options.peeks {
            match self.call(stream, RecvFlags::PEEK)? {
                Ok(count) if count > 0 => self.peeked(stream, count),
                result => return Ok(result),
            }
        } else {
            Vec::new()
        };
        let result = self.call(stream, RecvFlags::empty())?;
        if let Ok(count) = result {
            let bytes = self.buffer.get(..count).unwrap_or_default();
            if !bytes.starts_with(&peeked) && !peeked.starts_with(bytes) {
                return Err(Stop::Difference("received otherwise than peeked".to_owned()));
            }
            let aligned = self.align.push(bytes);
            aligned.map_err(|difference| Stop::Difference(difference.to_string()))?;
            if self.exchange.options.slow_us > 0 {
                sleep(Duration::from_micros(u64::from(self.exchange.options.slow_us)));
            }
        }
        Ok(result)
    }

    /// What was peeked is there, and FIONREAD has to say so if it is asked.
    fn peeked(&mut self, stream: &TcpStream, count: usize) -> Vec<u8> {
        if self.exchange.options.asks_fionread {
            let queued = rustix::io::ioctl_fionread(stream);
            if !matches!(queued, Ok(queued) if queued >= count as u64) {
                let _ = write!(self.seen.tokens, " fionread {queued:?} with {count} peeked");
            }
        }
        self.buffer.get(..count).unwrap_or_default().to_vec()
    }

    fn call(&mut self, stream: &TcpStream, flags: RecvFlags) -> Result<Result<usize, Errno>, Stop> {
        loop {
            match rustix::net::recv(stream, self.buffer.as_mut_slice(), flags) {
                Err(Errno::AGAIN) if self.mode == Mode::Polling => match socket::wait(stream, PollFlags::IN) {
                    Ok(true) => {}
                    Ok(false) => return Err(self.ended("r!STALLED")),
                    Err(error) => return Err(self.ended(&format!("r!poll {}", name(error)))),
                },
                Ok((_, count)) => return Ok(Ok(count)),
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    /// Options read back are what was set, and no error waits.
    fn options(&mut self, stream: &TcpStream, options: &Options) {
        let nodelay = sockopt::tcp_nodelay(stream);
        let error = sockopt::socket_error(stream);
        if nodelay != Ok(options.nodelay) || !matches!(error, Ok(Ok(()))) {
            let _ = write!(self.seen.tokens, " nodelay {nodelay:?} error {error:?}");
        }
    }

    fn ended(&mut self, token: &str) -> Stop {
        let _ = write!(self.seen.tokens, " {token}");
        Stop::Ended
    }

    fn result(&mut self, what: &str, result: Result<usize, Errno>) {
        let _ = match result {
            Ok(count) => write!(self.seen.tokens, " {what}{count}"),
            Err(error) => write!(self.seen.tokens, " {what}!{}", name(error)),
        };
    }
}

/// An error as people know it.
fn name(error: Errno) -> String {
    match error {
        Errno::AGAIN => "EAGAIN".to_owned(),
        Errno::CONNRESET => "ECONNRESET".to_owned(),
        Errno::PIPE => "EPIPE".to_owned(),
        other => format!("errno {}", other.raw_os_error()),
    }
}
