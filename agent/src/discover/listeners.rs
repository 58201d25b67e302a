//! The TCP ports on which a process waits for connections.

use std::collections::HashSet;
use std::fs;

use super::procfs::read_chunks;
use super::ProcRoot;

/// Descriptors looked at.
const DESCRIPTORS: usize = 65_536;
/// What is read of a table at most: some 100,000 connections.
const TABLE_BYTES: usize = 16 << 20;
/// `st` of a listening socket (include/net/tcp_states.h).
const LISTEN: &str = "0A";

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
    let sockets = sockets_of(root, pid);
    if sockets.is_empty() {
        return Vec::new();
    }
    let mut found = HashSet::new();
    for table in ["net/tcp", "net/tcp6"] {
        let mut rest = String::new();
        // A table that cannot be read names nobody.
        let _ = read_chunks(&root.of(pid, table), TABLE_BYTES, |bytes| {
            rest.push_str(&String::from_utf8_lossy(bytes));
            let whole = rest.rfind('\n').map_or(0, |end| end + 1);
            let lines = rest.get(..whole).unwrap_or_default();
            let ports = lines.lines().filter_map(listening);
            found.extend(ports.filter(|(_, inode)| sockets.contains(inode)).map(|(port, _)| port));
            let is_past = lines.lines().any(|line| !is_heading(line) && listening(line).is_none());
            rest.drain(..whole);
            if is_past {
                std::ops::ControlFlow::Break(())
            } else {
                std::ops::ControlFlow::Continue(())
            }
        });
    }
    let mut found: Vec<Listener> = found.into_iter().map(|port| Listener { netns, port }).collect();
    found.sort_unstable_by_key(|listener| listener.port);
    found
}

fn netns_of(root: &ProcRoot, pid: u32) -> Option<u32> {
    let link = fs::read_link(root.of(pid, "ns/net")).ok()?;
    number_in(link.to_str()?, "net:[")?.try_into().ok()
}

/// Inode numbers of a process's sockets.
fn sockets_of(root: &ProcRoot, pid: u32) -> HashSet<u64> {
    let Ok(entries) = fs::read_dir(root.of(pid, "fd")) else {
        return HashSet::new();
    };
    let links = entries
        .take(DESCRIPTORS)
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    links.filter_map(|link| number_in(link.to_str()?, "socket:[")).collect()
}

/// The number in `name:[number]`.
fn number_in(link: &str, name: &str) -> Option<u64> {
    link.strip_prefix(name)?.strip_suffix(']')?.parse().ok()
}

/// The first line of /proc/net/tcp.
fn is_heading(line: &str) -> bool {
    line.trim_start().starts_with("sl ")
}

/// (port, inode) of a line of /proc/net/tcp that is a listening socket (net/ipv4/tcp_ipv4.c, get_tcp4_sock).
fn listening(line: &str) -> Option<(u16, u64)> {
    let mut words = line.split_ascii_whitespace();
    let local = words.nth(1)?;
    let state = words.nth(1)?;
    if state != LISTEN {
        return None;
    }
    let inode = words.nth(5)?.parse().ok()?;
    let (_, port) = local.rsplit_once(':')?;
    Some((u16::from_str_radix(port, 16).ok()?, inode))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_line_of_the_table_is_read() {
        let line =
            "   3: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 123456 1 \
                    0000000000000000 100 0 0 10 0";
        assert_eq!(listening(line), Some((8080, 123_456)));
        assert_eq!(listening(&line.replace(" 0A ", " 01 ")), None);
        assert!(is_heading("  sl  local_address rem_address   st tx_queue") && !is_heading(line));
        assert_eq!(listening("  sl  local_address rem_address   st tx_queue"), None);
    }

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
