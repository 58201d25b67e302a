//! Whose messages bear trace context, and where to: the configuration's sections `propagate` and `ingress`, and what this
//! node's self-test allows (`modes`), in the form the kernel side decides by. What a message's head allows is decided there
//! (`agent-ebpf/src/rewrite.rs`, `response.rs`).
//!
//! Invariant: a process gets no leave that the self-test's rows do not give to sockets like its own.

pub mod modes;
mod watch;

use std::net::IpAddr;

pub use self::modes::{Modes, Reason};
pub use self::watch::Watch;
use spanwire_common::abi::{self, process_flag, setting, PortValue, ProcessClass, ReturnLines, RETURN_BYTES};
use spanwire_common::protocol::traceparent::VALUE_BYTES;

use crate::config::{
    AddressRange, Capture, Config, HeaderName, Ingress, ProcessFacts, ProcessMasks, SelectorRules, Switch,
};
use crate::sys::rewrite::{Masks, Reach};

/// Ports of protocols that HTTP never shares them with: TLS, and those in which the server speaks first. (IANA's names:
/// ftp, ssh, telnet, smtp, domain, pop3, imap, https, smtps, submission, ldaps, domain-s, ftps, imaps, pop3s, ms-sql-s, oracle,
/// zookeeper, mysql, ms-wbt-server, postgresql, amqps, amqp, vnc, redis, kubernetes' API, irc, https-alt, kafka, memcache,
/// mongodb.)
const SPARED_PORTS: [u16; 33] = [
    21, 22, 23, 25, 53, 110, 143, 443, 465, 587, 636, 853, 990, 993, 995, 1433, 1521, 2181, 3306, 3389, 5432, 5671,
    5672, 5900, 6379, 6443, 6667, 8443, 9092, 9093, 11_211, 27_017, 33_060,
];

/// What the configuration asks for, and what this node allows.
#[derive(Clone, Debug)]
pub struct Policy {
    enabled: Switch,
    selectors: SelectorRules,
    destinations: Vec<AddressRange>,
    ingress: Ingress,
    modes: Modes,
}

/// What is known of how a process uses its sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Habits {
    pub class: ProcessClass,
    /// `process.runtime.name`.
    pub runtime: Option<&'static str>,
    /// A request was read from a socket that blocks, or from one that does not; `None`: none was seen yet.
    pub reads_blocking: Option<bool>,
}

/// What a process may have done to its messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permit {
    /// Bits of [`process_flag`].
    pub flags: u8,
    /// Which of its requests, for people.
    pub requests: String,
    /// Its responses may bear the trace id; or why not.
    pub responses: Result<(), String>,
}

/// Processes of this class wait in `epoll`, with sockets that do not block.
const fn is_event_loop(class: ProcessClass) -> bool {
    matches!(
        class,
        ProcessClass::EventLoop | ProcessClass::Go | ProcessClass::Proxy | ProcessClass::Nginx
    )
}

/// Runtimes whose sources read sockets without asking FIONREAD how much there is: libuv (`uv__read`), Go's netpoll, CPython's
/// socket module and asyncio. nginx (`ngx_unix_recv`), the JDK (`Net.available`) and .NET (`Socket.Available`) ask.
fn never_asks_fionread(habits: Habits) -> bool {
    let by_class = matches!(
        habits.class,
        ProcessClass::EventLoop | ProcessClass::Go | ProcessClass::Proxy
    );
    by_class || matches!(habits.runtime, Some("cpython" | "pypy"))
}

