//! Tasks, channels and capacities: the only file that owns them.
//!
//! ```text
//! thread `datapath`   rings (limits: ring_bytes per CPU, DRAIN records a visit)
//!                       -> decode -> assemble (16,384 exchanges held) -> enrich -> sample -> route (512 spans)
//!                       -> exporters' queues (8,192 spans, 8 MiB each) and the store's queue (the same)
//! tokio workers       one set per exporter; the HTTP API; signals
//! thread `store`      batches into SQLite
//! ```
//!
//! The data path is one thread with no locks on its way: what it shares (counters, status) others only read.

mod known;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use spanwire_common::abi::{process_event, ExchangeRecord, ProcessValue};
use spanwire_common::drop::{KernelCounter, UserDrop};

use self::known::Known;
use crate::assemble::{self, Assembler, Output};
use crate::budget::{self, Budget, CpuStage, Refusal, Usage};
use crate::config::{ProcessFacts, SelectorRules};
use crate::counters::{Counters, LimitDrop, UnionStats};
use crate::decode::{self, Event, Link, Sequence};
use crate::discover::addresses::NodeAddresses;
use crate::discover::{Discoverer, Hint, ProcRoot, Process};
use crate::enrich::{ClockOffset, Enricher};
use crate::export::ExporterHandle;
use crate::route::Router;
use crate::sample::Sampler;
use crate::span::{Settled, SpanBatch, SpanId, TraceAlias, TraceId};
use crate::store::Store;
use crate::sys::kernel::{self, Kernel};
use crate::sys::ring::Rings;
use crate::sys::usage;

/// How long the data path sleeps when nothing asks for it: records wait at most this long in their ring.
const NAP: Duration = Duration::from_millis(50);
/// Records taken from one ring before the others are looked at.
const DRAIN: usize = 4096;
/// How often counters are published and opaque calls that went quiet looked for, and how long these must have been quiet.
const TURN_SWEEP_NS: u64 = 250_000_000;
/// How often classes, the status and the clock's offset are brought up to date.
const UPKEEP_NS: u64 = 1_000_000_000;

/// Where finished spans go.
#[derive(Default)]
pub struct Sinks {
    /// One per exporter.
    pub exporters: Vec<ExporterHandle>,
    /// The embedded store.
    pub store: Option<Arc<Store>>,
}

impl Sinks {
    fn len(&self) -> usize {
        self.exporters.len() + usize::from(self.store.is_some())
    }

    fn deliver(&self, sink: usize, batch: SpanBatch) {
        if let Some(exporter) = self.exporters.get(sink) {
            exporter.push(batch);
        } else if let Some(store) = &self.store {
            store.push(batch);
        }
    }

    fn alias(&self, alias: TraceAlias) {
        if let Some(store) = &self.store {
            store.push_alias(alias);
        }
    }
}

/// What the status commands show of the data path; written once a second.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Hooks attached.
    pub hooks: Vec<&'static str>,
    /// The family of hooks that sees sends and receives.
    pub family: &'static str,
    /// Every hook is attached.
    pub is_ready: bool,
    /// Processes that showed traffic: (pid, executable or name, class, why, captured, rule).
    pub processes: Vec<ProcessLine>,
    /// What assemble holds and has merged.
    pub assemble: assemble::Stats,
    /// When the data path last looked, CLOCK_MONOTONIC.
    pub at_ns: u64,
    /// What the agent uses of its limits.
    pub limits: budget::Figures,
    /// What it gives up to keep them, in words.
    pub limit_problems: Vec<String>,
    /// What does not work as it should on this node, in words.
    pub degradations: Vec<String>,
    /// Longest time between two looks in the last second: the lag a record may have had.
    pub lag_ns: u64,
}

