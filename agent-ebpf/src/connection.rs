//! What a connection's life means for the exchanges on it: connects, ends of streams, deaths, the deadline.

use aya_ebpf::helpers::generated::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use spanwire_common::abi::{cause, flag, outcome, process_event, process_flag, setting, ProcessClass};
use spanwire_common::drop::KernelCounter;
use spanwire_common::protocol::http1::phase;

use crate::call::now;
use crate::count::count;
use crate::exchange::{admit, class_or_name, RESPONSE_CLOSED, RESPONSE_ENDS, RESPONSE_RESET};
use crate::global::working;
use crate::maps::{slot, SETTINGS};
use crate::sk::{Sock, AF_UNIX};
use crate::socket::{identify, locate, Hook, ECONNRESET, EPIPE};
use crate::state::{
    Call, Scratch, SockState, EX_OPEN, ROLE_CLIENT, ROLE_SERVER, ROLE_UNKNOWN, RX, SOCK_CONNECTING, SOCK_INHERITED,
    SOCK_LATE, SOCK_OPAQUE, SOCK_UNIX, TX,
};
use crate::worker::{self, is_nginx};
use crate::{access, arch, engine, enrol, opaque, process, unit};

/// TCP states (include/net/tcp_states.h).
const TCP_SYN_SENT: i32 = 2;
const TCP_FIN_WAIT1: i32 = 4;
const TCP_CLOSE: i32 = 7;
const TCP_LAST_ACK: i32 = 9;
const TCP_LISTEN: i32 = 10;

/// Where OTLP over gRPC goes, in which no path is seen.
const OTLP_GRPC: u16 = 4317;

const ETIMEDOUT: u16 = 110;
const ECONNREFUSED: u16 = 111;

/// The peer has closed its direction.
#[inline(always)]
pub fn end_of_stream(sk: Sock, state: &mut SockState, socket_family: u16, element: u32) {
    if state.flags & SOCK_OPAQUE != 0 {
        return opaque::end(state.cookie);
    }
    let Some(scratch) = working(element) else {
        return;
    };
    // SAFETY: as in `on_call`.
    let call = unsafe { &mut (*scratch).call };
    if state.role != ROLE_CLIENT {
        if socket_family == AF_UNIX {
            identify(sk, call, socket_family, RX);
            end_peer(sk, scratch, ROLE_CLIENT, RESPONSE_CLOSED);
        }
        return;
    }
    if state.exchange.state & EX_OPEN == 0 {
        return;
    }
    identify(sk, call, socket_family, RX);
    locate(sk, call, socket_family, state.cookie);
    let point = if state.framing[RX as usize].phase == phase::UNTIL_CLOSE {
        RESPONSE_ENDS
    } else {
        RESPONSE_CLOSED
    };
    worker::received(&state.exchange, state.exchange.class, call.pid_tgid, true);
    engine::finish_all(state, scratch, point);
    if socket_family == AF_UNIX {
        // The server's end of a unix stream shows only here.
        end_peer(sk, scratch, ROLE_SERVER, point);
    }
}

/// The other end of a unix stream has been closed: no hook tells, so what was open there ends here.
///
/// verifier: in a frame of its own: see `opaque::sent`.
#[inline(never)]
fn end_peer(sk: Sock, scratch: *mut Scratch, role: u8, point: u32) {
    let Some(peer) = sk.unix_peer() else { return };
    if !peer.is_orphan() {
        return;
    }
    let state = access::state(peer);
    if state.is_null() {
        return;
    }
    // SAFETY: whole objects.
    let (state, call) = unsafe { (&mut *state, &mut (*scratch).call) };
    if state.role == role && state.exchange.state & EX_OPEN != 0 {
        locate(peer, call, AF_UNIX, state.cookie);
        engine::finish_all(state, scratch, point);
    }
}

