//! One exchange as data: both streams, who sends which piece when and how, and how it ends.

use rand::rngs::StdRng;
use rand::Rng;

use super::align::Head;

/// Who does something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

impl Side {
    pub fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// The system call that sends a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Send,
    Write,
    /// One writev of this many parts.
    Writev(usize),
    /// One sendmsg of this many parts.
    Sendmsg(usize),
    /// send with MSG_MORE: something follows.
    More,
    /// sendfile from a file in memory.
    Sendfile,
    /// splice through a pipe.
    Splice,
}

/// A part of what a side says, sent by one call if the socket takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub length: usize,
    pub how: How,
}

/// What happens next. Both sides go through the same list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// One side sends, the other receives until all of it has come.
    Say { from: Side, pieces: Vec<Piece> },
    /// One side shuts down its sending direction, the other reads the end of the stream.
    HalfClose(Side),
    /// One side waits, so that the other is already blocked in its call.
    Pause(Side, u16),
    /// One side resets the connection; the other finds out by receiving, then by sending. Last step.
    Reset(Side),
    /// One side closes first, the other reads the end of the stream. Last step.
    Close(Side),
}

/// A direction: every byte of it, and where its heads are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    pub bytes: Vec<u8>,
    pub heads: Vec<Head>,
}

/// What an application sets, and how it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    pub nodelay: bool,
    pub send_buffer: Option<usize>,
    pub receive_buffer: Option<usize>,
    /// Bytes asked for in one receive.
    pub read_size: usize,
    /// Every receive is preceded by a peek.
    pub peeks: bool,
    /// Behind a peek FIONREAD is asked, as some runtimes do.
    pub asks_fionread: bool,
    /// The receiver sleeps this many microseconds after each receive.
    pub slow_us: u16,
}

/// Everything about one exchange (one connection).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    pub kind: &'static str,
    pub up: Stream,
    pub down: Stream,
    pub steps: Vec<Step>,
    pub options: Options,
}

impl Exchange {
    /// Whether the client's first bytes answer the server's.
    pub fn server_speaks_first(&self) -> bool {
        let first = self.steps.iter().find(|step| matches!(step, Step::Say { .. }));
        matches!(first, Some(Step::Say { from: Side::Server, .. }))
    }

    /// What `side` sends.
    pub fn stream(&self, side: Side) -> &Stream {
        match side {
            Side::Client => &self.up,
            Side::Server => &self.down,
        }
    }
}

/// How what is said is cut into calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    Whole,
    /// Two sends, the second begins at this offset.
    At(usize),
    /// This many sends, cut anywhere.
    Pieces(usize),
    EveryByte,
    Writev(usize),
    Sendmsg(usize),
    /// This many sends, all but the last with MSG_MORE.
    More(usize),
    Sendfile,
    Splice,
}

impl Cut {
    /// What applications do, by and large as often.
    pub fn any(rng: &mut StdRng) -> Self {
        match rng.random_range(0..16) {
            0..=6 => Self::Whole,
            7..=8 => Self::Pieces(rng.random_range(2..=5)),
            9..=10 => Self::Writev(rng.random_range(2..=4)),
            11 => Self::Sendmsg(rng.random_range(1..=3)),
            12 => Self::More(rng.random_range(2..=3)),
            13 => Self::Sendfile,
            14 => Self::Splice,
            _ => Self::At(1),
        }
    }
}

/// An exchange being written.
pub struct Draft {
    exchange: Exchange,
    said: [usize; 2],
}

impl Draft {
    pub fn new(kind: &'static str, options: Options) -> Self {
        let exchange = Exchange {
            kind,
            up: Stream::default(),
            down: Stream::default(),
            steps: Vec::new(),
            options,
        };
        Self { exchange, said: [0; 2] }
    }

    pub fn options(&mut self) -> &mut Options {
        &mut self.exchange.options
    }

    fn stream(&mut self, side: Side) -> &mut Stream {
        match side {
            Side::Client => &mut self.exchange.up,
            Side::Server => &mut self.exchange.down,
        }
    }

    /// Bytes that are no head.
    pub fn put(&mut self, side: Side, bytes: &[u8]) -> &mut Self {
        self.stream(side).bytes.extend_from_slice(bytes);
        self
    }

    /// A head with its blank line.
    pub fn head(&mut self, side: Side, bytes: &[u8], may_insert: bool) -> &mut Self {
        let stream = self.stream(side);
        stream.bytes.extend_from_slice(bytes);
        let blank = stream.bytes.len() - 2;
        stream.heads.push(Head {
            blank,
            may_insert,
            parent_id: None,
        });
        self
    }

    /// Sends what was put since the last time.
    pub fn say(&mut self, from: Side, cut: Cut, rng: &mut StdRng) -> &mut Self {
        let end = self.stream(from).bytes.len();
        let said = &mut self.said[from as usize];
        let length = end - *said;
        *said = end;
        if length > 0 {
            let pieces = cut_up(length, cut, rng);
            self.step(Step::Say { from, pieces });
        }
        self
    }

    pub fn step(&mut self, step: Step) -> &mut Self {
        self.exchange.steps.push(step);
        self
    }

    pub fn done(self) -> Exchange {
        self.exchange
    }
}

fn cut_up(length: usize, cut: Cut, rng: &mut StdRng) -> Vec<Piece> {
    let one = |how| vec![Piece { length, how }];
    match cut {
        Cut::Whole => one(if rng.random() { How::Send } else { How::Write }),
        Cut::Writev(parts) => one(How::Writev(parts)),
        Cut::Sendmsg(parts) => one(How::Sendmsg(parts)),
        Cut::Sendfile => one(How::Sendfile),
        Cut::Splice => one(How::Splice),
        Cut::At(offset) => at_offsets(length, &[offset], How::Send),
        Cut::Pieces(count) => at_offsets(length, &anywhere(length, count, rng), How::Send),
        Cut::EveryByte => at_offsets(length, &(1..length).collect::<Vec<_>>(), How::Send),
        Cut::More(count) => {
            let mut pieces = at_offsets(length, &anywhere(length, count, rng), How::More);
            if let Some(last) = pieces.last_mut() {
                last.how = How::Send;
            }
            pieces
        }
    }
}

fn anywhere(length: usize, count: usize, rng: &mut StdRng) -> Vec<usize> {
    let mut offsets: Vec<_> = (1..count).map(|_| rng.random_range(0..=length)).collect();
    offsets.sort_unstable();
    offsets
}

fn at_offsets(length: usize, offsets: &[usize], how: How) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut from = 0;
    for offset in offsets.iter().chain([&length]) {
        let to = (*offset).min(length);
        if to > from {
            pieces.push(Piece { length: to - from, how });
            from = to;
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn every_cut_covers_all_bytes() {
        let rng = &mut StdRng::seed_from_u64(1);
        for length in [1, 2, 3, 100] {
            let mut cuts: Vec<_> = (0..200).map(|_| Cut::any(rng)).collect();
            cuts.extend([Cut::EveryByte, Cut::At(length), Cut::At(length + 1)]);
            for cut in cuts {
                let pieces = cut_up(length, cut, rng);
                let total: usize = pieces.iter().map(|piece| piece.length).sum();
                assert_eq!(total, length, "{cut:?}");
                assert!(pieces.iter().all(|piece| piece.length > 0), "{cut:?}");
                assert!(pieces.last().is_some_and(|last| last.how != How::More), "{cut:?}");
            }
        }
    }
}
