//! Sockets of both kinds of applications: those that block in their calls, and those that poll.

use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::fs::{memfd_create, sendfile, MemfdFlags};
use rustix::io::Errno;
use rustix::net::{sockopt, AddressFamily, SendAncillaryBuffer, SendFlags, SocketFlags, SocketType};
use rustix::pipe::{pipe_with, splice, PipeFlags, SpliceFlags};

use super::exchange::{How, Options};

/// What a process does while it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Blocking,
    Polling,
}

impl Mode {
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "blocking" => Some(Self::Blocking),
            "polling" => Some(Self::Polling),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Blocking => "blocking",
            Self::Polling => "polling",
        }
    }

    fn flags(self) -> SocketFlags {
        match self {
            Self::Blocking => SocketFlags::CLOEXEC,
            Self::Polling => SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        }
    }
}

/// No wait in an exchange is longer; whoever waits longer waits for ever.
const PATIENCE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// A client's source address says which exchange it plays: 127.64.0.0 to 127.127.255.255.
pub fn address_of(number: u32) -> Ipv4Addr {
    let [_, high, middle, low] = number.to_be_bytes();
    Ipv4Addr::new(127, 64 | high, middle, low)
}

/// The number that [`address_of`] put into an address.
pub fn number_of(address: Ipv4Addr) -> u32 {
    let [_, high, middle, low] = address.octets();
    u32::from_be_bytes([0, high & 63, middle, low])
}

/// Numbers of exchanges are below this.
pub const NUMBERS: u32 = 1 << 22;

/// Connects from the address that tells the number.
pub fn connect(number: u32, to: SocketAddrV4, mode: Mode, options: &Options) -> Result<TcpStream> {
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, mode.flags(), None)?;
    rustix::net::bind(&socket, &SocketAddrV4::new(address_of(number), 0)).context("bind")?;
    set(&socket, options)?;
    match rustix::net::connect(&socket, &to) {
        Ok(()) => {}
        Err(Errno::INPROGRESS) => {
            wait(&socket, PollFlags::OUT).context("connect")?;
            sockopt::socket_error(&socket)?.map_err(|error| anyhow::anyhow!("connect: {error}"))?;
        }
        Err(error) => return Err(error).context("connect"),
    }
    Ok(TcpStream::from(socket))
}

/// As many as the kernel allows by itself: a thousand clients may connect at once.
const BACKLOG: i32 = 4_096;

/// Listens on a port of 127.0.0.1.
pub fn listen(port: u16) -> Result<TcpListener> {
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)).context("bind")?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(TcpListener::from(socket))
}

/// Accepts a connection, and says which number its client plays; a probe whether somebody listens plays none.
pub fn accept(listener: &TcpListener, mode: Mode) -> Result<(TcpStream, Option<u32>)> {
    // The address comes with the call: a connection that was reset meanwhile has none any more.
    let (socket, peer) = rustix::net::acceptfrom_with(listener, mode.flags())?;
    let peer = SocketAddrV4::try_from(peer.context("a peer without an address")?)?;
    let number = (*peer.ip() != Ipv4Addr::LOCALHOST).then(|| number_of(*peer.ip()));
    Ok((TcpStream::from(socket), number))
}

/// Sets what the application of this exchange sets.
pub fn set(socket: impl AsFd, options: &Options) -> Result<()> {
    let socket = socket.as_fd();
    if options.nodelay {
        sockopt::set_tcp_nodelay(socket, true)?;
    }
    if let Some(bytes) = options.send_buffer {
        sockopt::set_socket_send_buffer_size(socket, bytes)?;
    }
    if let Some(bytes) = options.receive_buffer {
        sockopt::set_socket_recv_buffer_size(socket, bytes)?;
    }
    Ok(())
}

/// Waits for an event; false when nothing came.
pub fn wait(socket: impl AsFd, flags: PollFlags) -> Result<bool, Errno> {
    let socket = socket.as_fd();
    loop {
        match poll(&mut [PollFd::new(&socket, flags)], Some(&PATIENCE)) {
            Ok(events) => return Ok(events > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// One call that sends (some of) `bytes`.
pub fn send(socket: &TcpStream, bytes: &[u8], how: How) -> Result<usize, Errno> {
    match how {
        How::Send => rustix::net::send(socket, bytes, SendFlags::NOSIGNAL),
        How::More => rustix::net::send(socket, bytes, SendFlags::NOSIGNAL | SendFlags::MORE),
        // The runtime ignores SIGPIPE.
        How::Write => rustix::io::write(socket, bytes),
        How::Writev(parts) => rustix::io::writev(socket, &slices(bytes, parts)),
        How::Sendmsg(parts) => rustix::net::sendmsg(
            socket,
            &slices(bytes, parts),
            &mut SendAncillaryBuffer::default(),
            SendFlags::NOSIGNAL,
        ),
        How::Sendfile => {
            let mut from = 0;
            sendfile(socket, file(bytes)?, Some(&mut from), bytes.len())
        }
        How::Splice => spliced(socket, bytes),
    }
}

fn slices(bytes: &[u8], parts: usize) -> Vec<IoSlice<'_>> {
    let size = bytes.len().div_ceil(parts).max(1);
    bytes.chunks(size).map(IoSlice::new).collect()
}

fn file(bytes: &[u8]) -> Result<OwnedFd, Errno> {
    let file = memfd_create("piece", MemfdFlags::CLOEXEC)?;
    let mut rest = bytes;
    while !rest.is_empty() {
        let written = rustix::io::write(&file, rest)?;
        rest = rest.get(written..).unwrap_or_default();
    }
    Ok(file)
}

/// As much as a pipe holds. What the socket does not take is gone with the pipe, and is spliced again by the next call.
fn spliced(socket: &TcpStream, bytes: &[u8]) -> Result<usize, Errno> {
    const PIPE: usize = 65_536;
    let (out, into) = pipe_with(PipeFlags::CLOEXEC)?;
    let bytes = bytes.get(..bytes.len().min(PIPE)).unwrap_or_default();
    let mut from = 0;
    let source = file(bytes)?;
    let piped = splice(source, Some(&mut from), into, None, bytes.len(), SpliceFlags::empty())?;
    splice(out, None, socket, None, piped, SpliceFlags::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_tells_its_number() {
        for number in [0, 1, 255, 256, 65_535, 65_536, NUMBERS - 1] {
            assert_eq!(number_of(address_of(number)), number);
            assert!(address_of(number).is_loopback());
        }
    }
}