/// A send or receive failed because the connection is gone. A TCP socket's state tells; a unix socket has none.
#[inline(always)]
pub fn broken(sk: Sock, hook: Hook) {
    if sk.family() != AF_UNIX || !sk.is_stream(AF_UNIX) {
        return;
    }
    let state = access::state(sk);
    if state.is_null() {
        return;
    }
    let Some(scratch) = working(hook.slot) else {
        return;
    };
    // SAFETY: whole objects; as in `on_call`.
    let (state, call) = unsafe { (&mut *state, &mut (*scratch).call) };
    if state.flags & SOCK_OPAQUE == 0 && state.exchange.state & EX_OPEN != 0 {
        identify(sk, call, AF_UNIX, hook.direction);
        locate(sk, call, AF_UNIX, state.cookie);
        engine::finish_all(state, scratch, RESPONSE_RESET);
    }
}

/// Set by the loader: how many sweeps in a row must find no byte moved.
#[no_mangle]
pub static OVERDUE_SWEEPS: u32 = 0;

/// User space's sweep has come to this socket: what has waited for longer than the deadline is told now.
#[inline(always)]
pub fn sweep(sk: Sock) {
    let state = access::state(sk);
    if state.is_null() {
        return;
    }
    // SAFETY: non-null: a whole state.
    let state = unsafe { &mut *state };
    if state.flags & SOCK_OPAQUE != 0 || !is_open(state) {
        state.idle_sweeps = 0;
        return;
    }
    let socket_family = sk.family();
    let passed = if socket_family == AF_UNIX {
        state.position[0].wrapping_add(state.position[1])
    } else {
        let Some(tcp) = sk.tcp() else { return };
        tcp.write_seq().wrapping_add(tcp.copied_seq())
    };
    if state.idle_sweeps == 0 || state.swept != passed {
        state.swept = passed;
        state.idle_sweeps = 1;
        return;
    }
    // SAFETY: a static of this program, set before the load.
    if u32::from(state.idle_sweeps) < unsafe { core::ptr::read_volatile(&raw const OVERDUE_SWEEPS) } {
        state.idle_sweeps += 1;
        return;
    }
    let Some(scratch) = working(slot::SWEEP) else {
        return;
    };
    // SAFETY: an element that belongs to this walk.
    let call = unsafe { &mut (*scratch).call };
    identify(sk, call, socket_family, RX);
    locate(sk, call, socket_family, state.cookie);
    engine::overdue(state, scratch);
}

/// A TCP socket changed its state.
#[inline(always)]
pub fn on_state(sk: Sock, old: i32, new: i32) {
    if new == TCP_LISTEN {
        return listens(sk);
    }
    if new != TCP_SYN_SENT && new != TCP_CLOSE && new != TCP_FIN_WAIT1 && new != TCP_LAST_ACK {
        return;
    }
    let scratch = borrow_scratch();
    if !scratch.is_null() {
        change_state(sk, scratch, old, new);
        give_back(scratch);
    }
}

/// A process waits for connections: what it is has to be known before the first comes, if its responses are to bear the trace
/// id.
#[inline(always)]
fn listens(sk: Sock) {
    let Some(settings) = SETTINGS.get_ptr(0) else { return };
    // SAFETY: an element of an array; no arguments.
    let (settings, pid) = unsafe { (&*settings, (bpf_get_current_pid_tgid() >> 32) as u32) };
    let wanted = setting::CAPTURE | setting::RETURN;
    if settings.flags & wanted != wanted || pid == settings.own_pid || sk.local_port() == 0 {
        return;
    }
    // SAFETY: no arguments.
    process::ask(pid, unsafe { bpf_ktime_get_ns() }, process_event::LISTEN);
}

/// Working memory for what comes in a thread or in a softirq that interrupts one; null if there is none.
#[inline(always)]
fn borrow_scratch() -> *mut Scratch {
    let (Some(first), Some(nested)) = (working(slot::STATE), working(slot::STATE_NESTED)) else {
        return core::ptr::null_mut();
    };
    // SAFETY: whole objects; who is at work in the first was interrupted and goes on when this is over (slot::STATE).
    unsafe {
        if core::ptr::read_volatile(&raw const (*first).call.busy) != 0 {
            (*nested).call.slot = slot::STATE_NESTED as u8;
            return nested;
        }
        core::ptr::write_volatile(&raw mut (*first).call.busy, 1);
        (*first).call.slot = slot::STATE as u8;
    }
    first
}

