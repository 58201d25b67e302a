//! What the status commands show of the data path.

use super::rewriting::Rewriting;
use crate::assemble;
use crate::budget;

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
    /// Whether messages bear trace context.
    pub rewriting: Rewriting,
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
    /// Which of its requests bear trace context.
    pub propagate: Box<str>,
    /// Whether its responses may bear the trace id, or why not.
    pub ingress: Box<str>,
    /// The selector that decided.
    pub rule: Box<str>,
}
