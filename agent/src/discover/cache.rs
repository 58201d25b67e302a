//! The processes that showed traffic, each read once.
//!
//! A pid is an id that the kernel uses again: entries hold *generations*, and every question says at which time. A
//! generation ends with the process (a new start time under the same pid) or with its image (exec).

use std::collections::HashMap;
use std::sync::Arc;

use spanwire_common::abi::ProcessRecord;

use super::cgroup::CgroupMount;
use super::process::{Process, ProcessInfo};
use super::procfs::ProcRoot;

/// What the kernel side told about a process, for facts that are gone once it has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hint {
    /// Thread group id.
    pub pid: u32,
    /// Thread group ids of its ancestors, the parent first.
    pub ancestors: Vec<u32>,
    /// Effective user id.
    pub uid: Option<u32>,
    /// cgroup v2 id.
    pub cgroup_id: Option<u64>,
    /// Name of the task.
    pub comm: Option<Box<str>>,
    /// The path that was executed.
    pub filename: Option<Box<str>>,
}

impl Hint {
    /// Nothing is known but the pid.
    pub fn pid(pid: u32) -> Self {
        Self { pid, ..Self::default() }
    }

    /// Something is known that cannot be read any more once the process has ended.
    fn tells(&self) -> bool {
        !self.ancestors.is_empty()
    }

    /// Takes a kernel record's facts.
    pub fn from_record(record: &ProcessRecord) -> Self {
        let text = |bytes: &[u8]| {
            let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
            let text = String::from_utf8_lossy(bytes.get(..end).unwrap_or_default());
            (!text.is_empty()).then(|| text.into())
        };
        Self {
            pid: record.pid,
            ancestors: std::iter::once(record.parent_pid)
                .chain(record.grandparents)
                .take_while(|pid| *pid != 0)
                .collect(),
            uid: Some(record.uid),
            cgroup_id: (record.cgroup_id != 0).then_some(record.cgroup_id),
            comm: text(&record.comm),
            filename: text(&record.filename),
        }
    }
}

/// How much is kept, and for how long. All times are CLOCK_MONOTONIC nanoseconds, as the records' are.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Processes kept; the least recently asked for go first.
    pub processes: usize,
    /// How long one is kept after it ended, for its last spans.
    pub after_exit_ns: u64,
    /// How often the identity of one with traffic is checked, should its end have gone unseen.
    pub verify_ns: u64,
}

const SECOND_NS: u64 = 1_000_000_000;
/// When a provisional verdict is checked again after the first look; the last step repeats.
const RECHECK_NS: [u64; 4] = [SECOND_NS, 10 * SECOND_NS, 60 * SECOND_NS, 300 * SECOND_NS];
/// Earlier generations of one pid that are kept beside the present one.
const GENERATIONS: usize = 3;
/// USER_HZ, which is 100 on every architecture Linux has today.
const TICK_NS: u64 = SECOND_NS / 100;

impl Default for Limits {
    fn default() -> Self {
        Self {
            processes: 16 * 1024,
            after_exit_ns: 10 * SECOND_NS,
            verify_ns: 5 * SECOND_NS,
        }
    }
}

struct Generation {
    since_ns: u64,
    process: Arc<Process>,
}

struct Entry {
    /// Oldest first; never empty.
    generations: Vec<Generation>,
    exit_ns: Option<u64>,
    verified_ns: u64,
    used_ns: u64,
    recheck_at_ns: u64,
    recheck_step: usize,
    /// Asked for since the last check: an idle process is not looked at.
    traffic: bool,
}

/// Looks processes up by pid; a plain struct for a plain thread, it blocks only for reads of /proc.
pub struct Discoverer {
    root: ProcRoot,
    mount: Option<CgroupMount>,
    limits: Limits,
    entries: HashMap<u32, Entry>,
    /// Pids whose verdict is provisional.
    provisional: Vec<u32>,
}

impl Discoverer {
    /// Reads nothing but the mount table.
    pub fn new(root: ProcRoot, limits: Limits) -> Self {
        let mount = CgroupMount::find(&root);
        Self {
            root,
            mount,
            limits,
            entries: HashMap::new(),
            provisional: Vec::new(),
        }
    }

