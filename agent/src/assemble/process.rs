//! What assemble knows of processes: class, whether they are captured, whether they serve.

use std::collections::VecDeque;

use spanwire_common::abi::ProcessClass;

use super::recent::{Map, Recent, FOREVER_NS};

/// One process, by thread group id. `exec` and exit make it another one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Process {
    pub(super) class: ProcessClass,
    /// `set_class` was called for it.
    pub(super) known: bool,
    /// It turned out to be excluded.
    pub(super) excluded: bool,
    /// It served a captured request.
    pub(super) serves: bool,
    /// A thread rule contradicted itself in it.
    pub(super) demoted: bool,
    /// Its class was asked for.
    pub(super) asked: bool,
    parent_pid: u32,
}

impl Default for Process {
    fn default() -> Self {
        Self {
            class: ProcessClass::Unclassified,
            known: false,
            excluded: false,
            serves: false,
            demoted: false,
            asked: false,
            parent_pid: 0,
        }
    }
}

/// The processes met, and the held exchanges that wait for their class (by sequence number in the window).
#[derive(Debug)]
pub(super) struct Processes {
    table: Recent<u32, Process>,
    waiting: Map<u32, VecDeque<u64>>,
    /// Ended processes, until their last exchanges have left.
    ended: VecDeque<(u64, u32)>,
}

/// How far up the line of ancestors a class is looked for.
const MAX_ANCESTORS: usize = 8;

impl Processes {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            table: Recent::new(capacity, FOREVER_NS),
            waiting: Map::default(),
            ended: VecDeque::new(),
        }
    }

    /// The process, made if it is new.
    pub(super) fn meet(&mut self, pid: u32) -> &mut Process {
        self.table.entry(pid, Process::default)
    }

    pub(super) fn peek(&self, pid: u32) -> Process {
        self.table.peek(&pid).copied().unwrap_or_default()
    }

    pub(super) fn set_parent(&mut self, pid: u32, parent_pid: u32) {
        if parent_pid != 0 {
            self.meet(pid).parent_pid = parent_pid;
        }
    }

    /// True unless an ancestor is known for a runtime in which the thread that forks tells nothing of the request: the
    /// nearest ancestor with a class that says anything decides.
    pub(super) fn may_inherit(&self, pid: u32) -> bool {
        let mut pid = pid;
        for _ in 0..MAX_ANCESTORS {
            pid = self.peek(pid).parent_pid;
            if pid == 0 {
                return true;
            }
            match self.peek(pid).class {
                ProcessClass::ThreadPerRequest | ProcessClass::ProcessPerRequest | ProcessClass::ThreadReadsWhole => {
                    return true
                }
                ProcessClass::EventLoop
                | ProcessClass::Go
                | ProcessClass::Jvm
                | ProcessClass::Proxy
                | ProcessClass::Nginx => return false,
                ProcessClass::Unclassified | ProcessClass::Other => {}
            }
        }
        true
    }

    /// The held exchange `sequence` waits for the class of `pid`.
    pub(super) fn wait(&mut self, pid: u32, sequence: u64) {
        self.waiting.entry(pid).or_default().push_back(sequence);
    }

    /// The exchanges that waited for `pid`, in the order they came.
    pub(super) fn woken(&mut self, pid: u32) -> VecDeque<u64> {
        self.waiting.remove(&pid).unwrap_or_default()
    }

    /// The oldest held exchange is now `first`: whoever waits with an earlier number has left.
    pub(super) fn left(&mut self, pid: u32, first: u64) {
        if self.waiting.is_empty() {
            return;
        }
        if let Some(waiting) = self.waiting.get_mut(&pid) {
            while waiting.front().is_some_and(|sequence| *sequence < first) {
                waiting.pop_front();
            }
            if waiting.is_empty() {
                self.waiting.remove(&pid);
            }
        }
    }

    /// The process got another image: whatever was known of the old one is void, save that its thread group goes on.
    pub(super) fn exec(&mut self, pid: u32) {
        let parent_pid = self.peek(pid).parent_pid;
        self.waiting.remove(&pid);
        self.table.insert(
            pid,
            Process {
                parent_pid,
                ..Process::default()
            },
        );
    }

    /// The process ended; it is forgotten at `forget_ns`, when its last exchanges have left.
    pub(super) fn exit(&mut self, pid: u32, forget_ns: u64) {
        if self.table.contains(&pid) {
            self.ended.push_back((forget_ns, pid));
        }
    }

    /// The id is in use again: its new bearer must not be forgotten with the old one.
    pub(super) fn reborn(&mut self, pid: u32) {
        let before = self.ended.len();
        self.ended.retain(|(_, ended)| *ended != pid);
        if self.ended.len() != before {
            self.exec(pid);
        }
    }

    pub(super) fn advance(&mut self, now_ns: u64) {
        while let Some((forget_ns, pid)) = self.ended.front().copied() {
            if forget_ns > now_ns {
                break;
            }
            self.ended.pop_front();
            self.table.remove(&pid);
            self.waiting.remove(&pid);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }
}
