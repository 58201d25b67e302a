//! Sockets whose protocol is not understood: no bytes are looked at. What a traced request does on them is recorded
//! as turns (sent, waited, received), so that a trace has no gap there.

use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_get_prandom_u32, bpf_ktime_get_ns,
};
use spanwire_common::abi::{family, flag, kind, protocol_id, setting, OpaqueTurn, RecordHeader, Settings};

use spanwire_common::drop::KernelCounter;

use crate::count::count;
use crate::emit;
use crate::maps::{OPAQUE_TURNS, TURN};
use crate::sk::{Sock, AF_INET, AF_INET6};
use crate::state::{
    SockState, ROLE_CLIENT, ROLE_SERVER, RX, SOCK_INHERITED, SOCK_TLS, TX, UNIT_BLOCKING, UNIT_COMPLETE, UNIT_CONSUMED,
    UNIT_OPEN,
};
use crate::unit;
use crate::worker::{self, is_nginx};

/// Bytes on a socket that is not understood.
#[inline(always)]
pub fn on_call(
    sk: Sock,
    state: &mut SockState,
    settings: &Settings,
    (socket_family, slot): (u16, u32),
    len: u32,
    direction: u32,
) {
    // SAFETY: no arguments.
    let thread = unsafe { bpf_get_current_pid_tgid() };
    if !unit::keeps_units(state.exchange.class) {
        return;
    }
    let nginx = is_nginx(state.exchange.class);
    if direction == RX && nginx {
        // What comes next, nginx does for whoever is on this socket, and that cannot be known.
        worker::forget(thread);
    }
    if settings.flags & setting::OPAQUE != 0 {
        if direction == RX {
            received(state.cookie, len);
        } else if state.role != ROLE_SERVER {
            sent(sk, state, thread, u32::from(socket_family) | slot << 16, len);
        }
    }
    if direction == TX && nginx {
        if state.role == ROLE_CLIENT {
            worker::consume(thread);
        } else {
            worker::moves_on(thread);
        }
    }
}

/// A send: a turn of its own, if it follows a receive and a traced request is being served. The family comes with the
/// program's element of TURN above it: a function has five arguments at most.
///
/// verifier: a function of its own for its stack: beside the parser's functions, a whole turn in the program's own frame
/// is more than the 512 bytes that kernels before 6.13 have for a program and all that it calls.
#[inline(never)]
fn sent(sk: Sock, state: &mut SockState, thread: u64, family_and_slot: u32, len: u32) {
    let (socket_family, slot) = (family_and_slot as u16, family_and_slot >> 16);
    let cookie = state.cookie;
    // SAFETY: no arguments.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let cause = cause_of(state, thread);
    if let Some(turn) = OPAQUE_TURNS.get_ptr_mut(&cookie) {
        // SAFETY: a live map value.
        let turn = unsafe { &mut *turn };
        // A worker of nginx has other things to do between two sends.
        let goes_on = is_nginx(state.exchange.class) || cause.span_id == turn.cause_span_id;
        if turn.received_first_ns == 0 && goes_on {
            turn.sent_last_ns = now_ns;
            turn.sent_bytes = turn.sent_bytes.wrapping_add(u64::from(len));
            return;
        }
        if cause.span_id == 0 && !is_nginx(state.exchange.class) {
            return;
        }
        end(cookie);
    }
    if cause.span_id == 0 {
        return;
    }
    state.flags &= !SOCK_INHERITED;
    let (local_addr, remote_addr) = sk.addresses(socket_family);
    let inet = socket_family == AF_INET || socket_family == AF_INET6;
    // SAFETY: no arguments.
    let (high, low, cgroup_id) = unsafe {
        (
            bpf_get_prandom_u32(),
            bpf_get_prandom_u32(),
            bpf_get_current_cgroup_id(),
        )
    };
    let Some(turn) = TURN.get_ptr_mut(slot) else { return };
    // SAFETY: an element of a per-CPU array that only a send uses; whole.
    let turn = unsafe { &mut *turn };
    *turn = OpaqueTurn {
        header: RecordHeader::default(),
        sent_first_ns: now_ns,
        sent_last_ns: now_ns,
        received_first_ns: 0,
        received_last_ns: 0,
        span_id: u64::from(high) << 32 | u64::from(low | 1),
        cause_span_id: cause.span_id,
        cause_trace_id: cause.trace_id,
        tenant: cause.tenant,
        sent_bytes: u64::from(len),
        received_bytes: 0,
        cookie,
        cgroup_id,
        local_addr,
        remote_addr,
        local_port: if inet { sk.local_port() } else { 0 },
        remote_port: if inet { sk.remote_port() } else { 0 },
        netns: sk.netns(),
        pid: (thread >> 32) as u32,
        tid: thread as u32,
        flags: flag::PROCESS_SERVES | flag::SAMPLED | cause.flags,
        cause: cause.code,
        class: state.exchange.class,
        family: match socket_family {
            AF_INET => family::INET,
            AF_INET6 => family::INET6,
            _ => family::UNIX,
        },
        protocol: if state.flags & SOCK_TLS != 0 {
            protocol_id::TLS
        } else {
            protocol_id::OPAQUE
        },
    };
    let _ = OPAQUE_TURNS.insert(&cookie, turn, 0);
}

