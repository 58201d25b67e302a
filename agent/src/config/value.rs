//! Durations, sizes and the other small values of a configuration, the command line and the API.
//!
//! Each parser's error says what was expected, as the end of a sentence that begins with the key.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use spanwire_common::abi::KEPT_NAME_BYTES;

/// Units of a duration in nanoseconds, longest first.
const DURATION_UNITS: [(&str, u64); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("ms", 1_000_000),
    ("m", 60_000_000_000),
    ("us", 1_000),
    ("ns", 1),
    ("s", 1_000_000_000),
];

/// Units of a size in bytes; a bare `Mi` is how Kubernetes writes it.
const SIZE_UNITS: [(&str, u64); 13] = [
    ("B", 1),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
];

/// What a duration looks like, for messages.
pub(super) const A_DURATION: &str = "a duration such as 10s, 5ms or 14d";
/// What a size looks like, for messages.
pub(super) const A_SIZE: &str = "a size such as 256MiB or 1GiB";
/// What an address to listen on looks like, for messages.
pub(super) const AN_ADDRESS: &str = "an address and port such as 127.0.0.1:4319";

/// Header names that are credentials by their name; see also [`CREDENTIAL_PARTS`].
const CREDENTIALS: [&str; 6] = [
    "x-api-key",
    "api-key",
    "apikey",
    "x-functions-key",
    "ocp-apim-subscription-key",
    "dpop",
];

/// A header whose name holds one of these is taken for a credential.
const CREDENTIAL_PARTS: [&str; 11] = [
    "authorization",
    "authenticate",
    "cookie",
    "token",
    "secret",
    "passw",
    "credential",
    "api-key",
    "apikey",
    "jwt",
    "session",
];

/// Splits `12ms` into 12 and `ms`, and what follows.
fn amount(text: &str) -> Option<(u64, &str, &str)> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(unit_at);
    let next_at = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
    let (unit, rest) = rest.split_at(next_at);
    Some((digits.parse().ok()?, unit, rest))
}

/// Reads `10s`, `5ms`, `14d`, `1h30m`: whole numbers with a unit (`d h m s ms us ns`), largest unit first.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let read = || {
        let mut total_ns = 0u64;
        let mut last_unit_ns = u64::MAX;
        let mut rest = text;
        loop {
            let (count, unit, after) = amount(rest)?;
            let (_, unit_ns) = DURATION_UNITS.iter().find(|(name, _)| *name == unit)?;
            if *unit_ns >= last_unit_ns {
                return None;
            }
            total_ns = total_ns.checked_add(count.checked_mul(*unit_ns)?)?;
            if after.is_empty() {
                return Some(Duration::from_nanos(total_ns));
            }
            last_unit_ns = *unit_ns;
            rest = after;
        }
    };
    read().ok_or_else(|| format!("expected {A_DURATION}"))
}

/// Reads `256MiB`, `1GiB`, `500MB`, `64Mi` or bytes without a unit.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let read = || {
        let (count, unit, rest) = amount(text)?;
        let unit_bytes = match unit {
            "" => 1,
            _ => SIZE_UNITS.iter().find(|(name, _)| *name == unit)?.1,
        };
        if !rest.is_empty() {
            return None;
        }
        count.checked_mul(unit_bytes)
    };
    read().ok_or_else(|| format!("expected {A_SIZE}"))
}

/// Reads `true` or `false`.
pub(super) fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

/// Reads `127.0.0.1:4319`, `[::1]:4319` or `localhost:4319`.
pub fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    let numeric = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.to_owned(),
    };
    numeric.parse().map_err(|_| format!("expected {AN_ADDRESS}"))
}

/// Reads a port, 1 to 65535.
pub(super) fn parse_port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err("expected a port from 1 to 65535".to_owned()),
    }
}

/// The name of a request header, in lower case: a token of RFC 9110, short enough for the kernel side.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HeaderName(String);

impl HeaderName {
    /// `server-timing` (W3C Server Timing), which responses bear the trace id in by default.
    pub fn server_timing() -> Self {
        Self("server-timing".to_owned())
    }

    /// Reads a name whose values may be kept: credential headers are refused (AC-007).
    pub fn parse_kept(text: &str) -> Result<Self, String> {
        let name = Self::parse(text)?;
        if name.0.len() > KEPT_NAME_BYTES {
            return Err(format!("expected a header name of at most {KEPT_NAME_BYTES} bytes"));
        }
        if name.is_credential() {
            return Err("a header that carries credentials is never kept".to_owned());
        }
        Ok(name)
    }

