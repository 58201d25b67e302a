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

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use spanwire_common::abi::{process_event, ProcessValue};
use spanwire_common::drop::{KernelCounter, UserDrop};

use crate::assemble::{self, Assembler, Output};
use crate::config::{ProcessFacts, SelectorRules};
use crate::counters::{Counters, UnionStats};
use crate::decode::{self, Event, Sequence};
use crate::discover::{Discoverer, Hint, ProcRoot, Process};
use crate::enrich::{ClockOffset, Enricher};
use crate::export::ExporterHandle;
use crate::route::Router;
use crate::sample::Sampler;
use crate::span::{Settled, SpanBatch, TraceAlias};
use crate::store::Store;
use crate::sys::kernel::{self, Kernel};
use crate::sys::ring::Rings;

/// How long the data path sleeps when nothing asks for it: records wait at most this long in their ring.
const NAP: Duration = Duration::from_millis(50);
/// Records taken from one ring before the others are looked at.
const DRAIN: usize = 4096;
/// How often opaque calls that went quiet are looked for, and how long they must have been quiet.
const TURN_SWEEP_NS: u64 = 250_000_000;
/// How often counters, classes and the clock's offset are brought up to date.
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
    /// Stage: enrich.
    pub enricher: Enricher,
    /// Stage: sample.
    pub sampler: Sampler,
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
    for refusal in worker.path.kernel.refusals() {
        tracing::info!(refusal, "hooks not used");
    }
    tracing::info!(family = worker.path.kernel.family().name(), hooks = ?worker.path.kernel.attached(), "attached");
    for hook in worker.path.kernel.attached() {
        worker.path.counters.set_hook(hook, true);
    }
    worker.publish_snapshot(kernel::monotonic_ns());
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
    known: std::collections::HashMap<u32, ProcessLine, foldhash::fast::RandomState>,
    lost: u64,
    turns_taken: u64,
    next_turns_ns: u64,
    next_upkeep_ns: u64,
    lag_ns: u64,
}

/// Beginnings of the names of executables worth a look before anything is attached. Any other process is looked at when
/// it shows traffic.
const SERVERS: [&str; 14] = [
    "nginx", "apache2", "httpd", "python", "pypy", "ruby", "node", "php", "java", "haproxy", "envoy", "dotnet",
    "beam.smp", "caddy",
];

/// Processes remembered for the status page.
const KNOWN: usize = 4096;

