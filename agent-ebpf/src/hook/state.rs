//! tp_btf/inet_sock_set_state (include/trace/events/sock.h): connects, resets and closes. Runs in the caller's
//! context or in a softirq, so the current task is not always the socket's owner.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;

use crate::connection;
use crate::sk::Sock;

/// tp_btf/tcp_destroy_sock (include/trace/events/tcp.h): a socket whose connect failed changes its state no more when
/// its owner closes it.
#[btf_tracepoint(function = "tcp_destroy_sock")]
pub fn tcp_destroy_sock(ctx: BtfTracePointContext) -> i32 {
    let sk: *const u8 = ctx.arg(0);
    connection::on_destroy(Sock(sk));
    0
}

/// A change of state: `(const struct sock *, const int old, const int new)`.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    let (sk, old, new): (*const u8, i32, i32) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    connection::on_state(Sock(sk), old, new);
    0
}
