//! Whose requests are rewritten, and where to: the configuration's `propagate` section in the form the kernel side decides
//! by. What a message's head allows is decided there (`agent-ebpf/src/rewrite.rs`).

pub mod modes;

use std::net::IpAddr;

pub use self::modes::{Modes, Reason};
use spanwire_common::abi::{self, process_flag, PortValue, ProcessClass, Settings};

use crate::config::{AddressRange, Capture, Config, ProcessFacts, ProcessMasks, SelectorRules, Switch};
use crate::sys::rewrite::Reach;

/// Ports of protocols that HTTP never shares them with: TLS, and those in which the server speaks first. (IANA's names:
/// ftp, ssh, telnet, smtp, domain, pop3, imap, https, smtps, submission, ldaps, domain-s, ftps, imaps, pop3s, ms-sql-s, oracle,
/// zookeeper, mysql, ms-wbt-server, postgresql, amqps, amqp, vnc, redis, kubernetes' API, irc, https-alt, kafka, memcache,
/// mongodb.)
const SPARED_PORTS: [u16; 33] = [
    21, 22, 23, 25, 53, 110, 143, 443, 465, 587, 636, 853, 990, 993, 995, 1433, 1521, 2181, 3306, 3389, 5432, 5671,
    5672, 5900, 6379, 6443, 6667, 8443, 9092, 9093, 11_211, 27_017, 33_060,
];

/// What the configuration asks for.
#[derive(Clone, Debug)]
pub struct Policy {
    enabled: Switch,
    selectors: SelectorRules,
    destinations: Vec<AddressRange>,
}

impl Policy {
    /// Of a whole configuration.
    pub fn new(config: &Config) -> Self {
        let propagate = &config.propagate;
        Self {
            enabled: propagate.enabled,
            selectors: SelectorRules::compile(&Capture {
                include: propagate.include.clone(),
                exclude: propagate.exclude.clone(),
                ..Capture::default()
            }),
            destinations: config.local_ranges.0.clone(),
        }
    }

    /// Anything may be rewritten at all.
    pub fn is_on(&self) -> bool {
        self.enabled != Switch::Off
    }

    /// Where to.
    pub fn reach(&self) -> Reach {
        Reach {
            destinations: self.destinations.iter().map(range_of).collect(),
            spared_ports: SPARED_PORTS.to_vec(),
        }
    }

    /// Which items of `propagate.include` and `propagate.exclude` hold for a process.
    pub fn masks(&self, facts: &ProcessFacts) -> ProcessMasks {
        self.selectors.process_masks(facts)
    }

    /// Bits of [`process_flag`] for a process of this class.
    pub fn flags(&self, class: ProcessClass) -> u8 {
        if self.is_on() && class != ProcessClass::Unclassified {
            process_flag::REWRITES
        } else {
            0
        }
    }

    /// Adds the ports that the items name to those of `capture`.
    pub fn add_ports(&self, ports: &mut Vec<(u16, PortValue)>) {
        for (port, value) in self.selectors.ports() {
            let (propagate_include, propagate_exclude) = (value.include, value.exclude);
            let known = ports.iter().position(|(named, _)| *named == port);
            let at = known.unwrap_or_else(|| {
                ports.push((port, PortValue::default()));
                ports.len() - 1
            });
            ports[at].1.propagate_include = propagate_include;
            ports[at].1.propagate_exclude = propagate_exclude;
        }
    }

    /// Adds the items that name no port.
    pub fn add_settings(&self, settings: &mut Settings) {
        settings.propagate_include_any_port = self.selectors.include_any_port();
        settings.propagate_exclude_any_port = self.selectors.exclude_any_port();
    }
}

/// A range as the kernel side compares it.
fn range_of(range: &AddressRange) -> abi::AddressRange {
    let (network, prefix_bits) = range.parts();
    let (address, prefix_bits) = match network {
        IpAddr::V4(v4) => (v4.to_ipv6_mapped(), u32::from(prefix_bits) + 96),
        IpAddr::V6(v6) => (v6, u32::from(prefix_bits)),
    };
    let ones = |bits: u32| u128::MAX.checked_shl(128 - bits).unwrap_or(0);
    abi::AddressRange {
        address: words(address.octets()),
        mask: words(ones(prefix_bits).to_be_bytes()),
        used: 1,
    }
}

fn words(bytes: [u8; 16]) -> [u64; 2] {
    let whole = u128::from_le_bytes(bytes);
    [whole as u64, (whole >> 64) as u64]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;

    /// What `agent-ebpf/src/enrol.rs` computes.
    fn is_in(range: &abi::AddressRange, address: IpAddr) -> bool {
        let octets = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let differs: Vec<u64> = (0..2)
            .map(|nth| (words(octets)[nth] ^ range.address[nth]) & range.mask[nth])
            .collect();
        differs == [0, 0]
    }

    #[test]
    fn ranges_hold_what_the_configuration_says() {
        for (range, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("192.168.7.0/25", "192.168.7.127", "192.168.7.128"),
            ("::1/128", "::1", "::2"),
            ("fc00::/7", "fdff::1", "fe00::1"),
            ("0.0.0.0/0", "1.2.3.4", "2001:db8::1"),
        ] {
            let parsed = AddressRange::parse(range).unwrap();
            let range = range_of(&parsed);
            assert!(is_in(&range, inside.parse().unwrap()), "{parsed:?} {inside}");
            assert!(!is_in(&range, outside.parse().unwrap()), "{parsed:?} {outside}");
        }
        let everything = range_of(&AddressRange::parse("::/0").unwrap());
        assert!(is_in(&everything, "1.2.3.4".parse().unwrap()));
    }

    #[test]
    fn ports_of_both_sections_are_one_table() {
        let config = Config::from_yaml(
            "f",
            "propagate:\n  include: [{port: 80}, {port: 81}]\n  exclude: [{port: 99}]\n",
        );
        let mut ports = vec![(
            81,
            PortValue {
                include: 4,
                ..PortValue::default()
            },
        )];
        Policy::new(&config.unwrap()).add_ports(&mut ports);
        let of = |port| ports.iter().find(|(named, _)| *named == port).unwrap().1;
        assert_eq!((of(81).include, of(81).propagate_include), (4, 2));
        assert_eq!((of(80).include, of(80).propagate_include), (0, 1));
        assert_eq!(of(99).propagate_exclude, 1);
    }

    #[test]
    fn nothing_is_rewritten_where_it_is_off() {
        let config = Config::from_yaml("f", "propagate: {enabled: false}\n").unwrap();
        let policy = Policy::new(&config);
        assert!(!policy.is_on());
        assert_eq!(policy.flags(ProcessClass::ThreadPerRequest), 0);
        let policy = Policy::new(&Config::default());
        assert_eq!(policy.flags(ProcessClass::ThreadPerRequest), process_flag::REWRITES);
        assert_eq!(policy.flags(ProcessClass::Unclassified), 0);
    }
}
