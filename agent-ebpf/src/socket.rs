//! One call on one socket: admit, find the state, pass over bodies, hand heads to the parser.

use aya_ebpf::helpers::generated::bpf_get_current_pid_tgid;
use spanwire_common::abi::{family, setting, ProcessClass, Settings};
use spanwire_common::drop::KernelCounter;
use spanwire_common::protocol::http1::{phase, Framing};

use crate::call::{describe, skip, Buffer};
use crate::connection::{broken, end_of_stream};
use crate::count::{cost, count};
use crate::exchange::{admit, class_or_name, RESPONSE_OUT_OF_STEP};
use crate::global::working;
use crate::maps::{slot, PROCESSES, SETTINGS};
use crate::sk::{Sock, AF_INET, AF_INET6, AF_UNIX};
use crate::state::{
    Call, Scratch, SockState, EX_RESPONSE, ROLE_SERVER, ROLE_UNKNOWN, RX, SOCK_LATE, SOCK_OPAQUE, SOCK_UNIX, TX,
};
use crate::{access, before, connection, engine, opaque, prepared, refused, seen, wire, worker};

const MSG_OOB: u32 = 0x1;
const MSG_PEEK: u32 = 0x2;
const MSG_TRUNC: u32 = 0x20;
const MSG_DONTWAIT: u32 = 0x40;
const MSG_ERRQUEUE: u32 = 0x2000;

/// Errno values that a call on a dead connection returns.
pub const ECONNRESET: i32 = 104;
pub const EPIPE: i32 = 32;

/// Which program has seen a send or receive.
#[derive(Clone, Copy)]
pub struct Hook {
    pub direction: u32,
    /// Its element of the per-CPU arrays.
    pub slot: u32,
    /// Bytes that the same system call has moved behind these.
    later: u32,
}

#[cfg_attr(
    feature = "untyped",
    allow(
        dead_code,
        reason = "programs without preemption share an element for each direction"
    )
)]
impl Hook {
    pub const RECEIVE: Self = Self::new(RX, slot::RECEIVE);
    pub const SEND: Self = Self::new(TX, slot::SEND);
    /// The programs of unix sockets belong to another family, so their elements are free.
    pub const RECEIVE_AGAIN: Self = Self::new(RX, slot::UNIX_RECEIVE);
    pub const SEND_AGAIN: Self = Self::new(TX, slot::UNIX_SEND);
    pub const TCP_RECVMSG: Self = Self::RECEIVE;
    pub const TCP_SENDMSG: Self = Self::SEND;
    #[cfg(any(not(feature = "untyped"), feature = "scalars"))]
    pub const TCP_SENDPAGE: Self = Self::new(TX, slot::TCP_PAGE);
    #[cfg(any(not(feature = "untyped"), feature = "scalars"))]
    pub const BPF_SENDMSG: Self = Self::new(TX, slot::BPF_SEND);
    #[cfg(any(not(feature = "untyped"), feature = "scalars"))]
    pub const BPF_SENDPAGE: Self = Self::new(TX, slot::BPF_PAGE);
    pub const UNIX_RECVMSG: Self = Self::new(RX, slot::UNIX_RECEIVE);
    pub const UNIX_SENDMSG: Self = Self::new(TX, slot::UNIX_SEND);
    pub const UNIX_SENDPAGE: Self = Self::new(TX, slot::UNIX_PAGE);

    const fn new(direction: u32, slot: u32) -> Self {
        Self {
            direction,
            slot,
            later: 0,
        }
    }

    /// As it is, with more bytes behind these in the same system call.
    #[cfg(feature = "untyped")]
    pub const fn before(self, later: u32) -> Self {
        Self { later, ..self }
    }
}

/// Begins to follow a socket.
#[inline(always)]
fn create(sk: Sock, call: &Call, settings: &Settings, socket_family: u16, first: bool) -> *mut SockState {
    let state = access::make_state(sk);
    if state.is_null() {
        count(KernelCounter::StateFull);
        return state;
    }
    // SAFETY: non-null: a whole state, zeroed.
    let new = unsafe { &mut *state };
    new.cookie = call.cookie;
    new.exchange.class = class_or_name(u32::from(call.class)) as u8;
    if socket_family == AF_UNIX {
        new.flags |= SOCK_UNIX;
        if settings.flags & setting::OLD_SOCKETS_MARKED == 0 || before::is_old(sk) {
            new.flags |= SOCK_LATE;
        }
    } else if !first {
        new.flags |= SOCK_LATE;
    }
    state
}

