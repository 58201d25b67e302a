//! Where a peer is: on this node, near it, or outside. Decides between a root and an unknown parent (contract.md,
//! "Spans").

use std::collections::HashSet;
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use foldhash::fast::RandomState;
use spanwire_common::abi::{family, ExchangeRecord};

use super::recent::{Recent, FOREVER_NS};

/// An address out of a record; IPv4 in IPv6 clothes is IPv4. `None` for unix sockets.
pub fn address(of_family: u8, bytes: &[u8; 16]) -> Option<IpAddr> {
    match of_family {
        family::INET => Some(IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]))),
        family::INET6 => Some(Ipv6Addr::from(*bytes).to_canonical()),
        _ => None,
    }
}

/// Where an address is, seen from this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// This node.
    Node,
    /// Another host, inside the local ranges.
    Near,
    /// Outside the local ranges.
    Outside,
}

/// This node's addresses, and the ranges that count as local beside the well-known ones.
#[derive(Clone, Debug, Default)]
pub struct LocalAddrs {
    /// Addresses of this node in every network namespace.
    pub addresses: HashSet<IpAddr>,
    /// More local ranges (address, prefix length): a cluster's pods may have public addresses.
    pub ranges: Vec<(IpAddr, u8)>,
}

impl LocalAddrs {
    /// Where `address` is.
    pub fn place(&self, address: IpAddr) -> Place {
        if address.is_loopback() || address.is_unspecified() || self.addresses.contains(&address) {
            Place::Node
        } else if well_known_local(address) || self.ranges.iter().any(|range| within(address, *range)) {
            Place::Near
        } else {
            Place::Outside
        }
    }
}

/// Private (RFC 1918), unique local (RFC 4193) and link-local (RFC 3927, RFC 4291) ranges.
fn well_known_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

fn within(address: IpAddr, (network, prefix): (IpAddr, u8)) -> bool {
    match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(n)) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(prefix.into())).unwrap_or(0);
            (a.to_bits() ^ n.to_bits()) & mask == 0
        }
        (IpAddr::V6(a), IpAddr::V6(n)) => {
            let mask = u128::MAX
                .checked_shl(128_u32.saturating_sub(prefix.into()))
                .unwrap_or(0);
            (a.to_bits() ^ n.to_bits()) & mask == 0
        }
        _ => false,
    }
}

/// What traffic itself tells of this node: sockets that captured clients hold, and addresses that captured sockets are
/// bound to (those of containers are on none of the host's own interfaces).
#[derive(Debug)]
pub(super) struct Seen {
    hasher: RandomState,
    /// Hashes of captured clients' connections (both ends) and of the ends alone of those whose other end is on no
    /// address of this node: what is behind such an address, a server sees under another. A collision (1 in 2^64 per
    /// pair) would turn a root into an unknown. With the process, which may turn out not to be captured.
    clients: Recent<u64, u32>,
    addresses: Recent<IpAddr, ()>,
}

/// A client socket is remembered for so long after its last exchange.
const CLIENT_SPAN_NS: u64 = 60_000_000_000;

impl Seen {
    pub(super) fn new(clients: usize) -> Self {
        Self {
            hasher: RandomState::default(),
            clients: Recent::new(clients, CLIENT_SPAN_NS),
            addresses: Recent::new(4096, FOREVER_NS),
        }
    }

    /// Notes a captured client's connection. A port number is soon used again, for another destination and by another
    /// process, so the client's end alone names it only where the address it called may be translated on the way.
    pub(super) fn client(&mut self, record: &ExchangeRecord, local: &LocalAddrs) {
        if record.family == family::UNIX {
            self.note(self.unix_key(record.cookie), record.pid);
            return;
        }
        let (Some(own), Some(peer)) = (
            address(record.family, &record.local_addr),
            address(record.family, &record.remote_addr),
        ) else {
            return;
        };
        let end = (own, record.local_port);
        let connection = self.key(end, Some((peer, record.remote_port)), record.netns);
        self.note(connection, record.pid);
        if local.place(peer) != Place::Node && !self.on_node(peer) {
            let end = self.key(end, None, record.netns);
            self.note(end, record.pid);
        }
    }

    fn note(&mut self, key: u64, pid: u32) {
        match self.clients.get_mut(&key) {
            Some(known) => *known = pid,
            None => self.clients.insert(key, pid),
        }
    }

