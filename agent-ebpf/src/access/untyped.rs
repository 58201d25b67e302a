//! Programs whose arguments are bare addresses (kprobes, tracepoints of system calls): fields are read by
//! `bpf_probe_read_kernel`, and a socket's state lies in a table by the socket's address.
//!
//! An address is used again once its socket is gone. The end of a TCP socket is seen (`tcp_destroy_sock`) and takes the
//! state along; that of a unix socket is not, so each look at its state compares the inode number of the socket, and the
//! sweep (`gone.rs`) removes what is left.

use aya_ebpf::bindings::bpf_sock_ops;
use aya_ebpf::btf_maps::HashMap;
#[cfg(feature = "scalars")]
use aya_ebpf::helpers::generated::bpf_get_current_task;
#[cfg(not(feature = "scalars"))]
use aya_ebpf::helpers::generated::bpf_get_current_task_btf;
#[cfg(feature = "scalars")]
use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_probe_read_kernel};
use aya_ebpf::macros::btf_map;
use spanwire_common::drop::KernelCounter;

use crate::count::{cost, count};
use crate::maps::BLANK;
use crate::offsets as off;
use crate::sk::{Sock, AF_UNIX};
use crate::state::{Call, SockState, EX_OPEN, REWRITE_RETURNS, RX, SOCK_UNIX};

/// State of stream sockets, TCP and unix, by the address of the `struct sock`. The kernel side makes entries, and deletes
/// them as the module's note says.
#[btf_map]
pub static SOCKETS: HashMap<u64, SockState, 32768> = HashMap::new();

/// Unix sockets that are older than the agent, by cookie: one of which nothing is known but that it exists may be
/// anywhere in a message. Written once, at the start.
#[btf_map]
pub static OLD_SOCKETS: HashMap<u64, u64, 16384> = HashMap::new();

const NEW_ONLY: u64 = 1;

/// Keys of SOCKETS below this are no addresses: copies of states that sk_msg works on, one for each CPU (`rewrite`).
#[cfg(feature = "scalars")]
pub const COPIES: u64 = 1 << 16;

/// This CPU's copy; null if there is no room.
#[cfg(feature = "scalars")]
#[inline(always)]
pub fn copied_state() -> *mut SockState {
    // SAFETY: no arguments; the program cannot change its CPU.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    make_state(copy_of(cpu))
}

/// What stands for the socket of such a copy.
#[cfg(feature = "scalars")]
#[inline(always)]
pub fn copy_of(cpu: u32) -> Sock {
    Sock((u64::from(cpu & 0xfff) + 1) as *const u8)
}

/// Loads a field. A load that faults yields zero.
///
/// # Safety
/// None needed: the helper checks the address. Unsafe like its counterpart for typed pointers.
#[inline(always)]
pub unsafe fn load<T: Copy>(base: *const u8, offset: usize) -> T {
    const { assert!(size_of::<T>() <= 8) };
    let at = base.wrapping_add(offset);
    let value = match size_of::<T>() {
        1 => read::<1>(at),
        2 => read::<2>(at),
        4 => read::<4>(at),
        _ => read::<8>(at),
    };
    // SAFETY: no larger than eight bytes, and plain data; the machine is little-endian (arch.rs).
    unsafe { core::mem::transmute_copy(&value) }
}

/// The current task's `struct task_struct`.
#[cfg(not(feature = "scalars"))]
#[inline(always)]
pub fn current_task() -> *const u8 {
    // SAFETY: no arguments.
    unsafe { bpf_get_current_task_btf() as *const u8 }
}

/// As above, before 5.11.
#[cfg(feature = "scalars")]
#[inline(always)]
pub fn current_task() -> *const u8 {
    // SAFETY: no arguments.
    unsafe { bpf_get_current_task() as *const u8 }
}

