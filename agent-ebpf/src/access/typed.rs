//! Programs whose arguments are pointers of types that the verifier knows (BTF tracepoints, fexit): fields are loaded
//! directly, and a socket's state lies in the socket.

use aya_ebpf::bindings::bpf_sock_ops;
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::generated::{
    bpf_get_current_task_btf, bpf_get_socket_cookie, bpf_sk_storage_get, bpf_skc_to_tcp_sock, bpf_skc_to_unix_sock,
};
use aya_ebpf::macros::btf_map;
use core::ffi::c_void;

use crate::sk::{Sock, AF_UNIX};
use crate::state::{Call, SockState, RX};

/// State of stream sockets, TCP and unix; the kernel frees it with the socket.
#[btf_map]
pub static SOCKETS: SkStorage<SockState> = SkStorage::new();

/// Marks on unix sockets that are older than the agent: one of which nothing is known but that it exists may be anywhere
/// in a message.
#[btf_map]
pub static OLD_SOCKETS: SkStorage<u32> = SkStorage::new();

const CREATE: u64 = 1;

/// Loads a field. A load that faults yields zero (kernel: bpf_convert_ctx_accesses, BPF_PROBE_MEM).
///
/// # Safety
/// `base` is a pointer the verifier knows as BTF-typed, and `offset` lies within that type.
#[inline(always)]
pub unsafe fn load<T: Copy>(base: *const u8, offset: usize) -> T {
    // SAFETY: see above; alignment is the kernel's own.
    unsafe { *base.add(offset).cast::<T>() }
}

/// The current task's `struct task_struct`.
#[inline(always)]
pub fn current_task() -> *const u8 {
    // SAFETY: no arguments; a trusted pointer.
    unsafe { bpf_get_current_task_btf() as *const u8 }
}

/// A socket that came as a pointer of a type.
#[inline(always)]
pub fn sock(typed: *const u8) -> Sock {
    Sock(typed)
}

/// The socket that sk_msg names, as a pointer of the kernel's own type; null if it is no TCP socket.
#[inline(always)]
pub fn sock_of_message(named: *const u8) -> Sock {
    Sock(tcp_sock(Sock(named)))
}

/// The socket as a `struct tcp_sock *`, null if it is none.
#[inline(always)]
pub fn tcp_sock(sk: Sock) -> *const u8 {
    // SAFETY: the helper checks that it is a TCP socket.
    unsafe { bpf_skc_to_tcp_sock(sk.0.cast_mut().cast()) as *const u8 }
}

/// The socket as a `struct unix_sock *`, null if it is none.
#[inline(always)]
pub fn unix_sock(sk: Sock) -> *const u8 {
    // SAFETY: the helper checks that it is a unix socket.
    unsafe { bpf_skc_to_unix_sock(sk.0.cast_mut().cast()) as *const u8 }
}

/// A number that no other socket ever bears.
#[inline(always)]
pub fn cookie(sk: Sock, _family: u16) -> u64 {
    // SAFETY: a socket pointer the verifier knows.
    unsafe { bpf_get_socket_cookie(sk.0.cast_mut().cast()) }
}

/// That number, in a callback of sockops.
#[inline(always)]
pub fn cookie_of_callback(ops: *mut bpf_sock_ops) -> u64 {
    // SAFETY: the program's context.
    unsafe { bpf_get_socket_cookie(ops.cast()) }
}

/// The cookie of a unix stream's other end.
#[inline(always)]
pub fn peer_cookie(peer: Sock) -> u64 {
    cookie(peer, AF_UNIX)
}

/// What both ends of a unix stream know its receiving end by; 0 if it is not known.
#[inline(always)]
pub fn receiver(_sk: Sock, call: &Call) -> u64 {
    if call.direction == RX {
        call.cookie
    } else {
        call.remote_addr[0]
    }
}

/// State of a socket, null if it has none.
#[inline(always)]
pub fn state(sk: Sock) -> *mut SockState {
    storage((&raw const SOCKETS).cast(), sk, 0).cast()
}

/// State of a socket that is followed from now on: zeroes; null if there is no room.
#[inline(always)]
pub fn make_state(sk: Sock) -> *mut SockState {
    storage((&raw const SOCKETS).cast(), sk, CREATE).cast()
}

/// A TCP connection begins: its state is a new one already.
#[inline(always)]
pub fn begins(_sk: Sock) {}

/// A TCP socket ends: its state goes with it.
#[inline(always)]
pub fn ends(_sk: Sock) {}

/// Marks a socket that is older than the agent.
#[inline(always)]
pub fn mark(sk: Sock) {
    storage((&raw const OLD_SOCKETS).cast(), sk, CREATE);
}

/// True for a socket that was there when the agent came.
#[inline(always)]
pub fn is_marked(sk: Sock) -> bool {
    !storage((&raw const OLD_SOCKETS).cast(), sk, 0).is_null()
}

#[inline(always)]
fn storage(map: *const c_void, sk: Sock, flags: u64) -> *mut c_void {
    // SAFETY: a socket pointer the verifier knows; a null value means zeroes.
    unsafe { bpf_sk_storage_get(map.cast_mut(), sk.0.cast_mut().cast(), core::ptr::null_mut(), flags) }
}
