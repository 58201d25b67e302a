//! A request on its way out: what its head says, and whether its trace context is put in, corrected, or left alone.
//!
//! The send's own hook comes after the fact and keeps the socket's state. What is decided here is decided on a copy of that
//! state, with the same parser; nothing of it stays but what PREPARED hands on: the ids that are on the wire now. A head that
//! is not understood whole leaves as it came.

use aya_ebpf::bindings::sk_msg_md;
#[cfg(feature = "scalars")]
use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;
use spanwire_common::abi::{cause, context_format, flag, process_flag, setting, Settings};
use spanwire_common::drop::KernelCounter;
use spanwire_common::protocol::context::traceparents;
use spanwire_common::protocol::http1::request::{signed, Method};
use spanwire_common::protocol::http1::{self, phase, step as code, Cursor};
use spanwire_common::protocol::traceparent;

use crate::atomic;
use crate::call::{copy_kernel, READABLE_MESSAGE};
use crate::count::count;
use crate::engine::{bring, carries_requests, framing, move_on, restore};
use crate::exchange::{admit, begin, caused, ensure_trace, CONTEXT_INVALID};
use crate::global::{global, working};
use crate::header::{add_tracestate, write_traceparent};
use crate::lines::{request_line, scan, skim_request};
use crate::maps::{slot, LEAVING, PREVIEW, SETTINGS};
use crate::message::{insert, replace, Message, Outcome};
use crate::prepared::hand_on;
use crate::seen;
use crate::sk::Sock;
use crate::socket::identify;
use crate::state::{
    Exchange, Preview, Scratch, SockState, ASKS_PREPARED, ASKS_TO_LEAVE, ASKS_TO_STAY, EX_HEAD, EX_OPEN, NOWHERE,
    REWRITE_ENROLLED, REWRITE_PERSISTENT, REWRITE_RETURNS, ROLE_SERVER, SOCK_CONNECTING, SOCK_LATE, SOCK_OPAQUE, TX,
};
use crate::{access, arch, enrol, response};

/// A longer head is left alone: servers answer 431 to heads over 8 KiB (nginx, Apache, Tomcat).
const HEAD_BYTES: u32 = 7_680;
/// So is one of more lines: Apache's and Tomcat's limit is 100.
const HEAD_LINES: u16 = 90;
/// A message this large is sent in one piece by being made one element first: elements of 32 KiB, each sent by itself, wait
/// for each other's acknowledgement (Nagle).
const ONE_ELEMENT: u32 = 128 << 10;
/// Steps of the parser, as in `engine`.
pub const STEPS: u32 = 512;

/// What a step says.
pub const DONE: u32 = 0;
pub const MORE: u32 = 1;
/// The head has not come to its end.
pub const UNFINISHED: u32 = 2;
/// It is not understood.
pub const ALIEN: u32 = 3;
/// What was begun could be neither finished nor taken back.
pub const BROKEN: u32 = 4;

/// sk_msg: a message of an enrolled socket. False: it must not go out (`message::Outcome::Broken`).
#[inline(always)]
pub fn on_message(message: Message) -> bool {
    let Some(settings) = SETTINGS.get_ptr(0) else {
        return true;
    };
    // SAFETY: an element of an array.
    let settings = unsafe { &*settings };
    let typed = message.sock();
    if typed.is_null() {
        return true;
    }
    let sk = access::sock_of_message(typed);
    if sk.0.is_null() {
        return true;
    }
    let state = access::state(sk);
    if state.is_null() {
        return true;
    }
    // SAFETY: non-null: a whole state.
    let known = unsafe { &mut *state };
    known.inserted = 0;
    // One without any bit was enrolled by user space: see `take_in`.
    let is_enrolled = known.rewrite == 0 || known.rewrite & REWRITE_ENROLLED != 0;
    if known.asks & ASKS_TO_LEAVE != 0 || !is_enrolled {
        return true;
    }
    let verdict = examine(message, sk, known, settings);
    let stays = (known.rewrite == 0 || known.rewrite & REWRITE_PERSISTENT != 0) && !sk.is_blocking();
    if verdict == ALIEN || (verdict == DONE && !stays) {
        ask_to_leave(known);
    } else if verdict == DONE {
        known.asks |= ASKS_TO_STAY;
    }
    verdict != BROKEN
}

