//! A process: the facts read once, and what they were judged to mean.

use std::sync::{Arc, OnceLock};

use spanwire_common::abi::ProcessClass;

use super::cgroup::{CgroupMount, CgroupPlace};
use super::environment::DeclaredResource;
use super::maps::MappedLibraries;
use super::procfs::ProcRoot;
use super::runtime::{arguments_of, classify, Verdict, LIBRARIES};
use super::{elf, script, Hint};
use crate::span::Resource;

/// Facts about one process, read once from /proc.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessInfo {
    /// Thread group id in the agent's pid namespace.
    pub pid: u32,
    /// Start time in clock ticks since boot, 0 if unknown: with the pid, the identity.
    pub start_ticks: u64,
    /// Parent, grandparent and so on, nearest first.
    pub ancestors: Vec<u32>,
    /// Resolved executable, as the process's own mount namespace names it.
    pub exe: Option<Box<str>>,
    /// Name of the task.
    pub comm: Box<str>,
    /// File name of the script an interpreter runs, without extension.
    pub script: Option<Box<str>>,
    /// Effective user id.
    pub uid: Option<u32>,
    /// Threads when it was read.
    pub threads: u32,
    /// Cgroup and container.
    pub place: CgroupPlace,
    /// What the process declares about itself by OpenTelemetry's environment variables.
    pub declared: DeclaredResource,
    /// Libraries that tell runtimes apart.
    pub mapped: MappedLibraries,
    /// The executable was linked by the Go toolchain.
    pub is_go: bool,
}

/// Deeper ancestries are cut.
const ANCESTORS: usize = 32;

impl ProcessInfo {
    /// Reads a process; facts that cannot be read (it may be ending) are taken from the hint, or stay unknown.
    pub fn read(root: &ProcRoot, mount: Option<&CgroupMount>, hint: &Hint) -> Self {
        let pid = hint.pid;
        let Ok(stat) = root.stat(pid) else {
            return Self::from_hint(root, hint);
        };
        let exe = root.exe(pid).or_else(|| hint.filename.clone());
        let name = exe.as_deref().map_or("", file_name);
        Self {
            pid,
            start_ticks: stat.start_ticks,
            ancestors: longer(ancestors(root, &[], stat.parent_pid), ancestors_told(root, hint)),
            script: arguments_of(name).and_then(|rules| script::name(root, pid, &rules)),
            uid: root.uid(pid).or(hint.uid),
            threads: stat.threads,
            place: CgroupPlace::read(root, mount, pid).or_id(hint.cgroup_id),
            declared: DeclaredResource::read(root, pid),
            mapped: MappedLibraries::read(root, pid, &LIBRARIES),
            is_go: elf::is_go(&root.of(pid, "exe")),
            comm: stat.comm,
            exe,
        }
    }

    /// What the kernel side's record alone tells of a process that has ended.
    fn from_hint(root: &ProcRoot, hint: &Hint) -> Self {
        Self {
            pid: hint.pid,
            ancestors: ancestors_told(root, hint),
            exe: hint.filename.clone(),
            comm: hint.comm.clone().unwrap_or_default(),
            uid: hint.uid,
            place: CgroupPlace::default().or_id(hint.cgroup_id),
            ..Self::default()
        }
    }

    /// Nothing is known: the process had ended when it was looked at, and nobody told of it.
    pub fn is_blank(&self) -> bool {
        self.start_ticks == 0 && self.ancestors.is_empty()
    }

    /// File name of the executable, empty if unknown.
    pub fn exe_name(&self) -> &str {
        self.exe.as_deref().map_or("", file_name)
    }
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The ancestors in `known`, and from `next` on what can be read.
fn ancestors(root: &ProcRoot, known: &[u32], next: u32) -> Vec<u32> {
    let mut line = known.to_vec();
    let mut next = next;
    while next != 0 && line.len() < ANCESTORS && !line.contains(&next) {
        line.push(next);
        next = root.stat(next).map_or(0, |stat| stat.parent_pid);
    }
    line
}

/// The ancestors that the kernel side told: they may have ended since, and the process be another's child now.
fn ancestors_told(root: &ProcRoot, hint: &Hint) -> Vec<u32> {
    let next = hint.ancestors.last().and_then(|last| root.stat(*last).ok());
    ancestors(root, &hint.ancestors, next.map_or(0, |stat| stat.parent_pid))
}

fn longer(one: Vec<u32>, other: Vec<u32>) -> Vec<u32> {
    if other.len() > one.len() {
        other
    } else {
        one
    }
}

/// A process as the stages share it.
#[derive(Debug)]
pub struct Process {
    /// What was read.
    pub info: ProcessInfo,
    verdict: Verdict,
    /// Set once: a process that was found to multiplex never serves by thread again.
    demoted: OnceLock<Verdict>,
    resource: OnceLock<Arc<Resource>>,
}

impl Process {
    /// Judges what was read.
    pub fn new(info: ProcessInfo) -> Self {
        let verdict = classify(&info);
        Self {
            info,
            verdict,
            demoted: OnceLock::new(),
            resource: OnceLock::new(),
        }
    }

    /// What the process is held for now.
    pub fn verdict(&self) -> Verdict {
        self.demoted.get().copied().unwrap_or(self.verdict)
    }

    /// Which rules its parents may rest on now.
    pub fn class(&self) -> ProcessClass {
        self.verdict().class
    }

    /// The resource of its spans, made by `make` the first time.
    pub fn resource_or(&self, make: impl FnOnce(&Self) -> Resource) -> &Arc<Resource> {
        self.resource.get_or_init(|| Arc::new(make(self)))
    }

    /// Looks at its mappings again; true if it was demoted by that.
    pub(super) fn recheck(&self, root: &ProcRoot) -> bool {
        if !self.verdict().provisional {
            return false;
        }
        let mapped = MappedLibraries::read(root, self.info.pid, &LIBRARIES);
        if !mapped.complete {
            // It is ending, or may not be read any more: the verdict stays, there is nothing new.
            return false;
        }
        let now = classify(&ProcessInfo {
            mapped,
            ..self.info.clone()
        });
        now.class != self.verdict.class && self.demoted.set(now).is_ok()
    }
}