/// One line of [`Snapshot::processes`].
#[derive(Clone, Debug)]
pub struct ProcessLine {
    /// Thread group id.
    pub pid: u32,
    /// The executable's path, else the task's name.
    pub name: Box<str>,
    /// `process.runtime.name`.
    pub runtime: Option<&'static str>,
    /// The [`ProcessClass`](spanwire_common::abi::ProcessClass) it was given.
    pub class: String,
    /// The evidence for the class.
    pub why: &'static str,
    /// Some of its sockets may be captured.
    pub captured: bool,
    /// The selector that decided.
    pub rule: Box<str>,
}

/// The stages and what they work with.
pub struct DataPath {
    /// The programs and their maps.
    pub kernel: Kernel,
    /// Where records come from.
    pub rings: Rings,
    /// What is captured.
    pub rules: Arc<SelectorRules>,
    /// Stage: assemble.
    pub assembler: Assembler,
    /// What a process is.
    pub discoverer: Discoverer,
    /// Which addresses are this node's.
    pub addresses: NodeAddresses,
    /// Stage: enrich.
    pub enricher: Enricher,
    /// Stage: sample.
    pub sampler: Sampler,
    /// What the agent may use.
    pub budget: Budget,
    /// What stage route delivers to.
    pub sinks: Sinks,
    /// The agent's own metrics.
    pub counters: Arc<Counters>,
    /// Shared with the exclusions by request.
    pub masks: Masks,
    /// Shared with the status commands.
    pub snapshot: Arc<Mutex<Snapshot>>,
}

/// Selector masks of the processes seen, for exclusions that need the request.
pub type Masks = Arc<Mutex<std::collections::HashMap<u32, crate::config::ProcessMasks, foldhash::fast::RandomState>>>;

/// The running data path: stops when told, and hands back nothing.
pub struct Running {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Running {
    /// Detaches, flushes the stages into the sinks' queues, and waits for the thread.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Release);
        // A panic there has been reported by the thread itself.
        let _ = self.thread.join();
    }
}

/// Classifies the servers that run already, attaches the hooks, and starts the data path's thread.
///
/// # Errors
/// A hook does not attach, or the thread cannot be made.
pub fn start(path: DataPath) -> anyhow::Result<Running> {
    let mut worker = Worker::new(path);
    worker.classify_running(kernel::monotonic_ns());
    worker.path.kernel.attach()?;
    if let Err(error) = worker.path.kernel.mark_old_sockets() {
        worker.degrade(format!(
            "every unix socket is joined late, at its first whole response: {error}"
        ));
    }
    for refusal in worker.path.kernel.refusals() {
        tracing::info!(refusal, "hooks not used");
        worker.degradations.push(format!("hooks not used: {refusal}"));
    }
    for gap in worker.path.kernel.family().gaps() {
        worker
            .degradations
            .push(format!("{}: {gap}", worker.path.kernel.family().name()));
    }
    tracing::info!(family = worker.path.kernel.family().name(), hooks = ?worker.path.kernel.attached(), "attached");
    for hook in worker.path.kernel.attached() {
        worker.path.counters.set_hook(hook, true);
    }
    worker.publish_snapshot(kernel::monotonic_ns());
    // What reading the kernel's types, the object and the processes took.
    usage::give_back_memory();
    worker.gave_back_ns = kernel::monotonic_ns();
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&stop);
    let thread = std::thread::Builder::new()
        .name("datapath".to_owned())
        .spawn(move || worker.run(&seen))
        .context("cannot start the data path's thread")?;
    Ok(Running { stop, thread })
}

/// The thread's own state.
struct Worker {
    path: DataPath,
    router: Router,
    sequence: Sequence,
    clock: ClockOffset,
    outputs: Vec<Output>,
    known: Known,
    lost: u64,
    turns_taken: u64,
    /// When to look, and for whom: (wire key, server's span and trace).
    unmet: VecDeque<(u64, Unmet)>,
    /// What does not work as it should on this node.
    degradations: Vec<String>,
    next_turns_ns: u64,
    next_sweep_ns: u64,
    next_upkeep_ns: u64,
    next_addresses_ns: u64,
    lag_ns: u64,
    /// What was said last of the limits, and when freed memory was last given back.
    told: (bool, CpuStage),
    gave_back_ns: u64,
}

