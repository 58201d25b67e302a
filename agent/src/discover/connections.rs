//! The TCP connections that a process has made, and still has.

use std::collections::HashSet;
use std::ops::ControlFlow;

use super::sockets::{descriptors, rows_of, Row};
use super::ProcRoot;

/// Connections named of one process.
const CONNECTIONS: usize = 4_096;

/// Descriptors, in the process `pid`, of the established connections it has made: those whose own port nobody listens on.
/// Empty where they cannot be read.
pub fn outgoing(root: &ProcRoot, pid: u32) -> Vec<i32> {
    let sockets = descriptors(root, pid);
    if sockets.is_empty() {
        return Vec::new();
    }
    let mut listening = HashSet::new();
    let mut found = Vec::new();
    rows_of(root, pid, |row: Row| {
        if row.listens {
            listening.insert(row.local_port);
        } else if let Some(descriptor) = sockets.get(&row.inode).filter(|_| row.is_established) {
            found.push((row.local_port, *descriptor));
        }
        ControlFlow::Continue(())
    });
    let made = found.into_iter().filter(|(port, _)| !listening.contains(port));
    made.map(|(_, descriptor)| descriptor).take(CONNECTIONS).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    #[test]
    fn connections_made_are_told_from_connections_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let made = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (taken, _) = listener.accept().unwrap();
        let found = outgoing(&ProcRoot::default(), std::process::id());
        assert!(found.contains(&made.as_raw_fd()), "{found:?}");
        assert!(!found.contains(&taken.as_raw_fd()), "{found:?}");
        assert!(!found.contains(&listener.as_raw_fd()), "{found:?}");
    }
}
