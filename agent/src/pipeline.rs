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

mod ingress;
mod known;
mod older;
mod processes;
mod rewriting;
mod snapshot;
mod unmet;
mod upkeep;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use spanwire_common::abi::{process_event, ExchangeRecord};
use spanwire_common::drop::UserDrop;

use self::ingress::Ingress;
use self::known::Known;
use self::older::Older;
use self::rewriting::Repeats;
pub use self::rewriting::{Control, Rewriting};
pub use self::snapshot::{ProcessLine, Snapshot};
use self::unmet::{Missing, Unmet};
use crate::assemble::{Assembler, Output};
use crate::budget::{Budget, CpuStage, Refusal};
use crate::config::{Sdk, SelectorRules};
use crate::counters::{Counters, LimitDrop};
use crate::decode::{self, Event, Sequence};
use crate::discover::addresses::NodeAddresses;
use crate::discover::{Discoverer, Hint};
use crate::enrich::{ClockOffset, Enricher};
use crate::export::ExporterHandle;
use crate::rewrite::{self, Watch};
use crate::route::Router;
use crate::sample::Sampler;
use crate::span::{SdkSpan, Settled, SpanBatch, TraceAlias, TraceId};
use crate::store::Store;
use crate::sys::kernel::{self, Kernel};
use crate::sys::ring::Rings;
use crate::sys::usage;

/// How long the data path sleeps when nothing asks for it: records wait at most this long in their ring.
const NAP: Duration = Duration::from_millis(50);
/// Records taken from one ring before the others are looked at.
const DRAIN: usize = 4096;
/// Outputs that an emptied list keeps room for.
const SPARE_OUTPUTS: usize = 1024;

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

/// The stages and what they work with.
pub struct DataPath {
    /// The programs and their maps.
    pub kernel: Kernel,
    /// Where records come from.
    pub rings: Rings,
    /// What is captured.
    pub rules: Arc<SelectorRules>,
    /// What becomes of calls that an application's own SDK tells of.
    pub sdk: Sdk,
    /// What is rewritten.
    pub rewrite: rewrite::Policy,
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
    tell: Sender<Control>,
}