    /// Notes the address a captured socket is bound to.
    pub(super) fn bound(&mut self, record: &ExchangeRecord) {
        if let Some(address) = address(record.family, &record.local_addr) {
            self.addresses.entry(address, || ());
        }
    }

    /// True if a client was seen at this server exchange's other end whose process is captured.
    pub(super) fn peer_captured(&self, record: &ExchangeRecord, is_captured: impl Fn(u32) -> bool) -> bool {
        if record.family == family::UNIX {
            let known = self.clients.peek(&self.unix_key(unix_peer(record)));
            return known.is_some_and(|pid| is_captured(*pid));
        }
        let (Some(peer), Some(own)) = (
            address(record.family, &record.remote_addr),
            address(record.family, &record.local_addr),
        ) else {
            return false;
        };
        let end = (peer, record.remote_port);
        let connection = self.key(end, Some((own, record.local_port)), record.netns);
        [connection, self.key(end, None, record.netns)]
            .iter()
            .filter_map(|key| self.clients.peek(key))
            .any(|pid| is_captured(*pid))
    }

    /// True if a captured socket was seen at this address.
    pub(super) fn on_node(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }

    pub(super) fn advance(&mut self, now_ns: u64) {
        self.clients.advance(now_ns);
    }

    fn unix_key(&self, cookie: u64) -> u64 {
        self.hasher.hash_one((family::UNIX, cookie))
    }

    /// Loopback addresses mean another socket in each namespace; others mean the same one in all that reach them.
    fn key(&self, end: (IpAddr, u16), other: Option<(IpAddr, u16)>, netns: u32) -> u64 {
        let netns = if end.0.is_loopback() { netns } else { 0 };
        self.hasher.hash_one((end, other, netns))
    }
}

/// Cookie of the socket at the other end of a unix stream.
fn unix_peer(record: &ExchangeRecord) -> u64 {
    record
        .remote_addr
        .first_chunk()
        .map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::{address, within, IpAddr, LocalAddrs, Place};
    use spanwire_common::abi::family;

    #[test]
    fn places() {
        let mut local = LocalAddrs::default();
        local.addresses.insert("192.168.7.1".parse().unwrap());
        local.addresses.insert("203.0.113.9".parse().unwrap());
        local.ranges.push(("198.51.100.0".parse().unwrap(), 24));
        for (text, place) in [
            ("127.0.0.1", Place::Node),
            ("127.9.9.9", Place::Node),
            ("::1", Place::Node),
            ("192.168.7.1", Place::Node),
            ("203.0.113.9", Place::Node),
            ("192.168.7.2", Place::Near),
            ("10.255.0.1", Place::Near),
            ("172.31.0.1", Place::Near),
            ("172.32.0.1", Place::Outside),
            ("169.254.1.1", Place::Near),
            ("fd00::1", Place::Near),
            ("fe80::1", Place::Near),
            ("198.51.100.77", Place::Near),
            ("198.51.101.77", Place::Outside),
            ("203.0.113.10", Place::Outside),
            ("2001:db8::1", Place::Outside),
        ] {
            assert_eq!(local.place(text.parse().unwrap()), place, "{text}");
        }
    }

    #[test]
    fn ranges_of_every_length() {
        let range = |text: &str, prefix| (text.parse::<IpAddr>().unwrap(), prefix);
        assert!(within("8.8.8.8".parse().unwrap(), range("1.1.1.1", 0)));
        assert!(within("1.1.1.1".parse().unwrap(), range("1.1.1.1", 32)));
        assert!(!within("1.1.1.0".parse().unwrap(), range("1.1.1.1", 32)));
        assert!(within("2001:db8::1".parse().unwrap(), range("2001:db8::", 32)));
        assert!(!within("2001:db9::1".parse().unwrap(), range("2001:db8::", 32)));
        assert!(within("2001:db9::1".parse().unwrap(), range("::", 0)));
        assert!(!within("8.8.8.8".parse().unwrap(), range("::", 0)));
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        let mut bytes = [0; 16];
        bytes[10..].copy_from_slice(&[0xff, 0xff, 10, 0, 0, 1]);
        assert_eq!(address(family::INET6, &bytes), Some("10.0.0.1".parse().unwrap()));
        assert_eq!(address(family::UNIX, &bytes), None);
    }
}
