//! Fields of `struct sock` and its relatives. How they are reached, and where a socket's state lies, depends on the kind
//! of program: `access`.

use crate::access;
pub use crate::access::load;
use crate::offsets as off;

pub const AF_UNIX: u16 = 1;
pub const AF_INET: u16 = 2;
pub const AF_INET6: u16 = 10;
const SOCK_STREAM: u16 = 1;
const IPPROTO_TCP: u16 = 6;
const O_NONBLOCK: u32 = 0o4000;

/// SOCK_ZEROCOPY of `enum sock_flags` (include/net/sock.h), set by the loader; above 63: not known.
#[no_mangle]
static ZERO_COPY_BIT: u32 = 0;

/// A `struct sock *`.
#[derive(Clone, Copy)]
pub struct Sock(pub *const u8);

impl Sock {
    /// Address family (`AF_*`).
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

    /// Host order.
    #[inline(always)]
    pub fn local_port(self) -> u16 {
        // SAFETY: sock_common.skc_num, in host order.
        unsafe { load(self.0, off::sk_num()) }
    }

    /// Host order.
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

    /// Inode number of the network namespace.
    #[inline(always)]
    pub fn netns(self) -> u32 {
        // SAFETY: sock_common.skc_net.net -> net.ns.inum.
        unsafe {
            let net: *const u8 = load(self.0, off::sk_net());
            load(net, off::net_inum())
        }
    }

    /// TCP's state (include/net/tcp_states.h).
    #[inline(always)]
    pub fn state(self) -> i32 {
        // SAFETY: sock_common.skc_state.
        let state: u8 = unsafe { load(self.0, off::sk_state()) };
        i32::from(state)
    }

    /// The pending error, an errno value; 0 if none.
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

    /// SO_ZEROCOPY is set: being enrolled changes which completions its sends have.
    #[inline(always)]
    pub fn is_zero_copy(self) -> bool {
        // SAFETY: sock_common.skc_flags; a static of this program, set before the load.
        let (flags, bit): (u64, u32) = unsafe {
            (
                load(self.0, off::sk_flags()),
                core::ptr::read_volatile(&raw const ZERO_COPY_BIT),
            )
        };
        bit > 63 || flags >> bit & 1 != 0
    }

    /// (write_seq, copied_seq), and whether a message of `len` bytes that has just passed in `direction` was the
    /// first on this connection in that direction.
    #[inline(always)]
    pub fn tcp(self) -> Option<Tcp> {
        let tp = access::tcp_sock(self);
        (!tp.is_null()).then_some(Tcp(tp))
    }

    /// The other end of a unix socket.
    #[inline(always)]
    pub fn unix_peer(self) -> Option<Sock> {
        let unix = access::unix_sock(self);
        if unix.is_null() {
            return None;
        }
        // SAFETY: unix_sock.peer.
        let peer: *const u8 = unsafe { load(unix, off::unix_peer()) };
        (!peer.is_null()).then_some(Sock(peer))
    }

    /// Its file has been closed.
    #[inline(always)]
    pub fn is_orphan(self) -> bool {
        // SAFETY: sock.sk_socket.
        let socket: *const u8 = unsafe { load(self.0, off::sk_socket()) };
        socket.is_null()
    }
}

/// A `struct tcp_sock *`.
#[derive(Clone, Copy)]
pub struct Tcp(*const u8);

impl Tcp {
    /// Sequence number behind the last byte written.
    #[inline(always)]
    pub fn write_seq(self) -> u32 {
        // SAFETY: tcp_sock.write_seq.
        unsafe { load(self.0, off::tp_write_seq()) }
    }

    /// Sequence number behind the last byte the application has read.
    #[inline(always)]
    pub fn copied_seq(self) -> u32 {
        // SAFETY: tcp_sock.copied_seq.
        unsafe { load(self.0, off::tp_copied_seq()) }
    }

    /// A send of `need` bytes, all it takes included, would not have to wait (`__sk_stream_memory_free`,
    /// `tcp_stream_memory_free`).
    #[inline(always)]
    pub fn has_room(self, need: u32) -> bool {
        // SAFETY: sock.sk_wmem_queued, sock.sk_sndbuf, tcp_sock.snd_nxt, tcp_sock.notsent_lowat.
        let (queued, limit, next, lowat): (i32, i32, u32, u32) = unsafe {
            (
                load(self.0, off::sk_wmem_queued()),
                load(self.0, off::sk_sndbuf()),
                load(self.0, off::tp_snd_nxt()),
                load(self.0, off::tp_notsent_lowat()),
            )
        };
        let waiting = self.write_seq().wrapping_sub(next);
        let fits = i64::from(queued) + i64::from(need) <= i64::from(limit);
        // 0: the namespace's own limit, which is none unless somebody set it.
        fits && (lowat == 0 || u64::from(waiting) + u64::from(need) < u64::from(lowat))
    }

    /// Sequence numbers of the first byte of either direction: (received, sent). They never change, so each end can name
    /// the other's stream by them. The sent one is exact for a socket that was accepted; one that connected has counted
    /// its SYN as a byte, and its number is one less.
    #[inline(always)]
    pub fn origins(self) -> (u32, u32) {
        // Position and count change one after the other (tcp_rcv_nxt_update, tcp_snd_una_update), perhaps right now on
        // another CPU.
        let (mut received, mut sent) = self.origins_now();
        let again = self.origins_now();
        if again != (received, sent) {
            (received, sent) = self.origins_now();
        }
        (received, sent)
    }

    #[inline(always)]
    fn origins_now(self) -> (u32, u32) {
        // SAFETY: tcp_sock.rcv_nxt, bytes_received, snd_una, bytes_acked.
        let (next, received, una, acked): (u32, u64, u32, u64) = unsafe {
            (
                load(self.0, off::tp_rcv_nxt()),
                load(self.0, off::tp_bytes_received()),
                load(self.0, off::tp_snd_una()),
                load(self.0, off::tp_bytes_acked()),
            )
        };
        (next.wrapping_sub(received as u32), una.wrapping_sub(acked as u32))
    }
}