/// They ask other servers on their clients' behalf and pass on the headers that come back.
const fn passes_headers_on(class: ProcessClass) -> bool {
    matches!(class, ProcessClass::Nginx | ProcessClass::Proxy)
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
            ingress: config.ingress.clone(),
            modes: Modes::none("not tried yet"),
        }
    }

    /// What the self-test allows.
    pub fn allow(&mut self, modes: Modes) {
        self.modes = modes;
    }

    /// What the self-test allows.
    pub fn modes(&self) -> &Modes {
        &self.modes
    }

    /// What the kernel side is to do: bits of [`setting`].
    pub fn settings(&self) -> u32 {
        let mut settings = 0;
        if self.modes.one_shot.is_err() {
            return settings;
        }
        if self.enabled != Switch::Off {
            settings |= setting::REWRITE;
        }
        if self.ingress.enabled != Switch::Off && !self.ingress.headers.is_empty() {
            settings |= setting::RETURN;
        }
        settings
    }

    /// Anything is asked for at all.
    pub fn is_on(&self) -> bool {
        self.enabled != Switch::Off || self.ingress.enabled != Switch::Off
    }

    /// Where to, and what is put into responses.
    pub fn reach(&self) -> Reach {
        Reach {
            destinations: self.destinations.iter().map(range_of).collect(),
            spared_ports: SPARED_PORTS.to_vec(),
            trusted: self.ingress.trust.iter().map(range_of).collect(),
            ports: self.ports(),
            any_port: Masks {
                include: self.selectors.include_any_port(),
                exclude: self.selectors.exclude_any_port(),
            },
            return_lines: return_lines(&self.ingress),
            settings: self.settings(),
        }
    }

    /// Which items of `propagate.include` and `propagate.exclude` hold for a process.
    pub fn masks(&self, facts: &ProcessFacts) -> ProcessMasks {
        self.selectors.process_masks(facts)
    }

    /// What a process may have done to its messages. `service`: its name.
    pub fn permit(&self, habits: Habits, service: &str) -> Permit {
        let settings = self.settings();
        let (mut flags, requests) = self.requests(habits, settings);
        let responses = self.responses(habits, settings);
        if settings & setting::RETURN != 0 {
            if passes_headers_on(habits.class) && responses.is_err() {
                flags |= process_flag::RETURNS_BY_UPSTREAM;
            }
            if self.ingress.services.iter().any(|name| name.matches(service)) {
                flags |= process_flag::RETURNS_ALWAYS;
            }
        }
        Permit {
            flags,
            requests,
            responses,
        }
    }

    fn requests(&self, habits: Habits, settings: u32) -> (u8, String) {
        if self.enabled == Switch::Off {
            return (0, "none: propagate.enabled is false".to_owned());
        }
        if let Err(reason) = &self.modes.one_shot {
            return (0, format!("none: {reason}"));
        }
        if habits.class == ProcessClass::Unclassified || settings & setting::REWRITE == 0 {
            return (0, "none yet".to_owned());
        }
        match self.may_stay(habits, self.enabled) {
            Ok(()) => (
                process_flag::REWRITES | process_flag::REWRITES_ALL,
                "all of non-blocking sockets, else the first of a connection".to_owned(),
            ),
            Err(reason) => (process_flag::REWRITES, format!("the first of a connection: {reason}")),
        }
    }

    fn responses(&self, habits: Habits, settings: u32) -> Result<(), String> {
        if self.ingress.enabled == Switch::Off {
            return Err("ingress.enabled is false".to_owned());
        }
        if settings & setting::RETURN == 0 {
            let reason = self.modes.one_shot.as_ref().err();
            return Err(reason.map_or_else(|| "ingress.headers is empty".to_owned(), ToString::to_string));
        }
        let reads_blocking = match habits.class {
            class if is_event_loop(class) => Some(false),
            _ => habits.reads_blocking,
        };
        match reads_blocking {
            None => Err("it has not been seen reading a request yet".to_owned()),
            Some(true) => match &self.modes.persistent_blocking {
                Err(reason) => Err(format!("its sockets block, and {reason}")),
                Ok(()) => Ok(()),
            },
            Some(false) => self.may_stay(habits, self.ingress.enabled),
        }
    }

    /// Whether non-blocking sockets of such a process may be enrolled for longer than a request takes to leave.
    fn may_stay(&self, habits: Habits, asked: Switch) -> Result<(), String> {
        let allowed = &self.modes.persistent_nonblocking;
        if let Err(reason) = allowed {
            return Err(reason.to_string());
        }
        match &self.modes.persistent_fionread {
            Err(reason) if !never_asks_fionread(habits) && asked != Switch::On => {
                Err(format!("its runtime may ask FIONREAD, and {reason}"))
            }
            _ => Ok(()),
        }
    }

    /// The ports that the items name.
    fn ports(&self) -> Vec<(u16, Masks)> {
        let masks = |value: PortValue| Masks {
            include: value.include,
            exclude: value.exclude,
        };
        let ports = self.selectors.ports();
        ports.into_iter().map(|(port, value)| (port, masks(value))).collect()
    }
}

