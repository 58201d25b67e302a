//! A request on its way out: what its head says, and whether its trace context is put in, corrected, or left alone.
//!
//! The send's own hook comes after the fact and keeps the socket's state. What is decided here is decided on a copy of that
//! state, with the same parser; nothing of it stays but what PREPARED hands on: the ids that are on the wire now. A head that
//! is not understood whole leaves as it came.

use aya_ebpf::bindings::sk_msg_md;
#[cfg(feature = "scalars")]
use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;
use spanwire_common::abi::{cause, context_format, flag, process_flag, setting};
use spanwire_common::drop::KernelCounter;
use spanwire_common::protocol::context::traceparents;
use spanwire_common::protocol::http1::request::{signed, Method};
use spanwire_common::protocol::http1::{self, phase, step as code, Cursor};
use spanwire_common::protocol::traceparent;
use spanwire_common::protocol::tracestate::LIST_BYTES;

use crate::atomic;
use crate::call::{copy_kernel, READABLE_MESSAGE};
use crate::count::count;
use crate::engine::{bring, carries_requests, framing, move_on, restore};
use crate::exchange::{
    admit, begin, caused, ensure_trace, CONTEXT_DECIDED, CONTEXT_INVALID, CONTEXT_RANDOM, CONTEXT_SAMPLED,
};
use crate::global::{global, working};
use crate::ids;
use crate::lines::{request_line, scan, skim_request};
use crate::maps::{slot, PREPARED, PREVIEW, SETTINGS, TRACESTATES};
use crate::message::{insert, replace, Line, Message, Outcome};
use crate::seen;
use crate::sk::Sock;
use crate::socket::identify;
use crate::state::{
    Exchange, Prepared, Preview, Scratch, SockState, ASKS_PREPARED, ASKS_TO_LEAVE, ASKS_TO_STAY, EX_HEAD, EX_OPEN,
    NOWHERE, REWRITE_ENROLLED, REWRITE_PERSISTENT, REWRITE_RETURNS, ROLE_SERVER, SOCK_CONNECTING, SOCK_LATE,
    SOCK_OPAQUE, TX,
};
use crate::{access, arch, response};

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

