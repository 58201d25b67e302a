//! One call on one socket: admit, find the state, pass over bodies, hand heads to the parser.

use aya_ebpf::helpers::generated::{bpf_get_current_pid_tgid, bpf_get_socket_cookie, bpf_sk_storage_get};
use core::ffi::c_void;
use spanwire_common::abi::{cause, family, outcome, process_flag, setting, ProcessClass, Settings};
use spanwire_common::drop::KernelCounter;

use spanwire_common::protocol::http1::phase;

use crate::call::{describe, now, Buffer};
use crate::count::{cost, count};
use crate::exchange::{admit, class_or_name, RESPONSE_CLOSED, RESPONSE_ENDS, RESPONSE_RESET};
use crate::maps::{PROCESSES, SCRATCH, SETTINGS, SOCKETS, UNIX_SOCKETS};
use crate::sk::{Sock, AF_INET, AF_INET6, AF_UNIX};
use crate::state::{
    Call, Scratch, SockState, EX_OPEN, EX_RESPONSE, ROLE_CLIENT, ROLE_SERVER, RX, SOCK_CONNECTING, SOCK_INHERITED,
    SOCK_LATE, SOCK_OPAQUE, SOCK_UNIX, TX,
};
use crate::{arch, engine, opaque, unit, wire};

const MSG_OOB: u32 = 0x1;
const MSG_PEEK: u32 = 0x2;
const MSG_TRUNC: u32 = 0x20;
const MSG_DONTWAIT: u32 = 0x40;
const MSG_ERRQUEUE: u32 = 0x2000;

const BPF_SK_STORAGE_GET_F_CREATE: u64 = 1;

/// TCP states (include/net/tcp_states.h).
const TCP_SYN_SENT: i32 = 2;
const TCP_FIN_WAIT1: i32 = 4;
const TCP_CLOSE: i32 = 7;
const TCP_LAST_ACK: i32 = 9;

/// Errno values a socket dies with.
const ECONNRESET: u16 = 104;
const EPIPE: u16 = 32;
const ETIMEDOUT: u16 = 110;
const ECONNREFUSED: u16 = 111;

/// Set by the loader: the moment before which a unix socket may have been in use already.
#[no_mangle]
static UNIX_LATE_UNTIL_NS: u64 = 0;

fn unix_late_until_ns() -> u64 {
    // SAFETY: a static of this program, set before the load.
    unsafe { core::ptr::read_volatile(&raw const UNIX_LATE_UNTIL_NS) }
}

/// State of a socket, if it has any.
#[inline(always)]
fn find(sk: Sock, socket_family: u16) -> *mut SockState {
    if socket_family == AF_UNIX {
        // SAFETY: a trusted socket pointer.
        let cookie = unsafe { bpf_get_socket_cookie(sk.0.cast_mut().cast()) };
        cost(KernelCounter::MapOperations);
        return UNIX_SOCKETS.get_ptr_mut(&cookie).unwrap_or(core::ptr::null_mut());
    }
    storage(sk, 0)
}

/// Storage of a TCP socket.
#[inline(always)]
fn storage(sk: Sock, flags: u64) -> *mut SockState {
    // SAFETY: a trusted socket pointer; a null value means zeroes.
    unsafe {
        bpf_sk_storage_get(
            (&raw const SOCKETS).cast_mut().cast::<c_void>(),
            sk.0.cast_mut().cast(),
            core::ptr::null_mut(),
            flags,
        )
    }
    .cast()
}

/// Begins to follow a socket.
#[inline(always)]
fn create(sk: Sock, call: &mut Call, socket_family: u16, first: bool) -> *mut SockState {
    let state = if socket_family == AF_UNIX {
        opaque::insert_unix(call.cookie)
    } else {
        storage(sk, BPF_SK_STORAGE_GET_F_CREATE)
    };
    if state.is_null() {
        count(KernelCounter::StateFull);
        return state;
    }
    // SAFETY: non-null: a whole state, zeroed.
    let new = unsafe { &mut *state };
    new.cookie = call.cookie;
    if socket_family == AF_UNIX {
        new.flags |= SOCK_UNIX;
        if now(call) < unix_late_until_ns() {
            new.flags |= SOCK_LATE;
        }
    } else if !first {
        new.flags |= SOCK_LATE;
    }
    state
}

/// What of the call does not depend on its bytes.
#[inline(always)]
fn identify(sk: Sock, call: &mut Call, socket_family: u16, direction: u32) {
    call.now_ns = 0;
    call.direction = direction;
    call.errno = 0;
    call.readable = 0;
    call.carry = 0;
    call.window_offset = 0;
    call.has_key = 0;
    call.blocking = 0;
    call.class = 0;
    call.process_flags = 0;
    call.local_port = sk.local_port();
    call.remote_port = sk.remote_port();
    if socket_family == AF_UNIX {
        call.local_port = 0;
        call.remote_port = 0;
    }
    call.family = match socket_family {
        AF_INET => family::INET,
        AF_INET6 => family::INET6,
        _ => family::UNIX,
    };
    // SAFETY: no arguments.
    call.pid_tgid = unsafe { bpf_get_current_pid_tgid() };
}

