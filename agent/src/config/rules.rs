//! Selectors in the form both sides work with: numbered items and masks.
//!
//! The kernel side knows sockets by process and port (`ProcessValue`, [`PortValue`], [`Settings`]): an include or
//! exclude item holds where both of its parts do. What needs the request (a path, a user agent) is decided here,
//! once the record has arrived; only plain user-agent prefixes are compared in the kernel.

use std::fmt;

use spanwire_common::abi::{
    setting, HeaderName as AbiHeaderName, PortValue, Settings, KEPT_HEADERS, KEPT_NAME_BYTES, USER_AGENT_PREFIXES,
    USER_AGENT_PREFIX_BYTES,
};
use spanwire_common::protocol::http1::skim::set_initials;

use super::model::{Capture, Config, PathDetail, Tenant};
use super::selectors::{ProcessFacts, Selector};
use super::value::HeaderName;

/// Most items of `capture.include`, and of `capture.exclude`.
pub const SELECTORS_MAX: usize = 32;

/// Which items' process parts hold for one process. Worth keeping per process: globs are compared once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ProcessMasks {
    /// For [`spanwire_common::abi::ProcessValue::include`].
    pub include: u32,
    /// For [`spanwire_common::abi::ProcessValue::exclude`].
    pub exclude: u32,
    /// Items for [`SelectorRules::excludes_request`].
    pub exclude_requests: u32,
}

/// Why a process is captured, or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule<'a> {
    /// No include item was given.
    Everything,
    /// This item holds: of `exclude`, if one does, else of `include`.
    Item(&'a Selector),
    /// These would hold for a socket with their port; none was seen yet.
    IfPort(Vec<&'a Selector>),
    /// No include item holds.
    NotIncluded,
}

impl fmt::Display for Rule<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everything => f.write_str("everything"),
            Self::Item(item) => item.fmt(f),
            Self::IfPort(items) => {
                let items: Vec<String> = items.iter().map(ToString::to_string).collect();
                write!(f, "{}, if a socket has it", items.join(" or "))
            }
            Self::NotIncluded => f.write_str("not included"),
        }
    }
}

/// What a finished exchange shows of its request.
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestFacts<'a> {
    /// Local port of the server side, remote port of the client side.
    pub server_port: u16,
    /// Path without query.
    pub path: &'a str,
    /// Sent by the kernel side only with [`setting::USER_AGENT_TEXT`].
    pub user_agent: Option<&'a str>,
}

/// `capture.include` and `capture.exclude`, numbered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectorRules {
    include: Vec<Selector>,
    /// Decided by process and port alone.
    exclude: Vec<Selector>,
    /// Need the request.
    exclude_requests: Vec<Selector>,
    /// User-agent prefixes the kernel side compares, in lower case.
    user_agents: Vec<String>,
}

impl SelectorRules {
    /// Numbers the items. `Capture` holds at most [`SELECTORS_MAX`] of each: parsing saw to it.
    pub fn compile(capture: &Capture) -> Self {
        let mut rules = Self {
            include: capture.include.iter().take(SELECTORS_MAX).cloned().collect(),
            exclude: Vec::new(),
            exclude_requests: Vec::new(),
            user_agents: Vec::new(),
        };
        for selector in capture.exclude.iter().take(SELECTORS_MAX) {
            if let Some(prefix) = kernel_prefix(selector).filter(|_| rules.user_agents.len() < USER_AGENT_PREFIXES) {
                rules.user_agents.push(prefix);
            } else if selector.is_of_request() {
                rules.exclude_requests.push(selector.clone());
            } else {
                rules.exclude.push(selector.clone());
            }
        }
        rules
    }

    /// Matches the process part of every item.
    pub fn process_masks(&self, facts: &ProcessFacts) -> ProcessMasks {
        let matching = |items: &[Selector]| mask(items, |item| item.matches_process(facts));
        ProcessMasks {
            include: if self.include.is_empty() {
                u32::MAX
            } else {
                matching(&self.include)
            },
            exclude: matching(&self.exclude),
            exclude_requests: matching(&self.exclude_requests),
        }
    }

