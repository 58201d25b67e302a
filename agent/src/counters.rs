//! The agent's self-metrics: one registry, shared as `Arc<Counters>`, rendered as Prometheus text.
//!
//! Plain relaxed atomics: an increment on the data path is one add, and nothing there takes a lock. Sets of label values
//! that are known are arrays, so every one of them is exported from the start with 0; names that come from the
//! configuration (exporters, queues, hooks) are registered once and hand out a handle.

mod text;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spanwire_common::drop::{KernelCounter, UserDrop, KERNEL_COUNTERS};

use crate::span::{ParentSource, SpanKind};

/// A number that one stage writes and `/metrics` reads.
#[derive(Debug, Default)]
pub struct Cell(AtomicU64);

impl Cell {
    /// Adds to a counter.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    /// Sets a gauge.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// The value now.
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What became of the spans an exporter, or the store, was given: each ends in exactly one of these.
#[derive(Debug, Default)]
pub struct ExporterCounters {
    /// Taken by the other side.
    pub sent: Cell,
    /// Refused by the other side, in whole or in part, or given up after the retries.
    pub failed: Cell,
    /// Lost here: the queue was full, or the agent stopped.
    pub dropped: Cell,
}

/// Exchanges given up to keep `limits`, beside the reasons of [`UserDrop`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitDrop {
    /// Not assembled: over `limits.memory`.
    Memory,
    /// Not assembled: over `limits.cpu`.
    CpuAssemble,
    /// Its trace was left out: over `limits.cpu`.
    CpuSample,
}

impl LimitDrop {
    pub const ALL: [Self; 3] = [Self::Memory, Self::CpuAssemble, Self::CpuSample];

    /// The labels `stage` and `reason`.
    pub const fn label(self) -> (&'static str, &'static str) {
        match self {
            Self::Memory => ("assemble", "memory_limit"),
            Self::CpuAssemble => ("assemble", "cpu_limit"),
            Self::CpuSample => ("sample", "cpu_limit"),
        }
    }
}

/// `spanwire_config_reloads_total{result}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReloadResult {
    Ok,
    Failed,
}

/// The union of trace ids in `assemble`, as it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnionStats {
    /// Trace ids held.
    pub members: u64,
    /// Of those, ids that lost and point at another.
    pub aliases: u64,
    /// Ids put out because the bound was reached, since the start.
    pub evictions: u64,
    /// Look-ups of an id that was not held any more, since the start.
    pub misses: u64,
}

const KINDS: [SpanKind; 4] = [
    SpanKind::Server,
    SpanKind::Client,
    SpanKind::Producer,
    SpanKind::Consumer,
];
const SOURCES: usize = ParentSource::ALL.len();
const RELOAD_RESULTS: [&str; 2] = ["ok", "failed"];

/// The process-wide registry.
#[derive(Debug)]
pub struct Counters {
    /// Totals of the kernel's per-CPU counters, by `KernelCounter`.
    kernel: [Cell; KERNEL_COUNTERS],
    /// Exchanges that the kernel side left to be counted here: servers', clients'.
    provisional: [Cell; 2],
    /// By kind and parent source.
    spans: [[Cell; SOURCES]; KINDS.len()],
    /// By `UserDrop`.
    user_drops: [Cell; UserDrop::ALL.len()],
    /// By `LimitDrop`.
    limit_drops: [Cell; LimitDrop::ALL.len()],
    joined_sockets: Cell,
    reloads: [Cell; RELOAD_RESULTS.len()],
    union: [Cell; 4],
    exporters: Mutex<BTreeMap<String, Arc<ExporterCounters>>>,
    queues: Mutex<BTreeMap<String, Arc<Cell>>>,
    hooks: Mutex<BTreeMap<String, bool>>,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            kernel: std::array::from_fn(|_| Cell::default()),
            provisional: Default::default(),
            spans: Default::default(),
            user_drops: Default::default(),
            limit_drops: Default::default(),
            joined_sockets: Cell::default(),
            reloads: Default::default(),
            union: Default::default(),
            exporters: Mutex::default(),
            queues: Mutex::default(),
            hooks: Mutex::default(),
        }
    }
}

impl Counters {
    /// `Content-Type` of what `render` returns.
    pub const CONTENT_TYPE: &'static str = "text/plain; version=0.0.4; charset=utf-8";