/// sk_msg: a message of an enrolled socket.
#[inline(always)]
pub fn on_message(message: Message) {
    let Some(settings) = SETTINGS.get_ptr(0) else { return };
    // SAFETY: an element of an array.
    let settings = unsafe { &*settings };
    let typed = message.sock();
    if typed.is_null() {
        return;
    }
    let sk = access::sock_of_message(typed);
    if sk.0.is_null() {
        return;
    }
    let state = access::state(sk);
    if state.is_null() {
        return;
    }
    // SAFETY: non-null: a whole state.
    let known = unsafe { &mut *state };
    known.inserted = 0;
    if known.asks & ASKS_TO_LEAVE != 0 || known.rewrite & REWRITE_ENROLLED == 0 {
        return;
    }
    let returns = known.rewrite & REWRITE_RETURNS != 0;
    let switch = if returns { setting::RETURN } else { setting::REWRITE };
    let off = settings.flags & switch == 0 || returns != (known.role == ROLE_SERVER);
    if off || known.flags & (SOCK_OPAQUE | SOCK_LATE) != 0 {
        known.asks |= ASKS_TO_LEAVE;
        return;
    }
    if message.size() > message.visible() && message.size() <= ONE_ELEMENT {
        // What cannot be made one element goes as it is.
        message.pull(message.size());
    }
    if sk.is_zero_copy() {
        // Made one element all the same: as many completions as sends, this time.
        known.asks |= ASKS_TO_LEAVE;
        return;
    }
    let stays = known.rewrite & REWRITE_PERSISTENT != 0 && !sk.is_blocking();
    if framing(known, TX).phase > phase::HEADERS {
        if !stays {
            known.asks |= ASKS_TO_LEAVE;
        }
        return;
    }
    if !begins_here(sk, known) {
        // In the middle of what is being sent (more than fits one message), or somebody sent past the hooks.
        if !stays {
            known.asks |= ASKS_TO_LEAVE;
        }
        return;
    }
    let Some(preview) = PREVIEW.get_ptr_mut(0) else { return };
    // SAFETY: an element of a per-CPU array. The program may be preempted here, and run in another thread on this CPU: the
    // first to come is alone in it, any other does nothing.
    let users = unsafe { &mut (*preview).users };
    if atomic::fetch_add(users, 1) == 0 {
        let verdict = if returns {
            response::look_at(message.0, sk, state, preview)
        } else {
            look_at(message.0, sk, state, preview)
        };
        if verdict == ALIEN || (verdict == DONE && !stays) {
            known.asks |= ASKS_TO_LEAVE;
        } else if verdict == DONE {
            known.asks |= ASKS_TO_STAY;
        }
    } else {
        count(KernelCounter::MessageBusy);
        known.asks |= ASKS_TO_LEAVE;
    }
    atomic::fetch_add(users, u64::MAX);
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
    if copy.is_null() || !is_asked(sk, scratch) || !prepare(message, known, copy, scratch) {
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
        DONE => {
            decide(message, sk, known, copy, preview);
            DONE
        }
        UNFINISHED => UNFINISHED,
        _ => ALIEN,
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
fn decide(message: Message, sk: Sock, known: &mut SockState, copy: *mut SockState, preview: &mut Preview) {
    let Some(scratch) = working(slot::MESSAGE) else { return };
    let plan = plan(copy, scratch);
    if plan == PLAN_NOTHING {
        return count(KernelCounter::InjectionSkipped);
    }
    // SAFETY: a whole object.
    let call = unsafe { &(*scratch).call };
    let at = blank_line(message, scratch);
    let inserts = plan == PLAN_INSERT;
    if inserts && at == NOWHERE {
        return count(KernelCounter::InjectionSkipped);
    }
    if inserts && !message.has_room(sk, crate::message::LINE_BYTES as u32) {
        count(KernelCounter::NoRoom);
        return count(KernelCounter::InjectionSkipped);
    }
    // From here on the request's context is settled: what comes after the send takes it over, whatever comes of the rest.
    settle(copy, scratch);
    // SAFETY: a whole object.
    let exchange = unsafe { &mut (*copy).exchange };
    let outcome = if inserts {
        write_line(exchange, &mut preview.line);
        if exchange.flags & flag::ADOPTED_CAUSE != 0 {
            add_tracestate(exchange.related_span_id, &mut preview.line);
        }
        let outcome = insert(message.0, at, &preview.line);
        if outcome == Outcome::Done as u32 {
            known.inserted = preview.line.len as u16;
            exchange.flags |= flag::INJECTED;
        }
        outcome
    } else {
        correct(message, exchange, call.traceparent_at)
    };
    tell(outcome);
    if outcome == Outcome::Doubtful as u32 {
        known.asks |= ASKS_TO_LEAVE;
        known.inserted = (message.size().wrapping_sub(call.length)) as u16;
    }
    hand_on(exchange, known.cookie);
    known.asks |= ASKS_PREPARED;
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
        if outcome == Outcome::Doubtful as u32 {
            count(KernelCounter::InjectionDoubtful);
        }
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

/// The exchange's context as a traceparent's value.
#[inline(always)]
pub fn value_of(exchange: &Exchange) -> [u64; 7] {
    let context = exchange.request.context_flags;
    let sampled = u8::from(context & CONTEXT_SAMPLED != 0 || context & CONTEXT_DECIDED == 0);
    let random = if context & CONTEXT_RANDOM != 0 { 2 } else { 0 };
    traceparent::value(ids::trace_id(&exchange.request), exchange.span_id, sampled | random)
}

/// The traceparent's line.
///
/// verifier: as [`look_at`].
#[inline(never)]
fn write_line(exchange: &Exchange, line: &mut Line) {
    let [w0, w1, w2, w3, w4, w5, w6] = value_of(exchange);
    let words = &mut line.words;
    // `traceparent: ` is 13 bytes: the value's words lie five bytes into the line's.
    const NAME: u64 = u64::from_le_bytes(*b"tracepar");
    const REST: u64 = u64::from_le_bytes(*b"ent: \0\0\0");
    const END: u64 = u64::from_le_bytes(*b"\0\0\0\0\r\n\0\0");
    words[0] = NAME;
    words[1] = REST | w0 << 40;
    words[2] = w0 >> 24 | w1 << 40;
    words[3] = w1 >> 24 | w2 << 40;
    words[4] = w2 >> 24 | w3 << 40;
    words[5] = w3 >> 24 | w4 << 40;
    words[6] = w4 >> 24 | w5 << 40;
    words[7] = w5 >> 24 | w6 << 40;
    words[8] = w6 >> 24 | END;
    line.len = TRACEPARENT_BYTES as u32;
}

/// The tracestate that came to the cause, behind the traceparent's line.
///
/// verifier: a function of its own, whose stack ends with it.
#[inline(never)]
fn add_tracestate(span_id: u64, line: &mut Line) {
    let Some(list) = TRACESTATES.get_ptr(&span_id) else {
        return;
    };
    // SAFETY: a live map value.
    let list = unsafe { &*list };
    let len = u64::from(list.len());
    if len == 0 || len > LIST_BYTES as u64 {
        return;
    }
    let name = *b"tracestate: ";
    let end = *b"\r\n";
    let mut bytes = len;
    // SAFETY: register arithmetic only.
    unsafe { core::arch::asm!("{0} &= 1023", inout(reg) bytes) };
    const { assert!(VALUE_AT + 1023 + 2 <= size_of::<Line>() - 8) };
    // SAFETY: the line has room for the longest list, and `spill` behind it for what the verifier takes to be one; what is read
    // behind the list lies in the same map value.
    unsafe {
        let to = (&raw mut line.words).cast::<u8>();
        let whole = copy_kernel(to.add(VALUE_AT), bytes as u32, (&raw const *list).cast())
            && copy_kernel(to.add(TRACEPARENT_BYTES), 12, name.as_ptr())
            && copy_kernel(to.add(VALUE_AT + bytes as usize), 2, end.as_ptr());
        if whole {
            line.len = VALUE_AT as u32 + len as u32 + 2;
        }
    }
}

/// `traceparent: ...` and its line end.
const TRACEPARENT_BYTES: usize = 13 + traceparent::VALUE_BYTES as usize + 2;
/// Where the tracestate's value goes.
const VALUE_AT: usize = TRACEPARENT_BYTES + 12;

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

/// Leaves what was decided for the send's hook.
///
/// verifier: as [`look_at`].
#[inline(never)]
fn hand_on(exchange: &Exchange, cookie: u64) {
    let prepared = Prepared {
        trace_id: ids::trace_id(&exchange.request),
        span_id: exchange.span_id,
        related_span_id: exchange.related_span_id,
        related_trace_id: exchange.related_trace_id,
        tenant: exchange.request.tenant,
        flags: exchange.flags,
        ordinal: exchange.ordinal,
        cause: exchange.cause,
        context_flags: exchange.request.context_flags,
        reserved: [0; 6],
    };
    let _ = PREPARED.insert(&cookie, &prepared, 0);
}

/// The request that sk_msg has prepared begins: it has its span id already.
#[inline(always)]
pub fn take_span_id(state: &mut SockState) {
    // verifier: on the stack; see `maps::BLANK`.
    let cookie = state.cookie;
    if let Some(prepared) = PREPARED.get_ptr(&cookie) {
        // SAFETY: a live map value.
        let prepared = unsafe { &*prepared };
        if prepared.ordinal == state.exchange.ordinal {
            state.exchange.span_id = prepared.span_id;
        }
    }
}

/// The head that sk_msg has prepared is complete: takes over what was decided. False if that is gone.
///
/// verifier: in a frame of its own: see `opaque::sent`.
#[inline(never)]
pub fn take(exchange: &mut Exchange, cookie: u64) -> bool {
    let Some(entry) = PREPARED.get_ptr(&cookie) else {
        return false;
    };
    // SAFETY: a live map value, copied.
    let prepared = unsafe { *entry };
    let _ = PREPARED.remove(&cookie);
    if prepared.ordinal != exchange.ordinal {
        return false;
    }
    exchange.span_id = prepared.span_id;
    exchange.cause = prepared.cause;
    exchange.related_span_id = prepared.related_span_id;
    exchange.related_trace_id = prepared.related_trace_id;
    exchange.request.tenant = prepared.tenant;
    exchange.request.context_flags = prepared.context_flags;
    exchange.flags |= prepared.flags;
    ids::set_trace_id(&mut exchange.request, prepared.trace_id);
    true
}

/// Bytes that sk_msg put into the send that has just returned `len`: 0 where the socket's numbers say that they did not
/// leave.
#[inline(always)]
pub fn inserted(sk: Sock, known: &mut SockState, len: u32) -> u32 {
    let inserted = u32::from(known.inserted);
    known.inserted = 0;
    let [_, sent] = known.seen;
    let moved = seen::passed(sk, TX).wrapping_sub(sent);
    if moved == len.wrapping_add(inserted) {
        inserted
    } else {
        0
    }
}
