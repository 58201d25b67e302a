//! Rows about receiving: what a socket that is in a sockmap for the sake of what it sends still does with what it gets.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use super::sockets::{
    memory_file, pipe, queued_bytes, reset as reset_connection, send, send_file, splice as move_bytes, wait_for, Pair,
    PATIENCE,
};
use super::waiting::{Interrupter, Waiting};
use super::Seen;

/// An acknowledgement is put off for some 40 ms.
const LATE: Duration = Duration::from_millis(60);

const BYTES: [u8; 5] = *b"bytes";

/// FIONREAD with bytes queued: all of them, then what is left of them.
pub(super) fn fionread(mut pair: Pair) -> io::Result<Seen> {
    pair.far.write_all(&BYTES)?;
    wait_for(&pair.near, libc::POLLIN, PATIENCE)?;
    let all = queued_bytes(&pair.near)?;
    pair.near.read_exact(&mut [0; 2])?;
    let rest = queued_bytes(&pair.near)?;
    let told = format!("FIONREAD says {all} where 5 bytes are queued, {rest} where 3 are");
    Ok(if (all, rest) == (5, 3) { Ok(told) } else { Err(told) })
}

/// `recv` under the peer's reset.
pub(super) fn reset(pair: Pair) -> io::Result<Seen> {
    let waiting = Waiting::begin(Arc::new(pair.near))?;
    reset_connection(pair.far)?;
    Ok(match waiting.result(PATIENCE) {
        Some(Err(error)) if error.kind() == ErrorKind::ConnectionReset => Ok("ECONNRESET after a reset".into()),
        other => Err(format!("{} after a reset", described(other))),
    })
}

/// `recv` under a signal.
pub(super) fn signal(pair: Pair) -> io::Result<Seen> {
    let waiting = Waiting::begin(Arc::new(pair.near))?;
    let interrupter = Interrupter::install()?;
    let result = waiting.after(|| interrupter.interrupt(waiting.tid))?;
    goes_on(&waiting, result, pair.far, "a signal")
}

/// `recv` while another thread ends the sending side.
pub(super) fn shutdown(pair: Pair) -> io::Result<Seen> {
    let near = Arc::new(pair.near);
    let waiting = Waiting::begin(Arc::clone(&near))?;
    let result = waiting.after(|| near.shutdown(Shutdown::Write))?;
    goes_on(&waiting, result, pair.far, "shutdown(SHUT_WR)")
}

/// `recv` while the peer takes what filled the socket's buffer.
pub(super) fn write_space(mut pair: Pair) -> io::Result<Seen> {
    let mut sent = 0;
    loop {
        match send(&pair.near, &[0; 1_024], libc::MSG_DONTWAIT) {
            Ok(bytes) => sent += bytes,
            // Acknowledgements that come late still make room; the peer has to have no window left.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if wait_for(&pair.near, libc::POLLOUT, LATE)? == 0 {
                    break;
                }
            }
            Err(error) => return Err(error),
        }
    }
    let near = Arc::new(pair.near);
    let waiting = Waiting::begin(Arc::clone(&near))?;
    let result = waiting.after(|| {
        pair.far.read_exact(&mut vec![0; sent])?;
        if wait_for(&near, libc::POLLOUT, PATIENCE)? & libc::POLLOUT == 0 {
            return Err(io::Error::other("there is no room to send after everything was read"));
        }
        Ok(())
    })?;
    goes_on(&waiting, result, pair.far, "room to send")
}

/// Something has come over a call that it should not end; what ends it is a byte.
fn goes_on(
    waiting: &Waiting,
    mut result: Option<io::Result<usize>>,
    mut far: TcpStream,
    after: &str,
) -> io::Result<Seen> {
    if result.is_none() {
        far.write_all(b".")?;
        result = waiting.result(PATIENCE);
        if matches!(result, Some(Ok(1))) {
            return Ok(Ok(format!("goes on waiting after {after}")));
        }
    }
    Ok(Err(format!("{} after {after}", described(result))))
}