/// What a turn is for.
#[derive(Clone, Copy)]
struct Cause {
    trace_id: [u64; 2],
    /// 0: nobody we know.
    span_id: u64,
    tenant: u64,
    /// Bits of `flag`.
    flags: u32,
    /// `abi::cause`.
    code: u8,
}

#[inline(always)]
fn cause_of(state: &SockState, thread: u64) -> Cause {
    let mut cause = Cause {
        trace_id: [0; 2],
        span_id: 0,
        tenant: 0,
        flags: 0,
        code: 0,
    };
    let nginx = is_nginx(state.exchange.class);
    if nginx && state.flags & SOCK_INHERITED != 0 {
        // Sent out of a later event; the connect has told.
        let exchange = &state.exchange;
        if exchange.flags & flag::AMBIGUOUS == 0 {
            cause.trace_id = exchange.related_trace_id;
            cause.span_id = exchange.related_span_id;
            cause.tenant = exchange.request.tenant;
            cause.flags = exchange.flags & (flag::CAUSE_COMPLETE | flag::CAUSE_BLOCKING);
            cause.code = exchange.cause;
        }
        return cause;
    }
    let Some(unit) = unit::current(thread) else {
        return cause;
    };
    if unit.state != UNIT_OPEN || (nginx && (unit.flags & UNIT_CONSUMED != 0 || unit.waiting != 0)) {
        return cause;
    }
    cause.trace_id = unit.trace_id;
    cause.span_id = unit.span_id;
    cause.tenant = unit.tenant;
    if unit.flags & UNIT_COMPLETE != 0 {
        cause.flags |= flag::CAUSE_COMPLETE;
    }
    if unit.flags & UNIT_BLOCKING != 0 {
        cause.flags |= flag::CAUSE_BLOCKING;
    }
    cause.code = unit.cause;
    cause
}

/// Sends a turn's record; it counts as a client's exchange.
#[inline(always)]
fn send(turn: &mut OpaqueTurn) {
    let sent = emit::output(turn, kind::OPAQUE_TURN, |turn| &mut turn.header);
    count(if sent {
        KernelCounter::ExchangesClient
    } else {
        KernelCounter::RingFullExchange
    });
}

/// A receive: part of the turn under way.
#[inline(always)]
fn received(cookie: u64, len: u32) {
    if let Some(turn) = OPAQUE_TURNS.get_ptr_mut(&cookie) {
        // SAFETY: a live map value.
        let turn = unsafe { &mut *turn };
        // SAFETY: no arguments.
        let now_ns = unsafe { bpf_ktime_get_ns() };
        if turn.received_first_ns == 0 {
            turn.received_first_ns = now_ns;
        }
        turn.received_last_ns = now_ns;
        turn.received_bytes = turn.received_bytes.wrapping_add(u64::from(len));
    }
}

/// The socket has come to its end: so has its turn.
#[inline(always)]
pub fn end(cookie: u64) {
    if let Some(turn) = OPAQUE_TURNS.get_ptr_mut(&cookie) {
        // SAFETY: a live map value.
        let turn = unsafe { &mut *turn };
        send(turn);
        let _ = OPAQUE_TURNS.remove(&cookie);
    }
}
