//! Rewriting's life: it begins once the hooks are attached, ends when it is told to or shows trouble, and can begin anew.

use spanwire_common::drop::KernelCounter;

use super::Worker;
use crate::rewrite::{Modes, Policy, Watch};
use crate::sys::types::KernelTypes;
use crate::sys::{kernel, selftest};

/// What the data path is told while it runs.
#[derive(Debug)]
pub enum Control {
    /// Nothing is rewritten from now on.
    EndRewriting,
    /// The self-test runs again, and what it allows begins.
    BeginRewriting,
    /// What came out of it.
    Allow(Box<Modes>),
    /// The configuration has changed: what it asks for takes the place of what was asked for before.
    Rewrite(Box<Policy>),
}

/// What the status commands show.
#[derive(Clone, Debug, Default)]
pub struct Rewriting {
    /// Messages are rewritten now.
    pub is_on: bool,
    /// Why not, or why not everything.
    pub reasons: Vec<String>,
}

/// Repeats of a self-test that leaves something open: how many, and how long before the first.
const REPEATS: u32 = 5;
const REPEAT_NS: u64 = 5_000_000_000;

/// Of the self-test's repeats.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Repeats {
    done: u32,
    next_ns: Option<u64>,
    /// Rewriting was ended: nothing begins it again by itself.
    is_off: bool,
}

impl Worker {
    /// Rewrites what the configuration asks for and the self-test allows. Nothing else depends on it.
    pub(super) fn begin_rewriting(&mut self) {
        self.rewriting = Rewriting::default();
        self.watch = Watch::default();
        let policy = &self.path.rewrite;
        if !policy.is_on() {
            self.rewriting
                .reasons
                .push("the configuration does not ask for it".to_owned());
            return;
        }
        for (mode, allowed) in policy.modes().each() {
            if let Err(reason) = allowed {
                self.rewriting.reasons.push(format!("{mode}: {reason}"));
            }
        }
        let reach = policy.reach();
        if reach.settings == 0 {
            return self.degrade(format!(
                "messages leave without trace context: {}",
                self.rewriting.reasons.join("; ")
            ));
        }
        if let Err(error) = self.path.kernel.begin_rewriting(&reach) {
            tracing::debug!(?error, "rewriting, in the verifier's own words");
            self.rewriting.reasons.push(error.to_string());
            return self.degrade(format!("messages leave without trace context: {error}"));
        }
        self.rewriting.is_on = true;
        let older = self.path.kernel.enrolled().map_err(anyhow::Error::from);
        if let Err(error) = older.and_then(|enrolled| Ok(self.older.begin(enrolled)?)) {
            self.degrade(format!("connections older than the agent are only watched: {error}"));
        }
        for hook in crate::sys::rewrite::HOOKS {
            self.path.counters.set_hook(hook, true);
        }
    }

    /// Every socket is its own again, now.
    fn end_rewriting(&mut self, reason: &str) {
        self.repeats.is_off = true;
        self.older.end();
        self.path.kernel.end_rewriting();
        for hook in crate::sys::rewrite::HOOKS {
            self.path.counters.set_hook(hook, false);
        }
        self.rewriting = Rewriting {
            is_on: false,
            reasons: vec![reason.to_owned()],
        };
        self.degrade(format!("messages leave without trace context: {reason}"));
    }

    pub(super) fn obey(&mut self, now_ns: u64) {
        while let Ok(control) = self.control.try_recv() {
            match control {
                Control::EndRewriting => self.end_rewriting("SIGUSR1"),
                Control::BeginRewriting => {
                    self.repeats = Repeats::default();
                    self.test_again();
                }
                Control::Allow(modes) => self.allow(*modes, now_ns),
                Control::Rewrite(mut policy) => {
                    self.repeats.is_off = false;
                    policy.allow(self.path.rewrite.modes().clone());
                    self.path.rewrite = *policy;
                    self.begin_again(now_ns);
                }
            }
        }
    }

    /// In a thread of its own: records do not wait for it.
    fn test_again(&mut self) {
        let tell = self.tell.clone();
        let test = move || {
            let test = KernelTypes::read().map(|types| selftest::run(&types));
            let modes = test.map_or_else(|error| Modes::none(&error.to_string()), |test| Modes::of(&test));
            // Where nobody listens any more, the agent ends.
            let _ = tell.send(Control::Allow(Box::new(modes)));
        };
        let started = std::thread::Builder::new().name("self-test".to_owned()).spawn(test);
        if let Err(error) = started {
            tracing::error!(%error, "the self-test cannot be run again");
        }
    }

    /// The self-test has run once more. Whoever has switched rewriting off meanwhile has the last word.
    fn allow(&mut self, modes: Modes, now_ns: u64) {
        if self.repeats.is_off {
            return;
        }
        let is_news = modes != *self.path.rewrite.modes() || !self.rewriting.is_on;
        self.path.rewrite.allow(modes);
        if is_news {
            self.begin_again(now_ns);
        }
        self.plan_repeat(now_ns);
    }

    fn begin_again(&mut self, now_ns: u64) {
        self.older.end();
        self.path.kernel.end_rewriting();
        self.degradations
            .retain(|text| !text.starts_with("messages leave without"));
        // Who may, before anybody does.
        for pid in self.known.pids() {
            let process = self.path.discoverer.lookup(pid, now_ns, now_ns);
            self.publish(pid, &process);
        }
        self.begin_rewriting();
        tracing::info!(is_on = self.rewriting.is_on, "rewriting: settled anew");
    }

    /// Once a second: has the self-test run again where a row had no answer, each time after twice as long.
    pub(super) fn repeat_test(&mut self, now_ns: u64) {
        let wait = self.repeats;
        let is_due = !wait.is_off && wait.next_ns.is_some_and(|next_ns| now_ns >= next_ns);
        if is_due && wait.done < REPEATS {
            tracing::info!("the self-test runs again: a row had no answer");
            self.repeats.done += 1;
            self.repeats.next_ns = None;
            self.test_again();
        }
    }

    /// When the self-test is to run again.
    pub(super) fn plan_repeat(&mut self, now_ns: u64) {
        let is_open = self.path.rewrite.is_on() && self.path.rewrite.modes().is_open();
        let wait_ns = REPEAT_NS << self.repeats.done.min(REPEATS);
        self.repeats.next_ns = is_open.then_some(now_ns + wait_ns);
    }

    /// Once a second: ends rewriting where the counters show trouble.
    pub(super) fn watch_rewriting(&mut self) {
        if !self.rewriting.is_on {
            return;
        }
        let totals = self.path.kernel.counters();
        let of = |counter: KernelCounter| totals[counter as usize];
        let written = of(KernelCounter::Injected) + of(KernelCounter::Returned);
        let failed = of(KernelCounter::InjectionFailed) + of(KernelCounter::ReturnFailed);
        if let Some(reason) = self.watch.look(written, failed) {
            let before = kernel::monotonic_ns();
            self.end_rewriting(&reason);
            let took_ms = (kernel::monotonic_ns() - before) / 1_000_000;
            tracing::warn!(took_ms, "rewriting has ended by itself; SIGUSR2 begins it again");
        }
    }
}