#[inline(always)]
fn give_back(scratch: *mut Scratch) {
    // SAFETY: a whole object.
    unsafe { core::ptr::write_volatile(&raw mut (*scratch).call.busy, 0) };
}

#[inline(always)]
fn change_state(sk: Sock, scratch: *mut Scratch, old: i32, new: i32) {
    if new == TCP_SYN_SENT {
        // SAFETY: a whole object.
        return connect_begins(sk, unsafe { &mut (*scratch).call });
    }
    let state = access::state(sk);
    if state.is_null() {
        return;
    }
    // SAFETY: whole objects.
    let (known, call) = unsafe { (&mut *state, &mut (*scratch).call) };
    if known.role == ROLE_SERVER && is_nginx(known.exchange.class) && arch::in_close() {
        // SAFETY: no arguments.
        worker::closes(&known.exchange, unsafe { bpf_get_current_pid_tgid() });
    }
    if known.flags & SOCK_OPAQUE != 0 {
        if new == TCP_CLOSE {
            opaque::end(known.cookie);
        }
        return;
    }
    let socket_family = sk.family();
    if old == TCP_SYN_SENT && known.flags & SOCK_CONNECTING != 0 {
        identify(sk, call, socket_family, TX);
        locate(sk, call, socket_family, known.cookie);
        return connect_fails(sk, known, call);
    }
    if new == TCP_CLOSE && known.flags & SOCK_LATE != 0 {
        count(KernelCounter::OpaqueLateJoin);
    }
    if new == TCP_CLOSE {
        known.ends();
        if known.role == ROLE_CLIENT && is_open(known) && arch::in_close() {
            // SAFETY: no arguments.
            let thread = unsafe { bpf_get_current_pid_tgid() };
            worker::received(&known.exchange, known.exchange.class, thread, true);
        }
        leave_with(sk, known, scratch);
    } else if known.role == ROLE_SERVER && is_open(known) && !known.is_at_work() {
        // A client may shut its sending side down and still read the response. While a call is at work the end comes
        // with TCP_CLOSE.
        finish(sk, known, scratch);
    }
}

/// The connection is over, and with it every exchange on it: as the socket's error says.
#[inline(always)]
fn finish(sk: Sock, state: &mut SockState, scratch: *mut Scratch) {
    // SAFETY: a whole object.
    let call = unsafe { &mut (*scratch).call };
    let socket_family = sk.family();
    identify(sk, call, socket_family, TX);
    locate(sk, call, socket_family, state.cookie);
    call.errno = sk.error();
    let point = if state.role == ROLE_SERVER && state.framing[TX as usize].phase == phase::UNTIL_CLOSE {
        RESPONSE_ENDS
    } else if i32::from(call.errno) == ECONNRESET || i32::from(call.errno) == EPIPE || call.errno == ETIMEDOUT {
        RESPONSE_RESET
    } else {
        RESPONSE_CLOSED
    };
    engine::finish_all(state, scratch, point);
}

/// A call is done with its socket's state. Its hook comes after its bytes are gone, and the peer may have answered them
/// with a reset: on another CPU while they were parsed, or before there was a state that could have been told.
#[inline(always)]
pub fn leave(sk: Sock, state: &mut SockState, element: u32) {
    let Some(scratch) = working(element) else { return };
    leave_with(sk, state, scratch);
    if state.flags & SOCK_UNIX == 0 && !state.is_at_work() && sk.state() == TCP_CLOSE {
        finish_open(sk, state, scratch);
    }
}

/// The last to leave a connection that has ended finishes what is open on it: still inside where it can be told that it
/// is the last, so that no call begins meanwhile.
#[inline(always)]
fn leave_with(sk: Sock, state: &mut SockState, scratch: *mut Scratch) {
    let is_last = state.is_last();
    if is_last {
        finish_open(sk, state, scratch);
    }
    if state.leave() && !is_last {
        finish_open(sk, state, scratch);
    }
}

