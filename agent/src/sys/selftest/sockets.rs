//! Sockets of the self-test's own, and the calls on them that the standard library has not.
#![allow(
    unsafe_code,
    reason = "socket calls, an interface and a network namespace of our own"
)]

use std::ffi::c_void;
use std::io;
use std::mem::zeroed;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// How long a call may take that should return at once.
pub(super) const PATIENCE: Duration = Duration::from_millis(1_500);

/// Both ends of a connection on the loopback interface.
pub(super) struct Pair {
    /// The end that may be enrolled.
    pub(super) near: TcpStream,
    /// Its peer: an ordinary socket.
    pub(super) far: TcpStream,
}

impl Pair {
    /// Connects two sockets, in the calling thread's network namespace.
    pub(super) fn open() -> io::Result<Self> {
        Self::connect(&TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?)
    }

    /// As [`Pair::open`], where near's buffer and its peer's window are small, and soon full: the kernel makes of the sizes
    /// what it thinks right. Segments are as long as on an Ethernet, else they would not fit.
    pub(super) fn open_small(sent: i32, received: i32) -> io::Result<Self> {
        const SEGMENT: i32 = 1_448;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        // The peer tells it to near; it has its buffer from the listener, too.
        set_option(&listener, libc::IPPROTO_TCP, libc::TCP_MAXSEG, SEGMENT)?;
        set_option(&listener, libc::SOL_SOCKET, libc::SO_RCVBUF, received)?;
        let pair = Self::connect(&listener)?;
        set_option(&pair.near, libc::SOL_SOCKET, libc::SO_SNDBUF, sent)?;
        Ok(pair)
    }

    fn connect(listener: &TcpListener) -> io::Result<Self> {
        let near = TcpStream::connect_timeout(&listener.local_addr()?, PATIENCE)?;
        let (far, _) = listener.accept()?;
        // No call of the self-test waits for ever. Where near must wait without a limit, the row takes it away.
        far.set_read_timeout(Some(PATIENCE))?;
        far.set_write_timeout(Some(PATIENCE))?;
        near.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { near, far })
    }
}

fn checked(returned: libc::c_int) -> io::Result<()> {
    if returned < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn counted(returned: isize) -> io::Result<usize> {
    usize::try_from(returned).map_err(|_| io::Error::last_os_error())
}

/// Gives the calling thread, and those that it starts, a network of its own: a loopback interface, and nobody else.
pub(super) fn own_network() -> io::Result<()> {
    // SAFETY: changes this thread's namespace only.
    checked(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // SAFETY: an all-zero request is a valid one.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"lo") {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: a request with a name that ends within it.
    checked(unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS as libc::Ioctl,
            &raw const request,
        )
    })
}

/// Sets an option that is a number.
pub(super) fn set_option(socket: &impl AsRawFd, level: libc::c_int, name: libc::c_int, value: i32) -> io::Result<()> {
    // SAFETY: a pointer to as many bytes as are said.
    checked(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    })
}

/// Closes the socket with a reset instead of a goodbye.
pub(super) fn reset(socket: TcpStream) -> io::Result<()> {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // SAFETY: a pointer to as many bytes as are said.
    checked(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        )
    })?;
    drop(socket);
    Ok(())
}

/// Bytes that can be read, as FIONREAD tells.
pub(super) fn queued_bytes(socket: &TcpStream) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut bytes) })?;
    Ok(bytes as usize)
}

/// Waits for one of the events; those that have come, 0 if none has in time.
pub(super) fn wait_for(socket: &TcpStream, events: i16, at_most: Duration) -> io::Result<i16> {
    let mut poll = libc::pollfd {
        fd: socket.as_raw_fd(),
        events,
        revents: 0,
    };
    // SAFETY: one entry.
    checked(unsafe { libc::poll(&raw mut poll, 1, at_most.as_millis() as libc::c_int) })?;
    Ok(poll.revents)
}