    /// Everything at zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the kernel side's totals (summed over the CPUs), indexed by `KernelCounter`. Words past the end of either
    /// side are ignored.
    pub fn set_kernel(&self, totals: &[u64]) {
        for (cell, total) in self.kernel.iter().zip(totals) {
            cell.set(*total);
        }
    }

    /// A kernel counter as last taken.
    pub fn kernel(&self, counter: KernelCounter) -> u64 {
        self.kernel[counter as usize].value()
    }

    /// An exchange that was observed provisionally turned out to be of a captured process.
    pub fn kept(&self, is_server: bool) {
        let [server, client] = &self.provisional;
        if is_server { server } else { client }.add(1);
    }

    /// Exchanges of one side so far.
    fn exchanges(&self, is_server: bool) -> u64 {
        let [server, client] = &self.provisional;
        let (counter, kept) = if is_server {
            (KernelCounter::ExchangesServer, server)
        } else {
            (KernelCounter::ExchangesClient, client)
        };
        self.kernel(counter) + kept.value()
    }

    /// An exchange became a span.
    pub fn span(&self, kind: SpanKind, source: ParentSource) {
        self.spans[kind as usize][source as usize].add(1);
    }

    /// Spans of all kinds and sources so far.
    pub fn span_total(&self) -> u64 {
        self.spans.iter().flatten().map(Cell::value).sum()
    }

    /// User space lost exchanges.
    pub fn dropped(&self, reason: UserDrop, count: u64) {
        self.user_drops[reason as usize].add(count);
    }

    /// Exchanges lost in user space for this reason so far.
    pub fn dropped_total(&self, reason: UserDrop) -> u64 {
        self.user_drops[reason as usize].value()
    }

    /// An exchange was given up to keep a limit.
    pub fn limited(&self, reason: LimitDrop) {
        self.limit_drops[reason as usize].add(1);
    }

    /// Exchanges given up for this limit so far.
    pub fn limited_total(&self, reason: LimitDrop) -> u64 {
        self.limit_drops[reason as usize].value()
    }

    /// Takes the number of sockets older than the agent that were joined at a proven boundary.
    pub fn set_joined_sockets(&self, total: u64) {
        self.joined_sockets.set(total);
    }

    /// The configuration was read again.
    pub fn config_reload(&self, result: ReloadResult) {
        self.reloads[result as usize].add(1);
    }

    /// Takes the state of the union of trace ids.
    pub fn set_union(&self, stats: UnionStats) {
        let values = [stats.members, stats.aliases, stats.evictions, stats.misses];
        for (cell, value) in self.union.iter().zip(values) {
            cell.set(value);
        }
    }

    /// The counters of an exporter by its configured name; the store's are under `store`. The same name gives the same
    /// counters.
    pub fn exporter(&self, name: &str) -> Arc<ExporterCounters> {
        Arc::clone(locked(&self.exporters).entry(name.to_owned()).or_default())
    }

    /// The gauge of a queue's length. The same name gives the same gauge.
    pub fn queue(&self, name: &str) -> Arc<Cell> {
        Arc::clone(locked(&self.queues).entry(name.to_owned()).or_default())
    }

    /// A hook that is wanted is attached, or not (any more).
    pub fn set_hook(&self, hook: &str, attached: bool) {
        locked(&self.hooks).insert(hook.to_owned(), attached);
    }

    /// All of it in Prometheus' text format 0.0.4.
    pub fn render(&self) -> String {
        let mut page = text::Page::new();
        self.render_exchanges(&mut page);
        self.render_outputs(&mut page);
        self.render_state(&mut page);
        page.finish()
    }