impl Running {
    /// To be obeyed within 50 ms.
    pub fn tell(&self, control: Control) {
        // Where nobody listens any more, the agent ends.
        let _ = self.tell.send(control);
    }

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
    // Whoever sends is a person or a file that changes.
    let (tell, told) = channel();
    let mut worker = Worker::new(path, (tell.clone(), told));
    worker.classify_running(kernel::monotonic_ns());
    worker.path.kernel.attach()?;
    if let Err(error) = worker.path.kernel.mark_old_sockets() {
        worker.degrade(format!(
            "every unix socket is joined late, at its first whole response: {error}"
        ));
    }
    worker.begin_rewriting();
    worker.plan_repeat(kernel::monotonic_ns());
    for refusal in worker.path.kernel.refusals() {
        tracing::info!(refusal, "hooks not used");
        worker.degradations.push(format!("hooks not used: {refusal}"));
    }
    for gap in worker.path.kernel.gaps() {
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
    Ok(Running { stop, thread, tell })
}

/// The thread's own state.
struct Worker {
    path: DataPath,
    router: Router,
    sequence: Sequence,
    clock: ClockOffset,
    outputs: Vec<Output>,
    spare_outputs: Vec<Output>,
    known: Known,
    lost: u64,
    turns_taken: u64,
    /// Server exchanges whose clients are looked for.
    unmet: Unmet,
    /// Whether messages are rewritten, and what that does.
    rewriting: Rewriting,
    watch: Watch,
    repeats: Repeats,
    /// What the agent is told while it runs.
    control: Receiver<Control>,
    tell: Sender<Control>,
    /// Listening sockets whose connections are enrolled.
    ingress: Ingress,
    /// Connections that were there before.
    older: Older,
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

impl Worker {
    fn new(path: DataPath, (tell, control): (Sender<Control>, Receiver<Control>)) -> Self {
        let router = Router::new(path.sinks.len(), crate::route::Batching::default());
        Self {
            path,
            router,
            sequence: Sequence::new(),
            clock: ClockOffset(kernel::monotonic_to_unix_ns().cast_signed()),
            outputs: Vec::new(),
            spare_outputs: Vec::new(),
            known: Known::default(),
            lost: 0,
            turns_taken: 0,
            unmet: Unmet::default(),
            rewriting: Rewriting::default(),
            watch: Watch::default(),
            repeats: Repeats::default(),
            control,
            tell,
            ingress: Ingress::default(),
            older: Older::default(),
            degradations: Vec::new(),
            next_turns_ns: 0,
            next_sweep_ns: 0,
            next_upkeep_ns: 0,
            next_addresses_ns: kernel::monotonic_ns() + upkeep::ADDRESSES_NS,
            lag_ns: 0,
            told: (false, CpuStage::Within),
            gave_back_ns: 0,
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
            self.obey(kernel::monotonic_ns());
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
                process_event::SEEN | process_event::LISTEN => {
                    if record.event == process_event::LISTEN {
                        self.ingress.look_again(record.pid);
                    }
                    self.classify(&Hint::from_record(record), now_ns);
                }
                process_event::EXIT => {
                    self.path.discoverer.on_exit(record.pid, now_ns);
                    self.older.permit(record.pid, false);
                    let changes = self.ingress.forget(record.pid);
                    self.tell_ingress(&changes);
                }
                process_event::EXEC => {
                    let hint = Hint::from_record(record);
                    self.ingress.look_again(record.pid);
                    if let Some(process) = self.path.discoverer.on_exec(&hint, now_ns, now_ns) {
                        self.publish(hint.pid, &process);
                    }
                }
                _ => {}
            }
        }
        if let Event::Exchange(record) = &event {
            self.known.captured(record, &self.path.rules);
            self.watch.ended(record);
            if self.known.reads(record) {
                self.classify(&Hint::pid(record.pid), now_ns);
            }
            if let Some(refusal) = self.path.budget.refuses(TraceId(record.trace_id)) {
                return self.pass_over(record, refusal, now_ns);
            }
            self.look_before_one_leaves(record, now_ns);
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

    fn drain_outputs(&mut self, now_ns: u64) {
        while !self.outputs.is_empty() {
            // The two lists take turns, so that neither is allocated again for every exchange.
            let mut outputs = std::mem::replace(&mut self.outputs, std::mem::take(&mut self.spare_outputs));
            for output in outputs.drain(..) {
                match output {
                    Output::Settled(settled) => self.settled(settled, now_ns),
                    Output::Alias(alias) => self.path.sinks.alias(alias),
                    Output::Unmet {
                        wire_key,
                        cookie,
                        span,
                        trace,
                    } => self.unmet.push(
                        Missing {
                            wire_key,
                            cookie,
                            span,
                            trace,
                        },
                        now_ns,
                    ),
                    Output::Kept { is_server } => self.path.counters.kept(is_server),
                    Output::Dropped(reason, count) => self.path.counters.dropped(reason, count),
                    Output::Classify { pid } => self.classify(&Hint::pid(pid), now_ns),
                }
            }
            outputs.shrink_to(SPARE_OUTPUTS);
            self.spare_outputs = outputs;
        }
    }

    fn settled(&mut self, settled: Settled, now_ns: u64) {
        if !self.path.budget.keeps(settled.trace_id) {
            self.path.counters.limited(LimitDrop::CpuSample);
            return;
        }
        let record = &settled.record;
        if settled.sdk.is_some_and(|sdk| self.is_told_by_sdk(record.pid, sdk)) {
            self.path.counters.dropped(UserDrop::ToldBySdk, 1);
            return;
        }
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

    /// Of a call that the application's SDK tells of, one span is enough, unless other spans rest on ours.
    fn is_told_by_sdk(&mut self, pid: u32, span: SdkSpan) -> bool {
        match self.path.sdk {
            _ if span.ours_is_parent => false,
            Sdk::Keep => false,
            Sdk::Skip => true,
            Sdk::Auto => span.sampled && self.path.kernel.exports(pid),
        }
    }

    /// Detaches, then empties every stage into the sinks.
    fn finish(mut self) {
        self.older.end();
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