    /// Reads any valid name.
    pub fn parse(text: &str) -> Result<Self, String> {
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if text.is_empty() || !text.bytes().all(token) {
            return Err("expected a header name such as x-tenant-id".to_owned());
        }
        Ok(Self(text.to_ascii_lowercase()))
    }

    fn is_credential(&self) -> bool {
        CREDENTIALS.contains(&self.0.as_str()) || CREDENTIAL_PARTS.iter().any(|part| self.0.contains(part))
    }

    /// The name, in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for HeaderName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A value that is never shown: `Debug` prints stars.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a value that is never shown.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself, for the request that carries it and for nothing else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// A range of addresses, `10.0.0.0/8` or `fc00::/7`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    network: IpAddr,
    prefix_bits: u8,
}

impl AddressRange {
    /// (network, prefix length).
    pub fn parts(&self) -> (IpAddr, u8) {
        (self.network, self.prefix_bits)
    }

    /// Loopback, private, link-local, shared (RFC 6598) and unique local ranges.
    pub fn private() -> Vec<Self> {
        let v4 = |a, b, c, d, prefix_bits| Self {
            network: IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
            prefix_bits,
        };
        let v6 = |first, last, prefix_bits| Self {
            network: IpAddr::V6(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, last)),
            prefix_bits,
        };
        vec![
            v4(127, 0, 0, 0, 8),
            v4(10, 0, 0, 0, 8),
            v4(172, 16, 0, 0, 12),
            v4(192, 168, 0, 0, 16),
            v4(169, 254, 0, 0, 16),
            v4(100, 64, 0, 0, 10),
            v6(0, 1, 128),
            v6(0xfc00, 0, 7),
            v6(0xfe80, 0, 10),
        ]
    }

    /// Reads `ADDRESS/BITS`, or an address alone.
    pub fn parse(text: &str) -> Result<Self, String> {
        let read = || {
            let (address, bits) = match text.split_once('/') {
                Some((address, bits)) => (address, Some(bits)),
                None => (text, None),
            };
            let network: IpAddr = address.parse().ok()?;
            let widest = if network.is_ipv4() { 32 } else { 128 };
            let prefix_bits = match bits {
                Some(bits) => bits.parse().ok().filter(|bits| *bits <= widest)?,
                None => widest,
            };
            Some(Self { network, prefix_bits })
        };
        read().ok_or_else(|| "expected an address range such as 10.0.0.0/8 or fc00::/7".to_owned())
    }

    /// True for an address inside; an IPv4 address mapped into IPv6 counts as the IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.network, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let differ = network.to_bits() ^ address.to_bits();
                differ.leading_zeros() >= u32::from(self.prefix_bits)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let differ = network.to_bits() ^ address.to_bits();
                differ.leading_zeros() >= u32::from(self.prefix_bits)
            }
            _ => false,
        }
    }
}