/// The socket is to be removed: by sockops, before the next segment leaves, or, where it has stayed and gets no callbacks any
/// more, by user space.
#[inline(always)]
fn ask_to_leave(known: &mut SockState) {
    known.asks |= ASKS_TO_LEAVE;
    if known.asks & ASKS_TO_STAY != 0 || known.rewrite == 0 {
        let cookie = known.cookie;
        let _ = LEAVING.insert(&cookie, &1, 0);
    }
}

/// What becomes of a message, and of the socket's enrolment.
#[inline(always)]
fn examine(message: Message, sk: Sock, known: &mut SockState, settings: &Settings) -> u32 {
    let returns = known.rewrite & REWRITE_RETURNS != 0;
    let switch = if returns { setting::RETURN } else { setting::REWRITE };
    let off = settings.flags & switch == 0 || returns != (known.role == ROLE_SERVER);
    if off || known.flags & SOCK_OPAQUE != 0 {
        return ALIEN;
    }
    if known.flags & SOCK_LATE != 0 {
        // Where a message begins is not known yet.
        return DONE;
    }
    if message.size() > message.visible() && message.size() <= ONE_ELEMENT {
        // What cannot be made one element goes as it is.
        message.pull(message.size());
    }
    if sk.is_zero_copy() {
        // Made one element all the same: as many completions as sends, this time.
        return ALIEN;
    }
    if framing(known, TX).phase > phase::HEADERS || !begins_here(sk, known) {
        // A body, or the middle of what is being sent (more than fits one message), or somebody sent past the hooks.
        return DONE;
    }
    let Some(preview) = PREVIEW.get_ptr_mut(0) else {
        return ALIEN;
    };
    // SAFETY: an element of a per-CPU array. The program may be preempted here, and run in another thread on this CPU: the
    // first to come is alone in it, any other does nothing.
    let users = unsafe { &mut (*preview).users };
    let verdict = if atomic::fetch_add(users, 1) != 0 {
        count(KernelCounter::MessageBusy);
        ALIEN
    } else if returns {
        response::look_at(message.0, sk, known, preview)
    } else {
        look_at(message.0, sk, known, preview)
    };
    atomic::fetch_add(users, u64::MAX);
    verdict
}

/// The message begins where the socket's state stands.
#[inline(always)]
fn begins_here(sk: Sock, known: &mut SockState) -> bool {
    let Some(tcp) = sk.tcp() else { return false };
    let at = seen::passed(sk, TX);
    let [_, sent] = &mut known.seen;
    if *sent == 0 {
        let (_, origin) = tcp.origins();
        if at.wrapping_sub(origin) > 1 {
            return false;
        }
        *sent = at;
    }
    *sent == at
}

/// verifier: a function of its own, whose stack ends with it.
#[inline(never)]
fn look_at(message: *mut sk_msg_md, sk: Sock, state: *mut SockState, preview: *mut Preview) -> u32 {
    let message = Message(message);
    let Some(scratch) = working(slot::MESSAGE) else {
        return ALIEN;
    };
    // SAFETY: whole objects.
    let (known, preview) = unsafe { (&mut *state, &mut *preview) };
    let copy = copied_state(preview);
    if copy.is_null() || !is_asked(sk, scratch) || (known.rewrite == 0 && !take_in(known, sk, scratch)) {
        return ALIEN;
    }
    if !prepare(message, known, copy, scratch) {
        return ALIEN;
    }
    let mut verdict = MORE;
    for _ in 0..STEPS {
        verdict = preview_step(copy, scratch);
        if verdict != MORE {
            break;
        }
    }
    match verdict {
        DONE => decide(message, sk, known, copy, preview),
        UNFINISHED => UNFINISHED,
        _ => {
            count(KernelCounter::InjectionSkipped);
            ALIEN
        }
    }
}

