//! Walks that user space asks for (kernel/bpf/task_iter.c, net/core/bpf_sk_storage.c). They run in the agent's own
//! context, and read nothing that the other hooks do not keep.

use aya_ebpf::helpers::generated::bpf_sock_from_file;

use crate::sk::{load, Sock};
use crate::{before, connection, offsets as off};

/// `struct bpf_iter__task_file`: meta, task, fd, file.
const TASK_FILE_FILE: usize = 24;
/// `struct bpf_iter__bpf_sk_storage_map`: meta, map, sk, value.
const SK_STORAGE_SK: usize = 16;

/// iter/task_file: marks the unix sockets that are older than the agent. Both ends of a TCP connection tell from their
/// sequence numbers how much has passed; unix sockets keep no such count.
///
/// # Safety
/// Called by the kernel with its own context.
#[no_mangle]
#[link_section = "iter/task_file"]
pub unsafe extern "C" fn mark_old_sockets(ctx: *const u8) -> i32 {
    // SAFETY: bpf_iter__task_file.file.
    let file: *mut u8 = unsafe { load(ctx, TASK_FILE_FILE) };
    if file.is_null() {
        return 0;
    }
    // SAFETY: a file the kernel holds; null if it is no socket.
    let socket = unsafe { bpf_sock_from_file(file.cast()) } as *const u8;
    if socket.is_null() {
        return 0;
    }
    // SAFETY: socket.sk.
    let sk: *const u8 = unsafe { load(socket, off::socket_sk()) };
    if !sk.is_null() {
        before::mark(Sock(sk));
    }
    0
}

/// iter/bpf_sk_storage_map over SOCKETS: ends what has had no byte for the deadline.
///
/// # Safety
/// As above.
#[no_mangle]
#[link_section = "iter/bpf_sk_storage_map"]
pub unsafe extern "C" fn sweep_sockets(ctx: *const u8) -> i32 {
    // SAFETY: bpf_iter__bpf_sk_storage_map.sk.
    let sk: *const u8 = unsafe { load(ctx, SK_STORAGE_SK) };
    if !sk.is_null() {
        connection::sweep(Sock(sk));
    }
    0
}