impl std::fmt::Display for AddressRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix_bits)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

    use super::*;

    #[test]
    fn durations() {
        assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("5ms"), Ok(Duration::from_millis(5)));
        assert_eq!(parse_duration("14d"), Ok(Duration::from_hours(14 * 24)));
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_mins(90)));
        assert_eq!(parse_duration("0s"), Ok(Duration::ZERO));
        for bad in [
            "",
            "10",
            "s",
            "10 s",
            "-1s",
            "1.5s",
            "1m1h",
            "1s1s",
            "1y",
            "99999999999d",
            "1s ",
            "+1s",
        ] {
            assert_eq!(parse_duration(bad), Err(format!("expected {A_DURATION}")), "{bad}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("1GiB"), Ok(1 << 30));
        assert_eq!(parse_size("256MiB"), Ok(256 << 20));
        assert_eq!(parse_size("64Mi"), Ok(64 << 20));
        assert_eq!(parse_size("5MB"), Ok(5_000_000));
        assert_eq!(parse_size("4096"), Ok(4096));
        for bad in ["", "MiB", "1 GiB", "1gib", "-1", "1.5GiB", "1MiB2", "1K", "99999999TiB"] {
            assert_eq!(parse_size(bad), Err(format!("expected {A_SIZE}")), "{bad}");
        }
    }

    #[test]
    fn addresses_to_listen_on() {
        assert_eq!(parse_listen("127.0.0.1:4319").unwrap().port(), 4319);
        assert!(parse_listen("localhost:1").unwrap().ip().is_loopback());
        assert!(parse_listen("[::1]:80").unwrap().is_ipv6());
        for bad in [
            "4319",
            ":4319",
            "localhost",
            "example.com:80",
            "127.0.0.1:99999",
            "::1:80x",
        ] {
            assert!(parse_listen(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn header_names() {
        assert_eq!(HeaderName::parse_kept("X-Tenant-Id").unwrap().as_str(), "x-tenant-id");
        let refused = "a header that carries credentials is never kept";
        for name in [
            "Authorization",
            "cookie",
            "set-cookie",
            "proxy-authorization",
            "x-api-key",
            "X-Amz-Security-Token",
            "x-csrf-token",
            "x-forwarded-access-token",
            "x-goog-iap-jwt-assertion",
            "x-session-id",
        ] {
            assert_eq!(HeaderName::parse_kept(name), Err(refused.to_owned()), "{name}");
        }
        for bad in ["", "x tenant", "x:y", "é", "x\r\ny"] {
            assert!(HeaderName::parse_kept(bad).is_err(), "{bad}");
        }
        assert!(HeaderName::parse_kept(&"x".repeat(32)).is_ok());
        assert!(HeaderName::parse_kept(&"x".repeat(33)).is_err());
    }

    #[test]
    fn ranges() {
        let ten = AddressRange::parse("10.0.0.0/8").unwrap();
        assert!(ten.contains("10.255.0.1".parse().unwrap()));
        assert!(ten.contains("::ffff:10.1.2.3".parse().unwrap()));
        assert!(!ten.contains("11.0.0.1".parse().unwrap()));
        assert!(!ten.contains("::1".parse().unwrap()));
        assert!(AddressRange::parse("0.0.0.0/0")
            .unwrap()
            .contains("8.8.8.8".parse().unwrap()));
        for bad in ["10.0.0.0/33", "10.0/8", "x", "::/129", "1.2.3.4/", "1.2.3.4/-1"] {
            assert!(AddressRange::parse(bad).is_err(), "{bad}");
        }
        let local = |text: &str| {
            AddressRange::private()
                .iter()
                .any(|r| r.contains(text.parse().unwrap()))
        };
        assert!(local("127.9.9.9") && local("172.31.0.1") && local("fd00::1") && local("::1") && local("fe80::1"));
        assert!(!local("172.32.0.1") && !local("8.8.8.8") && !local("2001:db8::1") && !local("::2"));
    }

    #[test]
    fn secrets_are_not_shown() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "***");
    }

    proptest! {
        #[test]
        fn a_duration_is_its_count_times_its_unit(count in 0u64..100_000, unit in 0usize..7) {
            let (name, unit_ns) = DURATION_UNITS[unit];
            prop_assert_eq!(parse_duration(&format!("{count}{name}")), Ok(Duration::from_nanos(count * unit_ns)));
        }

        #[test]
        fn parts_of_a_duration_add_up(hours in 0u64..1000, minutes in 0u64..1000, millis in 0u64..10_000) {
            let total = Duration::from_millis((hours * 60 + minutes) * 60_000 + millis);
            prop_assert_eq!(parse_duration(&format!("{hours}h{minutes}m{millis}ms")), Ok(total));
        }

        #[test]
        fn a_size_is_its_count_times_its_unit(count in 0u64..1_000_000, unit in 0usize..13) {
            let (name, unit_bytes) = SIZE_UNITS[unit];
            prop_assert_eq!(parse_size(&format!("{count}{name}")), Ok(count * unit_bytes));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,24}") {
            let _ = (parse_duration(&text), parse_size(&text), parse_listen(&text), AddressRange::parse(&text));
            if let Ok(name) = HeaderName::parse_kept(&text) {
                prop_assert!(name.as_str().len() <= KEPT_NAME_BYTES);
            }
        }

        #[test]
        fn a_range_contains_its_network(a: u32, bits in 0u8..=32) {
            let address = Ipv4Addr::from_bits(a);
            let range = AddressRange::parse(&format!("{address}/{bits}")).unwrap();
            prop_assert!(range.contains(address.into()));
        }
    }
}
