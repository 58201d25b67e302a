//! Connections that are older than the agent, or than what is known of their process: a thread of its own enrols their
//! sockets, since looking for them takes long in a process that has many.
//!
//! Invariant: after [`Older::end`] nothing is enrolled any more.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{sync_channel, Receiver, SyncSender};
use std::sync::Arc;
use std::thread::JoinHandle;

use foldhash::fast::RandomState;

use crate::discover::connections::outgoing;
use crate::discover::ProcRoot;
use crate::sys::older::{Enrolled, Holder};

/// Processes that may wait to be looked at; for more, there will be another occasion.
const QUEUE: usize = 1_024;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Older {
    running: Option<Running>,
    /// Processes whose connections may be enrolled.
    eligible: HashSet<u32, RandomState>,
}

#[derive(Debug)]
struct Running {
    tell: SyncSender<u32>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Older {
    /// Begins with the processes that are eligible already.
    ///
    /// # Errors
    /// The thread cannot be made.
    pub(super) fn begin(&mut self, enrolled: Enrolled) -> std::io::Result<()> {
        let (tell, told) = sync_channel(QUEUE);
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("older".to_owned())
            .spawn(move || work(enrolled, &told, &seen))?;
        self.running = Some(Running { tell, stop, thread });
        for pid in std::mem::take(&mut self.eligible) {
            self.permit(pid, true);
        }
        Ok(())
    }

    /// All messages of a process's sockets may be changed, or not. Its connections are looked for once.
    pub(super) fn permit(&mut self, pid: u32, may: bool) {
        if !may {
            self.eligible.remove(&pid);
            return;
        }
        if !self.eligible.insert(pid) {
            return;
        }
        let is_told = self
            .running
            .as_ref()
            .is_none_or(|running| running.tell.try_send(pid).is_ok());
        if !is_told {
            self.eligible.remove(&pid);
        }
    }

    /// Nothing is enrolled any more.
    pub(super) fn end(&mut self) {
        let Some(Running { tell, stop, thread }) = self.running.take() else {
            return;
        };
        stop.store(true, Ordering::Release);
        drop(tell);
        // A panic there has been reported by the thread itself.
        let _ = thread.join();
    }
}

fn work(mut enrolled: Enrolled, told: &Receiver<u32>, stop: &AtomicBool) {
    for pid in told {
        let added = match Holder::open(pid) {
            Ok(holder) => add_all(&mut enrolled, &holder, pid, stop),
            // It has ended.
            Err(_) => 0,
        };
        if added > 0 {
            tracing::debug!(pid, added, "connections older than the agent enrolled");
        }
    }
}

fn add_all(enrolled: &mut Enrolled, holder: &Holder, pid: u32, stop: &AtomicBool) -> usize {
    let mut added = 0;
    for descriptor in outgoing(&ProcRoot::default(), pid) {
        if stop.load(Ordering::Acquire) {
            break;
        }
        match enrolled.add(holder, descriptor) {
            Ok(is_added) => added += usize::from(is_added),
            // Closed meanwhile, or not to be enrolled: it is only watched.
            Err(error) => tracing::debug!(pid, descriptor, %error, "an older connection is only watched"),
        }
    }
    added
}
