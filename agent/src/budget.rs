//! What the agent may use (`limits` in the configuration), and what gives way when it uses more.
//!
//! Memory: the tables' bounds follow the ceiling ([`Bounds`]); if the process is over it all the same, exchanges are
//! refused until it is below again. Processor time: over the budget, fewer traces are kept, each whole, chosen by its id;
//! where that is not enough, the same choice is made before an exchange is worked on at all, by the id it bears then. Both
//! are counted, and said in words.
//!
//! A plain struct: whoever holds it measures and passes the numbers in.

use crate::config::Limits;
use crate::sample::Sampler;
use crate::span::TraceId;

/// How much the tables may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Exchanges in the settle window; assemble's other tables follow.
    pub held: usize,
    /// Spans in the queue of each exporter and of the store.
    pub queue_spans: usize,
    /// Bytes in such a queue.
    pub queue_bytes: usize,
}

/// From this ceiling on the bounds are what contract.md says; below they shrink with it.
const FULL_MEMORY_BYTES: u64 = 256 << 20;

impl Bounds {
    /// The bounds under these limits.
    pub fn of(limits: &Limits) -> Self {
        let share = |full: u64| {
            let scaled = full * limits.memory_bytes.min(FULL_MEMORY_BYTES) / FULL_MEMORY_BYTES;
            scaled as usize
        };
        Self {
            held: share(16_384),
            queue_spans: share(8_192),
            queue_bytes: share(8 << 20),
        }
    }
}

/// What the process used when it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Processor time since the start.
    pub cpu_ns: u64,
    /// Memory now; 0: not known.
    pub resident_bytes: u64,
}

/// Why an exchange is not worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Over the memory ceiling.
    Memory,
    /// Over the processor budget, and sampling alone did not help.
    Cpu,
}

/// What is given up for the processor budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuStage {
    /// Nothing.
    Within,
    /// Traces are left out before they are exported and stored.
    SamplesLess,
    /// Exchanges are left out before they are assembled.
    ObservesLess,
}

/// For `spanwire status`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    pub memory_limit_bytes: u64,
    pub resident_bytes: u64,
    pub cpu_limit: f64,
    /// Processors used of late.
    pub cpu_used: f64,
    /// Share of all traces that is kept, 0 to 1.
    pub kept_share: f64,
}

/// Sampling alone goes down to this share; below it exchanges are left out unassembled.
const SAMPLED_LEAST: f64 = 1.0 / 8.0;
/// No less than this is ever kept.
const KEPT_LEAST: f64 = 1.0 / 256.0;
/// Time over which processor use is measured.
const CPU_SPAN_NS: u64 = 1_000_000_000;
/// More is kept again once so much of the budget is used.
const CPU_EASY: f64 = 0.7;
/// How much of it is aimed at then.
const CPU_AIM: f64 = 0.85;
/// Exchanges are taken again once memory is below this share of the ceiling.
const MEMORY_EASY: f64 = 0.95;

/// Holds the limits against what is used.
#[derive(Clone, Debug)]
pub struct Budget {
    limits: Limits,
    /// When processor time was last looked at, and what it was.
    looked: Option<(u64, u64)>,
    cpu_used: f64,
    share: f64,
    resident_bytes: u64,
    refusing: bool,
}