/// Where the copy lies: where global functions find it (`global`).
#[cfg(not(feature = "scalars"))]
#[inline(always)]
pub fn copied_state(preview: &mut Preview) -> *mut SockState {
    &raw mut preview.state
}

/// As above.
#[cfg(feature = "scalars")]
#[inline(always)]
pub fn copied_state(_preview: &mut Preview) -> *mut SockState {
    access::copied_state()
}

/// Who sends is captured, and its requests may be rewritten.
///
/// verifier: as [`look_at`].
#[inline(never)]
fn is_asked(sk: Sock, scratch: *mut Scratch) -> bool {
    let Some(settings) = SETTINGS.get_ptr(0) else {
        return false;
    };
    // SAFETY: a whole object, an element of an array.
    let (call, settings) = unsafe { (&mut (*scratch).call, &*settings) };
    identify(sk, call, sk.family(), TX);
    // What the send's own hook will not be able to read is no span, and must not be told of to anybody.
    arch::sends_from_user_memory() && admit(call, settings) && call.process_flags & process_flag::REWRITES != 0
}

/// A connection that is older than the agent, or than what is known of its process: user space has enrolled the socket, and the
/// same is asked of it as of one that connects. Nobody calls back for it.
///
/// verifier: as [`look_at`].
#[inline(never)]
fn take_in(known: &mut SockState, sk: Sock, scratch: *mut Scratch) -> bool {
    let Some(settings) = SETTINGS.get_ptr(0) else {
        return false;
    };
    // SAFETY: a whole object, an element of an array.
    let (call, settings) = unsafe { (&mut (*scratch).call, &*settings) };
    (call.local_addr, call.remote_addr) = sk.addresses(sk.family());
    let wanted = enrol::wanted(call, settings);
    if wanted & REWRITE_PERSISTENT == 0 {
        return false;
    }
    known.rewrite = wanted | REWRITE_ENROLLED;
    known.asks |= ASKS_TO_STAY;
    count(KernelCounter::Enrolled);
    true
}

/// Makes the copy, and has the message's first bytes in view. False if that cannot be done.
///
/// verifier: as [`look_at`].
#[inline(never)]
pub fn prepare(message: Message, known: &mut SockState, copy: *mut SockState, scratch: *mut Scratch) -> bool {
    let size = message.size();
    let wanted = if size < HEAD_BYTES { size } else { HEAD_BYTES };
    if message.visible() < wanted && !message.pull(wanted) {
        return false;
    }
    // SAFETY: whole objects.
    let (copy, working) = unsafe { (&mut *copy, &mut *scratch) };
    let call = &mut working.call;
    call.slot = slot::MESSAGE as u8;
    call.cookie = known.cookie;
    #[cfg(feature = "scalars")]
    {
        // SAFETY: no arguments.
        call.socket = access::copy_of(unsafe { bpf_get_smp_processor_id() }).0 as u64;
    }
    call.traceparent_at = NOWHERE;
    call.head_bytes = 0;
    call.tracestate = 0;
    call.readable = READABLE_MESSAGE;
    call.iov_count = 0;
    call.iov_next = 0;
    call.base = message.data() as u64;
    call.left = u64::from(message.visible());
    call.length = message.visible();
    call.unread = call.left;
    // SAFETY: both are whole states.
    unsafe {
        copy_kernel(
            (&raw mut *copy).cast(),
            size_of::<SockState>() as u32,
            (&raw const *known).cast(),
        );
    }
    copy.flags &= !SOCK_CONNECTING;
    if !restore(copy, working, true) {
        return false;
    }
    working.cursor = Cursor {
        beyond: working.call.unread,
        ..Cursor::default()
    };
    bring(copy, scratch)
}

