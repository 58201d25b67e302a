//! This node's own addresses: those of the agent's network namespace, of the node's first process, and of every namespace
//! in which a process showed traffic. In a pod the first is the pod's alone.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use super::ProcRoot;

/// Network namespaces remembered; of a peer in any other the place is not known.
const NAMESPACES: usize = 1_024;
/// Processes remembered of each: its addresses are read again by way of one that still runs.
const PIDS: usize = 8;
/// What is read of a table at most.
const TABLE_BYTES: u64 = 4 << 20;

/// See the module.
#[derive(Debug)]
pub struct NodeAddresses {
    root: ProcRoot,
    own: HashSet<IpAddr>,
    /// By what `/proc/PID/ns/net` says.
    namespaces: HashMap<Box<str>, Namespace>,
}

#[derive(Debug, Default)]
struct Namespace {
    pids: Vec<u32>,
    addresses: HashSet<IpAddr>,
}

/// The node's first process. Without the node's process ids it is the container's own, and tells nothing new.
const FIRST_PID: u32 = 1;

impl NodeAddresses {
    /// Reads those of the agent itself and of the node.
    pub fn new(root: ProcRoot) -> Self {
        let own = local_addresses(&root.own("net"));
        let mut addresses = Self {
            root,
            own,
            namespaces: HashMap::new(),
        };
        addresses.meet(FIRST_PID);
        addresses
    }

    /// A process was seen; true if its namespace brought new addresses. Read once for each namespace.
    pub fn meet(&mut self, pid: u32) -> bool {
        let Some(name) = self.namespace_of(pid) else {
            return false;
        };
        if let Some(known) = self.namespaces.get_mut(&name) {
            if known.pids.len() < PIDS && !known.pids.contains(&pid) {
                known.pids.push(pid);
            }
            return false;
        }
        if self.namespaces.len() >= NAMESPACES {
            return false;
        }
        let before = self.all();
        let addresses = local_addresses(&self.root.of(pid, "net"));
        let is_new = !addresses.is_subset(&before);
        let pids = vec![pid];
        self.namespaces.insert(name, Namespace { pids, addresses });
        is_new
    }

    /// Reads them again: interfaces and namespaces come and go. True if anything changed.
    pub fn refresh(&mut self) -> bool {
        let before = self.all();
        self.own = local_addresses(&self.root.own("net"));
        let names: Vec<Box<str>> = self.namespaces.keys().cloned().collect();
        for name in names {
            let pids = self.namespaces.get(&name).map(|known| known.pids.clone());
            let is_there = |pid: &u32| self.namespace_of(*pid).as_ref() == Some(&name);
            let living: Vec<u32> = pids.unwrap_or_default().into_iter().filter(is_there).collect();
            match living.first() {
                Some(pid) => {
                    let addresses = local_addresses(&self.root.of(*pid, "net"));
                    let known = Namespace {
                        pids: living,
                        addresses,
                    };
                    self.namespaces.insert(name, known);
                }
                None => {
                    self.namespaces.remove(&name);
                }
            }
        }
        self.all() != before
    }

    /// Every address known to be this node's.
    pub fn all(&self) -> HashSet<IpAddr> {
        let of_namespaces = self.namespaces.values().flat_map(|known| &known.addresses);
        self.own.iter().chain(of_namespaces).copied().collect()
    }

    fn namespace_of(&self, pid: u32) -> Option<Box<str>> {
        let link = std::fs::read_link(self.root.of(pid, "ns/net"));
        match link {
            Ok(link) => Some(link.to_string_lossy().into()),
            // Without CAP_SYS_PTRACE the links of others are hidden, their tables are not.
            Err(_) if pid == FIRST_PID => Some("the node's".into()),
            Err(_) => None,
        }
    }
}

/// Addresses the kernel delivers locally: `LOCAL` entries of fib_trie, and the lines of if_inet6. What cannot be read
/// is left out: a peer at such an address then counts as another host's, which makes a parent unknown, never wrong.
fn local_addresses(net: &Path) -> HashSet<IpAddr> {
    let read = |name: &str| {
        let mut text = String::new();
        let file = File::open(net.join(name)).map(|file| file.take(TABLE_BYTES));
        // What was read before an error still holds.
        let _ = file.and_then(|mut file| file.read_to_string(&mut text));
        text
    };
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
    #![allow(clippy::unwrap_used, reason = "test")]
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
        let mut here = NodeAddresses::new(ProcRoot::default());
        assert!(here.all().contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
        assert!(!here.meet(std::process::id()), "its namespace is known already");
        assert!(!here.meet(u32::MAX), "no such process");
    }

    /// A process in a namespace with these addresses.
    fn process(root: &Path, name: &str, namespace: &str, v4: &str) {
        let folder = root.join(name);
        std::fs::create_dir_all(folder.join("net")).unwrap();
        std::fs::create_dir_all(folder.join("ns")).unwrap();
        let link = folder.join("ns/net");
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(namespace, link).unwrap();
        let table = format!("Local:\n     |-- {v4}\n        /32 host LOCAL\n");
        std::fs::write(folder.join("net/fib_trie"), table).unwrap();
    }

    fn shown(addresses: &NodeAddresses) -> Vec<String> {
        let mut shown: Vec<String> = addresses.all().iter().map(ToString::to_string).collect();
        shown.sort();
        shown
    }

    #[test]
    fn in_a_pod_the_node_and_the_containers_are_local_too() {
        let proc = tempfile::tempdir().unwrap();
        let root = proc.path();
        process(root, "self", "net:[3]", "10.244.0.9");
        process(root, "1", "net:[1]", "192.0.2.10");
        process(root, "70", "net:[2]", "10.244.0.7");
        process(root, "71", "net:[2]", "10.244.0.7");
        let mut addresses = NodeAddresses::new(ProcRoot::at(root));
        assert_eq!(shown(&addresses), ["10.244.0.9", "192.0.2.10"]);
        assert!(addresses.meet(70));
        assert!(!addresses.meet(71), "read once for each namespace");
        assert_eq!(shown(&addresses), ["10.244.0.7", "10.244.0.9", "192.0.2.10"]);
        assert!(!addresses.refresh());

        // The node gets another address; the first process of the container ends, and its id is used elsewhere.
        process(root, "1", "net:[1]", "192.0.2.11");
        process(root, "70", "net:[1]", "192.0.2.11");
        process(root, "71", "net:[2]", "10.244.0.8");
        assert!(addresses.refresh());
        assert_eq!(shown(&addresses), ["10.244.0.8", "10.244.0.9", "192.0.2.11"]);
        std::fs::remove_dir_all(root.join("71")).unwrap();
        assert!(addresses.refresh());
        assert_eq!(shown(&addresses), ["10.244.0.9", "192.0.2.11"]);
    }

    #[test]
    fn a_node_whose_links_are_hidden_shows_its_tables() {
        let proc = tempfile::tempdir().unwrap();
        process(proc.path(), "1", "net:[1]", "192.0.2.10");
        std::fs::remove_file(proc.path().join("1/ns/net")).unwrap();
        let mut addresses = NodeAddresses::new(ProcRoot::at(proc.path()));
        assert!(!addresses.refresh());
        assert_eq!(shown(&addresses), ["192.0.2.10"]);
    }
}