    fn render_exchanges(&self, page: &mut text::Page) {
        page.counter(
            "spanwire_exchanges_total",
            "Request and response pairs that came to their end, by the side that was seen.",
        );
        page.sample(&[("side", "server")], self.exchanges(true));
        page.sample(&[("side", "client")], self.exchanges(false));
        page.counter(
            "spanwire_spans_total",
            "Spans made, by kind and by how the parent was found.",
        );
        for (kind, by_source) in KINDS.iter().zip(&self.spans) {
            for (source, cell) in ParentSource::ALL.iter().zip(by_source) {
                let labels = [("kind", kind.as_str()), ("parent_source", source.as_str())];
                page.sample(&labels, cell.value());
            }
        }
        page.counter(
            "spanwire_dropped_total",
            "Exchanges that never became a span, by the stage that lost them and why.",
        );
        for counter in KernelCounter::ALL {
            let (group, reason) = counter.label();
            if group == "kernel" {
                page.sample(&[("stage", group), ("reason", reason)], self.kernel(*counter));
            }
        }
        for drop in UserDrop::ALL {
            let (stage, reason) = drop.label();
            page.sample(&[("stage", stage), ("reason", reason)], self.dropped_total(*drop));
        }
        for drop in LimitDrop::ALL {
            let (stage, reason) = drop.label();
            page.sample(&[("stage", stage), ("reason", reason)], self.limited_total(drop));
        }
        page.counter(
            "spanwire_opaque_sockets_total",
            "Sockets that are not read any more, and why.",
        );
        self.render_kernel(page, "opaque", "reason");
        page.counter(
            "spanwire_joined_sockets_total",
            "Sockets older than the agent, read from a proven boundary on: what they carried before is in no count.",
        );
        page.sample(&[], self.joined_sockets.value());
        page.counter(
            "spanwire_kernel_notes_total",
            "Things the kernel side met that cost no exchange but explain gaps.",
        );
        self.render_kernel(page, "note", "reason");
        page.counter(
            "spanwire_kernel_cost_total",
            "What the kernel side spent: reads, map operations, records, runs.",
        );
        self.render_kernel(page, "cost", "what");
    }

    fn render_kernel(&self, page: &mut text::Page, wanted: &str, label: &str) {
        for counter in KernelCounter::ALL {
            let (group, value) = counter.label();
            if group == wanted {
                page.sample(&[(label, value)], self.kernel(*counter));
            }
        }
    }

    fn render_outputs(&self, page: &mut text::Page) {
        page.counter(
            "spanwire_export_spans_total",
            "Spans given to an exporter or the store, by what became of them.",
        );
        for (name, counts) in &*locked(&self.exporters) {
            let results = [
                ("sent", &counts.sent),
                ("failed", &counts.failed),
                ("dropped", &counts.dropped),
            ];
            for (result, cell) in results {
                page.sample(&[("exporter", name), ("result", result)], cell.value());
            }
        }
        page.gauge("spanwire_queue_length", "Items waiting in a queue between tasks.");
        for (name, cell) in &*locked(&self.queues) {
            page.sample(&[("queue", name)], cell.value());
        }
        page.counter(
            "spanwire_injections_total",
            "Messages of enrolled sockets: trace context written, left alone by rule, or failed at.",
        );
        self.render_kernel(page, "injections", "result");
    }

    fn render_state(&self, page: &mut text::Page) {
        page.gauge(
            "spanwire_hook_attached",
            "1 when a hook that is wanted is attached, else 0.",
        );
        for (hook, attached) in &*locked(&self.hooks) {
            page.sample(&[("hook", hook)], u64::from(*attached));
        }
        page.counter(
            "spanwire_config_reloads_total",
            "Times the configuration was read again.",
        );
        for (result, cell) in RELOAD_RESULTS.iter().zip(&self.reloads) {
            page.sample(&[("result", result)], cell.value());
        }
        let [members, aliases, evictions, misses] = &self.union;
        page.gauge("spanwire_union_traces", "Trace ids held in the union.");
        page.sample(&[], members.value());
        page.gauge("spanwire_union_aliases", "Held trace ids that stand for another one.");
        page.sample(&[], aliases.value());
        page.counter(
            "spanwire_union_evictions_total",
            "Trace ids put out of the union at its bound.",
        );
        page.sample(&[], evictions.value());
        page.counter(
            "spanwire_union_misses_total",
            "Look-ups of a trace id the union no longer held.",
        );
        page.sample(&[], misses.value());
        page.gauge("spanwire_build_info", "1; the labels say what is running.");
        let labels = [("version", env!("CARGO_PKG_VERSION")), ("arch", std::env::consts::ARCH)];
        page.sample(&labels, 1);
    }
}

/// A poisoned lock still guards a whole map: entries are only ever added.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "counters/tests.rs"]
mod tests;
