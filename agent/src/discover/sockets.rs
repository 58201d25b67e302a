//! A process's sockets, by its descriptors and by the tables of its network namespace.

use std::collections::HashMap;
use std::fs;
use std::ops::ControlFlow;

use super::procfs::read_chunks;
use super::ProcRoot;

/// Descriptors looked at.
const DESCRIPTORS: usize = 65_536;
/// What is read of a table at most: some 100,000 connections.
const TABLE_BYTES: usize = 16 << 20;
/// `st` of a listening socket (include/net/tcp_states.h).
const LISTEN: &str = "0A";
/// ... of a connection.
const ESTABLISHED: &str = "01";

/// A process's sockets by their inode numbers.
pub(super) fn descriptors(root: &ProcRoot, pid: u32) -> HashMap<u64, i32> {
    let Ok(entries) = fs::read_dir(root.of(pid, "fd")) else {
        return HashMap::new();
    };
    let sockets = entries.take(DESCRIPTORS).filter_map(|entry| {
        let entry = entry.ok()?;
        let link = fs::read_link(entry.path()).ok()?;
        let inode = number_in(link.to_str()?, "socket:[")?;
        Some((inode, entry.file_name().to_str()?.parse().ok()?))
    });
    sockets.collect()
}

/// The number in `name:[number]`.
pub(super) fn number_in(link: &str, name: &str) -> Option<u64> {
    link.strip_prefix(name)?.strip_suffix(']')?.parse().ok()
}

/// What is of interest in a line of /proc/net/tcp (net/ipv4/tcp_ipv4.c, get_tcp4_sock).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) local_port: u16,
    pub(super) inode: u64,
    pub(super) listens: bool,
    pub(super) is_established: bool,
}

/// The lines of a process's /proc/net/tcp, then of its /proc/net/tcp6, each until it is told to stop. A table that cannot be
/// read has none.
pub(super) fn rows_of(root: &ProcRoot, pid: u32, mut each: impl FnMut(Row) -> ControlFlow<()>) {
    for table in ["net/tcp", "net/tcp6"] {
        let mut rest = String::new();
        let _ = read_chunks(&root.of(pid, table), TABLE_BYTES, |bytes| {
            rest.push_str(&String::from_utf8_lossy(bytes));
            let whole = rest.rfind('\n').map_or(0, |end| end + 1);
            let lines = rest.get(..whole).unwrap_or_default();
            let told = lines.lines().filter_map(row).try_for_each(&mut each);
            rest.drain(..whole);
            told
        });
    }
}

/// `None`: the heading, or no line of such a table.
fn row(line: &str) -> Option<Row> {
    let mut words = line.split_ascii_whitespace();
    let local = words.nth(1)?;
    let state = words.nth(1)?;
    let inode = words.nth(5)?.parse().ok()?;
    let (_, port) = local.rsplit_once(':')?;
    Some(Row {
        local_port: u16::from_str_radix(port, 16).ok()?,
        inode,
        listens: state == LISTEN,
        is_established: state == ESTABLISHED,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;

    #[test]
    fn a_line_of_the_table_is_read() {
        let line =
            "   3: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 123456 1 \
                    0000000000000000 100 0 0 10 0";
        let listening = Row {
            local_port: 8080,
            inode: 123_456,
            listens: true,
            is_established: false,
        };
        assert_eq!(row(line), Some(listening));
        let established = row(&line.replace(" 0A ", " 01 ")).unwrap();
        assert!(established.is_established && !established.listens);
        assert_eq!(row("  sl  local_address rem_address   st tx_queue"), None);
    }
}
