//! This node's own addresses, from /proc/net of the agent's network namespace.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

/// Addresses the kernel delivers locally: `LOCAL` entries of fib_trie, and the lines of if_inet6. What cannot be read
/// is left out: a peer at such an address then counts as another host's, which makes a parent unknown, never wrong.
pub fn local_addresses(proc_net: &Path) -> HashSet<IpAddr> {
    let read = |name: &str| std::fs::read_to_string(proc_net.join(name)).unwrap_or_default();
    let mut found: HashSet<IpAddr> = v4(&read("fib_trie")).map(IpAddr::V4).collect();
    found.extend(v6(&read("if_inet6")).map(IpAddr::V6));
    found
}

fn v4(trie: &str) -> impl Iterator<Item = Ipv4Addr> + '_ {
    let mut last = None;
    trie.lines().filter_map(move |line| {
        let line = line.trim_start();
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.trim().parse::<Ipv4Addr>().ok();
            return None;
        }
        line.starts_with("/32 host LOCAL").then_some(last).flatten()
    })
}

fn v6(table: &str) -> impl Iterator<Item = Ipv6Addr> + '_ {
    let address = |line: &str| {
        u128::from_str_radix(line.split_whitespace().next()?, 16)
            .ok()
            .map(Ipv6Addr::from)
    };
    table.lines().filter_map(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_local_entries_only() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     |-- 10.1.2.3\n        /32 host LOCAL\n     |-- 10.1.2.255\n        /32 link BROADCAST\n";
        assert_eq!(v4(trie).collect::<Vec<_>>(), [Ipv4Addr::new(10, 1, 2, 3)]);
        let table = "00000000000000000000000000000001 01 80 10 80       lo\nfe80000000000000000000000000abcd 02 40 20 80 eth0\n";
        assert_eq!(v6(table).count(), 2);
    }

    #[test]
    fn this_machine_has_loopback() {
        assert!(local_addresses(Path::new("/proc/net")).contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }
}