/// The header lines that responses get.
fn return_lines(ingress: &Ingress) -> ReturnLines {
    let mut lines = ReturnLines::default();
    let mut text = Vec::new();
    for (name, value_at) in ingress.headers.iter().zip(&mut lines.value_at) {
        text.extend_from_slice(name.as_str().as_bytes());
        text.extend_from_slice(b": ");
        let (before, after) = if *name == HeaderName::server_timing() {
            ("traceparent;desc=\"", "\"")
        } else {
            ("", "")
        };
        text.extend_from_slice(before.as_bytes());
        *value_at = text.len() as u32;
        text.extend(std::iter::repeat_n(b'0', VALUE_BYTES as usize));
        text.extend_from_slice(after.as_bytes());
        text.extend_from_slice(b"\r\n");
        lines.count += 1;
    }
    // The configuration allows no more than fits.
    text.truncate(RETURN_BYTES);
    lines.len = text.len() as u32;
    for (word, bytes) in lines.words.iter_mut().zip(text.chunks(8)) {
        let mut padded = [0; 8];
        padded[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_le_bytes(padded);
    }
    lines
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
    use crate::sys::selftest::SelfTest;

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
    fn items_are_told_by_their_ports() {
        let text = "propagate:\n  include: [{port: 80}, {port: 81}, {comm: a}]\n  exclude: [{port: 99}]\n";
        let reach = Policy::new(&Config::from_yaml("f", text).unwrap()).reach();
        let of = |port| reach.ports.iter().find(|(named, _)| *named == port).unwrap().1;
        assert_eq!((of(80).include, of(81).include, of(81).exclude), (1, 2, 0));
        assert_eq!((of(99).include, of(99).exclude), (0, 1));
        assert_eq!((reach.any_port.include, reach.any_port.exclude), (4, 0));
    }

    fn habits(class: ProcessClass, reads_blocking: Option<bool>) -> Habits {
        Habits {
            class,
            runtime: None,
            reads_blocking,
        }
    }

    /// A node where these rows are faulty.
    fn policy(text: &str, faulty: &str) -> Policy {
        let mut policy = Policy::new(&Config::from_yaml("f", text).unwrap());
        policy.allow(Modes::of(&SelfTest::with_faults(faulty)));
        policy
    }

    #[test]
    fn nothing_is_rewritten_where_it_is_off_or_not_tried() {
        let thread = habits(ProcessClass::ThreadPerRequest, Some(true));
        let off = policy("propagate: {enabled: false}\ningress: {enabled: false}\n", "");
        assert!(!off.is_on());
        assert_eq!((off.settings(), off.permit(thread, "s").flags), (0, 0));
        let untried = Policy::new(&Config::default());
        assert!(untried.is_on());
        assert_eq!((untried.settings(), untried.permit(thread, "s").flags), (0, 0));
        let refused = policy("", "insertion");
        assert_eq!(refused.settings(), 0);
        assert!(
            refused.permit(thread, "s").requests.contains("insertion"),
            "{refused:?}"
        );
    }

    #[test]
    fn a_faulty_row_narrows_and_no_more() {
        const ALL: u8 = process_flag::REWRITES | process_flag::REWRITES_ALL;
        let of = |faulty, class, blocking| {
            let permit = policy("", faulty).permit(habits(class, blocking), "s");
            (permit.flags & ALL, permit.responses.is_ok())
        };
        assert_eq!(of("", ProcessClass::Nginx, None), (ALL, true));
        assert_eq!(
            of("fionread", ProcessClass::Nginx, None),
            (process_flag::REWRITES, false)
        );
        assert_eq!(of("fionread", ProcessClass::EventLoop, None), (ALL, true));
        assert_eq!(of("", ProcessClass::ThreadPerRequest, Some(true)), (ALL, true));
        assert_eq!(
            of("recv_reset", ProcessClass::ThreadPerRequest, Some(true)),
            (ALL, false)
        );
        assert_eq!(of("recv_reset", ProcessClass::Jvm, Some(false)), (ALL, true));
        assert_eq!(of("", ProcessClass::Jvm, None), (ALL, false));
        assert_eq!(
            of("splice", ProcessClass::EventLoop, None),
            (process_flag::REWRITES, false)
        );
        assert_eq!(of("removal", ProcessClass::EventLoop, None), (0, false));
    }

    #[test]
    fn what_cannot_be_written_at_the_edge_is_asked_of_the_upstream() {
        let flags =
            |text: &str, faulty, class, name: &str| policy(text, faulty).permit(habits(class, None), name).flags;
        let by_upstream = process_flag::RETURNS_BY_UPSTREAM;
        assert_eq!(
            flags("", "fionread", ProcessClass::Nginx, "s") & by_upstream,
            by_upstream
        );
        assert_eq!(flags("", "", ProcessClass::Nginx, "s") & by_upstream, 0);
        assert_eq!(flags("", "fionread", ProcessClass::Jvm, "s") & by_upstream, 0);
        let named = "ingress: {services: [\"shop-*\"]}";
        assert_ne!(
            flags(named, "", ProcessClass::Nginx, "shop-a") & process_flag::RETURNS_ALWAYS,
            0
        );
        assert_eq!(
            flags(named, "", ProcessClass::Nginx, "shop") & process_flag::RETURNS_ALWAYS,
            0
        );
    }

    #[test]
    fn lines_for_responses_leave_room_for_a_traceparent() {
        let config = Config::from_yaml("f", "ingress: {headers: [server-timing, X-Trace-Id]}\n").unwrap();
        let lines = return_lines(&config.ingress);
        let bytes: Vec<u8> = lines.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let text = String::from_utf8(bytes[..lines.len as usize].to_vec()).unwrap();
        let value = "0".repeat(55);
        assert_eq!(
            text,
            format!("server-timing: traceparent;desc=\"{value}\"\r\nx-trace-id: {value}\r\n")
        );
        assert_eq!(lines.count, 2);
        for at in &lines.value_at[..2] {
            assert_eq!(&text[*at as usize..][..55], value);
        }
    }
}
