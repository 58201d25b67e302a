//! sockops (BPF_PROG_TYPE_SOCK_OPS, on a cgroup) and sk_msg (on the sockhash ENROLLED): the only programs that change what a
//! socket does or sends.

use aya_ebpf::bindings::{
    sk_action, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_HDR_OPT_LEN_CB, BPF_SOCK_OPS_PARSE_HDR_OPT_CB,
    BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
};
use aya_ebpf::macros::{sk_msg, sock_ops};
use aya_ebpf::programs::{SkMsgContext, SockOpsContext};

use crate::message::Message;
use crate::{enrol, rewrite};

/// What a sockops program returns (net/ipv4/tcp.h, tcp_call_bpf): the reply stands as it is, whoever set it.
const REPLY_STANDS: u32 = 1;

/// A point in the life of a TCP connection.
#[sock_ops]
#[inline(always)]
pub fn enrol_connections(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => enrol::established(ctx.ops),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => enrol::accepted(ctx.ops),
        BPF_SOCK_OPS_HDR_OPT_LEN_CB => enrol::sends(ctx.ops),
        BPF_SOCK_OPS_PARSE_HDR_OPT_CB => enrol::receives(ctx.ops),
        _ => {}
    }
    REPLY_STANDS
}

/// A message of an enrolled socket, before it is sent, in the thread that sends it. It passes, unless it holds what nobody has
/// written (`message::Outcome::Broken`): then the send fails with EACCES.
#[sk_msg]
#[inline(always)]
pub fn rewrite_messages(ctx: SkMsgContext) -> u32 {
    if rewrite::on_message(Message(ctx.msg)) {
        sk_action::SK_PASS
    } else {
        sk_action::SK_DROP
    }
}
