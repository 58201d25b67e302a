//! The processes that showed traffic, for the status commands: each with the selector that decided about it.

use std::collections::HashMap;
use std::path::Path;

use foldhash::fast::RandomState;
use spanwire_common::abi::{flag, side, ExchangeRecord};

use super::ProcessLine;
use crate::config::{ProcessMasks, SelectorRules};

/// Processes remembered.
const KNOWN: usize = 4096;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Known {
    processes: HashMap<u32, Entry, RandomState>,
}

#[derive(Debug)]
struct Entry {
    line: ProcessLine,
    masks: ProcessMasks,
    /// Include items whose port one of its sockets had.
    by_port: u32,
    /// It has read a request from a socket that blocks, or from one that does not.
    reads_blocking: Option<bool>,
}

impl Known {
    /// A process was classified, or classified again. Its rule is filled in by [`Known::lines`].
    pub(super) fn classified(&mut self, line: ProcessLine, masks: ProcessMasks) {
        let pid = line.pid;
        if self.processes.len() >= KNOWN && !self.processes.contains_key(&pid) {
            return;
        }
        let before = self.processes.get(&pid);
        let entry = Entry {
            line,
            masks,
            by_port: before.map_or(0, |known| known.by_port),
            reads_blocking: before.and_then(|known| known.reads_blocking),
        };
        self.processes.insert(pid, entry);
    }

    /// A process has read a request. True if that tells something new: one socket that blocks counts for all.
    pub(super) fn reads(&mut self, record: &ExchangeRecord) -> bool {
        if record.side != side::SERVER {
            return false;
        }
        let Some(known) = self.processes.get_mut(&record.pid) else {
            return false;
        };
        let is_blocking = record.flags & flag::BLOCKING != 0;
        let is_new = known.reads_blocking.is_none_or(|before| is_blocking && !before);
        if is_new {
            known.reads_blocking = Some(is_blocking);
        }
        is_new
    }

    /// Everyone.
    pub(super) fn pids(&self) -> Vec<u32> {
        self.processes.keys().copied().collect()
    }

    /// What [`Known::reads`] was told of a process.
    pub(super) fn reads_blocking(&self, pid: u32) -> Option<bool> {
        self.processes.get(&pid).and_then(|known| known.reads_blocking)
    }

    /// A socket of a process was captured: its ports tell by which item, where that names one.
    pub(super) fn captured(&mut self, record: &ExchangeRecord, rules: &SelectorRules) {
        if rules.include_any_port() == u32::MAX {
            return;
        }
        let Some(known) = self.processes.get_mut(&record.pid) else {
            return;
        };
        let unseen = known.masks.include & !known.by_port;
        if unseen & !rules.include_any_port() != 0 {
            known.by_port |= unseen & rules.including_port([record.local_port, record.remote_port]);
        }
    }

    /// Forgets those that are gone.
    pub(super) fn forget_ended(&mut self) {
        self.processes
            .retain(|pid, _| Path::new("/proc").join(pid.to_string()).exists());
    }

    /// In order of their pids.
    pub(super) fn lines(&self, rules: &SelectorRules) -> Vec<ProcessLine> {
        let mut lines: Vec<ProcessLine> = self
            .processes
            .values()
            .map(|known| ProcessLine {
                rule: rules.deciding(known.masks, known.by_port).to_string().into(),
                ..known.line.clone()
            })
            .collect();
        lines.sort_unstable_by_key(|line| line.pid);
        lines
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;
    use crate::config::{Capture, ProcessFacts, Selector};
    use zerocopy::FromZeros;

    fn rules(include: &[&str], exclude: &[&str]) -> SelectorRules {
        let items = |texts: &[&str], exclude| {
            let parsed = texts.iter().map(|text| Selector::parse(text, exclude));
            parsed.collect::<Result<Vec<_>, _>>().unwrap()
        };
        SelectorRules::compile(&Capture {
            include: items(include, false),
            exclude: items(exclude, true),
            ..Capture::default()
        })
    }

    fn known(rules: &SelectorRules, pid: u32, exe: &str) -> Known {
        let facts = ProcessFacts {
            pid,
            exe: exe.to_owned(),
            ..ProcessFacts::default()
        };
        let masks = rules.process_masks(&facts);
        let line = ProcessLine {
            pid,
            name: exe.into(),
            runtime: None,
            class: String::new(),
            why: "",
            captured: rules.may_capture(masks),
            propagate: "".into(),
            ingress: "".into(),
            rule: "".into(),
        };
        let mut known = Known::default();
        known.classified(line, masks);
        known
    }

    fn exchange(pid: u32, local_port: u16, remote_port: u16) -> ExchangeRecord {
        ExchangeRecord {
            pid,
            local_port,
            remote_port,
            ..ExchangeRecord::new_zeroed()
        }
    }

    fn rule(known: &Known, rules: &SelectorRules) -> String {
        known.lines(rules)[0].rule.to_string()
    }

    #[test]
    fn a_port_that_no_socket_has_decides_nothing() {
        let rules = rules(&["port=80", "exe=*/nginx"], &[]);
        let mut nginx = known(&rules, 7, "/usr/sbin/nginx");
        assert_eq!(rule(&nginx, &rules), "exe=*/nginx");
        nginx.captured(&exchange(7, 9_000, 51_000), &rules);
        assert_eq!(rule(&nginx, &rules), "exe=*/nginx");
        let mut curl = known(&rules, 8, "/usr/bin/curl");
        assert_eq!(rule(&curl, &rules), "port=80, if a socket has it");
        curl.captured(&exchange(8, 51_000, 80), &rules);
        assert_eq!(rule(&curl, &rules), "port=80");
    }

    #[test]
    fn of_two_ports_the_one_that_a_socket_had() {
        let rules = rules(&["port=80", "port=81", "exe=*/a,port=82"], &[]);
        let mut known = known(&rules, 7, "/bin/b");
        assert_eq!(rule(&known, &rules), "port=80 or port=81, if a socket has it");
        known.captured(&exchange(9, 80, 51_000), &rules);
        known.captured(&exchange(7, 82, 51_000), &rules);
        assert_eq!(rule(&known, &rules), "port=80 or port=81, if a socket has it");
        known.captured(&exchange(7, 81, 51_000), &rules);
        assert_eq!(rule(&known, &rules), "port=81");
    }

    #[test]
    fn an_exclusion_that_holds_on_every_port_decides() {
        let rules = rules(&["exe=*/a", "exe=*/b"], &["port=22", "exe=*/b", "exe=*/c"]);
        assert_eq!(rule(&known(&rules, 7, "/bin/a"), &rules), "exe=*/a");
        assert_eq!(rule(&known(&rules, 7, "/bin/b"), &rules), "exe=*/b");
        assert!(!known(&rules, 7, "/bin/b").lines(&rules)[0].captured);
        assert_eq!(rule(&known(&rules, 7, "/bin/c"), &rules), "exe=*/c");
        assert_eq!(rule(&known(&rules, 7, "/bin/d"), &rules), "not included");
    }

    #[test]
    fn without_items_everything_is_captured() {
        let rules = rules(&[], &["port=22"]);
        let mut known = known(&rules, 7, "/bin/a");
        known.captured(&exchange(7, 22, 51_000), &rules);
        assert_eq!(rule(&known, &rules), "everything");
    }
}
