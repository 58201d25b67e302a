//! Addresses as text, and how much of a client's may leave.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use spanwire_common::abi::family;

use super::recent::Recent;

/// `capture.client_address`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAddress {
    /// As it is.
    Full,
    /// Private ranges whole, others cut to /24 (IPv4) or /48 (IPv6).
    #[default]
    Prefix,
    /// Not at all.
    Off,
}

/// The address of a record, network order; `None` for unix sockets. IPv4 inside IPv6 is IPv4.
pub(super) fn address(kind: u8, bytes: [u8; 16]) -> Option<IpAddr> {
    match kind {
        family::INET => {
            let [a, b, c, d, ..] = bytes;
            Some(Ipv4Addr::new(a, b, c, d).into())
        }
        family::INET6 => Some(IpAddr::from(Ipv6Addr::from(bytes)).to_canonical()),
        _ => None,
    }
}

impl ClientAddress {
    /// What of a client's address may be shown.
    pub(super) fn reduce(self, address: IpAddr) -> Option<IpAddr> {
        match self {
            Self::Full => Some(address),
            Self::Off => None,
            Self::Prefix if is_private(address) => Some(address),
            Self::Prefix => Some(match address {
                IpAddr::V4(v4) => {
                    let [a, b, c, _] = v4.octets();
                    Ipv4Addr::new(a, b, c, 0).into()
                }
                IpAddr::V6(v6) => {
                    let [a, b, c, ..] = v6.segments();
                    Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0).into()
                }
            }),
        }
    }
}

/// RFC 1918, loopback, link-local and unique local: addresses that name nobody outside.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_private() || v4.is_loopback() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

const TEXTS: usize = 2048;

/// Addresses written once and shared.
pub(super) struct AddressTexts {
    recent: Recent<IpAddr, Arc<str>>,
}

impl AddressTexts {
    pub(super) fn new() -> Self {
        Self {
            recent: Recent::new(TEXTS),
        }
    }

    pub(super) fn text(&mut self, address: IpAddr) -> Arc<str> {
        if let Some(text) = self.recent.get(address) {
            return Arc::clone(text);
        }
        Arc::clone(self.recent.insert(address, address.to_string().into()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;

    #[test]
    fn private_ranges_stay_whole_and_others_are_cut() {
        for (whole, cut) in [
            ("10.1.2.3", "10.1.2.3"),
            ("172.16.9.9", "172.16.9.9"),
            ("192.168.1.77", "192.168.1.77"),
            ("127.0.0.1", "127.0.0.1"),
            ("169.254.1.2", "169.254.1.2"),
            ("203.0.113.77", "203.0.113.0"),
            ("100.64.1.2", "100.64.1.0"),
            ("172.32.0.9", "172.32.0.0"),
            ("::1", "::1"),
            ("fd00::1:2", "fd00::1:2"),
            ("fe80::1", "fe80::1"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1::"),
        ] {
            let whole: IpAddr = whole.parse().unwrap();
            assert_eq!(ClientAddress::Prefix.reduce(whole), Some(cut.parse().unwrap()));
            assert_eq!(ClientAddress::Full.reduce(whole), Some(whole));
            assert_eq!(ClientAddress::Off.reduce(whole), None);
        }
    }

    #[test]
    fn families() {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&[10, 0, 0, 1]);
        assert_eq!(address(family::INET, bytes).unwrap().to_string(), "10.0.0.1");
        assert_eq!(address(family::UNIX, bytes), None);
        assert_eq!(address(0, bytes), None);
        let mapped = "::ffff:10.0.0.1".parse::<Ipv6Addr>().unwrap().octets();
        assert_eq!(address(family::INET6, mapped).unwrap().to_string(), "10.0.0.1");
        assert_eq!(
            address(family::INET6, Ipv6Addr::LOCALHOST.octets())
                .unwrap()
                .to_string(),
            "::1"
        );
    }

    #[test]
    fn texts_are_shared() {
        let mut texts = AddressTexts::new();
        let address = "10.0.0.1".parse().unwrap();
        assert!(Arc::ptr_eq(&texts.text(address), &texts.text(address)));
    }
}
