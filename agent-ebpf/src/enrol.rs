//! Which connections' messages are seen on their way out (a socket in a sockhash), and for how long. As few as may be: being
//! enrolled changes by itself how a socket receives, waits and answers FIONREAD (docs/rewriting.md).

use aya_ebpf::bindings::{
    bpf_sock_ops, BPF_NOEXIST, BPF_SOCK_OPS_PARSE_ALL_HDR_OPT_CB_FLAG, BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG,
};
use aya_ebpf::btf_maps::Array;
use aya_ebpf::helpers::generated::{bpf_map_delete_elem, bpf_sock_hash_update, bpf_sock_ops_cb_flags_set};
use spanwire_common::abi::{ingress_key, process_flag, setting, AddressRange, Settings, RANGES_MOST};
use spanwire_common::drop::KernelCounter;

use crate::access;
use crate::count::count;
use crate::maps::{ServerKey, DESTINATIONS, ENROLLED, INGRESS, LEFT_ALONE, PORTS, PROCESSES, SETTINGS, SPARED_PORTS};
use crate::message::{fails, fault};
use crate::state::{
    Call, SockState, ASKS_TO_LEAVE, ASKS_TO_STAY, REWRITE_ENROLLED, REWRITE_LEFT_ALONE, REWRITE_NEVER,
    REWRITE_PERSISTENT, REWRITE_RETURNS, REWRITE_WANTED,
};

/// Callbacks that an enrolled socket gets: before each segment that it sends, and for each that it receives.
const CALLBACKS: u32 = BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG | BPF_SOCK_OPS_PARSE_ALL_HDR_OPT_CB_FLAG;

/// What a connection is wanted for, when its process connects: bits of `REWRITE_*`.
#[inline(always)]
pub fn wanted(call: &Call, settings: &Settings) -> u8 {
    let may = settings.flags & setting::REWRITE != 0 && call.process_flags & process_flag::REWRITES != 0;
    if !may
        || !is_asked(call, settings)
        || SPARED_PORTS.get_ptr(&u32::from(call.remote_port)).is_some()
        || !is_destination(call)
    {
        return 0;
    }
    if is_left_alone(call) {
        return REWRITE_LEFT_ALONE;
    }
    if call.process_flags & process_flag::REWRITES_ALL != 0 {
        REWRITE_WANTED | REWRITE_PERSISTENT
    } else {
        REWRITE_WANTED
    }
}

/// A server that speaks first: connections to it are left alone from now on.
///
/// verifier: a function of its own, whose stack ends with it.
#[inline(never)]
fn leave_alone(ops: *mut bpf_sock_ops) {
    // SAFETY: the program's context.
    let typed = unsafe { (*ops).__bindgen_anon_2.sk as *const u8 };
    if typed.is_null() {
        return;
    }
    let sk = access::sock_of_message(typed);
    if sk.0.is_null() {
        return;
    }
    let (_, remote) = sk.addresses(sk.family());
    let key = ServerKey {
        address: remote,
        port: u64::from(sk.remote_port()),
    };
    let _ = LEFT_ALONE.insert(&key, &1, 0);
}

/// Connections to this server are left alone.
#[inline(never)]
fn is_left_alone(call: &Call) -> bool {
    let key = ServerKey {
        address: call.remote_addr,
        port: u64::from(call.remote_port),
    };
    LEFT_ALONE.get_ptr(&key).is_some()
}

/// A request to such a server after all: it speaks HTTP, and had answered a connection on which nothing came (408).
///
/// verifier: as [`leave_alone`].
#[inline(never)]
pub fn speaks_http(call: &Call) {
    let key = ServerKey {
        address: call.remote_addr,
        port: u64::from(call.remote_port),
    };
    let _ = LEFT_ALONE.remove(&key);
}

