//! Stage: assemble. Exchanges become settled: each with its parent or the reason why there is none, in one trace.
//!
//! ```text
//! Event -> arrive (evidence, unions, ends that meet) -> window (1 s) -> leave (parent, trace, tenant, attempt) -> Output
//! ```
//!
//! Evidence may come after the exchange it is about: the class of its process, the other end of its wire, a demotion. So
//! every exchange is held for the settle window, and what it tells of others is taken in at once, while its own parent
//! is decided when it leaves, from all that is known by then. The order in which records of one window come therefore
//! does not matter. `docs/adr/0001-late-evidence.md` has the reasons.
//!
//! Invariants:
//! - A parent is exact or absent (`judge`); an edge never joins two traces.
//! - A trace id adopted from a header is never rewritten (`union`).
//! - Every exchange leaves exactly once: as [`Output::Settled`] or in an [`Output::Dropped`].
//! - No I/O, clock or channel; every table is bounded (`recent`).

mod arrive;
mod attempts;
mod judge;
mod leave;
mod local;
mod process;
mod recent;
mod returned;
mod sdk;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod texts;
mod union;
mod window;
mod wire;

use std::collections::HashSet;
use std::net::IpAddr;

use spanwire_common::abi::{flag, process_event, side, ExchangeRecord, ProcessClass, ProcessRecord};
use spanwire_common::drop::UserDrop;

pub use self::local::{address, LocalAddrs, Place};
use crate::decode::{Event, Link};
use crate::span::{Settled, SpanId, TraceAlias, TraceId};

/// True if an exchange is excluded by its path or user agent. The second argument is the user agent's text, where the
/// kernel side was asked for it.
pub type Exclusion = Box<dyn Fn(&ExchangeRecord, Option<&str>) -> bool + Send>;
/// True if the exchange's process and ports are captured.
pub type Admission = Box<dyn Fn(&ExchangeRecord) -> bool + Send>;

/// How long, how much, and what counts as local.
pub struct Options {
    /// How long an exchange waits for late evidence.
    pub settle_ns: u64,
    /// Most exchanges held; more make the oldest leave early. The other tables' bounds follow.
    pub max_held: usize,
    /// Ends of captured client sockets remembered.
    pub max_connections: usize,
    /// An exchange whose process was never classified becomes a span. False where `capture.include` names processes.
    pub keep_unclassified: bool,
    /// This node's addresses and the local ranges.
    pub local: LocalAddrs,
    /// Exclusions by path and by user-agent text.
    pub exclusion: Option<Exclusion>,
    /// Whether an exchange that was observed provisionally is captured, now that its process is known.
    pub admission: Option<Admission>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            settle_ns: 1_000_000_000,
            max_held: 16_384,
            max_connections: 65_536,
            keep_unclassified: true,
            local: LocalAddrs::default(),
            exclusion: None,
            admission: None,
        }
    }
}

/// What comes out of assemble.
#[derive(Debug)]
pub enum Output {
    /// An exchange whose parent and trace are settled.
    Settled(Settled),
    /// A trace id that stands for another from now on. Told before the first span that was rewritten. The canonical id may
    /// become an alias itself later: whoever resolves follows the chain.
    Alias(TraceAlias),
    /// So many exchanges will never be spans.
    Dropped(UserDrop, u64),
    /// A server exchange whose sender is on this node and has not been met: its end may still lie on the wire.
    Unmet {
        /// The key it would lie under.
        wire_key: u64,
        /// The server's socket.
        cookie: u64,
        span: SpanId,
        trace: TraceId,
    },
    /// An exchange that was observed provisionally counts: its process is captured.
    Kept {
        /// On which side.
        is_server: bool,
    },
    /// A process whose class is needed: to be answered by [`Assembler::set_class`], also when it is gone.
    Classify { pid: u32 },
}

