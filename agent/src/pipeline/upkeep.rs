//! What the data path does by the clock: what is due leaves, counters and status are published, limits are kept.

use std::sync::PoisonError;

use spanwire_common::drop::{KernelCounter, UserDrop};

use super::{Snapshot, Worker};
use crate::budget::Usage;
use crate::counters::UnionStats;
use crate::decode;
use crate::enrich::ClockOffset;
use crate::sys::{kernel, usage};

/// How often counters are published and opaque calls that went quiet looked for, and how long these must have been quiet.
const TURN_SWEEP_NS: u64 = 250_000_000;
/// How often classes, the status and the clock's offset are brought up to date.
const UPKEEP_NS: u64 = 1_000_000_000;
/// How often the node's addresses are read again.
pub(super) const ADDRESSES_NS: u64 = 30_000_000_000;
/// How often freed memory is given back while the agent is over its ceiling.
const GIVE_BACK_NS: u64 = 2_000_000_000;
/// How often it is given back while there is little to do, and what little is, in processors.
const GIVE_BACK_QUIET_NS: u64 = 30_000_000_000;
const QUIET_CPU: f64 = 0.05;

impl Worker {
    pub(super) fn tick(&mut self, now_ns: u64) {
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
            if self.rewriting.is_on {
                self.path.kernel.release_leaving();
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
        self.watch_rewriting();
        self.repeat_test(now_ns);
        self.publish_snapshot(now_ns);
    }

    pub(super) fn publish_snapshot(&mut self, now_ns: u64) {
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
            rewriting: self.rewriting.clone(),
            at_ns: now_ns,
            lag_ns: std::mem::take(&mut self.lag_ns),
        };
        *self.path.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }

    /// Brings the shared counters up to date.
    pub(super) fn publish_counters(&mut self) {
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

    /// Says, now and in every answer of `/readyz`, what does not work.
    pub(super) fn degrade(&mut self, problem: String) {
        tracing::warn!("{problem}");
        self.degradations.push(problem);
    }
}
