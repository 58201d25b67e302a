//! Selectors: which processes, ports and requests an item of `capture.include` or `capture.exclude` means.

use std::fmt;

use super::glob::Glob;
use super::value::parse_port;

/// Shortest prefix of a container id that names it, as the tools that print short ids do.
const CONTAINER_ID_PREFIX: usize = 12;

/// What discovery knows about a process; the selectors' process part is decided by it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ProcessFacts {
    /// Thread group id.
    pub pid: u32,
    /// Parent, its parent, and so on.
    pub ancestors: Vec<u32>,
    /// Resolved `/proc/PID/exe`, empty if it cannot be read.
    pub exe: String,
    pub comm: String,
    /// Path of the cgroup below the mount, `/system.slice/nginx.service`.
    pub cgroup: String,
    /// Container id, in hex.
    pub container: Option<String>,
    /// Effective user id.
    pub uid: u32,
}

/// The keys a selector knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SelectorKey {
    Exe,
    Comm,
    Port,
    Pid,
    Cgroup,
    Container,
    Uid,
    Path,
    UserAgent,
}

impl SelectorKey {
    pub(super) const ALL: [Self; 9] = [
        Self::Exe,
        Self::Comm,
        Self::Port,
        Self::Pid,
        Self::Cgroup,
        Self::Container,
        Self::Uid,
        Self::Path,
        Self::UserAgent,
    ];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Exe => "exe",
            Self::Comm => "comm",
            Self::Port => "port",
            Self::Pid => "pid",
            Self::Cgroup => "cgroup",
            Self::Container => "container",
            Self::Uid => "uid",
            Self::Path => "path",
            Self::UserAgent => "user_agent",
        }
    }

    /// True for what only a request shows: such a key can exclude, not include.
    pub(super) const fn is_of_request(self) -> bool {
        matches!(self, Self::Path | Self::UserAgent)
    }
}

/// One item: all its keys must hold.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Selector {
    pub exe: Option<Glob>,
    pub comm: Option<Glob>,
    /// Local port of the server side, remote port of the client side.
    pub port: Option<u16>,
    /// The process and its descendants.
    pub pid: Option<u32>,
    pub cgroup: Option<Glob>,
    /// Whole id or at least its first 12 characters.
    pub container: Option<String>,
    pub uid: Option<u32>,
    /// Path of the request, without query; excludes only.
    pub path: Option<Glob>,
    /// User agent, in any case; excludes only.
    pub user_agent: Option<Glob>,
}

impl Selector {
    /// The default exclusion: Kubernetes' probes.
    pub fn kube_probes() -> Self {
        Self {
            user_agent: Glob::parse("kube-probe/*").ok(),
            ..Self::default()
        }
    }

    /// Reads one key's value.
    pub(super) fn set(&mut self, key: SelectorKey, text: &str) -> Result<(), String> {
        match key {
            SelectorKey::Exe => self.exe = Some(Glob::parse_path(text)?),
            SelectorKey::Comm => self.comm = Some(Glob::parse(text)?),
            SelectorKey::Port => self.port = Some(parse_port(text)?),
            SelectorKey::Pid => match text.parse() {
                Ok(pid) if pid > 0 => self.pid = Some(pid),
                _ => return Err("expected a process id".to_owned()),
            },
            SelectorKey::Cgroup => self.cgroup = Some(Glob::parse_path(text)?),
            SelectorKey::Container => self.container = Some(parse_container_id(text)?),
            SelectorKey::Uid => {
                self.uid = Some(text.parse().map_err(|_| "expected a numeric user id".to_owned())?);
            }
            SelectorKey::Path => self.path = Some(Glob::parse_path(text)?),
            SelectorKey::UserAgent => self.user_agent = Some(Glob::parse(text)?),
        }
        Ok(())
    }

    /// Reads the command line's form, `exe=*/nginx,port=80`. `exclude` allows the keys of a request.
    pub fn parse(text: &str, exclude: bool) -> Result<Self, String> {
        let mut selector = Self::default();
        let mut seen = Vec::new();
        for part in text.split(',') {
            let (name, value) = part
                .split_once('=')
                .ok_or_else(|| "expected a selector such as exe=*/nginx,port=80".to_owned())?;
            let key = SelectorKey::ALL
                .into_iter()
                .find(|key| key.as_str() == name)
                .ok_or_else(|| format!("unknown key \"{name}\", expected {}", key_names(exclude)))?;
            if key.is_of_request() && !exclude {
                return Err(only_excludes(key));
            }
            if seen.contains(&key) {
                return Err(format!("{name} stands here twice"));
            }
            seen.push(key);
            selector
                .set(key, value)
                .map_err(|message| format!("{name}: {message}"))?;
        }
        Ok(selector)
    }

    /// True when the keys of a process hold: exe, comm, pid, cgroup, container, uid.
    pub fn matches_process(&self, facts: &ProcessFacts) -> bool {
        let glob = |glob: &Option<Glob>, text: &str| glob.as_ref().is_none_or(|glob| glob.matches(text));
        self.uid.is_none_or(|uid| uid == facts.uid)
            && self
                .pid
                .is_none_or(|pid| pid == facts.pid || facts.ancestors.contains(&pid))
            && self.container.as_ref().is_none_or(|id| {
                let of_process = facts.container.as_deref().unwrap_or_default();
                of_process.starts_with(id.as_str())
            })
            && glob(&self.comm, &facts.comm)
            && glob(&self.exe, &facts.exe)
            && glob(&self.cgroup, &facts.cgroup)
    }

