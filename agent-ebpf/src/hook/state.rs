//! tp_btf/inet_sock_set_state (include/trace/events/sock.h): connects, resets and closes. Runs in the caller's
//! context or in a softirq, so the current task is not always the socket's owner.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;

use crate::{access, connection};

/// TCP states (include/net/tcp_states.h).
const TCP_ESTABLISHED: i32 = 1;
const TCP_SYN_SENT: i32 = 2;
const TCP_SYN_RECV: i32 = 3;

/// tp_btf/tcp_destroy_sock (include/trace/events/tcp.h): a socket whose connect failed changes its state no more when
/// its owner closes it.
#[btf_tracepoint(function = "tcp_destroy_sock")]
#[inline(always)]
pub fn tcp_destroy_sock(ctx: BtfTracePointContext) -> i32 {
    let sk = access::sock(ctx.arg(0));
    connection::on_destroy(sk);
    access::ends(sk);
    0
}

/// A change of state: `(const struct sock *, const int old, const int new)`.
#[btf_tracepoint(function = "inet_sock_set_state")]
#[inline(always)]
pub fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    let (old, new): (i32, i32) = (ctx.arg(1), ctx.arg(2));
    let sk = access::sock(ctx.arg(0));
    if new == TCP_SYN_SENT || (old == TCP_SYN_RECV && new == TCP_ESTABLISHED) {
        access::begins(sk);
    }
    connection::on_state(sk, old, new);
    0
}
