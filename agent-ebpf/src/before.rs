//! Unix sockets that are older than the agent. A socket of which nothing is known but that it exists may be anywhere in
//! a message.

use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use core::ffi::c_void;

use crate::maps::OLD_SOCKETS;
use crate::sk::{Sock, AF_UNIX};
use crate::socket::BPF_SK_STORAGE_GET_F_CREATE;

/// Marks the socket, if it is a unix stream.
#[inline(always)]
pub fn mark(sk: Sock) {
    if sk.family() == AF_UNIX && sk.is_stream(AF_UNIX) {
        storage(sk, BPF_SK_STORAGE_GET_F_CREATE);
    }
}

/// True for a socket that was there when the agent came.
#[inline(always)]
pub fn is_marked(sk: Sock) -> bool {
    !storage(sk, 0).is_null()
}

#[inline(always)]
fn storage(sk: Sock, flags: u64) -> *mut c_void {
    // SAFETY: a socket pointer the verifier knows; a null value means zeroes.
    unsafe {
        bpf_sk_storage_get(
            (&raw const OLD_SOCKETS).cast_mut().cast::<c_void>(),
            sk.0.cast_mut().cast(),
            core::ptr::null_mut(),
            flags,
        )
    }
}
