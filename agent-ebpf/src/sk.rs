//! Reads from `struct sock` and its relatives through pointers whose types the verifier knows (BTF tracepoints,
//! fentry/fexit). A load that faults yields zero (kernel: bpf_convert_ctx_accesses, BPF_PROBE_MEM).

use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_skc_to_tcp_sock, bpf_skc_to_unix_sock};

use crate::offsets as off;

pub const AF_UNIX: u16 = 1;
pub const AF_INET: u16 = 2;
pub const AF_INET6: u16 = 10;
const SOCK_STREAM: u16 = 1;
const IPPROTO_TCP: u16 = 6;
const O_NONBLOCK: u32 = 0o4000;

/// A `struct sock *` that came as an argument the verifier trusts.
#[derive(Clone, Copy)]
pub struct Sock(pub *const u8);

/// Loads a field.
///
/// # Safety
/// `base` is a pointer the verifier knows as BTF-typed, and `offset` lies within that type.
#[inline(always)]
pub unsafe fn load<T: Copy>(base: *const u8, offset: usize) -> T {
    // SAFETY: see above; alignment is the kernel's own.
    unsafe { *base.add(offset).cast::<T>() }
}

impl Sock {
    #[inline(always)]
    pub fn family(self) -> u16 {
        // SAFETY: sock_common.skc_family.
        unsafe { load(self.0, off::sk_family()) }
    }

    /// A stream socket whose bytes are HTTP's own: TCP (not MPTCP) or unix.
    #[inline(always)]
    pub fn is_stream(self, family: u16) -> bool {
        // SAFETY: sock.sk_type, sock.sk_protocol.
        let kind: u16 = unsafe { load(self.0, off::sk_type()) };
        if kind != SOCK_STREAM {
            return false;
        }
        if family == AF_UNIX {
            return true;
        }
        // SAFETY: as above.
        let protocol: u16 = unsafe { load(self.0, off::sk_protocol()) };
        (family == AF_INET || family == AF_INET6) && protocol == IPPROTO_TCP
    }

    #[inline(always)]
    pub fn local_port(self) -> u16 {
        // SAFETY: sock_common.skc_num, in host order.
        unsafe { load(self.0, off::sk_num()) }
    }

    #[inline(always)]
    pub fn remote_port(self) -> u16 {
        // SAFETY: sock_common.skc_dport, in network order.
        u16::from_be(unsafe { load(self.0, off::sk_dport()) })
    }

    /// (local, remote), network order, IPv4 in the first four bytes.
    #[inline(always)]
    pub fn addresses(self, family: u16) -> ([u64; 2], [u64; 2]) {
        if family == AF_INET {
            // SAFETY: sock_common.skc_rcv_saddr, skc_daddr.
            let (local, remote): (u32, u32) =
                unsafe { (load(self.0, off::sk_rcv_saddr()), load(self.0, off::sk_daddr())) };
            ([u64::from(local), 0], [u64::from(remote), 0])
        } else if family == AF_INET6 {
            let (local, remote) = (off::sk_v6_rcv_saddr(), off::sk_v6_daddr());
            // SAFETY: sock_common.skc_v6_rcv_saddr, skc_v6_daddr: 16 bytes each, 4-byte aligned at least.
            unsafe {
                (
                    [self.word(local), self.word(local + 8)],
                    [self.word(remote), self.word(remote + 8)],
                )
            }
        } else {
            ([0; 2], [0; 2])
        }
    }

    /// Eight bytes at an offset that may be only 4-byte aligned.
    #[inline(always)]
    unsafe fn word(self, offset: usize) -> u64 {
        // SAFETY: the caller's offsets lie within sock_common.
        let (low, high): (u32, u32) = unsafe { (load(self.0, offset), load(self.0, offset + 4)) };
        u64::from(low) | u64::from(high) << 32
    }

    #[inline(always)]
    pub fn netns(self) -> u32 {
        // SAFETY: sock_common.skc_net.net -> net.ns.inum.
        unsafe {
            let net: *const u8 = load(self.0, off::sk_net());
            load(net, off::net_inum())
        }
    }

    #[inline(always)]
    pub fn error(self) -> u16 {
        // SAFETY: sock.sk_err.
        let error: i32 = unsafe { load(self.0, off::sk_err()) };
        error as u16
    }

    /// O_NONBLOCK is clear on the socket's file.
    #[inline(always)]
    pub fn is_blocking(self) -> bool {
        // SAFETY: sock.sk_socket -> socket.file -> file.f_flags; a null on the way reads as zero.
        let (file, flags): (*const u8, u32) = unsafe {
            let socket: *const u8 = load(self.0, off::sk_socket());
            let file: *const u8 = load(socket, off::socket_file());
            (file, load(file, off::file_flags()))
        };
        !file.is_null() && flags & O_NONBLOCK == 0
    }

    /// (write_seq, copied_seq), and whether a message of `len` bytes that has just passed in `direction` was the
    /// first on this connection in that direction.
    #[inline(always)]
    pub fn tcp(self) -> Option<Tcp> {
        // SAFETY: the helper checks that it is a TCP socket.
        let tp = unsafe { bpf_skc_to_tcp_sock(self.0.cast_mut().cast()) } as *const u8;
        if tp.is_null() {
            return None;
        }
        Some(Tcp(tp))
    }

    /// Cookie of the other end of a unix socket, 0 if it has none.
    #[inline(always)]
    pub fn unix_peer_cookie(self) -> u64 {
        // SAFETY: the helper checks that it is a unix socket; unix_sock.peer.
        unsafe {
            let unix = bpf_skc_to_unix_sock(self.0.cast_mut().cast()) as *const u8;
            if unix.is_null() {
                return 0;
            }
            let peer: *mut core::ffi::c_void = load(unix, off::unix_peer());
            if peer.is_null() {
                return 0;
            }
            bpf_get_socket_cookie(peer)
        }
    }
}

/// A `struct tcp_sock *`.
#[derive(Clone, Copy)]
pub struct Tcp(*const u8);

impl Tcp {
    #[inline(always)]
    pub fn write_seq(self) -> u32 {
        // SAFETY: tcp_sock.write_seq.
        unsafe { load(self.0, off::tp_write_seq()) }
    }

    #[inline(always)]
    pub fn copied_seq(self) -> u32 {
        // SAFETY: tcp_sock.copied_seq.
        unsafe { load(self.0, off::tp_copied_seq()) }
    }

    /// Position in the stream of the byte `seq` that was received; 0 or 1 for the first of the connection.
    #[inline(always)]
    pub fn received_position(self, seq: u32) -> u32 {
        // SAFETY: tcp_sock.rcv_nxt, bytes_received.
        let (next, bytes): (u32, u64) =
            unsafe { (load(self.0, off::tp_rcv_nxt()), load(self.0, off::tp_bytes_received())) };
        seq.wrapping_sub(next.wrapping_sub(bytes as u32))
    }

    /// Position in the stream of the byte `seq` that was sent; 0 or 1 for the first of the connection.
    #[inline(always)]
    pub fn sent_position(self, seq: u32) -> u32 {
        // SAFETY: tcp_sock.snd_una, bytes_acked.
        let (una, bytes): (u32, u64) =
            unsafe { (load(self.0, off::tp_snd_una()), load(self.0, off::tp_bytes_acked())) };
        seq.wrapping_sub(una.wrapping_sub(bytes as u32))
    }
}