/// How often the node's addresses are read again.
const ADDRESSES_NS: u64 = 30_000_000_000;
/// How often freed memory is given back while the agent is over its ceiling.
const GIVE_BACK_NS: u64 = 2_000_000_000;
/// How often it is given back while there is little to do, and what little is, in processors.
const GIVE_BACK_QUIET_NS: u64 = 30_000_000_000;
const QUIET_CPU: f64 = 0.05;
/// A server exchange that did not meet its client: wire key, span, trace.
type Unmet = (u64, SpanId, TraceId);

/// Where a client's hook comes after its server's, its end lies on the wire with nobody to take it. It is looked for
/// shortly before the server's span leaves (assemble's settle window is 1 s).
const LOOK_AFTER_NS: u64 = 850_000_000;
/// So many are looked for at most; those behind are on their own.
const UNMET: usize = 16_384;

/// Beginnings of the names of executables worth a look before anything is attached. Any other process is looked at when
/// it shows traffic.
const SERVERS: [&str; 14] = [
    "nginx", "apache2", "httpd", "python", "pypy", "ruby", "node", "php", "java", "haproxy", "envoy", "dotnet",
    "beam.smp", "caddy",
];

impl Worker {
    fn new(path: DataPath) -> Self {
        let router = Router::new(path.sinks.len(), crate::route::Batching::default());
        Self {
            path,
            router,
            sequence: Sequence::new(),
            clock: ClockOffset(kernel::monotonic_to_unix_ns().cast_signed()),
            outputs: Vec::with_capacity(DRAIN),
            known: Known::default(),
            lost: 0,
            turns_taken: 0,
            unmet: VecDeque::new(),
            degradations: Vec::new(),
            next_turns_ns: 0,
            next_sweep_ns: 0,
            next_upkeep_ns: 0,
            next_addresses_ns: kernel::monotonic_ns() + ADDRESSES_NS,
            lag_ns: 0,
            told: (false, CpuStage::Within),
            gave_back_ns: 0,
        }
    }

    /// Tells the kernel side what the servers are that run already, so that their first request finds its rule in force.
    /// Only programs that may serve are read whole.
    fn classify_running(&mut self, now_ns: u64) {
        for pid in ProcRoot::default().pids_of(&SERVERS) {
            self.classify(&Hint::pid(pid), now_ns);
        }
    }

    fn run(mut self, stop: &AtomicBool) {
        let mut last_ns = kernel::monotonic_ns();
        while !stop.load(Ordering::Acquire) {
            let now_ns = kernel::monotonic_ns();
            self.lag_ns = self.lag_ns.max(now_ns.saturating_sub(last_ns));
            last_ns = now_ns;
            if self.drain(now_ns) < DRAIN / 2 {
                self.path.rings.wait(NAP);
            }
            self.tick(kernel::monotonic_ns());
        }
        self.finish();
    }

    /// Takes what is in the rings.
    fn drain(&mut self, now_ns: u64) -> usize {
        let mut events = Vec::new();
        let (sequence, counters) = (&mut self.sequence, &self.path.counters);
        let mut lost = 0;
        let records = self.path.rings.drain(DRAIN, |bytes| {
            if let Some(header) = decode::header(bytes) {
                lost += sequence.observe(&header);
            }
            match decode::decode(bytes) {
                Ok(event) => events.push(event),
                Err(error) => {
                    tracing::debug!(%error, "record refused");
                    counters.dropped(UserDrop::Malformed, 1);
                }
            }
        });
        self.lost += lost;
        for event in events {
            self.take(event, now_ns);
        }
        records
    }

    fn take(&mut self, event: Event, now_ns: u64) {
        if let Event::Process(record) = &event {
            match record.event {
                process_event::SEEN => {
                    self.classify(&Hint::from_record(record), now_ns);
                }
                process_event::EXIT => self.path.discoverer.on_exit(record.pid, now_ns),
                process_event::EXEC => {
                    self.path.discoverer.on_exec(&Hint::from_record(record), now_ns, now_ns);
                }
                _ => {}
            }
        }
        if let Event::Exchange(record) = &event {
            self.known.captured(record, &self.path.rules);
            if let Some(refusal) = self.path.budget.refuses(TraceId(record.trace_id)) {
                return self.pass_over(record, refusal, now_ns);
            }
        }
        let outputs = &mut self.outputs;
        self.path
            .assembler
            .push(event, now_ns, &mut |output| outputs.push(output));
        self.drain_outputs(now_ns);
    }