/// A pointer of a type, as a bare address. The verifier lets nobody reckon with the one; copied by the helper it is the
/// other.
#[inline(always)]
pub fn bare(typed: *const u8) -> *const u8 {
    read::<8>((&raw const typed).cast()) as *const u8
}

/// A socket that came as a pointer of a type.
#[inline(always)]
pub fn sock(typed: *const u8) -> Sock {
    Sock(bare(typed))
}

/// The socket that sk_msg names.
#[inline(always)]
pub fn sock_of_message(named: *const u8) -> Sock {
    sock(named)
}

const S_IFMT: u16 = 0o170_000;
const S_IFSOCK: u16 = 0o140_000;

/// The socket behind an open file, null if it is none.
#[inline(always)]
pub fn sock_of_file(file: *const u8) -> Sock {
    // SAFETY: file.f_inode -> inode.i_mode; for a socket, file.private_data -> socket.sk. A null on the way reads as zero.
    unsafe {
        let inode: *const u8 = load(file, off::file_inode());
        let mode: u16 = load(inode, off::inode_mode());
        if mode & S_IFMT != S_IFSOCK {
            return Sock(core::ptr::null());
        }
        let socket: *const u8 = load(file, off::file_private_data());
        Sock(load(socket, off::socket_sk()))
    }
}

/// verifier: a function of its own, so that what is read does not lie in the frames of the long call chains.
#[inline(never)]
fn read<const BYTES: usize>(at: *const u8) -> u64 {
    let mut value = 0u64;
    // SAFETY: at most eight bytes of stack.
    unsafe { bpf_probe_read_kernel((&raw mut value).cast(), BYTES as u32, at.cast()) };
    value
}

/// The socket as a `struct tcp_sock *`, which it begins with.
#[inline(always)]
pub fn tcp_sock(sk: Sock) -> *const u8 {
    sk.0
}

/// The socket as a `struct unix_sock *`, which it begins with.
#[inline(always)]
pub fn unix_sock(sk: Sock) -> *const u8 {
    sk.0
}

/// A number that no other socket bears: for TCP drawn, and kept in the state; for unix sockets made from what tells them
/// apart, so that the other end can make it, too.
#[inline(always)]
pub fn cookie(sk: Sock, family: u16) -> u64 {
    if family == AF_UNIX {
        return unix_cookie(sk);
    }
    // SAFETY: no arguments.
    let (high, low) = unsafe { (bpf_get_prandom_u32(), bpf_get_prandom_u32()) };
    u64::from(high) << 32 | u64::from(low | 1)
}

/// That number, in a callback of sockops.
#[inline(always)]
pub fn cookie_of_callback(_ops: *mut bpf_sock_ops) -> u64 {
    cookie(Sock(core::ptr::null()), 0)
}

/// From a unix socket's address and inode number; 0 while it has none (not accepted yet, or closed).
#[inline(always)]
fn unix_cookie(sk: Sock) -> u64 {
    // SAFETY: sock.sk_socket, which lies in one object with its inode (struct socket_alloc).
    let (socket, inode): (*const u8, u64) = unsafe {
        let socket = load(sk.0, off::sk_socket());
        (socket, load(socket, off::socket_inode_number()))
    };
    if socket.is_null() {
        return 0;
    }
    mix(sk.0 as u64, inode)
}