/// `propagate.include` and `propagate.exclude` (as `exchange::admit` does for those of `capture`).
#[inline(never)]
fn is_asked(call: &Call, settings: &Settings) -> bool {
    let Some(process) = PROCESSES.get_ptr(&((call.pid_tgid >> 32) as u32)) else {
        return false;
    };
    let (mut include, mut exclude) = (settings.propagate_include_any_port, settings.propagate_exclude_any_port);
    if let Some(port) = PORTS.get_ptr(&u32::from(call.remote_port)) {
        // SAFETY: a live map value.
        let port = unsafe { &*port };
        include |= port.propagate_include;
        exclude |= port.propagate_exclude;
    }
    // SAFETY: a live map value.
    let process = unsafe { &*process };
    process.propagate_include & include != 0 && process.propagate_exclude & exclude == 0
}

/// The other end is in a range that requests may be rewritten to.
#[inline(never)]
fn is_destination(call: &Call) -> bool {
    is_in(call, &DESTINATIONS)
}

/// The other end is in one of these ranges.
#[inline(always)]
pub fn is_in(call: &Call, ranges: &Array<AddressRange, { RANGES_MOST }>) -> bool {
    let mut address = call.remote_addr;
    if call.family == spanwire_common::abi::family::INET {
        address = [0, address[0] << 32 | 0xffff_0000];
    }
    let [high, low] = address;
    for index in 0..RANGES_MOST {
        let Some(range) = ranges.get_ptr(index as u32) else {
            return false;
        };
        // SAFETY: an element of an array.
        let range = unsafe { &*range };
        if range.used == 0 {
            return false;
        }
        let differs = ((high ^ range.address[0]) & range.mask[0]) | ((low ^ range.address[1]) & range.mask[1]);
        if differs == 0 {
            return true;
        }
    }
    false
}

/// State of a callback's socket, null if it has none.
#[inline(always)]
fn state_of(ops: *mut bpf_sock_ops) -> *mut SockState {
    // SAFETY: the program's context.
    let sock = unsafe { (*ops).__bindgen_anon_2.sk as *const u8 };
    if sock.is_null() {
        return core::ptr::null_mut();
    }
    access::state(access::sock(sock))
}

/// A connection of this node's making is established.
#[inline(always)]
pub fn established(ops: *mut bpf_sock_ops) {
    let Some(settings) = SETTINGS.get_ptr(0) else { return };
    // SAFETY: an element of an array.
    if unsafe { (*settings).flags } & setting::REWRITE == 0 {
        return;
    }
    let state = state_of(ops);
    if state.is_null() {
        return;
    }
    // SAFETY: non-null: a whole state.
    let known = unsafe { &mut *state };
    if known.rewrite & (REWRITE_WANTED | REWRITE_NEVER) == REWRITE_WANTED {
        enrol(ops, known);
    }
}

/// A connection to this node is established.
#[inline(always)]
pub fn accepted(ops: *mut bpf_sock_ops) {
    let Some(settings) = SETTINGS.get_ptr(0) else { return };
    // SAFETY: an element of an array; the program's context.
    let (flags, typed) = unsafe { ((*settings).flags, (*ops).__bindgen_anon_2.sk as *const u8) };
    if flags & setting::RETURN == 0 || typed.is_null() {
        return;
    }
    let sk = access::sock_of_message(typed);
    if sk.0.is_null() || INGRESS.get_ptr(&ingress_key(sk.netns(), sk.local_port())).is_none() {
        return;
    }
    let state = access::make_state(access::sock(typed));
    if state.is_null() {
        return count(KernelCounter::StateFull);
    }
    // SAFETY: non-null: a whole state.
    let known = unsafe { &mut *state };
    known.cookie = access::cookie_of_callback(ops);
    known.rewrite = REWRITE_WANTED | REWRITE_PERSISTENT | REWRITE_RETURNS;
    enrol(ops, known);
}