impl Budget {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            looked: None,
            cpu_used: 0.0,
            share: 1.0,
            resident_bytes: 0,
            refusing: false,
        }
    }

    /// Takes note of what is used; to be called a few times a second.
    pub fn measure(&mut self, now_ns: u64, usage: Usage) {
        self.resident_bytes = usage.resident_bytes;
        let ceiling = self.limits.memory_bytes as f64 * if self.refusing { MEMORY_EASY } else { 1.0 };
        self.refusing = usage.resident_bytes as f64 >= ceiling;
        let Some((looked_ns, cpu_ns)) = self.looked else {
            self.looked = Some((now_ns, usage.cpu_ns));
            return;
        };
        let elapsed_ns = now_ns.saturating_sub(looked_ns);
        if elapsed_ns >= CPU_SPAN_NS {
            self.looked = Some((now_ns, usage.cpu_ns));
            self.cpu(usage.cpu_ns.saturating_sub(cpu_ns) as f64 / elapsed_ns as f64);
        }
    }

    /// A burst of a second is forgiven; what lasts is not.
    fn cpu(&mut self, used: f64) {
        self.cpu_used = f64::midpoint(self.cpu_used, used);
        let load = self.cpu_used / self.limits.cpu;
        if load > 1.0 {
            self.share = (self.share * (1.0 / load).clamp(0.25, 0.9)).max(KEPT_LEAST);
        } else if load < CPU_EASY {
            self.share = (self.share * (CPU_AIM / load.max(f64::EPSILON)).clamp(1.1, 2.0)).min(1.0);
        }
    }

    /// Whether a trace is handed on to exporters and store.
    pub fn keeps(&self, trace: TraceId) -> bool {
        self.share >= 1.0 || Sampler::ratio(self.share).keeps(trace)
    }

    /// Whether an exchange that bears this id so far is left out at once, and why.
    pub fn refuses(&self, trace: TraceId) -> Option<Refusal> {
        if self.refusing {
            Some(Refusal::Memory)
        } else if self.cpu_stage() == CpuStage::ObservesLess && !self.keeps(trace) {
            Some(Refusal::Cpu)
        } else {
            None
        }
    }

    /// True while exchanges are refused for want of memory.
    pub fn is_out_of_memory(&self) -> bool {
        self.refusing
    }

    pub fn cpu_stage(&self) -> CpuStage {
        if self.share >= 1.0 {
            CpuStage::Within
        } else if self.share >= SAMPLED_LEAST {
            CpuStage::SamplesLess
        } else {
            CpuStage::ObservesLess
        }
    }

    pub fn figures(&self) -> Figures {
        Figures {
            memory_limit_bytes: self.limits.memory_bytes,
            resident_bytes: self.resident_bytes,
            cpu_limit: self.limits.cpu,
            cpu_used: self.cpu_used,
            kept_share: self.share,
        }
    }

    /// What is given up now, in words; empty when nothing is.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.refusing {
            problems.push(format!(
                "limits.memory: {} MiB are used of {} MiB: exchanges are refused until there is room",
                self.resident_bytes >> 20,
                self.limits.memory_bytes >> 20
            ));
        }
        let what = match self.cpu_stage() {
            CpuStage::Within => return problems,
            CpuStage::SamplesLess => "traces are kept",
            CpuStage::ObservesLess => "traces are kept and no other exchange is assembled",
        };
        let least = if self.share > KEPT_LEAST {
            ""
        } else {
            "; that is the least"
        };
        problems.push(format!(
            "limits.cpu: {:.2} processors are used of {:.2}: {:.1} % of all {what}{least}",
            self.cpu_used,
            self.limits.cpu,
            self.share * 100.0
        ));
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    fn budget() -> Budget {
        Budget::new(Limits {
            memory_bytes: 100 << 20,
            cpu: 0.5,
            connections: 1024,
        })
    }

    /// Uses so many processors for so many seconds; returns when it is then and what was used by then.
    fn run(budget: &mut Budget, (mut now_ns, mut cpu_ns): (u64, u64), processors: f64, seconds: u64) -> (u64, u64) {
        for _ in 0..seconds * 4 {
            now_ns += SECOND_NS / 4;
            cpu_ns += (processors * SECOND_NS as f64 / 4.0) as u64;
            budget.measure(
                now_ns,
                Usage {
                    cpu_ns,
                    resident_bytes: 50 << 20,
                },
            );
        }
        (now_ns, cpu_ns)
    }

    fn ids() -> impl Iterator<Item = TraceId> {
        (1..=4_096u64).map(|n| {
            let mut bytes = [0x11; 16];
            bytes[8..].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
            TraceId(bytes)
        })
    }

    fn kept(budget: &Budget) -> f64 {
        ids().filter(|id| budget.keeps(*id)).count() as f64 / 4_096.0
    }

    #[test]
    fn within_the_budget_nothing_is_given_up() {
        let mut budget = budget();
        run(&mut budget, (0, 0), 0.49, 60);
        assert_eq!(budget.cpu_stage(), CpuStage::Within);
        assert!(kept(&budget) >= 1.0 && budget.problems().is_empty());
        assert!(ids().all(|id| budget.refuses(id).is_none()));
    }

    #[test]
    fn a_burst_of_a_second_is_forgiven() {
        let mut budget = budget();
        let at = run(&mut budget, (0, 0), 0.1, 5);
        run(&mut budget, at, 0.85, 1);
        assert_eq!(budget.cpu_stage(), CpuStage::Within);
    }

    #[test]
    fn over_the_budget_less_is_sampled_then_less_observed_then_all_again() {
        let mut budget = budget();
        let at = run(&mut budget, (0, 0), 1.0, 4);
        assert_eq!(budget.cpu_stage(), CpuStage::SamplesLess);
        assert!(
            ids().all(|id| budget.refuses(id).is_none()),
            "sampled traces are whole: nothing is left out before"
        );
        let share = budget.figures().kept_share;
        assert!((kept(&budget) - share).abs() < 0.05 && share < 1.0);
        let problems = budget.problems();
        assert!(
            problems[0].starts_with("limits.cpu: 0.88 processors are used of 0.50: 38.1 % of all traces are kept"),
            "{problems:?}"
        );
        let at = run(&mut budget, at, 1.0, 30);
        assert_eq!(budget.cpu_stage(), CpuStage::ObservesLess);
        assert!(
            ids().all(|id| budget.refuses(id).is_none() == budget.keeps(id)),
            "the same traces at both places"
        );
        assert!(ids().any(|id| budget.refuses(id) == Some(Refusal::Cpu)));
        assert!(budget.figures().kept_share >= KEPT_LEAST, "never nothing");
        run(&mut budget, at, 0.1, 60);
        assert_eq!(budget.cpu_stage(), CpuStage::Within);
        assert!(budget.problems().is_empty());
    }

    #[test]
    fn what_is_kept_at_a_smaller_share_was_kept_at_a_bigger() {
        let mut budget = budget();
        let mut at = (0, 0);
        let mut before: Vec<TraceId> = ids().collect();
        for _ in 0..8 {
            at = run(&mut budget, at, 1.0, 1);
            let now: Vec<TraceId> = ids().filter(|id| budget.keeps(*id)).collect();
            assert!(now.iter().all(|id| before.contains(id)));
            before = now;
        }
    }

    #[test]
    fn over_the_ceiling_everything_is_refused_until_there_is_room() {
        let mut budget = budget();
        let mut use_mib = |mib: u64| {
            budget.measure(
                0,
                Usage {
                    cpu_ns: 0,
                    resident_bytes: mib << 20,
                },
            );
            (budget.refuses(TraceId([7; 16])), budget.problems().len())
        };
        assert_eq!(use_mib(99), (None, 0));
        assert_eq!(use_mib(100), (Some(Refusal::Memory), 1));
        assert_eq!(use_mib(96), (Some(Refusal::Memory), 1), "not at once again");
        assert_eq!(use_mib(94), (None, 0));
        assert_eq!(use_mib(0), (None, 0), "not known is not over");
    }

    #[test]
    fn bounds_follow_a_ceiling_below_the_usual() {
        let bounds = |mib: u64| {
            Bounds::of(&Limits {
                memory_bytes: mib << 20,
                ..Limits::default()
            })
        };
        let full = bounds(256);
        assert_eq!(
            (full.held, full.queue_spans, full.queue_bytes),
            (16_384, 8_192, 8 << 20)
        );
        assert_eq!(bounds(4_096), full);
        assert_eq!(
            bounds(64),
            Bounds {
                held: 4_096,
                queue_spans: 2_048,
                queue_bytes: 2 << 20
            }
        );
    }
}