/// What assemble counts and how full it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Exchanges taken in.
    pub exchanges: u64,
    /// Exchanges handed on.
    pub settled: u64,
    /// Exchanges dropped, whatever the reason.
    pub dropped: u64,
    /// Sockets older than the agent whose first exchange after a proven boundary has come.
    pub joined: u64,
    /// Of those handed on: left before their time, for want of room.
    pub settled_early: u64,
    /// Exchanges held now.
    pub held: usize,
    /// Pairs of ends that met here, not in the kernel.
    pub wire_late: u64,
    /// Ends with equal keys that were no pair.
    pub wire_doubtful: u64,
    /// Server spans whose local, captured peer was not found.
    pub wire_missed: u64,
    /// Exact parents taken back because their trace is another.
    pub contradictions: u64,
    /// Trace ids that stand for others now.
    pub union_size: usize,
    /// Traces merged.
    pub union_merged: u64,
    /// Merges taken back, because the id was adopted from a header.
    pub union_taken_back: u64,
    /// Trace ids forgotten for want of room.
    pub union_evicted: u64,
    /// Entries of the other tables forgotten for want of room.
    pub evicted: u64,
    /// Exchanges numbered as further attempts.
    pub attempts: u64,
    /// Spans whose texts wait for them.
    pub texts_waiting: usize,
    /// Entries in all tables beside the window.
    pub remembered: usize,
}

/// The stage. One per agent; fed from one thread.
pub struct Assembler {
    options: Options,
    window: window::Window,
    processes: process::Processes,
    wire: wire::Wire,
    seen: local::Seen,
    union: union::Union,
    returned: returned::Returned,
    sdks: sdk::Sdks,
    shelf: texts::Shelf,
    attempts: attempts::Attempts,
    counted: Stats,
}

/// Processes remembered.
const MAX_PROCESSES: usize = 32_768;

/// Bounds of the tables beside the window, by how many exchanges that holds.
struct Bounds {
    /// Trace ids in the union.
    union: usize,
    /// Spans whose texts may wait.
    texts: usize,
    /// Tenants remembered, and traces with one.
    tenants: usize,
    tenant_traces: usize,
    /// Open requests and threads with failed attempts.
    makers: usize,
}

impl Bounds {
    fn of(max_held: usize) -> Self {
        Self {
            union: max_held * 2,
            texts: max_held / 2,
            tenants: max_held / 2,
            tenant_traces: max_held * 2,
            makers: max_held / 4,
        }
    }
}

impl Assembler {
    pub fn new(options: Options) -> Self {
        let bounds = Bounds::of(options.max_held);
        Self {
            window: window::Window::new(options.settle_ns),
            processes: process::Processes::new(MAX_PROCESSES),
            wire: wire::Wire::new(options.max_held, options.settle_ns),
            seen: local::Seen::new(options.max_connections),
            union: union::Union::new(bounds.union),
            returned: returned::Returned::new(options.max_held, options.settle_ns),
            sdks: sdk::Sdks::new(),
            shelf: texts::Shelf::new(bounds.texts, bounds.tenants, bounds.tenant_traces),
            attempts: attempts::Attempts::new(bounds.makers),
            counted: Stats::default(),
            options,
        }
    }

    /// Takes one event in. `now_ns` is CLOCK_MONOTONIC, as the records' times are.
    pub fn push(&mut self, event: Event, now_ns: u64, out: &mut impl FnMut(Output)) {
        match event {
            Event::Exchange(record) => self.arrive(record, now_ns, out),
            Event::Text(record) => self.shelf.add(&record),
            Event::Process(record) => self.process(&record, now_ns, out),
            Event::Link(link) => self.link(link),
        }
    }

    /// An exchange that is not to be worked on, because the agent uses too much: it makes no span, but what it tells of
    /// others is not forgotten. True if it is a loss, false if its process is not captured.
    pub fn pass_over(&mut self, record: &ExchangeRecord, out: &mut impl FnMut(Output)) -> bool {
        self.counted.exchanges += 1;
        let process = self.processes.meet(record.pid);
        process.serves |= record.side == side::SERVER;
        process.demoted |= record.flags & flag::DEMOTED != 0;
        if process.excluded {
            self.drop_excluded(record, true, out);
            return false;
        }
        if record.side == side::CLIENT {
            self.seen.client(record, &self.options.local);
        }
        arrive::keep(record, out);
        self.counted.dropped += 1;
        true
    }

    /// Lets go of what is due; to be called every 100 ms or oftener.
    pub fn tick(&mut self, now_ns: u64, out: &mut impl FnMut(Output)) {
        while let Some(held) = self.window.due(now_ns) {
            self.leave(held, out);
        }
        self.window.shrink();
        self.processes.advance(now_ns);
        self.wire.advance(now_ns);
        self.returned.advance(now_ns);
        self.sdks.advance(now_ns);
        self.seen.advance(now_ns);
        self.shelf.advance(now_ns);
        self.attempts.advance(now_ns);
    }