impl Worker {
    fn new(path: DataPath) -> Self {
        let router = Router::new(path.sinks.len(), crate::route::Batching::default());
        Self {
            path,
            router,
            sequence: Sequence::new(),
            clock: ClockOffset(kernel::monotonic_to_unix_ns().cast_signed()),
            outputs: Vec::with_capacity(DRAIN),
            known: std::collections::HashMap::default(),
            lost: 0,
            turns_taken: 0,
            next_turns_ns: 0,
            next_upkeep_ns: 0,
            lag_ns: 0,
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
        let outputs = &mut self.outputs;
        self.path
            .assembler
            .push(event, now_ns, &mut |output| outputs.push(output));
        self.drain_outputs(now_ns);
    }

    /// Finds out what a process is and tells the kernel side and assemble.
    fn classify(&mut self, hint: &Hint, now_ns: u64) {
        let process = self.path.discoverer.lookup_with(hint, now_ns, now_ns);
        self.publish(hint.pid, &process);
    }

    fn publish(&mut self, pid: u32, process: &Arc<Process>) {
        let masks = self.path.rules.process_masks(&facts(process));
        let captured = self.path.rules.may_capture(masks);
        let verdict = process.verdict();
        let value = ProcessValue {
            include: masks.include,
            exclude: masks.exclude,
            class: verdict.class as u8,
            ..ProcessValue::default()
        };
        if let Err(error) = self.path.kernel.set_process(pid, value) {
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
        if self.known.len() >= KNOWN && !self.known.contains_key(&pid) {
            return;
        }
        let rule = if captured {
            self.path
                .rules
                .including(masks)
                .next()
                .map_or_else(|| "everything".into(), ToString::to_string)
        } else {
            self.path
                .rules
                .excluding(masks)
                .next()
                .map_or_else(|| "not included".into(), ToString::to_string)
        };
        let line = ProcessLine {
            pid,
            name: process.info.exe.clone().unwrap_or_else(|| process.info.comm.clone()),
            runtime: verdict.runtime_name,
            class: format!("{:?}", verdict.class),
            why: verdict.why,
            captured,
            rule: rule.into(),
        };
        self.known.insert(pid, line);
    }

    fn drain_outputs(&mut self, now_ns: u64) {
        while !self.outputs.is_empty() {
            for output in std::mem::take(&mut self.outputs) {
                match output {
                    Output::Settled(settled) => self.settled(settled, now_ns),
                    Output::Alias(alias) => self.path.sinks.alias(alias),
                    Output::Dropped(reason, count) => self.path.counters.dropped(reason, count),
                    Output::Classify { pid } => self.classify(&Hint::pid(pid), now_ns),
                }
            }
        }
    }

    fn settled(&mut self, settled: Settled, now_ns: u64) {
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

    fn tick(&mut self, now_ns: u64) {
        if now_ns >= self.next_turns_ns {
            self.next_turns_ns = now_ns + TURN_SWEEP_NS;
            for turn in self.path.kernel.take_quiet_turns(now_ns.saturating_sub(TURN_SWEEP_NS)) {
                self.turns_taken += 1;
                if let Ok(event) = decode::opaque_turn(&turn) {
                    self.take(event, now_ns);
                }
            }
        }
        let outputs = &mut self.outputs;
        self.path.assembler.tick(now_ns, &mut |output| outputs.push(output));
        self.drain_outputs(now_ns);
        let sinks = &self.path.sinks;
        self.router.tick(now_ns, &mut |sink, batch| sinks.deliver(sink, batch));
        if now_ns >= self.next_upkeep_ns {
            self.next_upkeep_ns = now_ns + UPKEEP_NS;
            self.upkeep(now_ns);
        }
    }

    /// What need not be exact to the millisecond.
    fn upkeep(&mut self, now_ns: u64) {
        self.clock = ClockOffset(kernel::monotonic_to_unix_ns().cast_signed());
        for process in self.path.discoverer.recheck(now_ns) {
            self.publish(process.info.pid, &process);
        }
        self.path.discoverer.sweep(now_ns);
        self.publish_counters();
        self.known
            .retain(|pid, _| std::path::Path::new("/proc").join(pid.to_string()).exists());
        self.publish_snapshot(now_ns);
    }

    fn publish_snapshot(&mut self, now_ns: u64) {
        let stats = self.path.assembler.stats();
        let mut processes: Vec<ProcessLine> = self.known.values().cloned().collect();
        processes.sort_unstable_by_key(|line| line.pid);
        let snapshot = Snapshot {
            hooks: self.path.kernel.attached().to_vec(),
            family: self.path.kernel.family().name(),
            is_ready: true,
            processes,
            assemble: stats,
            at_ns: now_ns,
            lag_ns: std::mem::take(&mut self.lag_ns),
        };
        *self.path.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }

    fn publish_counters(&mut self) {
        let mut totals = self.path.kernel.counters();
        totals[KernelCounter::ExchangesClient as usize] += self.turns_taken;
        self.path.counters.set_kernel(&totals);
        // Every record the ring refused left a hole too: only what is more than that was lost unseen.
        let refused = totals[KernelCounter::RingFullExchange as usize] + totals[KernelCounter::RingFullOther as usize];
        let unseen = self.lost.saturating_sub(refused);
        let told = self.path.counters.dropped_total(UserDrop::LostRecord);
        self.path
            .counters
            .dropped(UserDrop::LostRecord, unseen.saturating_sub(told));
        let stats = self.path.assembler.stats();
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