/// What only a call whose bytes are looked at needs. Returns true if the call's first byte is the first the
/// connection ever carried in this direction.
#[inline(always)]
fn locate(sk: Sock, call: &mut Call, socket_family: u16, len: u32) -> bool {
    // SAFETY: a trusted socket pointer.
    call.cookie = unsafe { bpf_get_socket_cookie(sk.0.cast_mut().cast()) };
    (call.local_addr, call.remote_addr) = sk.addresses(socket_family);
    call.netns = sk.netns();
    if socket_family == AF_UNIX {
        return false;
    }
    let Some(tcp) = sk.tcp() else { return false };
    let (written, copied) = (tcp.write_seq(), tcp.copied_seq());
    call.has_key = 1;
    if call.direction == TX {
        call.seq = written.wrapping_sub(len);
        call.ack = copied;
        tcp.sent_position(call.seq) <= 1
    } else {
        call.seq = copied.wrapping_sub(len);
        call.ack = written;
        tcp.received_position(call.seq) <= 1
    }
}

/// Wire key of a unix stream: the receiving socket and the byte's position in it.
#[inline(always)]
fn locate_unix(sk: Sock, call: &mut Call, state: &mut SockState, len: u32) {
    let receiver = if call.direction == RX {
        call.cookie
    } else {
        sk.unix_peer_cookie()
    };
    if receiver == 0 || state.flags & SOCK_LATE != 0 {
        return;
    }
    let hash = receiver.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let position = &mut state.position[(call.direction & 1) as usize];
    call.seq = ((hash >> 32) as u32).wrapping_add(*position);
    call.ack = hash as u32;
    call.has_key = 1;
    let _ = len;
}

/// A send or receive that has just returned `len` on `sk`.
#[inline(always)]
pub fn on_call(sk: Sock, len: i32, flags: u32, direction: u32) {
    if len < 0 || flags & (MSG_PEEK | MSG_ERRQUEUE) != 0 {
        return;
    }
    let socket_family = sk.family();
    let Some(settings) = SETTINGS.get_ptr(0) else { return };
    // SAFETY: an array element.
    let settings = unsafe { &*settings };
    if settings.flags & setting::CAPTURE == 0 {
        return;
    }
    if !sk.is_stream(socket_family) {
        if direction == RX && (socket_family == AF_INET || socket_family == AF_INET6) {
            received_elsewhere();
        }
        return;
    }
    let state = find(sk, socket_family);
    if state.is_null() {
        if len > 0 {
            first_call(sk, settings, socket_family, len as u32, flags, direction);
        }
        return;
    }
    // SAFETY: non-null: a whole state.
    let known = unsafe { &mut *state };
    if len == 0 {
        if direction == RX {
            end_of_stream(sk, known, socket_family);
        }
        return;
    }
    if known.flags & SOCK_UNIX != 0 {
        let position = &mut known.position[(direction & 1) as usize];
        *position = position.wrapping_add(len as u32);
    }
    if known.flags & SOCK_OPAQUE != 0 {
        opaque::on_call(sk, known, settings, socket_family, len as u32, direction);
        return;
    }
    if pass_over(known, len as u32, direction) {
        return;
    }
    cost(KernelCounter::ProgramRuns);
    let Some(scratch) = SCRATCH.get_ptr_mut(direction & 1) else {
        return;
    };
    // SAFETY: an element of a per-CPU array, used by this direction's hook only.
    let call = unsafe { &mut (*scratch).call };
    identify(sk, call, socket_family, direction);
    locate(sk, call, socket_family, len as u32);
    if socket_family == AF_UNIX {
        // The position was moved past this call above.
        locate_unix(sk, call, known, len as u32);
        call.seq = call.seq.wrapping_sub(len as u32);
    }
    proceed(sk, state, scratch, len as u32, flags, direction);
}

/// Inside a body, and this call does not reach its end: nothing to read, no clock, no lookup.
#[inline(always)]
fn pass_over(state: &mut SockState, len: u32, direction: u32) -> bool {
    if state.flags & SOCK_LATE != 0 {
        return false;
    }
    let [receive, send] = &mut state.framing;
    let framing = if direction == TX { send } else { receive };
    let len = u64::from(len);
    match framing.phase {
        phase::BODY | phase::CHUNK_DATA if framing.left > len => framing.left = framing.left.wrapping_sub(len),
        phase::UNTIL_CLOSE => {}
        _ => return false,
    }
    framing.body_bytes = framing.body_bytes.wrapping_add(len);
    true
}