    /// How many processes are kept.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if the process is kept.
    pub fn knows(&self, pid: u32) -> bool {
        self.entries.contains_key(&pid)
    }

    /// True if none is kept.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The process that had `pid` at `at_ns` (0: now), read on the first question.
    pub fn lookup(&mut self, pid: u32, at_ns: u64, now_ns: u64) -> Arc<Process> {
        self.lookup_with(&Hint::pid(pid), at_ns, now_ns)
    }

    /// As [`Self::lookup`], with what the kernel side told (`process_event::SEEN`).
    pub fn lookup_with(&mut self, hint: &Hint, at_ns: u64, now_ns: u64) -> Arc<Process> {
        let at_ns = if at_ns == 0 { now_ns } else { at_ns };
        match self.entries.get_mut(&hint.pid) {
            None => {
                let process = self.read(hint);
                self.insert(hint.pid, process, now_ns)
            }
            Some(entry) => {
                entry.used_ns = now_ns;
                entry.traffic = true;
                if hint.tells() && entry.is_blank() {
                    // Asked for by an exchange that overtook, on another CPU, the record that tells of its process.
                    let process = Arc::new(Process::new(ProcessInfo::read(&self.root, self.mount.as_ref(), hint)));
                    if let Some(generation) = entry.generations.last_mut() {
                        generation.process = Arc::clone(&process);
                    }
                    return process;
                }
                if entry.exit_ns.is_some_and(|exit_ns| at_ns > exit_ns) {
                    let exit_ns = entry.exit_ns.unwrap_or(at_ns);
                    self.replace(hint, exit_ns, now_ns);
                } else if entry.exit_ns.is_none() && now_ns.saturating_sub(entry.verified_ns) > self.limits.verify_ns {
                    self.verify(hint, now_ns);
                }
                self.at(hint.pid, at_ns)
                    .unwrap_or_else(|| Arc::new(Process::new(ProcessInfo::default())))
            }
        }
    }

    /// `process_event::EXIT`: kept for its last spans, then forgotten by [`Self::sweep`].
    pub fn on_exit(&mut self, pid: u32, at_ns: u64) {
        if let Some(entry) = self.entries.get_mut(&pid) {
            entry.exit_ns = Some(at_ns);
        }
    }

    /// `process_event::EXEC`: what the pid runs from now on is read anew, if it was ever asked for.
    pub fn on_exec(&mut self, hint: &Hint, at_ns: u64, now_ns: u64) -> Option<Arc<Process>> {
        self.entries.contains_key(&hint.pid).then(|| {
            self.replace(hint, at_ns, now_ns);
            self.at(hint.pid, now_ns.max(at_ns))
        })?
    }

    /// Checks provisional verdicts that are due (1 s, 10 s, 60 s after the first look, then every 5 min) of processes
    /// that had traffic since; returns those whose class changed. To be called about once a second.
    pub fn recheck(&mut self, now_ns: u64) -> Vec<Arc<Process>> {
        let mut changed = Vec::new();
        let (root, entries) = (&self.root, &mut self.entries);
        self.provisional.retain(|pid| {
            let Some(entry) = entries.get_mut(pid) else {
                return false;
            };
            let Some(process) = entry.generations.last().map(|generation| &generation.process) else {
                return false;
            };
            if entry.exit_ns.is_some() || !process.verdict().provisional {
                return false;
            }
            if now_ns < entry.recheck_at_ns || !entry.traffic {
                return true;
            }
            entry.traffic = false;
            entry.recheck_step += 1;
            entry.recheck_at_ns = now_ns + recheck_after(entry.recheck_step);
            if process.recheck(root) {
                changed.push(Arc::clone(process));
                return false;
            }
            true
        });
        changed
    }

    /// Forgets processes that ended long enough ago. To be called every few seconds.
    pub fn sweep(&mut self, now_ns: u64) {
        let keep_ns = self.limits.after_exit_ns;
        self.entries.retain(|_, entry| {
            entry
                .exit_ns
                .is_none_or(|exit_ns| now_ns.saturating_sub(exit_ns) <= keep_ns)
        });
        let entries = &self.entries;
        self.provisional.retain(|pid| entries.contains_key(pid));
    }