#[inline(always)]
fn enrol(ops: *mut bpf_sock_ops, known: &mut SockState) {
    let mut key = known.cookie;
    // SAFETY: the program's context, a map of this object, a key on the stack.
    let refused = fails(fault::ENROL)
        || unsafe {
            bpf_sock_hash_update(
                ops,
                (&raw const ENROLLED).cast_mut().cast(),
                (&raw mut key).cast(),
                u64::from(BPF_NOEXIST),
            )
        } != 0;
    if refused {
        known.rewrite = REWRITE_NEVER;
        return count(KernelCounter::EnrolFailed);
    }
    known.rewrite |= REWRITE_ENROLLED;
    count(KernelCounter::Enrolled);
    // SAFETY: the program's context.
    unsafe { bpf_sock_ops_cb_flags_set(ops, ((*ops).bpf_sock_ops_cb_flags | CALLBACKS) as i32) };
}

/// An enrolled socket is about to send a segment: it leaves, if sk_msg has asked for that.
#[inline(always)]
pub fn sends(ops: *mut bpf_sock_ops) {
    let state = state_of(ops);
    if state.is_null() {
        return;
    }
    // SAFETY: non-null: a whole state.
    let known = unsafe { &mut *state };
    // SAFETY: the program's context.
    let received = unsafe { (*ops).bytes_received };
    if known.asks & ASKS_TO_LEAVE != 0 {
        leave(ops, known);
    } else if known.asks & ASKS_TO_STAY != 0 {
        if known.rewrite & REWRITE_RETURNS != 0 {
            // It has answered.
            no_callbacks(ops);
        }
    } else if known.rewrite & REWRITE_RETURNS == 0 && received != 0 {
        // The acknowledgement of what came before a whole head had left (`receives` is not told of every segment).
        speaks_first(ops, known);
    }
}

/// An enrolled socket has received a segment. If that has bytes in it and the socket has sent none yet, its server speaks
/// first: not HTTP.
#[inline(always)]
pub fn receives(ops: *mut bpf_sock_ops) {
    // SAFETY: the program's context; the header is in view.
    let (len, header) = unsafe {
        let data = (*ops).__bindgen_anon_3.skb_data as *const u8;
        let end = (*ops).__bindgen_anon_4.skb_data_end as *const u8;
        if data.add(20) > end {
            return;
        }
        ((*ops).skb_len, u32::from(*data.add(12) >> 4) * 4)
    };
    if len <= header {
        return;
    }
    let state = state_of(ops);
    if state.is_null() {
        return;
    }
    // SAFETY: non-null: a whole state.
    let known = unsafe { &mut *state };
    if known.rewrite & REWRITE_RETURNS != 0 {
        // Its request.
        return;
    }
    if known.asks & (ASKS_TO_LEAVE | ASKS_TO_STAY) == ASKS_TO_STAY {
        // The answer to a request.
        return no_callbacks(ops);
    }
    speaks_first(ops, known);
}

/// The other end has answered what was not a whole request.
#[inline(always)]
fn speaks_first(ops: *mut bpf_sock_ops, known: &mut SockState) {
    let [_, sent] = known.seen;
    if sent == 0 {
        leave_alone(ops);
    }
    leave(ops, known);
}

/// Removes the socket. Whoever is in the middle of a call on it keeps what that needs (`sk_psock_get`).
#[inline(always)]
fn leave(ops: *mut bpf_sock_ops, known: &mut SockState) {
    if known.rewrite & REWRITE_ENROLLED != 0 {
        let key = known.cookie;
        // SAFETY: a map of this object, a key on the stack.
        unsafe { bpf_map_delete_elem((&raw const ENROLLED).cast_mut().cast(), (&raw const key).cast()) };
        known.rewrite = REWRITE_NEVER;
        count(KernelCounter::Removed);
    }
    no_callbacks(ops);
}

#[inline(always)]
fn no_callbacks(ops: *mut bpf_sock_ops) {
    // SAFETY: the program's context.
    unsafe { bpf_sock_ops_cb_flags_set(ops, ((*ops).bpf_sock_ops_cb_flags & !CALLBACKS) as i32) };
}