    /// What the map PORTS holds: each named port once, in order.
    pub fn ports(&self) -> Vec<(u16, PortValue)> {
        let named = |port: u16| move |item: &Selector| item.port == Some(port);
        let mut ports: Vec<u16> = self
            .include
            .iter()
            .chain(&self.exclude)
            .filter_map(|item| item.port)
            .collect();
        ports.sort_unstable();
        ports.dedup();
        let value = |port| PortValue {
            include: mask(&self.include, named(port)),
            exclude: mask(&self.exclude, named(port)),
            ..PortValue::default()
        };
        ports.into_iter().map(|port| (port, value(port))).collect()
    }

    /// No include item: whatever no exclude item names is captured.
    pub fn includes_everything(&self) -> bool {
        self.include.is_empty()
    }

    /// Include items without a port; every bit when there is no item.
    pub fn include_any_port(&self) -> u32 {
        if self.include.is_empty() {
            return u32::MAX;
        }
        mask(&self.include, |item| item.port.is_none())
    }

    /// Exclude items without a port.
    pub fn exclude_any_port(&self) -> u32 {
        mask(&self.exclude, |item| item.port.is_none())
    }

    /// True if some include item can hold for this process on some port, and no exclude item holds on all.
    pub fn may_capture(&self, masks: ProcessMasks) -> bool {
        masks.include != 0 && masks.exclude & self.exclude_any_port() == 0
    }

    /// True if a socket with these ports (local, remote), of a process with these masks, is captured: what the kernel
    /// side decides for a process that it knows.
    pub fn admits(&self, masks: ProcessMasks, ports: [u16; 2]) -> bool {
        let holds = |item: &Selector| item.port.is_none_or(|port| ports.contains(&port));
        let include = if self.include.is_empty() {
            u32::MAX
        } else {
            mask(&self.include, holds)
        };
        masks.include & include != 0 && masks.exclude & mask(&self.exclude, holds) == 0
    }

    /// Include items that name one of these ports.
    pub fn including_port(&self, ports: [u16; 2]) -> u32 {
        mask(&self.include, |item| {
            item.port.is_some_and(|port| ports.contains(&port))
        })
    }

    /// The item that decided about a process, as `spanwire status` shows it. `by_port` are the include items whose port
    /// one of its sockets had.
    pub fn deciding(&self, masks: ProcessMasks, by_port: u32) -> Rule<'_> {
        let first = |items, mask| selected(items, mask).next();
        if let Some(item) = first(&self.exclude, masks.exclude & self.exclude_any_port()) {
            return Rule::Item(item);
        }
        if self.include.is_empty() {
            return Rule::Everything;
        }
        let for_every_socket = masks.include & self.include_any_port();
        if let Some(item) = first(&self.include, for_every_socket).or(first(&self.include, masks.include & by_port)) {
            return Rule::Item(item);
        }
        match selected(&self.include, masks.include).collect::<Vec<_>>() {
            items if items.is_empty() => Rule::NotIncluded,
            items => Rule::IfPort(items),
        }
    }

    /// The item that excludes this request of a process with these masks, if one does.
    pub fn excludes_request(&self, masks: ProcessMasks, request: &RequestFacts<'_>) -> Option<&Selector> {
        let holds = |item: &&Selector| {
            item.port.is_none_or(|port| port == request.server_port)
                && item.path.as_ref().is_none_or(|glob| glob.matches(request.path))
                && item
                    .user_agent
                    .as_ref()
                    .is_none_or(|glob| request.user_agent.is_some_and(|text| glob.matches_any_case(text)))
        };
        selected(&self.exclude_requests, masks.exclude_requests).find(holds)
    }

    fn needs_user_agent_text(&self) -> bool {
        self.exclude_requests.iter().any(|item| item.user_agent.is_some())
    }

    fn needs_path(&self) -> bool {
        self.exclude_requests.iter().any(|item| item.path.is_some())
    }
}

