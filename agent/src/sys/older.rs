//! Sockets of other processes, enrolled while they are at work: connections that are older than the agent.
#![allow(unsafe_code, reason = "pidfd_getfd, and options of a socket that is not ours")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use aya::maps::{MapData, MapError, SockHash};
use aya::Ebpf;

use super::kernel::{named, KernelError};

/// A process whose sockets may be taken a copy of.
pub struct Holder {
    pidfd: OwnedFd,
}

impl Holder {
    /// # Errors
    /// The process has ended, or the kernel is older than 5.3.
    pub fn open(pid: u32) -> io::Result<Self> {
        // SAFETY: no pointers (pidfd_open(2)).
        let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        Ok(Self { pidfd: owned(pidfd)? })
    }

    /// The socket behind one of its descriptors. As long as the copy is held, closing it there sends no FIN.
    ///
    /// # Errors
    /// CAP_SYS_PTRACE is missing, the descriptor is closed, or the kernel is older than 5.6.
    fn copy(&self, descriptor: i32) -> io::Result<OwnedFd> {
        // SAFETY: no pointers (pidfd_getfd(2)).
        let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.pidfd.as_raw_fd(), descriptor, 0) };
        owned(copy)
    }
}

fn owned(returned: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(returned) {
        // SAFETY: a descriptor that the kernel has just made for us.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The sockets whose messages are looked at, as user space may add to them.
pub struct Enrolled(SockHash<MapData, u64>);

impl Enrolled {
    /// A handle of its own to the map: it may be used from another thread.
    ///
    /// # Errors
    /// [`KernelError::Map`], [`KernelError::Missing`].
    pub fn of(ebpf: &Ebpf) -> Result<Self, KernelError> {
        const NAME: &str = "ENROLLED";
        let sockets = SockHash::<_, u64>::try_from(ebpf.map(NAME).ok_or(KernelError::Missing(NAME))?);
        let sockets = sockets.map_err(named(NAME))?;
        let copy = sockets.fd().as_fd().try_clone_to_owned();
        let data = MapData::from_fd(copy.map_err(MapError::IoError).map_err(named(NAME))?).map_err(named(NAME))?;
        let map = aya::maps::Map::SockHash(data);
        Ok(Self(map.try_into().map_err(named(NAME))?))
    }

    /// Enrols a socket under its cookie, if it does not block and sends no zero-copy messages. The kernel refuses one that is
    /// not connected, or that has another protocol on top (`sk_psock_init`). Whether its messages are changed is decided at
    /// the next one (`take_in` in `agent-ebpf/src/rewrite.rs`).
    ///
    /// # Errors
    /// What the kernel refuses; the socket is as it was.
    pub fn add(&mut self, holder: &Holder, descriptor: i32) -> io::Result<bool> {
        let socket = holder.copy(descriptor)?;
        if blocks(&socket)? || option(&socket, libc::SO_ZEROCOPY, 0_i32)? != 0 {
            return Ok(false);
        }
        let cookie = option(&socket, libc::SO_COOKIE, 0_u64)?;
        self.0
            .insert(cookie, socket.as_raw_fd(), NO_EXIST)
            .map_err(io::Error::other)?;
        Ok(true)
    }
}

/// BPF_NOEXIST: one that is enrolled already stays so.
const NO_EXIST: u64 = 1;

fn blocks(socket: &OwnedFd) -> io::Result<bool> {
    // SAFETY: no pointers.
    let flags = unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(flags & libc::O_NONBLOCK == 0)
}

/// An option at the level of the socket; `value` is where it goes.
fn option<T: Copy>(socket: &OwnedFd, name: i32, mut value: T) -> io::Result<T> {
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the option's value and its length, on the stack.
    let returned = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if returned < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(value)
}
