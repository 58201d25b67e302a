//! A thread that waits in `recv`, and what may come over it there.
#![allow(unsafe_code, reason = "signals")]

use std::cell::Cell;
use std::io::{self, Read};
use std::mem::zeroed;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{sync_channel, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::sockets::PATIENCE;

/// How long a thread that has been woken may take to run, where the machine is busy.
const NOTICE: Duration = Duration::from_millis(200);

/// A thread that has called `recv` on a blocking socket, and waits there.
pub(super) struct Waiting {
    pub(super) tid: libc::pid_t,
    socket: Arc<TcpStream>,
    returned: Receiver<io::Result<usize>>,
    /// What it has returned before it was seen to wait.
    early: Cell<Option<io::Result<usize>>>,
}

impl Waiting {
    /// Starts it, and comes back once it sleeps, or has returned.
    pub(super) fn begin(socket: Arc<TcpStream>) -> io::Result<Self> {
        let (tell, told) = sync_channel(1);
        let (result, returned) = sync_channel(1);
        let own = Arc::clone(&socket);
        thread::Builder::new().name("self-test recv".into()).spawn(move || {
            // Nobody listens any more only where the row has been given up.
            let _ = tell.send(own_thread());
            let _ = result.send((&*own).read(&mut [0; 64]));
        })?;
        let tid = told
            .recv_timeout(PATIENCE)
            .map_err(|_| io::Error::other("the thread that receives does not start"))?;
        let waiting = Self {
            tid,
            socket,
            returned,
            early: Cell::new(None),
        };
        let deadline = Instant::now() + PATIENCE;
        // Twice: on its way there it may have slept for something else.
        let mut seen = 0;
        while seen < 2 {
            if let Ok(result) = waiting.returned.try_recv() {
                waiting.early.set(Some(result));
                break;
            }
            seen = if sleeps(tid) { seen + 1 } else { 0 };
            if Instant::now() > deadline {
                return Err(io::Error::other("the thread that receives does not wait"));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(waiting)
    }

    /// Does something that should not end the call, and gives the thread the time to take notice: `None` if it has been
    /// woken and waits again, or is not woken at all.
    pub(super) fn after(&self, event: impl FnOnce() -> io::Result<()>) -> io::Result<Option<io::Result<usize>>> {
        let before = waits(self.tid);
        event()?;
        let deadline = Instant::now() + NOTICE;
        loop {
            let result = self.result(Duration::from_millis(1));
            if result.is_some() || waits(self.tid) != before || Instant::now() > deadline {
                // It may have returned between the two looks.
                return Ok(result.or_else(|| self.result(Duration::from_millis(1))));
            }
        }
    }

    /// What `recv` has returned by then, `None` if it still waits.
    pub(super) fn result(&self, at_most: Duration) -> Option<io::Result<usize>> {
        if let Some(result) = self.early.take() {
            return Some(result);
        }
        match self.returned.recv_timeout(at_most) {
            Ok(result) => Some(result),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Err(io::Error::other("the thread that receives has ended"))),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // Wakes it if it is still there.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

fn own_thread() -> libc::pid_t {
    // SAFETY: no arguments.
    unsafe { libc::gettid() }
}

/// Whether a thread of this process sleeps (proc_pid_stat.5: the state stands behind the name in parentheses).
fn sleeps(tid: libc::pid_t) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{tid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'))
}

/// How often a thread of this process has gone to sleep; `None` where it has ended.
fn waits(tid: libc::pid_t) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/self/task/{tid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
    line.trim().parse().ok()
}

/// The signal: one that is ignored unless somebody asks for it, and that the runtime does not use.
const SIGNAL: libc::c_int = libc::SIGURG;

static HANDLED: AtomicU32 = AtomicU32::new(0);

extern "C" fn count(_signal: libc::c_int) {
    HANDLED.fetch_add(1, Ordering::Relaxed);
}

/// Sends threads of this process a signal that is handled, and after which a call goes on (SA_RESTART). What was done
/// about the signal before is put back.
pub(super) struct Interrupter<'a> {
    before: libc::sigaction,
    /// How often the signal has been handled.
    handled: &'static AtomicU32,
    _only: std::sync::MutexGuard<'a, ()>,
}

/// Handlers are the whole process's.
static ONLY: Mutex<()> = Mutex::new(());

impl Interrupter<'_> {
    pub(super) fn install() -> io::Result<Self> {
        let only = ONLY.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: an all-zero action is a valid one.
        let mut action: libc::sigaction = unsafe { zeroed() };
        action.sa_sigaction = count as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: as above.
        let mut before: libc::sigaction = unsafe { zeroed() };
        // SAFETY: the handler does nothing but count; both actions are there.
        if unsafe { libc::sigaction(SIGNAL, &raw const action, &raw mut before) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            before,
            handled: &HANDLED,
            _only: only,
        })
    }

    /// Interrupts a thread, and waits until it has handled the signal.
    pub(super) fn interrupt(&self, tid: libc::pid_t) -> io::Result<()> {
        let handled = self.handled.load(Ordering::Relaxed);
        let own = std::process::id();
        // SAFETY: a thread of this process, or none.
        if unsafe { libc::syscall(libc::SYS_tgkill, own, tid, SIGNAL) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let deadline = Instant::now() + PATIENCE;
        while self.handled.load(Ordering::Relaxed) == handled {
            if Instant::now() > deadline {
                return Err(io::Error::other("the signal is not handled"));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Drop for Interrupter<'_> {
    fn drop(&mut self) {
        // SAFETY: the action that stood before.
        unsafe { libc::sigaction(SIGNAL, &raw const self.before, std::ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::super::sockets::Pair;
    use super::*;
    use std::io::Write;

    #[test]
    fn a_thread_that_waits_is_told_from_one_that_has_returned() {
        let Pair { near, mut far } = Pair::open().unwrap();
        let near = Arc::new(near);
        let waiting = Waiting::begin(Arc::clone(&near)).unwrap();
        let asleep = waits(waiting.tid);
        let result = waiting.after(|| near.shutdown(Shutdown::Write)).unwrap();
        assert!(result.is_none());
        assert!(waits(waiting.tid) > asleep, "the shutdown has woken it");
        far.write_all(b"five.").unwrap();
        assert_eq!(waiting.result(PATIENCE).unwrap().unwrap(), 5);
    }

    #[test]
    fn a_signal_does_not_end_a_call_on_an_ordinary_socket() {
        let Pair { near, mut far } = Pair::open().unwrap();
        let waiting = Waiting::begin(Arc::new(near)).unwrap();
        let interrupter = Interrupter::install().unwrap();
        let result = waiting.after(|| interrupter.interrupt(waiting.tid)).unwrap();
        assert!(result.is_none());
        far.write_all(b".").unwrap();
        assert_eq!(waiting.result(PATIENCE).unwrap().unwrap(), 1);
    }
}