/// First bytes seen on a socket: follow it, if anybody asked for it.
#[inline(always)]
fn first_call(sk: Sock, settings: &Settings, socket_family: u16, len: u32, flags: u32, direction: u32) {
    let Some(scratch) = SCRATCH.get_ptr_mut(direction & 1) else {
        return;
    };
    // SAFETY: as in `on_call`.
    let call = unsafe { &mut (*scratch).call };
    if refused_as_a_whole() {
        return;
    }
    identify(sk, call, socket_family, direction);
    let own = (call.pid_tgid >> 32) as u32 == settings.own_pid;
    if !own && !admit(call, settings) {
        return;
    }
    cost(KernelCounter::ProgramRuns);
    let first = locate(sk, call, socket_family, len);
    if own {
        if direction == TX && call.has_key != 0 {
            wire::leave_own(wire::key(call, 0));
        }
        return;
    }
    let state = create(sk, call, socket_family, first);
    if state.is_null() {
        return;
    }
    if socket_family == AF_UNIX {
        // SAFETY: non-null: a whole state.
        let new = unsafe { &mut *state };
        locate_unix(sk, call, new, len);
        new.position[(direction & 1) as usize] = len;
    }
    proceed(sk, state, scratch, len, flags, direction);
}

/// The process is known and no selector asks for it: the cheapest way out for everything that is not captured.
#[inline(always)]
fn refused_as_a_whole() -> bool {
    // SAFETY: no arguments.
    let pid = (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32;
    cost(KernelCounter::MapOperations);
    PROCESSES.get_ptr(&pid).is_some_and(|process| {
        // SAFETY: a live map value.
        let process = unsafe { &*process };
        process.include == 0 || process.flags & process_flag::EXCLUDED != 0
    })
}

/// Finds the bytes and hands them to the parser.
#[inline(always)]
fn proceed(sk: Sock, state: *mut SockState, scratch: *mut Scratch, len: u32, flags: u32, direction: u32) {
    // SAFETY: both are whole objects.
    let (known, working) = unsafe { (&mut *state, &mut *scratch) };
    let call = &mut working.call;
    if direction == RX {
        call.blocking = u8::from(flags & MSG_DONTWAIT == 0 && sk.is_blocking());
    }
    call.unread = u64::from(len);
    call.length = len;
    let buffer = if flags & (MSG_OOB | MSG_TRUNC) == 0 {
        describe(call, u64::from(len))
    } else {
        Buffer::Unreadable
    };
    match buffer {
        Buffer::User => call.readable = 1,
        Buffer::None => count(KernelCounter::NoUserBuffer),
        Buffer::Ring => return engine::give_up(state, scratch, KernelCounter::OpaqueIoUring),
        Buffer::Compat => {
            count(KernelCounter::CompatTask);
            return engine::give_up(state, scratch, KernelCounter::OpaqueFraming);
        }
        Buffer::Unreadable => count(KernelCounter::UnreadableBuffer),
    }
    engine::run(state, scratch);
    if direction == TX && known.role == ROLE_SERVER && known.exchange.state & EX_RESPONSE != 0 {
        unit::answering(&known.exchange, call.pid_tgid);
    }
    if direction == RX {
        // The receive rule looks at the exchange as this call left it.
        let class = known.exchange.class;
        unit::received(
            &known.exchange,
            class,
            call.pid_tgid,
            known.flags & (SOCK_OPAQUE | SOCK_LATE) == 0,
        );
    }
}

/// nginx: a receive on something that is not a stream (a resolver's answer): the worker goes on with a request that
/// this hook cannot name.
#[inline(always)]
fn received_elsewhere() {
    // SAFETY: no arguments.
    let thread = unsafe { bpf_get_current_pid_tgid() };
    let pid = (thread >> 32) as u32;
    if let Some(process) = PROCESSES.get_ptr(&pid) {
        // SAFETY: a live map value.
        if unsafe { (*process).class } == ProcessClass::Nginx as u8 {
            unit::forget(thread);
        }
    }
}

/// The peer has closed its direction.
#[inline(always)]
fn end_of_stream(sk: Sock, state: &mut SockState, socket_family: u16) {
    let cookie = state.cookie;
    if state.flags & SOCK_OPAQUE != 0 {
        opaque::end(cookie);
        if socket_family == AF_UNIX {
            let _ = UNIX_SOCKETS.remove(&cookie);
        }
        return;
    }
    if state.role != ROLE_CLIENT {
        if socket_family == AF_UNIX && state.exchange.state & EX_OPEN == 0 {
            // A server whose client is gone and that owes no answer.
            let _ = UNIX_SOCKETS.remove(&cookie);
        }
        return;
    }
    let Some(scratch) = SCRATCH.get_ptr_mut(RX) else { return };
    // SAFETY: as in `on_call`.
    let call = unsafe { &mut (*scratch).call };
    identify(sk, call, socket_family, RX);
    locate(sk, call, socket_family, 0);
    if state.exchange.state & EX_OPEN == 0 {
        if socket_family == AF_UNIX {
            let _ = UNIX_SOCKETS.remove(&cookie);
        }
        return;
    }
    let point = if state.framing[RX as usize].phase == phase::UNTIL_CLOSE {
        RESPONSE_ENDS
    } else {
        RESPONSE_CLOSED
    };
    unit::received(&state.exchange, state.exchange.class, call.pid_tgid, true);
    engine::finish_all(state, scratch, point);
    if socket_family == AF_UNIX {
        // The server's end of a unix stream shows only here.
        opaque::end_peer(sk.unix_peer_cookie(), scratch, point);
        let _ = UNIX_SOCKETS.remove(&cookie);
    }
}

/// A TCP socket changed its state.
#[inline(always)]
pub fn on_state(sk: Sock, old: i32, new: i32) {
    if new == TCP_SYN_SENT {
        return connect_begins(sk);
    }
    if new != TCP_CLOSE && new != TCP_FIN_WAIT1 && new != TCP_LAST_ACK {
        return;
    }
    let state = storage(sk, 0);
    if state.is_null() {
        return;
    }
    let Some(scratch) = SCRATCH.get_ptr_mut(2) else { return };
    // SAFETY: whole objects; index 2 belongs to this hook.
    let (known, call) = unsafe { (&mut *state, &mut (*scratch).call) };
    if known.flags & SOCK_OPAQUE != 0 {
        if new == TCP_CLOSE {
            opaque::end(known.cookie);
        }
        return;
    }
    let socket_family = sk.family();
    if old == TCP_SYN_SENT && known.flags & SOCK_CONNECTING != 0 {
        identify(sk, call, socket_family, TX);
        locate(sk, call, socket_family, 0);
        return connect_fails(sk, known, call);
    }
    if new == TCP_CLOSE && known.flags & SOCK_LATE != 0 {
        count(KernelCounter::OpaqueLateJoin);
    }
    if known.exchange.state & EX_OPEN == 0 && known.queued == 0 {
        return;
    }
    if new != TCP_CLOSE && known.role != ROLE_SERVER {
        // A client may shut its sending side down and still read the response.
        return;
    }
    identify(sk, call, socket_family, TX);
    locate(sk, call, socket_family, 0);
    call.errno = sk.error();
    let point = if known.role == ROLE_SERVER && known.framing[TX as usize].phase == phase::UNTIL_CLOSE {
        RESPONSE_ENDS
    } else if call.errno == ECONNRESET || call.errno == EPIPE || call.errno == ETIMEDOUT {
        RESPONSE_RESET
    } else {
        RESPONSE_CLOSED
    };
    if known.role == ROLE_CLIENT && arch::in_close() {
        unit::received(&known.exchange, known.exchange.class, call.pid_tgid, true);
    }
    engine::finish_all(known, scratch, point);
}

/// A connect of a process somebody asked for: what it is for is known now, in its own thread.
#[inline(always)]
fn connect_begins(sk: Sock) {
    let Some(settings) = SETTINGS.get_ptr(0) else { return };
    let Some(scratch) = SCRATCH.get_ptr_mut(2) else { return };
    // SAFETY: whole objects.
    let (settings, call) = unsafe { (&*settings, &mut (*scratch).call) };
    if settings.flags & setting::CAPTURE == 0 {
        return;
    }
    let socket_family = sk.family();
    identify(sk, call, socket_family, TX);
    if !admit(call, settings) {
        return;
    }
    call.class = class_or_name(u32::from(call.class)) as u8;
    locate(sk, call, socket_family, 0);
    let state = storage(sk, BPF_SK_STORAGE_GET_F_CREATE);
    if state.is_null() {
        return count(KernelCounter::StateFull);
    }
    // SAFETY: non-null: a whole state.
    let state = unsafe { &mut *state };
    state.cookie = call.cookie;
    state.flags = SOCK_CONNECTING;
    let exchange = &mut state.exchange;
    exchange.request_first_ns = now(call);
    exchange.pid = (call.pid_tgid >> 32) as u32;
    exchange.tid = call.pid_tgid as u32;
    exchange.class = call.class;
    exchange.side = ROLE_CLIENT;
    if call.process_flags & process_flag::SERVES != 0 {
        exchange.flags |= spanwire_common::abi::flag::PROCESS_SERVES;
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
    if state.exchange.cause == cause::IO && arch::in_connect() {
        unit::connect_failed(&state.exchange, call);
    }
    crate::exchange::connect_failed(&mut state.exchange, call, outcome_code);
}