global! {
    /// One step of the parser over the copy. Everything that `engine::step` does besides is left out.
    ///
    /// verifier: see `engine`.
    pub fn preview_step(state: *mut SockState, scratch: *mut Scratch) else { ALIEN } {
        // SAFETY: whole objects (rule for pointer arguments of global functions).
        let (known, working) = unsafe { (&mut *state, &mut *scratch) };
        if !carries_requests(known, TX) {
            return ALIEN;
        }
        if http1::may_skim(framing(known, TX), &working.cursor) {
            skim_request(state, scratch);
        }
        let mut found = working.cursor.end;
        if http1::needs_scan(framing(known, TX), &working.cursor) {
            found = scan(state, scratch);
        }
        let mut next = http1::advance(framing(known, TX), &mut working.cursor, found);
        if next == code::LINE {
            let before = traceparents(&known.exchange.request);
            working.call.head_bytes = u32::from(framing(known, TX).head_bytes);
            let in_start_line = framing(known, TX).phase == phase::START;
            next = request_line(state, scratch, in_start_line);
            if traceparents(&known.exchange.request) != before {
                note_place(working);
            }
        }
        match next {
            code::MORE => MORE,
            code::TEXT => {
                if working.cursor.text_what == spanwire_common::abi::text::TRACESTATE {
                    working.call.tracestate = 1;
                }
                MORE
            }
            code::FILL => {
                if move_on(known, scratch) && bring(known, scratch) {
                    MORE
                } else {
                    ALIEN
                }
            }
            code::HEAD_BEGIN => {
                if known.exchange.state & EX_OPEN != 0 {
                    // A request before it waits for its answer: pipelined, left to the send's hook.
                    return ALIEN;
                }
                begin(known, &mut working.call);
                MORE
            }
            code::HEAD_END => DONE,
            code::END => UNFINISHED,
            _ => ALIEN,
        }
    }
}

/// Where the traceparent in hand lies in the message.
#[inline(always)]
fn note_place(working: &mut Scratch) {
    let (cursor, call) = (&working.cursor, &mut working.call);
    call.traceparent_at = if cursor.value_from < call.carry {
        NOWHERE
    } else {
        place(cursor.value_from, call.carry, call.window_offset)
    };
}

/// A position of the window as one of the message.
#[inline(always)]
pub fn place(position: u32, carry: u32, window_offset: u32) -> u32 {
    position.wrapping_sub(carry).wrapping_add(window_offset)
}

/// The head is whole, and known.
///
/// verifier: as [`look_at`].
#[inline(never)]
fn decide(message: Message, sk: Sock, known: &mut SockState, copy: *mut SockState, preview: &mut Preview) -> u32 {
    let Some(scratch) = working(slot::MESSAGE) else {
        return ALIEN;
    };
    let plan = plan(copy, scratch);
    let at = blank_line(message, scratch);
    let inserts = plan == PLAN_INSERT;
    if plan == PLAN_NOTHING || (inserts && at == NOWHERE) {
        count(KernelCounter::InjectionSkipped);
        return DONE;
    }
    if inserts && !message.has_room(sk, crate::message::LINE_BYTES as u32) {
        count(KernelCounter::NoRoom);
        count(KernelCounter::InjectionSkipped);
        return DONE;
    }
    // From here on the request's context is settled: what comes after the send takes it over, whatever comes of the rest.
    settle(copy, scratch);
    // SAFETY: whole objects.
    let (exchange, call) = unsafe { (&mut (*copy).exchange, &(*scratch).call) };
    let before = message.size();
    let outcome = if inserts {
        write_traceparent(exchange, &mut preview.line);
        if exchange.flags & flag::ADOPTED_CAUSE != 0 {
            add_tracestate(exchange.related_span_id, &mut preview.line);
        }
        let outcome = insert(message.0, at, &preview.line);
        if outcome == Outcome::Done as u32 {
            exchange.flags |= flag::INJECTED;
        }
        outcome
    } else {
        correct(message, exchange, call.traceparent_at)
    };
    known.inserted = message.size().wrapping_sub(before) as u16;
    tell(outcome);
    hand_on(exchange, known.cookie);
    known.asks |= ASKS_PREPARED;
    after(outcome)
}