/// Two numbers as one, never 0.
#[inline(always)]
fn mix(address: u64, number: u64) -> u64 {
    let spread = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (address ^ spread ^ spread >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1
}

/// The cookie of a unix stream's other end; 0 if it is not known.
#[inline(always)]
pub fn peer_cookie(peer: Sock) -> u64 {
    let now = unix_cookie(peer);
    if now != 0 {
        return now;
    }
    // Closed: its state, which is deleted later, still has it.
    let state = state(peer);
    if state.is_null() {
        return 0;
    }
    // SAFETY: non-null: a whole state.
    unsafe { (*state).cookie }
}

/// What both ends of a unix stream know its receiving end by; 0 if it is not known. Its cookie is not: the receiver may
/// not have been accepted when the sender sends.
///
/// verifier: a frame of its own, as `read`.
#[inline(never)]
pub fn receiver(sk: Sock, call: &Call) -> u64 {
    let (receiver, sender) = if call.direction == RX {
        (sk.0 as u64, call.remote_addr[0])
    } else {
        (sk.unix_peer().map_or(0, |peer| peer.0 as u64), call.cookie)
    };
    if receiver == 0 || sender == 0 {
        return 0;
    }
    mix(receiver, sender)
}

/// State of a socket, null if it has none.
///
/// verifier: a frame of its own, as `read`.
#[inline(never)]
pub fn state(sk: Sock) -> *mut SockState {
    let key = sk.0 as u64;
    cost(KernelCounter::MapOperations);
    let Some(entry) = SOCKETS.get_ptr_mut(&key) else {
        return core::ptr::null_mut();
    };
    // SAFETY: a live map value.
    let known = unsafe { &*entry };
    if known.flags & SOCK_UNIX != 0 {
        let now = unix_cookie(sk);
        if now != 0 && now != known.cookie {
            // Another socket's, at the same address.
            forget(key, known);
            return core::ptr::null_mut();
        }
    }
    entry
}

/// Deletes the state of a socket that is gone.
#[inline(always)]
fn forget(key: u64, state: &SockState) {
    if state.exchange.state & EX_OPEN != 0 {
        count(KernelCounter::MissedBytes);
    }
    let _ = SOCKETS.remove(&key);
}

/// State of a socket that is followed from now on: zeroes; null if there is no room.
///
/// verifier: a frame of its own, as `read`.
#[inline(never)]
pub fn make_state(sk: Sock) -> *mut SockState {
    const { assert!(size_of::<SockState>() <= size_of::<crate::maps::Carry>()) };
    let key = sk.0 as u64;
    let Some(blank) = BLANK.get_ptr(0) else {
        return core::ptr::null_mut();
    };
    cost(KernelCounter::MapOperations);
    // SAFETY: an element of an array, and no smaller than a state; every field may be zero. Where another thread was
    // first, its entry serves both.
    let _ = SOCKETS.insert(&key, unsafe { &*blank.cast() }, NEW_ONLY);
    SOCKETS.get_ptr_mut(&key).unwrap_or(core::ptr::null_mut())
}

/// A TCP connection begins: what is left at its address (of a socket that was closed by one thread while another's call
/// on it returned) is not its own.
#[inline(always)]
pub fn begins(sk: Sock) {
    let state = state(sk);
    // SAFETY: null, or a whole state. sockops comes before the change of state: what it has made is the new socket's.
    if !state.is_null() && unsafe { (*state).rewrite } & REWRITE_RETURNS == 0 {
        ends(sk);
    }
}

/// A TCP socket ends, and its state with it.
#[inline(always)]
pub fn ends(sk: Sock) {
    let key = sk.0 as u64;
    let _ = SOCKETS.remove(&key);
}

/// A unix socket has been closed, or what lay at its address is another's.
#[inline(always)]
pub fn is_closed(sk: Sock) -> bool {
    let key = sk.0 as u64;
    SOCKETS.get_ptr(&key).is_some_and(|entry| {
        // SAFETY: a live map value.
        let known = unsafe { &*entry };
        known.flags & SOCK_UNIX != 0 && unix_cookie(sk) != known.cookie
    })
}

/// Marks a socket that is older than the agent.
#[inline(always)]
pub fn mark(sk: Sock) {
    let cookie = unix_cookie(sk);
    let _ = OLD_SOCKETS.insert(&cookie, &1, 0);
}

/// True for a socket that was there when the agent came.
#[inline(always)]
pub fn is_marked(sk: Sock) -> bool {
    let cookie = unix_cookie(sk);
    OLD_SOCKETS.get_ptr(&cookie).is_some()
}