/// verifier: a function of its own, since it is called from several places of each program.
#[inline(never)]
fn finish_open(sk: Sock, state: &mut SockState, scratch: *mut Scratch) {
    if state.flags & SOCK_OPAQUE == 0 && is_open(state) {
        finish(sk, state, scratch);
    }
}

/// Something on the socket waits for its response.
#[inline(always)]
fn is_open(state: &SockState) -> bool {
    state.exchange.state & EX_OPEN != 0 || state.queued != 0
}

/// A TCP socket is taken down. What is still open on it, no change of state has ended: its hook was left out, or came before
/// there was a state to be told.
#[inline(always)]
pub fn on_destroy(sk: Sock) {
    let state = access::state(sk);
    if state.is_null() {
        return;
    }
    // SAFETY: non-null: a whole state.
    let known = unsafe { &mut *state };
    if is_nginx(known.exchange.class) && arch::in_close() {
        // SAFETY: no arguments.
        let thread = unsafe { bpf_get_current_pid_tgid() };
        if known.role == ROLE_SERVER {
            worker::closes(&known.exchange, thread);
        } else if known.flags & SOCK_INHERITED != 0 && known.role == ROLE_UNKNOWN {
            // A socket made for a request, and nothing was sent on it: nginx goes on with that request, at once.
            worker::received(&known.exchange, known.exchange.class, thread, true);
        }
    }
    if known.flags & SOCK_OPAQUE != 0 || !is_open(known) || known.is_at_work() {
        return;
    }
    let scratch = borrow_scratch();
    if scratch.is_null() {
        return;
    }
    finish(sk, known, scratch);
    give_back(scratch);
}

/// A connect of a process somebody asked for: what it is for is known now, in its own thread.
#[inline(always)]
fn connect_begins(sk: Sock, call: &mut Call) {
    let Some(settings) = SETTINGS.get_ptr(0) else { return };
    // SAFETY: an element of an array.
    let settings = unsafe { &*settings };
    if settings.flags & setting::CAPTURE == 0 {
        return;
    }
    let socket_family = sk.family();
    identify(sk, call, socket_family, TX);
    if !admit(call, settings) {
        return;
    }
    let provisional = call.class == ProcessClass::Unclassified as u8;
    call.class = class_or_name(u32::from(call.class)) as u8;
    locate(sk, call, socket_family, access::cookie(sk, socket_family));
    let state = access::make_state(sk);
    if state.is_null() {
        return count(KernelCounter::StateFull);
    }
    // SAFETY: non-null: a whole state.
    let state = unsafe { &mut *state };
    state.cookie = call.cookie;
    state.flags = SOCK_CONNECTING;
    state.begins_anew();
    state.position = [0; 2];
    state.seen = [0; 2];
    state.rewrite = enrol::wanted(call, settings);
    state.asks = 0;
    state.inserted = 0;
    if call.remote_port == OTLP_GRPC {
        unit::exports((call.pid_tgid >> 32) as u32);
    }
    let exchange = &mut state.exchange;
    exchange.request_first_ns = now(call);
    exchange.pid = (call.pid_tgid >> 32) as u32;
    exchange.tid = call.pid_tgid as u32;
    exchange.class = call.class;
    exchange.side = ROLE_CLIENT;
    exchange.flags = if provisional { flag::UNCLASSIFIED } else { 0 };
    if call.process_flags & process_flag::SERVES != 0 {
        exchange.flags |= flag::PROCESS_SERVES;
        unit::connecting(exchange, call);
        if exchange.cause != cause::NONE {
            state.flags |= SOCK_INHERITED;
        }
    }
}

/// The connect came to nothing.
#[inline(always)]
fn connect_fails(sk: Sock, state: &mut SockState, call: &mut Call) {
    state.flags &= !SOCK_CONNECTING;
    call.errno = sk.error();
    let outcome_code = match call.errno {
        ECONNREFUSED => outcome::CONNECT_REFUSED,
        ETIMEDOUT => outcome::CONNECT_TIMEOUT,
        _ => outcome::CONNECT_RESET,
    };
    crate::exchange::connect_failed(&mut state.exchange, call, outcome_code);
}