/// What an attempt means for the socket.
#[inline(always)]
pub fn after(outcome: u32) -> u32 {
    if outcome == Outcome::Broken as u32 {
        return BROKEN;
    }
    if outcome == Outcome::Doubtful as u32 {
        count(KernelCounter::InjectionDoubtful);
        return ALIEN;
    }
    DONE
}

/// Where the blank line begins behind the head in hand: [`NOWHERE`] unless it, and the end of the line before it, lie in what
/// is visible of the message.
#[inline(always)]
pub fn blank_line(message: Message, scratch: *mut Scratch) -> u32 {
    // SAFETY: a whole object.
    let (cursor, call) = unsafe { (&(*scratch).cursor, &(*scratch).call) };
    let behind = place(cursor.pos, call.carry, call.window_offset);
    if behind < 4 || behind > message.visible() {
        return NOWHERE;
    }
    behind - 2
}

#[inline(always)]
fn tell(outcome: u32) {
    if outcome == Outcome::Done as u32 {
        count(KernelCounter::Injected);
    } else if outcome == NOT_OURS {
        count(KernelCounter::InjectionSkipped);
    } else {
        count(KernelCounter::InjectionFailed);
    }
}

const PLAN_NOTHING: u32 = 0;
const PLAN_INSERT: u32 = 1;
const PLAN_CORRECT: u32 = 2;
/// As an [`Outcome`]: the traceparent is the application's own.
const NOT_OURS: u32 = 16;

global! {
    /// What may be done with the head in the copy, by the rules of docs/rewriting.md.
    pub fn plan(state: *mut SockState, scratch: *mut Scratch) else { PLAN_NOTHING } {
        // SAFETY: as in `preview_step`.
        let (known, working) = unsafe { (&mut *state, &mut *scratch) };
        let (request, call) = (&known.exchange.request, &working.call);
        let own = request.otlp | request.user_agent_excluded != 0;
        let tunnel = request.method == Method::Connect as u8 || request.method == Method::Trace as u8;
        let large = call.head_bytes > HEAD_BYTES || request.lines > HEAD_LINES;
        if own || tunnel || request.signed & signed::MESSAGE != 0 {
            return PLAN_NOTHING;
        }
        match traceparents(request) {
            0 if large || call.tracestate != 0 => PLAN_NOTHING,
            0 => PLAN_INSERT,
            1 if request.context_flags & CONTEXT_INVALID != 0 || request.signed & signed::AWS4 != 0 => PLAN_NOTHING,
            1 if request.context_format == context_format::W3C && call.traceparent_at != NOWHERE => PLAN_CORRECT,
            _ => PLAN_NOTHING,
        }
    }
}

global! {
    /// Who caused the request, and which trace it is of: as `exchange::request_head` does after the send.
    pub fn settle(state: *mut SockState, scratch: *mut Scratch) else { 0 } {
        // SAFETY: as in `preview_step`.
        let (known, working) = unsafe { (&mut *state, &mut *scratch) };
        let exchange = &mut known.exchange;
        exchange.state |= EX_HEAD;
        if exchange.request.context_format != context_format::NONE {
            exchange.flags |= flag::ADOPTED_HEADER;
        }
        caused(exchange, &raw const working.call);
        ensure_trace(exchange, working.call.slot);
        1
    }
}

/// Puts our span's id in the place of the parent's, where the application has passed on what came to it.
#[inline(always)]
fn correct(message: Message, exchange: &mut Exchange, value_at: u32) -> u32 {
    if exchange.cause != cause::HEADER || exchange.flags & flag::AMBIGUOUS != 0 {
        return NOT_OURS;
    }
    // `00-`, 32 digits, `-`.
    const PARENT_ID: u32 = 36;
    let [first, second] = traceparent::id(exchange.span_id);
    if replace(message.0, value_at.wrapping_add(PARENT_ID), first, second) == 0 {
        return Outcome::Undone as u32;
    }
    exchange.flags |= flag::CORRECTED;
    Outcome::Done as u32
}
