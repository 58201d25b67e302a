//! tp_btf/sock_send_length and sock_recv_length (kernel 6.3+; net/socket.c, call_trace_sock_send_length and
//! call_trace_sock_recv_length): every send and receive on every socket, in the calling thread, after the fact.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;

use crate::sk::Sock;
use crate::socket::{self, Hook};

/// A receive: `(struct sock *, int ret, int flags)`.
#[btf_tracepoint(function = "sock_recv_length")]
#[inline(always)]
pub fn sock_recv_length(ctx: BtfTracePointContext) -> i32 {
    let (sk, len, flags): (*const u8, i32, i32) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    socket::on_call(Sock(sk), len, flags as u32, Hook::RECEIVE);
    0
}

/// As [`sock_recv_length`], for the receives that it was left out of: where a thread can be preempted in a tracepoint's
/// program (Linux 7.x), the kernel does not run the same program for another thread on that CPU, but it runs this one.
#[btf_tracepoint(function = "sock_recv_length")]
#[inline(always)]
pub fn sock_recv_length_again(ctx: BtfTracePointContext) -> i32 {
    let (sk, len, flags): (*const u8, i32, i32) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    socket::on_call_left_out(Sock(sk), len, flags as u32, Hook::RECEIVE_AGAIN);
    0
}

/// As [`sock_send_length`], for the sends that it was left out of.
#[btf_tracepoint(function = "sock_send_length")]
#[inline(always)]
pub fn sock_send_length_again(ctx: BtfTracePointContext) -> i32 {
    let (sk, len): (*const u8, i32) = (ctx.arg(0), ctx.arg(1));
    socket::on_call_left_out(Sock(sk), len, 0, Hook::SEND_AGAIN);
    0
}

/// A send: `(struct sock *, int ret, int flags)`; the flags are always 0.
#[btf_tracepoint(function = "sock_send_length")]
#[inline(always)]
pub fn sock_send_length(ctx: BtfTracePointContext) -> i32 {
    let (sk, len): (*const u8, i32) = (ctx.arg(0), ctx.arg(1));
    socket::on_call(Sock(sk), len, 0, Hook::SEND);
    0
}
