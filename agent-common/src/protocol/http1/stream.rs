//! The parser driven on the host, as the kernel side drives it: for tests, fuzzing and benchmarks.

use std::boxed::Box;
use std::vec::Vec;

use super::super::window::{Window, CARRY_BYTES, FILL_BYTES};
use super::{
    advance, chunk_line, may_skim, needs_scan, request_line_or_header, response_line, scan, skim_request,
    skim_response, step, Cursor, Framing, Method, Request,
};
use crate::abi::Settings;

/// What came out of a piece of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A head begins.
    HeadBegin,
    /// A request's head is complete.
    Request(Box<Request>),
    /// A response's head is complete.
    Response {
        /// Status code.
        status: u16,
        /// [`step::HEAD_END`], [`step::INTERIM`] or [`step::UPGRADED`].
        step: u32,
    },
    /// A header value to be kept.
    Text {
        /// One of [`crate::abi::text`].
        what: u8,
        /// Place in the configuration's list.
        index: u8,
        /// Whether the value is longer.
        cut: bool,
        /// Hash of a tenant.
        hash: u64,
        /// The value.
        bytes: Vec<u8>,
    },
    /// A message is over.
    MessageEnd {
        /// Bytes of its content.
        body_bytes: u64,
    },
    /// The stream is given up: [`step::OPAQUE_TLS`] and the others.
    Opaque(u32),
}

/// Which way a stream goes.
#[derive(Clone, Debug)]
pub enum Direction {
    /// From client to server.
    Requests,
    /// From server to client, with the method of the request each response answers: the [`Method`]s in order, GET
    /// behind the last one.
    Responses(Vec<u8>),
}

/// One direction of a connection.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Framing state, as kept per socket.
    pub framing: Framing,
    /// The request under way.
    pub request: Request,
    direction: Direction,
    answered: usize,
    settings: Settings,
    carry: Vec<u8>,
    window: Window,
    /// Lines that nobody asks for are passed over in one go, as the kernel side does. It changes nothing but the cost.
    pub skims: bool,
    /// The span id that the response under way bears, 0 if none ([`Cursor::returned`]).
    pub returned: u64,
    /// Steps taken so far: what a BPF loop has to allow for.
    pub steps: u64,
}

impl Stream {
    /// A stream at its beginning.
    pub fn new(direction: Direction, settings: Settings) -> Self {
        Self {
            framing: Framing::default(),
            request: Request::default(),
            direction,
            answered: 0,
            settings,
            carry: Vec::new(),
            window: Window::default(),
            skims: true,
            returned: 0,
            steps: 0,
        }
    }

    /// Takes the bytes of one call.
    pub fn feed(&mut self, bytes: &[u8], events: &mut Vec<Event>) {
        let mut rest = bytes;
        let mut c = Cursor::begin(&self.framing, bytes.len() as u64, 0);
        self.fill(&mut c, &mut rest);
        loop {
            self.steps += 1;
            match self.step(&mut c) {
                step::MORE => {}
                step::FILL => {
                    self.save_carry(&c);
                    rest = bytes.get(bytes.len() - c.beyond as usize..).unwrap_or(&[]);
                    self.fill(&mut c, &mut rest);
                }
                step::END => {
                    self.save_carry(&c);
                    break;
                }
                other => {
                    let opaque = other >= step::OPAQUE_BASE;
                    let event = self.event(other, &c);
                    events.push(event);
                    if opaque {
                        self.carry.clear();
                        break;
                    }
                }
            }
        }
    }

    /// One turn of the loop: this is what the kernel side spells out too.
    #[inline]
    fn step(&mut self, c: &mut Cursor) -> u32 {
        let f = &mut self.framing;
        if self.skims && may_skim(f, c) {
            match self.direction {
                Direction::Requests => skim_request(f, &mut self.request, c, &self.window, &self.settings),
                Direction::Responses(_) => skim_response(f, c, &self.window),
            }
        }
        let ctl = if needs_scan(f, c) {
            scan(f, c, &self.window)
        } else {
            c.end
        };
        match advance(f, c, ctl) {
            step::LINE => match &self.direction {
                Direction::Requests => request_line_or_header(f, &mut self.request, c, &self.window, &self.settings),
                Direction::Responses(methods) => {
                    let method = methods.get(self.answered).copied().unwrap_or(Method::Get as u8);
                    let next = response_line(f, c, &self.window, method);
                    if c.returned != 0 {
                        self.returned = core::mem::take(&mut c.returned);
                    }
                    next
                }
            },
            step::CHUNK_LINE => chunk_line(f, c, &self.window),
            other => other,
        }
    }

    fn event(&mut self, step: u32, c: &Cursor) -> Event {
        match step {
            step::HEAD_BEGIN => Event::HeadBegin,
            step::HEAD_END if matches!(self.direction, Direction::Requests) => {
                Event::Request(Box::new(self.seen_request()))
            }
            step::HEAD_END | step::INTERIM | step::UPGRADED => Event::Response { status: c.status, step },
            step::MESSAGE_END => {
                self.answered += 1;
                Event::MessageEnd {
                    body_bytes: self.framing.body_bytes,
                }
            }
            step::TEXT => Event::Text {
                what: c.text_what,
                index: c.text_index,
                cut: c.text_cut != 0,
                hash: c.text_hash,
                bytes: (c.text_from..c.text_from + c.text_len)
                    .map(|at| self.window.byte(at))
                    .collect(),
            },
            reason => Event::Opaque(reason),
        }
    }

    /// The request without what its path's words held before.
    fn seen_request(&self) -> Request {
        let mut request = self.request;
        for (i, word) in request.path.iter_mut().enumerate() {
            if i * 8 >= request.path_len as usize {
                *word = 0;
            }
        }
        request
    }

    fn save_carry(&mut self, c: &Cursor) {
        let carry = u32::from(self.framing.carry);
        debug_assert!(carry as usize <= CARRY_BYTES, "carry of {carry} bytes");
        self.carry = (c.line_start..c.line_start + carry)
            .map(|at| self.window.byte(at))
            .collect();
    }

    fn fill(&mut self, c: &mut Cursor, rest: &mut &[u8]) {
        let (now, later) = rest.split_at(rest.len().min(FILL_BYTES));
        copy_in(&mut self.window, 0, &self.carry);
        copy_in(&mut self.window, self.carry.len(), now);
        *rest = later;
        c.filled(&self.framing, now.len() as u32);
    }
}

/// Copies `bytes` into the window from `at` on.
pub(crate) fn copy_in(window: &mut Window, at: usize, bytes: &[u8]) {
    for (pos, byte) in (at..).zip(bytes) {
        if let Some(word) = window.words.get_mut(pos / 8) {
            let shift = (pos % 8) * 8;
            *word = (*word & !(0xff << shift)) | (u64::from(*byte) << shift);
        }
    }
}

/// The events of `bytes`, cut into calls of the given sizes; what is left behind the last one is one more call.
pub fn events(direction: Direction, settings: Settings, bytes: &[u8], calls: &[usize]) -> Vec<Event> {
    let mut stream = Stream::new(direction, settings);
    let mut events = Vec::new();
    let mut rest = bytes;
    for size in calls {
        let (now, later) = rest.split_at(rest.len().min(*size));
        stream.feed(now, &mut events);
        rest = later;
    }
    if !rest.is_empty() {
        stream.feed(rest, &mut events);
    }
    events
}