/// What a `recv` returned, for people.
pub(super) fn described(result: Option<io::Result<usize>>) -> String {
    match result {
        None => "recv does not return".into(),
        Some(Ok(0)) => "recv returns an end of stream".into(),
        Some(Ok(bytes)) => format!("recv returns {bytes} bytes"),
        Some(Err(error)) => match error.raw_os_error() {
            Some(libc::EAGAIN) => "recv returns EAGAIN".into(),
            Some(libc::EINTR) => "recv returns EINTR".into(),
            Some(libc::ECONNRESET) => "recv returns ECONNRESET".into(),
            _ => format!("recv returns {error}"),
        },
    }
}

/// What an event loop sees: nothing yet, bytes, a peek at them, the end of the stream, a reset.
pub(super) fn non_blocking(mut pair: Pair) -> io::Result<Seen> {
    pair.near.set_nonblocking(true)?;
    let mut buffer = [0; 64];
    let mut wrong = Vec::new();
    let early = pair.near.read(&mut buffer);
    if !matches!(&early, Err(error) if error.kind() == ErrorKind::WouldBlock) {
        wrong.push(format!("{} where nothing is queued", described(Some(early))));
    }
    pair.far.write_all(&BYTES)?;
    if wait_for(&pair.near, libc::POLLIN, PATIENCE)? & libc::POLLIN == 0 {
        wrong.push("poll does not tell of bytes".into());
    }
    for (call, result) in [
        ("peek", pair.near.peek(&mut buffer)),
        ("recv", pair.near.read(&mut buffer)),
    ] {
        if !matches!(result, Ok(5)) || buffer[..5] != BYTES {
            wrong.push(format!("{call}: {} of 5 bytes", described(Some(result))));
        }
    }
    reset_connection(pair.far)?;
    if wait_for(&pair.near, libc::POLLIN, PATIENCE)? & (libc::POLLHUP | libc::POLLERR) == 0 {
        wrong.push("poll does not tell of a reset".into());
    }
    let end = pair.near.read(&mut buffer);
    if !matches!(&end, Err(error) if error.kind() == ErrorKind::ConnectionReset) {
        wrong.push(format!("{} after a reset", described(Some(end))));
    }
    Ok(if wrong.is_empty() {
        Ok("bytes, peek and reset as poll and recv tell them".into())
    } else {
        Err(wrong.join("; "))
    })
}

/// Through a pipe out of the socket and back into it, and from a file.
pub(super) fn splice(mut pair: Pair) -> io::Result<Seen> {
    let (read, write) = pipe()?;
    pair.far.write_all(&BYTES)?;
    wait_for(&pair.near, libc::POLLIN, PATIENCE)?;
    let out = move_bytes(pair.near.as_fd(), write.as_fd(), 64)?;
    let back = move_bytes(read.as_fd(), pair.near.as_fd(), out)?;
    let mut echoed = [0; BYTES.len()];
    if out != BYTES.len() || back != out {
        return Ok(Err(format!("splice moved {out} bytes out and {back} bytes in, of 5")));
    }
    pair.far.read_exact(&mut echoed)?;
    if echoed != BYTES {
        return Ok(Err("splice moved other bytes than came".into()));
    }

    let content: Vec<u8> = (0..200_000u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let file = memory_file(&content)?;
    let mut far = pair.far.try_clone()?;
    let reader = std::thread::spawn(move || {
        let mut received = Vec::new();
        far.read_to_end(&mut received).map(|_| received)
    });
    let mut sent = 0;
    while sent < content.len() {
        match send_file(&pair.near, &file, sent, content.len() - sent)? {
            0 => break,
            bytes => sent += bytes,
        }
    }
    pair.near.shutdown(Shutdown::Write)?;
    let received = reader.join().map_err(|_| io::Error::other("the reader has ended"))??;
    if sent != content.len() || received != content {
        return Ok(Err(format!(
            "sendfile sent {sent} of {} bytes, {} arrived{}",
            content.len(),
            received.len(),
            if received.len() == content.len() {
                ", others"
            } else {
                ""
            }
        )));
    }
    pair.far.shutdown(Shutdown::Write)?;
    wait_for(&pair.near, libc::POLLIN, PATIENCE)?;
    let end = move_bytes(pair.near.as_fd(), write.as_fd(), 64)?;
    Ok(if end == 0 {
        Ok("splice both ways, sendfile and the end of the stream, byte for byte".into())
    } else {
        Err(format!("splice moved {end} bytes after the end of the stream"))
    })
}