/// A pipe: the end that is read from, and the one that is written to.
pub(super) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors.
    checked(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: the kernel has just made it, and nobody else knows it.
    let read = unsafe { OwnedFd::from_raw_fd(ends[0]) };
    // SAFETY: as above.
    let write = unsafe { OwnedFd::from_raw_fd(ends[1]) };
    Ok((read, write))
}

/// A file in memory.
pub(super) fn memory_file(bytes: &[u8]) -> io::Result<std::fs::File> {
    // SAFETY: a name that ends with a NUL.
    let fd = unsafe { libc::memfd_create(c"spanwire self-test".as_ptr(), libc::MFD_CLOEXEC) };
    checked(fd)?;
    // SAFETY: the kernel has just made it, and nobody else knows it.
    let mut file = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    io::Write::write_all(&mut file, bytes)?;
    Ok(file)
}

/// Moves up to so many bytes between a pipe and a socket.
pub(super) fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, bytes: usize) -> io::Result<usize> {
    // SAFETY: no offsets; both descriptors are open.
    counted(unsafe {
        libc::splice(
            from.as_raw_fd(),
            std::ptr::null_mut(),
            to.as_raw_fd(),
            std::ptr::null_mut(),
            bytes,
            0,
        )
    })
}

/// Sends bytes of a file from an offset on.
pub(super) fn send_file(socket: &TcpStream, file: &std::fs::File, offset: usize, bytes: usize) -> io::Result<usize> {
    let mut offset = offset as libc::off_t;
    // SAFETY: the offset is ours; both descriptors are open.
    counted(unsafe { libc::sendfile(socket.as_raw_fd(), file.as_raw_fd(), &raw mut offset, bytes) })
}

/// Sends without waiting, with these flags besides.
pub(super) fn send(socket: &TcpStream, bytes: &[u8], flags: libc::c_int) -> io::Result<usize> {
    // SAFETY: as many bytes as are there.
    counted(unsafe {
        libc::send(
            socket.as_raw_fd(),
            bytes.as_ptr().cast::<c_void>(),
            bytes.len(),
            flags | libc::MSG_NOSIGNAL,
        )
    })
}

/// SO_EE_ORIGIN_ZEROCOPY (include/uapi/linux/errqueue.h).
const ORIGIN_ZEROCOPY: u8 = 5;

/// Zero-copy sends that the kernel has told the end of since the last question: how many, or `None` where it has nothing
/// to tell.
pub(super) fn completions(socket: &TcpStream) -> io::Result<Option<u32>> {
    let mut control = [0u64; 32];
    // SAFETY: an all-zero message is a valid one.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    // SAFETY: the message's only buffer is as long as it says.
    let received = unsafe {
        libc::recvmsg(
            socket.as_raw_fd(),
            &raw mut message,
            libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT,
        )
    };
    match counted(received) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        other => other?,
    };
    let mut ended = 0;
    // SAFETY: the kernel has filled the message in.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: a header of the list, whose data is of the type that its level and type say.
        let error = unsafe { extended_error(header) };
        if let Some(error) = error.filter(|error| error.ee_origin == ORIGIN_ZEROCOPY) {
            // From the first to the last of them.
            ended += error.ee_data.wrapping_sub(error.ee_info).wrapping_add(1);
        }
        // SAFETY: as above.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    Ok(Some(ended))
}

/// # Safety
/// A control message of a socket's error queue.
unsafe fn extended_error(header: *const libc::cmsghdr) -> Option<libc::sock_extended_err> {
    // SAFETY: see above.
    let kind = unsafe { &*header };
    if (kind.cmsg_level, kind.cmsg_type) != (libc::SOL_IP, libc::IP_RECVERR) {
        return None;
    }
    // SAFETY: see above.
    let data = unsafe { libc::CMSG_DATA(header) };
    // SAFETY: as above; data of a control message may be unaligned.
    Some(unsafe { data.cast::<libc::sock_extended_err>().read_unaligned() })
}