/// What of the call does not depend on its bytes.
#[inline(always)]
pub fn identify(sk: Sock, call: &mut Call, socket_family: u16, direction: u32) {
    call.now_ns = 0;
    call.direction = direction;
    call.errno = 0;
    call.readable = 0;
    call.carry = 0;
    call.window_offset = 0;
    call.has_key = 0;
    call.blocking = 0;
    call.inserted = 0;
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

/// What only a call whose bytes are looked at needs.
///
/// verifier: where fields are read through the stack, in a frame of its own: see `opaque::sent`.
#[cfg_attr(feature = "untyped", inline(never))]
#[cfg_attr(not(feature = "untyped"), inline(always))]
pub fn locate(sk: Sock, call: &mut Call, socket_family: u16, cookie: u64) {
    call.cookie = cookie;
    #[cfg(feature = "scalars")]
    {
        call.socket = sk.0 as u64;
    }
    (call.local_addr, call.remote_addr) = sk.addresses(socket_family);
    call.netns = sk.netns();
    if socket_family == AF_UNIX {
        // No address; the record names the other end by its cookie.
        call.remote_addr = [sk.unix_peer().map_or(0, access::peer_cookie), 0];
    }
}

/// Wire key of a TCP stream: the sequence number of the call's first byte, and that of the other stream's first byte.
/// Returns true if the call's first byte is the first of its own stream. `len`: from that byte to where the socket is now.
#[inline(always)]
fn number(sk: Sock, call: &mut Call, position: &mut [u32; 2], len: u32) -> bool {
    let Some(tcp) = sk.tcp() else { return false };
    let [received, sent] = position;
    if *received == 0 {
        (*received, *sent) = tcp.origins();
    }
    call.has_key = 1;
    if call.direction == TX {
        call.seq = tcp.write_seq().wrapping_sub(len);
        call.ack = *received;
        call.seq.wrapping_sub(*sent) <= 1
    } else {
        call.seq = tcp.copied_seq().wrapping_sub(len);
        call.ack = *sent;
        call.seq == *received
    }
}

/// Where the socket stands in its messages is not known any more: what was open ends, and it is joined again like one
/// that is older than the agent.
#[inline(always)]
pub fn lose(state: &mut SockState, scratch: *mut Scratch) {
    count(KernelCounter::MissedBytes);
    engine::finish_all(state, scratch, RESPONSE_OUT_OF_STEP);
    state.framing = [Framing::default(), Framing::default()];
    state.role = ROLE_UNKNOWN;
    state.flags = SOCK_LATE;
}

/// Wire key of a unix stream: the receiving socket and the byte's position in it. `position` is the call's first byte's.
#[inline(always)]
fn number_unix(sk: Sock, call: &mut Call, position: u32, late: bool) {
    let receiver = access::receiver(sk, call);
    if receiver == 0 || late {
        return;
    }
    let hash = receiver.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    call.seq = ((hash >> 32) as u32).wrapping_add(position);
    call.ack = hash as u32;
    call.has_key = 1;
}

/// A send or receive that another program on the same hook may have been left out of. Only TCP's numbers tell.
#[cfg(not(feature = "untyped"))]
#[inline(always)]
pub fn on_call_left_out(sk: Sock, len: i32, flags: u32, hook: Hook) {
    if len > 0 && flags & (MSG_PEEK | MSG_ERRQUEUE) == 0 && seen::is_left_out(sk, len as u32, hook.direction) {
        on_call(sk, len, flags, hook);
    }
}

/// A send or receive that has just returned `len` on `sk`.
#[inline(always)]
pub fn on_call(sk: Sock, len: i32, flags: u32, hook: Hook) {
    let direction = hook.direction;
    if flags & (MSG_PEEK | MSG_ERRQUEUE) != 0 {
        return;
    }
    if len < 0 {
        if len == -EPIPE || len == -ECONNRESET {
            broken(sk, hook);
        }
        return;
    }
    let socket_family = sk.family();
    // A refused process may share a captured one's socket. On TCP the sequence numbers show what has passed unseen.
    if socket_family != AF_UNIX && refused::is_known() {
        return;
    }
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
    let state = access::state(sk);
    if state.is_null() {
        if len > 0 {
            first_call(sk, settings, socket_family, len as u32, flags, hook);
        }
        return;
    }
    // SAFETY: non-null: a whole state.
    let known = unsafe { &mut *state };
    if len == 0 {
        if direction == RX {
            if known.enter() {
                end_of_stream(sk, known, socket_family, hook.slot);
            }
            connection::leave(sk, known, hook.slot);
        }
        return;
    }
    let mut inserted = 0;
    if known.flags & SOCK_UNIX != 0 {
        let position = &mut known.position[(direction & 1) as usize];
        *position = position.wrapping_add(len as u32);
    } else {
        if known.inserted != 0 && direction == TX {
            inserted = prepared::inserted(sk, known, len as u32);
        }
        let seen = &mut known.seen[(direction & 1) as usize];
        if *seen != 0 {
            *seen = seen.wrapping_add(len as u32).wrapping_add(inserted);
        }
    }
    if known.flags & SOCK_OPAQUE != 0 {
        opaque::on_call(sk, known, settings, (socket_family, hook.slot), len as u32, direction);
        return;
    }
    if pass_over(known, len as u32, direction) {
        return;
    }
    cost(KernelCounter::ProgramRuns);
    let Some(scratch) = working(hook.slot) else {
        return;
    };
    // SAFETY: an element of a per-CPU array, used by this program only.
    let call = unsafe { &mut (*scratch).call };
    call.slot = hook.slot as u8;
    identify(sk, call, socket_family, direction);
    locate(sk, call, socket_family, known.cookie);
    if known.enter() {
        if socket_family == AF_UNIX {
            // The position was moved past this call above.
            let first = known.position[(direction & 1) as usize].wrapping_sub(len as u32);
            number_unix(sk, call, first, known.flags & SOCK_LATE != 0);
        } else {
            call.inserted = inserted;
            let moved = (len as u32).wrapping_add(inserted);
            number(sk, call, &mut known.position, moved.wrapping_add(hook.later));
            if seen::is_missing(call, &mut known.seen, moved) || seen::is_unasked(sk, known, direction) {
                lose(known, scratch);
            }
        }
        proceed(sk, state, scratch, len as u32, flags, direction);
    } else {
        count(KernelCounter::MissedBytes);
    }
    connection::leave(sk, known, hook.slot);
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
fn first_call(sk: Sock, settings: &Settings, socket_family: u16, len: u32, flags: u32, hook: Hook) {
    let direction = hook.direction;
    let Some(scratch) = working(hook.slot) else {
        return;
    };
    // SAFETY: as in `on_call`.
    let call = unsafe { &mut (*scratch).call };
    call.slot = hook.slot as u8;
    if refused::is_refused() {
        return;
    }
    identify(sk, call, socket_family, direction);
    let own = (call.pid_tgid >> 32) as u32 == settings.own_pid;
    if !own && !admit(call, settings) {
        if direction == RX && worker::is_nginx(call.class) {
            // On a port that nobody asks for: the worker goes on with a request that is not followed.
            worker::forget(call.pid_tgid);
        }
        return;
    }
    cost(KernelCounter::ProgramRuns);
    locate(sk, call, socket_family, access::cookie(sk, socket_family));
    let mut position = [0; 2];
    let first = socket_family != AF_UNIX
        && number(sk, call, &mut position, len.wrapping_add(hook.later))
        && seen::is_untouched(sk, call, position);
    if own {
        if direction == TX && call.has_key != 0 {
            wire::leave_own(wire::key(call, 0));
        }
        return;
    }
    let state = create(sk, call, settings, socket_family, first);
    if state.is_null() {
        return;
    }
    // SAFETY: non-null: a whole state.
    let new = unsafe { &mut *state };
    if socket_family == AF_UNIX {
        number_unix(sk, call, 0, new.flags & SOCK_LATE != 0);
        position[(direction & 1) as usize] = len;
    }
    new.position = position;
    new.seen = [0; 2];
    if socket_family != AF_UNIX {
        seen::is_missing(call, &mut new.seen, len);
    }
    if new.enter() {
        proceed(sk, state, scratch, len, flags, direction);
    } else {
        count(KernelCounter::MissedBytes);
    }
    connection::leave(sk, new, hook.slot);
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
    call.unread = u64::from(len) + call.earlier();
    call.length = len;
    let mut buffer = if flags & (MSG_OOB | MSG_TRUNC) == 0 {
        let bytes = call.unread;
        describe(call, bytes)
    } else {
        Buffer::Unreadable
    };
    if call.earlier() != 0 && skip(scratch, call.earlier()) == 0 {
        buffer = Buffer::Unreadable;
    }
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
    if known.flags & SOCK_OPAQUE != 0 {
        // This call has shown it.
        let Some(settings) = SETTINGS.get_ptr(0) else { return };
        let family_and_slot = (sk.family(), u32::from(call.slot));
        // SAFETY: an array element.
        return opaque::on_call(sk, known, unsafe { &*settings }, family_and_slot, len, direction);
    }
    if direction == TX && known.role == ROLE_SERVER && known.exchange.state & EX_RESPONSE != 0 {
        worker::answering(&known.exchange, call.pid_tgid);
    }
    if direction == RX {
        // The receive rule looks at the exchange as this call left it.
        let class = known.exchange.class;
        let first_in_line = known.queued == 0;
        let is_known = known.flags & SOCK_LATE == 0 && first_in_line;
        worker::received(&known.exchange, class, call.pid_tgid, is_known);
        if !first_in_line {
            worker::pipelined(&known.exchange, class, call.pid_tgid);
        }
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
            worker::forget(thread);
        }
    }
}