fn mask(items: &[Selector], holds: impl Fn(&Selector) -> bool) -> u32 {
    let bits = items
        .iter()
        .enumerate()
        .filter(|(_, item)| holds(item))
        .map(|(number, _)| 1u32 << number);
    bits.fold(0, |mask, bit| mask | bit)
}

fn selected(items: &[Selector], mask: u32) -> impl Iterator<Item = &Selector> {
    items
        .iter()
        .enumerate()
        .filter(move |(number, _)| mask & (1 << number) != 0)
        .map(|(_, item)| item)
}

/// The prefix of an item that names nothing but a user agent's, if the kernel side can compare it.
fn kernel_prefix(selector: &Selector) -> Option<String> {
    let glob = selector
        .user_agent
        .as_ref()
        .filter(|_| selector.is_user_agent_alone())?;
    let prefix = glob.as_prefix()?;
    (prefix.len() <= USER_AGENT_PREFIX_BYTES).then(|| prefix.to_ascii_lowercase())
}

/// What only the running agent knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RunFacts {
    /// Counts up with every change of the settings.
    pub generation: u32,
    pub own_pid: u32,
    /// The ports actually bound; 0 where none is.
    pub api_port: u16,
    pub health_port: u16,
}

impl Config {
    /// The value of the map SETTINGS.
    pub fn settings(&self, rules: &SelectorRules, run: RunFacts) -> Settings {
        let mut flags = 0;
        let mut raise = |on: bool, flag: u32| flags |= if on { flag } else { 0 };
        raise(self.capture.enabled, setting::CAPTURE);
        raise(self.capture.opaque, setting::OPAQUE);
        raise(
            self.capture.paths != PathDetail::Off || rules.needs_path(),
            setting::PATHS,
        );
        raise(rules.needs_user_agent_text(), setting::USER_AGENT_TEXT);
        let mut settings = Settings {
            flags,
            generation: run.generation,
            include_any_port: rules.include_any_port(),
            exclude_any_port: rules.exclude_any_port(),
            own_pid: run.own_pid,
            api_port: run.api_port,
            health_port: run.health_port,
            user_agent_count: rules.user_agents.len() as u32,
            ..Settings::default()
        };
        for (slot, prefix) in settings.user_agents.iter_mut().zip(&rules.user_agents) {
            *slot = words::<{ USER_AGENT_PREFIX_BYTES / 8 }>(prefix.as_bytes());
        }
        let names = self.header_slots();
        settings.name_count = names.len() as u32;
        for (slot, (name, keep, tenant)) in settings.names.iter_mut().zip(names) {
            *slot = AbiHeaderName {
                words: words::<{ KEPT_NAME_BYTES / 8 }>(name.as_str().as_bytes()),
                len: name.as_str().len() as u32,
                tenant: u8::from(tenant),
                keep: u8::from(keep),
                reserved: [0; 2],
            };
        }
        set_initials(&mut settings);
        settings
    }

    /// The names the kernel side looks for: (name, kept, the tenant's). `capture.headers` come first, in their order.
    fn header_slots(&self) -> Vec<(&HeaderName, bool, bool)> {
        let tenant = self.tenant.as_ref().map(|Tenant::Header(name)| name);
        let kept = &self.capture.headers;
        let mut slots: Vec<_> = kept.iter().map(|name| (name, true, tenant == Some(name))).collect();
        if let Some(name) = tenant.filter(|name| !kept.contains(name)) {
            slots.push((name, false, true));
        }
        slots.truncate(KEPT_HEADERS);
        slots
    }
}

/// Bytes as little-endian words, zero after the end.
fn words<const N: usize>(bytes: &[u8]) -> [u64; N] {
    let mut words = [0u64; N];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks(8)) {
        let mut padded = [0u8; 8];
        padded[..chunk.len()].copy_from_slice(chunk);
        *word = u64::from_le_bytes(padded);
    }
    words
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
