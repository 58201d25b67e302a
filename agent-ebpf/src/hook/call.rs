//! What a thread is in the middle of: entries of functions and system calls remember the socket, and the ends, which
//! know the result, find it here.

use aya_ebpf::btf_maps::LruHashMap;
use aya_ebpf::helpers::generated::bpf_get_current_pid_tgid;
use aya_ebpf::macros::btf_map;

use crate::maps::SETTINGS;
use crate::sk::Sock;
use crate::socket::{self, Hook};
use crate::{arch, refused};
use spanwire_common::abi::{setting, CallKey, CallUnderWay};

/// (thread, function or system call) -> the socket it is at work on. Written at its entry; kept afterwards, marked as
/// told, until the thread comes again or the entry is the one unused for longest.
#[btf_map]
pub static CALLS: LruHashMap<CallKey, CallUnderWay, 16384> = LruHashMap::new();

/// Set by the loader: which parameter of `tcp_recvmsg` has the flags (5.19 dropped the one before).
#[no_mangle]
static RECVMSG_FLAGS: u32 = 0;

/// Index of the flags among the parameters of `tcp_recvmsg`.
#[inline(always)]
pub fn recvmsg_flags() -> u32 {
    // SAFETY: a static of this program, set before the load.
    unsafe { core::ptr::read_volatile(&raw const RECVMSG_FLAGS) }
}

/// The current thread's key for `what`.
#[inline(always)]
pub fn key(what: u32) -> CallKey {
    // SAFETY: no arguments.
    let thread = unsafe { bpf_get_current_pid_tgid() };
    CallKey {
        thread,
        what: u64::from(what),
    }
}

/// Capture is on, and the current process is not refused as a whole.
#[inline(always)]
pub fn is_wanted() -> bool {
    let Some(settings) = SETTINGS.get_ptr(0) else {
        return false;
    };
    // SAFETY: an array element.
    let captures = unsafe { (*settings).flags & setting::CAPTURE != 0 };
    captures && !refused::is_refused() && arch::has_registers()
}

/// A call begins. Returns the socket of an earlier one whose end was not seen, or null.
#[inline(always)]
pub fn begin(what: u32, sk: Sock, flags: u32) -> Sock {
    let key = key(what);
    let call = CallUnderWay {
        sock: sk.0 as u64,
        flags,
        told: 0,
    };
    let mut missed = Sock(core::ptr::null());
    if let Some(entry) = CALLS.get_ptr_mut(&key) {
        // SAFETY: a live map value, of this thread.
        let entry = unsafe { &mut *entry };
        if entry.told == 0 {
            missed = Sock(entry.sock as *const u8);
        }
        *entry = call;
    } else {
        let _ = CALLS.insert(&key, &call, 0);
    }
    missed
}

/// The call under way, not told before.
#[inline(always)]
pub fn end(what: u32) -> Option<CallUnderWay> {
    let entry = CALLS.get_ptr_mut(&key(what))?;
    // SAFETY: a live map value, of this thread.
    let entry = unsafe { &mut *entry };
    if entry.told != 0 {
        return None;
    }
    entry.told = 1;
    Some(*entry)
}

/// `later`: bytes that the same system call has received behind these.
///
/// verifier: a global function, walked once however many calls lead to it.
#[no_mangle]
#[inline(never)]
pub extern "C" fn received(sk: u64, len: i32, flags: u32, later: u32) -> u32 {
    socket::on_call(Sock(sk as *const u8), len, flags, Hook::RECEIVE.before(later));
    0
}

/// As [`received`].
#[no_mangle]
#[inline(never)]
pub extern "C" fn sent(sk: u64, len: i32, flags: u32, later: u32) -> u32 {
    socket::on_call(Sock(sk as *const u8), len, flags, Hook::SEND.before(later));
    0
}