    /// An exchange that is given up to keep a limit.
    fn pass_over(&mut self, record: &ExchangeRecord, refusal: Refusal, now_ns: u64) {
        let mut outputs = std::mem::take(&mut self.outputs);
        let is_loss = self
            .path
            .assembler
            .pass_over(record, &mut |output| outputs.push(output));
        self.outputs = outputs;
        if is_loss {
            self.path.counters.limited(match refusal {
                Refusal::Memory => LimitDrop::Memory,
                Refusal::Cpu => LimitDrop::CpuAssemble,
            });
        }
        self.drain_outputs(now_ns);
    }

    /// Finds out what a process is and tells the kernel side and assemble.
    fn classify(&mut self, hint: &Hint, now_ns: u64) {
        let process = self.path.discoverer.lookup_with(hint, now_ns, now_ns);
        // Of one that had ended when it was looked at, the kernel side's own record may still come.
        if !process.info.is_blank() {
            self.publish(hint.pid, &process);
        }
    }

    fn publish(&mut self, pid: u32, process: &Arc<Process>) {
        if self.path.addresses.meet(pid) {
            self.path.assembler.set_addresses(self.path.addresses.all());
        }
        let masks = self.path.rules.process_masks(&facts(process));
        let captured = self.path.rules.may_capture(masks);
        let verdict = process.verdict();
        let value = ProcessValue {
            include: masks.include,
            exclude: masks.exclude,
            class: verdict.class as u8,
            ..ProcessValue::default()
        };
        if let Err(error) = self.tell_kernel(pid, value) {
            tracing::warn!(%error, pid, "cannot tell the kernel side about a process");
        }
        self.path.assembler.set_class(pid, verdict.class, !captured);
        if let Some(parent) = process.info.ancestors.first() {
            self.path.assembler.set_parent(pid, *parent);
        }
        self.path
            .masks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(pid, masks);
        let line = ProcessLine {
            pid,
            name: process.info.exe.clone().unwrap_or_else(|| process.info.comm.clone()),
            runtime: verdict.runtime_name,
            class: format!("{:?}", verdict.class),
            why: verdict.why,
            captured,
            // Filled in when it is shown: sockets still to come may tell.
            rule: Box::default(),
        };
        self.known.classified(line, masks);
    }

    /// The kernel side forgets a process when it ends: what it is told of one that has ended already would stay, and be
    /// the next bearer's of the same id.
    fn tell_kernel(&mut self, pid: u32, value: ProcessValue) -> Result<(), kernel::KernelError> {
        self.path.kernel.set_process(pid, value)?;
        if ProcRoot::default().is_alive(pid) {
            return Ok(());
        }
        self.path.kernel.forget_process(pid)
    }

    fn drain_outputs(&mut self, now_ns: u64) {
        while !self.outputs.is_empty() {
            for output in std::mem::take(&mut self.outputs) {
                match output {
                    Output::Settled(settled) => self.settled(settled, now_ns),
                    Output::Alias(alias) => self.path.sinks.alias(alias),
                    Output::Unmet { wire_key, span, trace } => self.look_later((wire_key, span, trace), now_ns),
                    Output::Kept { is_server } => self.path.counters.kept(is_server),
                    Output::Dropped(reason, count) => self.path.counters.dropped(reason, count),
                    Output::Classify { pid } => self.classify(&Hint::pid(pid), now_ns),
                }
            }
        }
    }