    fn read(&self, hint: &Hint) -> Arc<Process> {
        Arc::new(Process::new(ProcessInfo::read(&self.root, self.mount.as_ref(), hint)))
    }

    fn at(&self, pid: u32, at_ns: u64) -> Option<Arc<Process>> {
        let generations = &self.entries.get(&pid)?.generations;
        let found = generations.iter().rev().find(|generation| generation.since_ns <= at_ns);
        found
            .or(generations.first())
            .map(|generation| Arc::clone(&generation.process))
    }

    fn insert(&mut self, pid: u32, process: Arc<Process>, now_ns: u64) -> Arc<Process> {
        if self.entries.len() >= self.limits.processes {
            self.evict();
        }
        // A process that could not be read any more has ended; its pid may be another's by now.
        let exit_ns = (process.info.start_ticks == 0).then_some(now_ns);
        if process.verdict().provisional {
            self.provisional.push(pid);
        }
        let generations = vec![Generation {
            since_ns: 0,
            process: Arc::clone(&process),
        }];
        self.entries.insert(pid, Entry::new(generations, exit_ns, now_ns));
        process
    }

    /// The pid names another process, or the same one another program, from `since_ns` on.
    fn replace(&mut self, hint: &Hint, since_ns: u64, now_ns: u64) {
        let process = self.read(hint);
        let Some(entry) = self.entries.get_mut(&hint.pid) else {
            return;
        };
        let mut generations = std::mem::take(&mut entry.generations);
        if generations.len() >= GENERATIONS {
            generations.remove(0);
        }
        let exit_ns = (process.info.start_ticks == 0).then_some(now_ns);
        let provisional = process.verdict().provisional;
        generations.push(Generation { since_ns, process });
        *entry = Entry::new(generations, exit_ns, now_ns);
        if provisional && !self.provisional.contains(&hint.pid) {
            self.provisional.push(hint.pid);
        }
    }

    /// Is it still the same process with the same program? An event that says otherwise may have been lost.
    fn verify(&mut self, hint: &Hint, now_ns: u64) {
        let Some(entry) = self.entries.get_mut(&hint.pid) else {
            return;
        };
        entry.verified_ns = now_ns;
        let Some(known) = entry
            .generations
            .last()
            .map(|generation| Arc::clone(&generation.process))
        else {
            return;
        };
        let Ok(stat) = self.root.stat(hint.pid) else {
            entry.exit_ns = Some(now_ns);
            return;
        };
        if stat.start_ticks != known.info.start_ticks {
            let since_ns = (stat.start_ticks * TICK_NS).min(now_ns);
            self.replace(hint, since_ns, now_ns);
        } else if self
            .root
            .exe(hint.pid)
            .is_some_and(|exe| known.info.exe.as_deref() != Some(&*exe))
        {
            self.replace(hint, now_ns, now_ns);
        }
    }

    /// Makes room for a while at once: the eighth that was not asked for the longest.
    fn evict(&mut self) {
        let mut by_use: Vec<(u64, u32)> = self.entries.iter().map(|(pid, entry)| (entry.used_ns, *pid)).collect();
        by_use.sort_unstable();
        for (_, pid) in by_use.into_iter().take((self.limits.processes / 8).max(1)) {
            self.entries.remove(&pid);
        }
        let entries = &self.entries;
        self.provisional.retain(|pid| entries.contains_key(pid));
    }
}

impl Entry {
    /// Nothing is known of the latest process: it had ended when it was looked at.
    fn is_blank(&self) -> bool {
        self.generations
            .last()
            .is_some_and(|generation| generation.process.info.is_blank())
    }

    fn new(generations: Vec<Generation>, exit_ns: Option<u64>, now_ns: u64) -> Self {
        Self {
            generations,
            exit_ns,
            verified_ns: now_ns,
            used_ns: now_ns,
            recheck_at_ns: now_ns + recheck_after(0),
            recheck_step: 0,
            traffic: true,
        }
    }
}

fn recheck_after(step: usize) -> u64 {
    RECHECK_NS.get(step).or(RECHECK_NS.last()).copied().unwrap_or(SECOND_NS)
}

#[cfg(test)]
mod tests;