    /// The exchange that has to leave early if one more comes now, for want of room.
    pub fn leaves_early(&self) -> Option<SpanId> {
        if self.window.len() < self.options.max_held {
            return None;
        }
        self.window.records().next().map(|record| SpanId(record.span_id))
    }

    /// Lets go of everything: the agent stops.
    pub fn flush(&mut self, out: &mut impl FnMut(Output)) {
        while let Some(held) = self.window.oldest() {
            self.leave(held, out);
        }
    }

    /// The class of a process, and whether it is excluded as a whole. May be called again when it turns out to be another.
    pub fn set_class(&mut self, pid: u32, class: ProcessClass, excluded: bool) {
        let process = self.processes.meet(pid);
        let changed = excluded != process.excluded;
        process.class = class;
        process.known = true;
        process.excluded = excluded;
        if changed {
            for record in self.window.records().filter(|record| record.pid == pid) {
                self.wire.exclude(SpanId(record.span_id), excluded);
            }
        }
        for sequence in self.processes.woken(pid) {
            self.evidence_of_held(sequence);
        }
    }

    /// The parent of a process, where whoever classified it found out: a cause inherited over a fork is only believed if
    /// no forefather is of a runtime in which it means nothing.
    pub fn set_parent(&mut self, pid: u32, parent_pid: u32) {
        self.processes.set_parent(pid, parent_pid);
    }

    /// The process has ended: what is known of it is forgotten once its last exchanges have left.
    pub fn process_exit(&mut self, pid: u32, now_ns: u64) {
        self.processes
            .exit(pid, now_ns.saturating_add(self.options.settle_ns.saturating_mul(2)));
    }

    /// Another set of this node's addresses, for spans that leave from now on.
    pub fn set_addresses(&mut self, addresses: HashSet<IpAddr>) {
        self.options.local.addresses = addresses;
    }

    /// Another exclusion, for exchanges that are held or come from now on.
    pub fn set_exclusion(&mut self, exclusion: Option<Exclusion>, keep_unclassified: bool) {
        self.options.exclusion = exclusion;
        self.options.keep_unclassified = keep_unclassified;
    }

    /// Counts and sizes.
    pub fn stats(&self) -> Stats {
        Stats {
            held: self.window.len(),
            wire_late: self.wire.late(),
            wire_doubtful: self.wire.doubtful(),
            union_size: self.union.len(),
            union_merged: self.union.merged(),
            union_taken_back: self.union.taken_back(),
            union_evicted: self.union.evicted(),
            evicted: self.wire.evicted() + self.shelf.evicted() + self.returned.evicted() + self.sdks.evicted(),
            texts_waiting: self.shelf.waiting(),
            remembered: self.processes.len()
                + self.wire.len()
                + self.union.len()
                + self.returned.len()
                + self.shelf.waiting()
                + self.attempts.len()
                + self.sdks.len(),
            ..self.counted
        }
    }

    fn process(&mut self, record: &ProcessRecord, now_ns: u64, out: &mut impl FnMut(Output)) {
        let pid = record.pid;
        match record.event {
            process_event::SEEN => {
                self.processes.reborn(pid);
                self.processes.set_parent(pid, record.parent_pid);
                self.ask(pid, out);
            }
            process_event::EXEC => {
                let asked = self.processes.peek(pid).asked;
                self.processes.reborn(pid);
                self.processes.exec(pid);
                self.processes.set_parent(pid, record.parent_pid);
                if asked {
                    self.ask(pid, out);
                }
            }
            process_event::EXIT => self.process_exit(pid, now_ns),
            process_event::DEMOTED => self.processes.meet(pid).demoted = true,
            _ => {}
        }
    }

    /// Asks for the class of a process, once.
    fn ask(&mut self, pid: u32, out: &mut impl FnMut(Output)) {
        let process = self.processes.meet(pid);
        if !process.known && !process.asked {
            process.asked = true;
            out(Output::Classify { pid });
        }
    }

    /// Two ends met after each had a trace of its own.
    fn link(&mut self, link: Link) {
        let client = wire::Client {
            span: link.client_span,
            trace: link.client_trace,
        };
        self.wire.link(link.server_span, client);
        self.merge(client.trace, link.server_trace);
    }

    /// The fragment `child` belongs to the trace `parent`.
    fn merge(&mut self, parent: TraceId, child: TraceId) {
        if parent == child {
            return;
        }
        let winner = self.union.find(parent);
        let loser = self.union.find(child);
        if self.union.merge(winner, loser) {
            self.shelf.joined(winner, loser);
        }
    }
}