    fn settled(&mut self, settled: Settled, now_ns: u64) {
        if !self.path.budget.keeps(settled.trace_id) {
            self.path.counters.limited(LimitDrop::CpuSample);
            return;
        }
        let record = &settled.record;
        let process = self.path.discoverer.lookup(record.pid, record.request_first_ns, now_ns);
        let span = self.path.enricher.push(settled, &process, self.clock);
        if !self.path.sampler.keep(&span) {
            self.path.counters.dropped(UserDrop::NotSampled, 1);
            return;
        }
        self.path.counters.span(span.kind, span.parent_source);
        let sinks = &self.path.sinks;
        self.router
            .push(span, now_ns, &mut |sink, batch| sinks.deliver(sink, batch));
    }

    /// Says, now and in every answer of `/readyz`, what does not work.
    fn degrade(&mut self, problem: String) {
        tracing::warn!("{problem}");
        self.degradations.push(problem);
    }

    fn look_later(&mut self, unmet: Unmet, now_ns: u64) {
        if self.unmet.len() < UNMET {
            self.unmet.push_back((now_ns + LOOK_AFTER_NS, unmet));
        }
    }

    /// Looks on the wire for clients that came second.
    fn look_for_unmet(&mut self, until_ns: u64, now_ns: u64) {
        while let Some((_, (wire_key, span, trace))) = self.unmet.pop_front_if(|(due_ns, _)| *due_ns <= until_ns) {
            let Some(wire) = self.path.kernel.take_wire(wire_key).filter(|wire| wire.own == 0) else {
                continue;
            };
            let link = Link {
                client_span: SpanId(wire.span_id.to_ne_bytes()),
                client_trace: TraceId(zerocopy::transmute!(wire.trace_id)),
                server_span: span,
                server_trace: trace,
            };
            self.take(Event::Link(link), now_ns);
        }
    }

    fn tick(&mut self, now_ns: u64) {
        self.look_for_unmet(now_ns, now_ns);
        let is_sweep = now_ns >= self.next_turns_ns;
        if is_sweep {
            self.next_turns_ns = now_ns + TURN_SWEEP_NS;
            for turn in self.path.kernel.take_quiet_turns(now_ns.saturating_sub(TURN_SWEEP_NS)) {
                self.turns_taken += 1;
                if let Ok(event) = decode::opaque_turn(&turn) {
                    self.take(event, now_ns);
                }
            }
            self.keep_limits(now_ns);
        }
        if now_ns >= self.next_sweep_ns {
            self.next_sweep_ns = now_ns + kernel::SWEEP_NS;
            if let Err(error) = self.path.kernel.sweep() {
                self.degrade(format!("exchanges that never end are not told: {error}"));
                self.next_sweep_ns = u64::MAX;
            }
        }
        let outputs = &mut self.outputs;
        self.path.assembler.tick(now_ns, &mut |output| outputs.push(output));
        self.drain_outputs(now_ns);
        let sinks = &self.path.sinks;
        self.router.tick(now_ns, &mut |sink, batch| sinks.deliver(sink, batch));
        if is_sweep {
            self.publish_counters();
        }
        if now_ns >= self.next_upkeep_ns {
            self.next_upkeep_ns = now_ns + UPKEEP_NS;
            self.upkeep(now_ns);
        }
    }

    /// Holds what the agent uses against its limits, and says what it gives up for them.
    fn keep_limits(&mut self, now_ns: u64) {
        let budget = &mut self.path.budget;
        budget.measure(
            now_ns,
            Usage {
                cpu_ns: usage::cpu_ns(),
                resident_bytes: usage::resident_bytes(),
            },
        );
        let state = (budget.is_out_of_memory(), budget.cpu_stage());
        let wait_ns = if state.0 {
            GIVE_BACK_NS
        } else if budget.figures().cpu_used < QUIET_CPU {
            GIVE_BACK_QUIET_NS
        } else {
            u64::MAX
        };
        if now_ns.saturating_sub(self.gave_back_ns) >= wait_ns {
            self.gave_back_ns = now_ns;
            usage::give_back_memory();
        }
        if state != self.told {
            self.told = state;
            match budget.problems() {
                problems if problems.is_empty() => tracing::info!("within limits again: nothing is given up"),
                problems => tracing::warn!("{}", problems.join("; ")),
            }
        }
    }

