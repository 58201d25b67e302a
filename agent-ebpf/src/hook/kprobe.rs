//! kprobes on the functions that move a stream's bytes (net/ipv4/tcp.c, net/unix/af_unix.c): for kernels without BTF
//! tracepoints on sockets and without BPF trampolines.
//!
//! The kernel has a fixed number of places for functions under way whose return is probed (two a CPU, ten at least), and
//! a call that finds none is left out. So no return is probed of the function in which servers wait: what `tcp_recvmsg`
//! has received is told by `tcp_cleanup_rbuf`, with which it ends, and which it calls before it takes what has come in the
//! meantime.

use aya_ebpf::macros::{kprobe, kretprobe};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};

use crate::global::working;
use crate::gone;
use crate::hook::call::{self, begin, end, is_wanted, CALLS};
use crate::maps::slot;
use crate::offsets as off;
use crate::sk::{load, Sock};

/// Functions that a thread may be in.
const TCP_RECEIVE: u32 = 1;
const SEND: u32 = 2;
const UNIX_RECEIVE: u32 = 3;

/// Bit of `sk_shutdown`.
const RCV_SHUTDOWN: u8 = 1;

/// `struct sock *` as the first argument.
#[inline(always)]
fn sock(ctx: &ProbeContext) -> Sock {
    Sock(ctx.arg(0).unwrap_or(core::ptr::null()))
}

/// `struct socket *` as the first argument.
#[inline(always)]
fn sock_of_socket(ctx: &ProbeContext) -> Sock {
    let socket: *const u8 = ctx.arg(0).unwrap_or(core::ptr::null());
    // SAFETY: socket.sk.
    Sock(unsafe { load(socket, off::socket_sk()) })
}

/// verifier: a load from the context at one of two offsets would be one at an unknown offset; so both come first.
#[inline(always)]
fn recvmsg_flags(ctx: &ProbeContext) -> u32 {
    // SAFETY: the registers of the function's fourth and fifth parameters (System V ABI), in the program's own context.
    let (fourth, fifth) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*ctx.regs).rcx),
            core::ptr::read_volatile(&raw const (*ctx.regs).r8),
        )
    };
    (if call::recvmsg_flags() == 4 { fifth } else { fourth }) as u32
}

/// `int tcp_recvmsg(struct sock *, struct msghdr *, size_t, [int nonblock,] int flags, int *addr_len)`
#[kprobe]
pub fn enter_tcp_receive(ctx: ProbeContext) -> u32 {
    if is_wanted() {
        begin(TCP_RECEIVE, sock(&ctx), recvmsg_flags(&ctx));
    }
    0
}

/// `void tcp_cleanup_rbuf(struct sock *, int copied)`: before the caller goes to sleep, and at its end. `copied` is what
/// the call has received so far; 0 at the end of the stream, and each time nothing is there yet.
#[kprobe]
pub fn tcp_cleanup_rbuf(ctx: ProbeContext) -> u32 {
    let sk = sock(&ctx);
    let copied = ctx.arg::<u64>(1).unwrap_or(0) as i32;
    let Some(entry) = CALLS.get_ptr_mut(&call::key(TCP_RECEIVE)) else {
        return 0;
    };
    // SAFETY: a live map value, of this thread.
    let entry = unsafe { &mut *entry };
    if entry.sock != sk.0 as u64 || copied < 0 {
        // Another socket's, in a softirq that came upon this thread; or a failure.
        return 0;
    }
    if copied == 0 {
        // SAFETY: sock.sk_shutdown.
        let shutdown: u8 = unsafe { load(sk.0, off::sk_shutdown()) };
        if shutdown & RCV_SHUTDOWN == 0 {
            return 0;
        }
    }
    let before = entry.told;
    let more = (copied as u32).wrapping_sub(before);
    entry.told = copied as u32;
    if copied == 0 || more != 0 {
        set_earlier(before);
        call::received(sk.0 as u64, more as i32, entry.flags, 0);
        set_earlier(0);
    }
    0
}

/// Bytes that the call under way has told before.
#[inline(always)]
fn set_earlier(bytes: u32) {
    if let Some(scratch) = working(slot::RECEIVE) {
        // SAFETY: an element of a per-CPU array, used by receives only.
        unsafe { (*scratch).call.earlier = u64::from(bytes) };
    }
}

/// `int tcp_sendmsg(struct sock *, ...)`, and `tcp_sendpage` (sendfile and splice before 6.5).
#[kprobe]
pub fn enter_tcp_send(ctx: ProbeContext) -> u32 {
    if is_wanted() {
        enter(SEND, sock(&ctx), 0, slot::SEND);
    }
    0
}

/// `int unix_stream_sendmsg(struct socket *, ...)`, and `unix_stream_sendpage` (sendfile and splice before 6.5).
#[kprobe]
pub fn enter_unix_send(ctx: ProbeContext) -> u32 {
    if is_wanted() {
        enter(SEND, sock_of_socket(&ctx), 0, slot::SEND);
    }
    0
}

/// The end of any of these.
#[kretprobe]
pub fn return_send(ctx: RetProbeContext) -> u32 {
    if let Some(call) = end(SEND) {
        call::sent(call.sock, ctx.ret(), 0, 0);
    }
    0
}

/// `int unix_stream_recvmsg(struct socket *, struct msghdr *, size_t, int flags)`
#[kprobe]
pub fn enter_unix_receive(ctx: ProbeContext) -> u32 {
    if is_wanted() {
        let flags: Option<u64> = ctx.arg(3);
        enter(
            UNIX_RECEIVE,
            sock_of_socket(&ctx),
            flags.unwrap_or(0) as u32,
            slot::RECEIVE,
        );
    }
    0
}

/// See [`enter_unix_receive`].
#[kretprobe]
pub fn return_unix_receive(ctx: RetProbeContext) -> u32 {
    if let Some(call) = end(UNIX_RECEIVE) {
        call::received(call.sock, ctx.ret(), call.flags, 0);
    }
    0
}

/// A call begins. No numbers on unix sockets show that one was missed: that a return was, shows when its thread comes
/// again.
#[inline(always)]
fn enter(what: u32, sk: Sock, flags: u32, slot: u32) {
    let missed = begin(what, sk, flags);
    if !missed.0.is_null() {
        gone::missed(missed, slot);
    }
}
