//! fexit on the functions that move a stream's bytes (net/ipv4/tcp.c, net/unix/af_unix.c): for kernels without
//! sock_send_length and sock_recv_length. They run in the calling thread, after the fact, and their arguments are
//! trusted pointers too, so everything behind the entry is the same.
//!
//! The loader attaches these only where the kernel's functions have the parameters named here (agent/src/sys/hooks.rs).
//! Only streams pass here, so a datagram received by nginx does not end its turn.

use aya_ebpf::macros::fexit;
use aya_ebpf::programs::FExitContext;

use crate::offsets as off;
use crate::sk::{load, Sock};
use crate::socket::{self, Hook};

/// `int tcp_recvmsg(struct sock *, struct msghdr *, size_t, int flags, int *addr_len)`
#[fexit(function = "tcp_recvmsg")]
#[inline(always)]
pub fn tcp_recvmsg(ctx: FExitContext) -> i32 {
    let (sk, flags, len): (*const u8, i32, i32) = (ctx.arg(0), ctx.arg(3), ctx.arg(5));
    socket::on_call(Sock(sk), len, flags as u32, Hook::TCP_RECVMSG);
    0
}

/// `int tcp_sendmsg(struct sock *, struct msghdr *, size_t)`
#[fexit(function = "tcp_sendmsg")]
#[inline(always)]
pub fn tcp_sendmsg(ctx: FExitContext) -> i32 {
    let (sk, len): (*const u8, i32) = (ctx.arg(0), ctx.arg(3));
    socket::on_call(Sock(sk), len, 0, Hook::TCP_SENDMSG);
    0
}

/// `int tcp_sendpage(struct sock *, struct page *, int, size_t, int)`: sendfile and splice before 6.5.
#[fexit(function = "tcp_sendpage")]
#[inline(always)]
pub fn tcp_sendpage(ctx: FExitContext) -> i32 {
    let (sk, len): (*const u8, i32) = (ctx.arg(0), ctx.arg(5));
    socket::on_call(Sock(sk), len, 0, Hook::TCP_SENDPAGE);
    0
}

/// `int unix_stream_recvmsg(struct socket *, struct msghdr *, size_t, int flags)`
#[fexit(function = "unix_stream_recvmsg")]
#[inline(always)]
pub fn unix_stream_recvmsg(ctx: FExitContext) -> i32 {
    let (socket, flags, len): (*const u8, i32, i32) = (ctx.arg(0), ctx.arg(3), ctx.arg(4));
    if let Some(sk) = sock_of(socket) {
        socket::on_call(sk, len, flags as u32, Hook::UNIX_RECVMSG);
    }
    0
}

/// `int unix_stream_sendmsg(struct socket *, struct msghdr *, size_t)`
#[fexit(function = "unix_stream_sendmsg")]
#[inline(always)]
pub fn unix_stream_sendmsg(ctx: FExitContext) -> i32 {
    let (socket, len): (*const u8, i32) = (ctx.arg(0), ctx.arg(3));
    if let Some(sk) = sock_of(socket) {
        socket::on_call(sk, len, 0, Hook::UNIX_SENDMSG);
    }
    0
}

/// `ssize_t unix_stream_sendpage(struct socket *, struct page *, int, size_t, int)`: sendfile and splice before 6.5.
#[fexit(function = "unix_stream_sendpage")]
#[inline(always)]
pub fn unix_stream_sendpage(ctx: FExitContext) -> i32 {
    let (socket, len): (*const u8, i64) = (ctx.arg(0), ctx.arg(5));
    if let Some(sk) = sock_of(socket) {
        socket::on_call(sk, len as i32, 0, Hook::UNIX_SENDPAGE);
    }
    0
}

/// `socket.sk`.
#[inline(always)]
fn sock_of(socket: *const u8) -> Option<Sock> {
    // SAFETY: socket.sk of a trusted pointer.
    let sk: *const u8 = unsafe { load(socket, off::socket_sk()) };
    (!sk.is_null()).then_some(Sock(sk))
}