    /// What need not be exact to the millisecond.
    fn upkeep(&mut self, now_ns: u64) {
        self.clock = ClockOffset(kernel::monotonic_to_unix_ns().cast_signed());
        for process in self.path.discoverer.recheck(now_ns) {
            self.publish(process.info.pid, &process);
        }
        self.path.discoverer.sweep(now_ns);
        if now_ns >= self.next_addresses_ns {
            self.next_addresses_ns = now_ns + ADDRESSES_NS;
            if self.path.addresses.refresh() {
                self.path.assembler.set_addresses(self.path.addresses.all());
            }
        }
        let discoverer = &self.path.discoverer;
        self.path
            .masks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|pid, _| discoverer.knows(*pid));
        self.known.forget_ended();
        self.publish_snapshot(now_ns);
    }

    fn publish_snapshot(&mut self, now_ns: u64) {
        let stats = self.path.assembler.stats();
        let snapshot = Snapshot {
            hooks: self.path.kernel.attached().to_vec(),
            family: self.path.kernel.family().name(),
            is_ready: true,
            processes: self.known.lines(&self.path.rules),
            assemble: stats,
            limits: self.path.budget.figures(),
            limit_problems: self.path.budget.problems(),
            degradations: self.degradations.clone(),
            at_ns: now_ns,
            lag_ns: std::mem::take(&mut self.lag_ns),
        };
        *self.path.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }

    /// Brings the shared counters up to date.
    fn publish_counters(&mut self) {
        let mut totals = self.path.kernel.counters();
        totals[KernelCounter::ExchangesClient as usize] += self.turns_taken;
        if self.path.rules.includes_everything() {
            // Whatever nobody had classified was captured, too.
            let provisional = std::mem::take(&mut totals[KernelCounter::RingFullProvisional as usize]);
            totals[KernelCounter::RingFullExchange as usize] += provisional;
        }
        self.path.counters.set_kernel(&totals);
        // Every record the ring refused left a hole too: only what is more than that was lost unseen.
        let refused = [
            KernelCounter::RingFullExchange,
            KernelCounter::RingFullProvisional,
            KernelCounter::RingFullOther,
        ];
        let refused: u64 = refused.iter().map(|counter| totals[*counter as usize]).sum();
        let unseen = self.lost.saturating_sub(refused);
        let told = self.path.counters.dropped_total(UserDrop::LostRecord);
        self.path
            .counters
            .dropped(UserDrop::LostRecord, unseen.saturating_sub(told));
        let stats = self.path.assembler.stats();
        self.path.counters.set_joined_sockets(stats.joined);
        self.path.counters.set_union(UnionStats {
            members: stats.union_size as u64,
            aliases: stats.union_merged,
            evictions: stats.union_evicted,
            misses: stats.union_taken_back,
        });
    }

    /// Detaches, then empties every stage into the sinks.
    fn finish(mut self) {
        self.path.kernel.detach();
        let now_ns = kernel::monotonic_ns();
        while self.drain(now_ns) > 0 {}
        self.look_for_unmet(u64::MAX, now_ns);
        let outputs = &mut self.outputs;
        self.path.assembler.flush(&mut |output| outputs.push(output));
        self.drain_outputs(now_ns);
        let sinks = &self.path.sinks;
        self.router.flush(&mut |sink, batch| sinks.deliver(sink, batch));
        self.publish_counters();
    }
}

/// What selectors look at.
fn facts(process: &Process) -> ProcessFacts {
    let info = &process.info;
    ProcessFacts {
        pid: info.pid,
        ancestors: info.ancestors.clone(),
        exe: info.exe.as_deref().unwrap_or_default().to_owned(),
        comm: info.comm.to_string(),
        cgroup: info.place.path.to_string(),
        container: info.place.container_id.as_deref().map(ToOwned::to_owned),
        uid: info.uid.unwrap_or(u32::MAX),
    }
}
