//! fexit on the functions that move a stream's bytes (net/ipv4/tcp.c, net/unix/af_unix.c): for kernels without
//! sock_send_length and sock_recv_length. They run in the calling thread, after the fact, and their arguments are
//! trusted pointers too, so everything behind the entry is the same.
//!
//! The loader attaches these only where the kernel's functions have the parameters named here (agent/src/sys/hooks.rs).
//! Only streams pass here, so a datagram received by nginx does not end its turn.

use aya_ebpf::macros::fexit;
use aya_ebpf::programs::FExitContext;

#[cfg(feature = "scalars")]
use crate::hook::call;
use crate::offsets as off;
use crate::seen;
use crate::sk::load;
#[cfg(not(feature = "scalars"))]
use crate::sk::Sock;
#[cfg(not(feature = "scalars"))]
use crate::socket;
use crate::socket::Hook;
#[cfg(feature = "scalars")]
use crate::{access, arch};

/// `int tcp_recvmsg(struct sock *, struct msghdr *, size_t, int flags, int *addr_len)`
#[cfg(not(feature = "scalars"))]
#[fexit(function = "tcp_recvmsg")]
#[inline(always)]
pub fn tcp_recvmsg(ctx: FExitContext) -> i32 {
    let (sk, flags, len): (*const u8, i32, i32) = (ctx.arg(0), ctx.arg(3), ctx.arg(5));
    received(sk, len, flags, Hook::TCP_RECVMSG);
    0
}

/// `int tcp_recvmsg(struct sock *, struct msghdr *, size_t, int nonblock, int flags, int *addr_len)`, up to 5.18.
#[cfg(feature = "scalars")]
#[fexit(function = "tcp_recvmsg")]
#[inline(always)]
pub fn tcp_recvmsg(ctx: FExitContext) -> i32 {
    let (sk, flags, len): (*const u8, i32, i32) = (ctx.arg(0), ctx.arg(4), ctx.arg(6));
    received(sk, len, flags, Hook::TCP_RECVMSG);
    0
}

/// `int tcp_sendmsg(struct sock *, struct msghdr *, size_t)`
#[fexit(function = "tcp_sendmsg")]
#[inline(always)]
pub fn tcp_sendmsg(ctx: FExitContext) -> i32 {
    let (sk, len): (*const u8, i32) = (ctx.arg(0), ctx.arg(3));
    sent(sk, len, Hook::TCP_SENDMSG);
    0
}

/// `int tcp_sendpage(struct sock *, struct page *, int, size_t, int)`: sendfile and splice before 6.5.
#[fexit(function = "tcp_sendpage")]
#[inline(always)]
pub fn tcp_sendpage(ctx: FExitContext) -> i32 {
    let (sk, len): (*const u8, i32) = (ctx.arg(0), ctx.arg(5));
    sent(sk, len, Hook::TCP_SENDPAGE);
    0
}

/// `int tcp_bpf_sendmsg(struct sock *, struct msghdr *, size_t)`: what sends on a socket that is in a sockmap. It passes by
/// `tcp_sendmsg`, but where the socket is let go meanwhile.
#[fexit(function = "tcp_bpf_sendmsg")]
#[inline(always)]
pub fn tcp_bpf_sendmsg(ctx: FExitContext) -> i32 {
    let (sk, len): (*const u8, i32) = (ctx.arg(0), ctx.arg(3));
    sent_unless_told(sk, len, Hook::BPF_SENDMSG);
    0
}

/// `int tcp_bpf_sendpage(struct sock *, struct page *, int, size_t, int)`: as above, before 6.5.
#[fexit(function = "tcp_bpf_sendpage")]
#[inline(always)]
pub fn tcp_bpf_sendpage(ctx: FExitContext) -> i32 {
    let (sk, len): (*const u8, i32) = (ctx.arg(0), ctx.arg(5));
    sent_unless_told(sk, len, Hook::BPF_SENDPAGE);
    0
}

/// `int unix_stream_recvmsg(struct socket *, struct msghdr *, size_t, int flags)`
#[fexit(function = "unix_stream_recvmsg")]
#[inline(always)]
pub fn unix_stream_recvmsg(ctx: FExitContext) -> i32 {
    let (socket, flags, len): (*const u8, i32, i32) = (ctx.arg(0), ctx.arg(3), ctx.arg(4));
    let sk = sock_of(socket);
    if !sk.is_null() {
        received(sk, len, flags, Hook::UNIX_RECVMSG);
    }
    0
}

/// `int unix_stream_sendmsg(struct socket *, struct msghdr *, size_t)`
#[fexit(function = "unix_stream_sendmsg")]
#[inline(always)]
pub fn unix_stream_sendmsg(ctx: FExitContext) -> i32 {
    let (socket, len): (*const u8, i32) = (ctx.arg(0), ctx.arg(3));
    let sk = sock_of(socket);
    if !sk.is_null() {
        sent(sk, len, Hook::UNIX_SENDMSG);
    }
    0
}

/// `ssize_t unix_stream_sendpage(struct socket *, struct page *, int, size_t, int)`: sendfile and splice before 6.5.
#[fexit(function = "unix_stream_sendpage")]
#[inline(always)]
pub fn unix_stream_sendpage(ctx: FExitContext) -> i32 {
    let (socket, len): (*const u8, i64) = (ctx.arg(0), ctx.arg(5));
    let sk = sock_of(socket);
    if !sk.is_null() {
        sent(sk, len as i32, Hook::UNIX_SENDPAGE);
    }
    0
}

/// `socket.sk`.
#[inline(always)]
fn sock_of(socket: *const u8) -> *const u8 {
    // SAFETY: socket.sk of a trusted pointer.
    unsafe { load(socket, off::socket_sk()) }
}

#[cfg(not(feature = "scalars"))]
#[inline(always)]
fn received(sk: *const u8, len: i32, flags: i32, hook: Hook) {
    socket::on_call(Sock(sk), len, flags as u32, hook);
}

#[cfg(not(feature = "scalars"))]
#[inline(always)]
fn sent(sk: *const u8, len: i32, hook: Hook) {
    socket::on_call(Sock(sk), len, 0, hook);
}

#[cfg(not(feature = "scalars"))]
#[inline(always)]
fn sent_unless_told(sk: *const u8, len: i32, hook: Hook) {
    if len <= 0 || !seen::is_told(Sock(sk)) {
        sent(sk, len, hook);
    }
}

/// As above.
#[cfg(feature = "scalars")]
#[inline(always)]
fn sent_unless_told(sk: *const u8, len: i32, hook: Hook) {
    if len <= 0 || !seen::is_told(access::sock(sk)) {
        sent(sk, len, hook);
    }
}

/// The functions of the other programs without types. The loader attaches these only where nobody is preempted in them
/// (before 5.11), so they share elements of the working memory.
#[cfg(feature = "scalars")]
#[inline(always)]
fn received(sk: *const u8, len: i32, flags: i32, _hook: Hook) {
    if arch::has_registers() {
        call::received(access::sock(sk).0 as u64, len, flags as u32, 0);
    }
}

/// As above.
#[cfg(feature = "scalars")]
#[inline(always)]
fn sent(sk: *const u8, len: i32, _hook: Hook) {
    if arch::has_registers() {
        call::sent(access::sock(sk).0 as u64, len, 0, 0);
    }
}