    /// True if a key needs the request: path or user agent.
    pub fn is_of_request(&self) -> bool {
        self.path.is_some() || self.user_agent.is_some()
    }

    /// True if the item names nothing but a user agent.
    pub(super) fn is_user_agent_alone(&self) -> bool {
        let alone = Self {
            user_agent: self.user_agent.clone(),
            ..Self::default()
        };
        self.user_agent.is_some() && *self == alone
    }
}

/// The command line's form.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            self.exe.as_ref().map(|value| format!("exe={value}")),
            self.comm.as_ref().map(|value| format!("comm={value}")),
            self.port.map(|value| format!("port={value}")),
            self.pid.map(|value| format!("pid={value}")),
            self.cgroup.as_ref().map(|value| format!("cgroup={value}")),
            self.container.as_ref().map(|value| format!("container={value}")),
            self.uid.map(|value| format!("uid={value}")),
            self.path.as_ref().map(|value| format!("path={value}")),
            self.user_agent.as_ref().map(|value| format!("user_agent={value}")),
        ];
        f.write_str(&parts.into_iter().flatten().collect::<Vec<_>>().join(","))
    }
}

pub(super) fn only_excludes(key: SelectorKey) -> String {
    format!(
        "{} can only exclude: a request is known too late to include it",
        key.as_str()
    )
}

pub(super) fn not_of_a_connection(key: SelectorKey) -> String {
    format!(
        "{} does not select here: whose requests may be changed is decided when a connection is made",
        key.as_str()
    )
}

pub(super) fn key_names(exclude: bool) -> String {
    let keys = SelectorKey::ALL
        .into_iter()
        .filter(|key| exclude || !key.is_of_request());
    super::reader::one_of(&keys.map(SelectorKey::as_str).collect::<Vec<_>>())
}

fn parse_container_id(text: &str) -> Result<String, String> {
    let id = text.to_ascii_lowercase();
    if id.len() < CONTAINER_ID_PREFIX || id.len() > 64 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err("expected a container id, 12 to 64 hex digits".to_owned());
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;

    fn nginx() -> ProcessFacts {
        ProcessFacts {
            pid: 50,
            ancestors: vec![40, 1],
            exe: "/usr/sbin/nginx".into(),
            comm: "nginx".into(),
            cgroup: "/system.slice/nginx.service".into(),
            container: Some("0123456789abcdef".repeat(4)),
            uid: 33,
        }
    }

    fn matches(selector: &str) -> bool {
        Selector::parse(selector, true).unwrap().matches_process(&nginx())
    }

    #[test]
    fn every_key_of_a_process_counts() {
        for (holds, fails) in [
            ("exe=*/nginx", "exe=*/apache2"),
            ("comm=ngin*", "comm=httpd"),
            ("pid=50", "pid=51"),
            ("pid=40", "pid=41"),
            ("cgroup=/system.slice/*", "cgroup=/kubepods*"),
            ("container=0123456789ab", "container=1123456789ab"),
            ("uid=33", "uid=0"),
        ] {
            assert!(matches(holds), "{holds}");
            assert!(!matches(fails), "{fails}");
        }
    }

    #[test]
    fn keys_are_anded() {
        assert!(matches("exe=*/nginx,uid=33"));
        assert!(!matches("exe=*/nginx,uid=0") && !matches("exe=*/x,uid=33"));
    }

    #[test]
    fn a_process_without_a_container_is_in_none() {
        let facts = ProcessFacts {
            container: None,
            ..nginx()
        };
        assert!(!Selector::parse("container=0123456789ab", false)
            .unwrap()
            .matches_process(&facts));
    }

    #[test]
    fn the_written_form_is_read_back() {
        for text in [
            "exe=*/nginx,port=80",
            "pid=7,uid=0",
            "comm=a b,cgroup=/x*,container=abcdefabcdef",
            "path=/healthz,user_agent=kube-probe/*",
        ] {
            let selector = Selector::parse(text, true).unwrap();
            assert_eq!(selector.to_string(), text);
            assert_eq!(Selector::parse(&selector.to_string(), true).unwrap(), selector);
        }
        assert_eq!(Selector::kube_probes().to_string(), "user_agent=kube-probe/*");
    }

    #[test]
    fn bad_selectors_say_what_was_expected() {
        for (text, message) in [
            ("", "expected a selector such as exe=*/nginx,port=80"),
            ("port=80,", "expected a selector such as exe=*/nginx,port=80"),
            ("port=http", "port: expected a port from 1 to 65535"),
            ("port=0", "port: expected a port from 1 to 65535"),
            (
                "exe=nginx",
                "exe: expected a glob that begins with / or * (paths are matched whole)",
            ),
            ("pid=0", "pid: expected a process id"),
            ("uid=root", "uid: expected a numeric user id"),
            (
                "container=abc",
                "container: expected a container id, 12 to 64 hex digits",
            ),
            ("port=1,port=2", "port stands here twice"),
            (
                "path=/x",
                "path can only exclude: a request is known too late to include it",
            ),
            (
                "name=x",
                "unknown key \"name\", expected exe, comm, port, pid, cgroup, container or uid",
            ),
        ] {
            assert_eq!(Selector::parse(text, false).unwrap_err(), message, "{text}");
        }
    }
}
