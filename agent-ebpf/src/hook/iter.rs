//! Walks that user space asks for (kernel/bpf/task_iter.c, net/core/bpf_sk_storage.c, kernel/bpf/map_iter.c). They run in
//! the agent's own context, and read nothing that the other hooks do not keep.

#[cfg(not(feature = "scalars"))]
use aya_ebpf::helpers::generated::bpf_sock_from_file;

#[cfg(not(feature = "scalars"))]
use crate::offsets as off;
#[cfg(not(feature = "scalars"))]
use crate::sk::load;
use crate::sk::Sock;
#[cfg(feature = "untyped")]
use crate::{access, gone};
use crate::{before, connection};

/// `struct bpf_iter__task_file`: meta, task, fd, file.
const TASK_FILE_FILE: usize = 24;
/// `struct bpf_iter__bpf_sk_storage_map`: meta, map, sk, value.
#[cfg(not(feature = "untyped"))]
const SK_STORAGE_SK: usize = 16;
/// `struct bpf_iter__bpf_map_elem`: meta, map, key, value.
#[cfg(feature = "untyped")]
const MAP_ELEM_KEY: usize = 16;

/// A pointer in a walk's context.
///
/// # Safety
/// The context is the program's own, with a pointer at `offset`.
#[inline(always)]
unsafe fn context(ctx: *const u8, offset: usize) -> *const u8 {
    // SAFETY: see above.
    unsafe { *ctx.add(offset).cast::<*const u8>() }
}

/// iter/task_file: marks the unix sockets that are older than the agent. Both ends of a TCP connection tell from their
/// sequence numbers how much has passed; unix sockets keep no such count.
///
/// # Safety
/// Called by the kernel with its own context.
#[no_mangle]
#[link_section = "iter/task_file"]
pub unsafe extern "C" fn mark_old_sockets(ctx: *const u8) -> i32 {
    // SAFETY: bpf_iter__task_file.file.
    let file = unsafe { context(ctx, TASK_FILE_FILE) };
    if file.is_null() {
        return 0;
    }
    let sk = sock_of_file(file);
    if !sk.0.is_null() {
        before::mark(sk);
    }
    0
}

/// The socket behind a file that the kernel holds, null if it is none.
#[cfg(not(feature = "scalars"))]
#[inline(always)]
fn sock_of_file(file: *const u8) -> Sock {
    // SAFETY: a file; null if it is no socket.
    let socket = unsafe { bpf_sock_from_file(file.cast_mut().cast()) } as *const u8;
    if socket.is_null() {
        return Sock(socket);
    }
    // SAFETY: socket.sk.
    Sock(unsafe { load(socket, off::socket_sk()) })
}

/// As above, before 5.11.
#[cfg(feature = "scalars")]
#[inline(always)]
fn sock_of_file(file: *const u8) -> Sock {
    access::sock_of_file(access::bare(file))
}

/// iter/bpf_sk_storage_map over SOCKETS: ends what has had no byte for the deadline.
///
/// # Safety
/// As above.
#[cfg(not(feature = "untyped"))]
#[no_mangle]
#[link_section = "iter/bpf_sk_storage_map"]
pub unsafe extern "C" fn sweep_sockets(ctx: *const u8) -> i32 {
    // SAFETY: bpf_iter__bpf_sk_storage_map.sk.
    let sk = unsafe { context(ctx, SK_STORAGE_SK) };
    if !sk.is_null() {
        connection::sweep(Sock(sk));
    }
    0
}

/// iter/bpf_map_elem over SOCKETS: the same, and forgets unix sockets that are gone.
///
/// # Safety
/// As above.
#[cfg(feature = "untyped")]
#[no_mangle]
#[link_section = "iter/bpf_map_elem"]
pub unsafe extern "C" fn sweep_sockets(ctx: *const u8) -> i32 {
    // SAFETY: bpf_iter__bpf_map_elem.key.
    let key = unsafe { context(ctx, MAP_ELEM_KEY) };
    if key.is_null() {
        return 0;
    }
    // SAFETY: a key of SOCKETS: a socket's address.
    let sk = Sock(unsafe { *key.cast::<*const u8>() });
    #[cfg(feature = "scalars")]
    if (sk.0 as u64) < access::COPIES {
        return 0;
    }
    if access::is_closed(sk) {
        gone::sweep(sk);
    } else {
        connection::sweep(sk);
    }
    0
}
