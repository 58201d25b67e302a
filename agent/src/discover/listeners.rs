//! The TCP ports on which a process waits for connections.

use std::collections::HashSet;
use std::fs;
use std::ops::ControlFlow;

use super::sockets::{descriptors, number_in, rows_of};
use super::ProcRoot;

/// A socket that waits for connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Listener {
    /// Inode number of its network namespace.
    pub netns: u32,
    pub port: u16,
}

/// The listening sockets of `pid`, without doubles. The kernel names them before any connection (`tcp_seq_start`), so that is
/// all that is read of its tables.
///
/// Empty where they cannot be read.
pub fn listeners(root: &ProcRoot, pid: u32) -> Vec<Listener> {
    let Some(netns) = netns_of(root, pid) else {
        return Vec::new();
    };
    let sockets = descriptors(root, pid);
    if sockets.is_empty() {
        return Vec::new();
    }
    let mut found = HashSet::new();
    rows_of(root, pid, |row| {
        if !row.listens {
            return ControlFlow::Break(());
        }
        if sockets.contains_key(&row.inode) {
            found.insert(row.local_port);
        }
        ControlFlow::Continue(())
    });
    let mut found: Vec<Listener> = found.into_iter().map(|port| Listener { netns, port }).collect();
    found.sort_unstable_by_key(|listener| listener.port);
    found
}

fn netns_of(root: &ProcRoot, pid: u32) -> Option<u32> {
    let link = fs::read_link(root.of(pid, "ns/net")).ok()?;
    number_in(link.to_str()?, "net:[")?.try_into().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn this_process_is_seen_listening() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let pid = std::process::id();
        assert!(listeners(&ProcRoot::default(), pid)
            .iter()
            .any(|found| found.port == port));
        drop(listener);
        assert!(!listeners(&ProcRoot::default(), pid)
            .iter()
            .any(|found| found.port == port));
    }
}
