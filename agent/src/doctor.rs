//! `spanwire doctor`: what this node can do, what follows from it, and what to do about it.
//!
//! `sys::probe` tries each feature; this file knows what it is for. Nothing is decided by a version.

mod sockmap;

use std::io::{self, Write};
use std::process::ExitCode;

use serde::Serialize;

use crate::sys::bpf::{one_line, Refusal};
use crate::sys::probe::{
    effective_capabilities, Feature, Lockdown, Prober, CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, CAP_SYS_ADMIN,
    CAP_SYS_PTRACE,
};
use crate::sys::selftest::{self, SelfTest};
use crate::sys::types::KernelTypes;

/// One line of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    pub feature: String,
    /// `yes`, `no` or `not probed`; for `lockdown` the mode; for what the sockmap's self-test tried `clean`, `faulty` or
    /// `unknown`.
    pub state: &'static str,
    /// What follows.
    pub consequence: String,
    /// What to do about it; empty where nothing is wanted.
    pub remedy: &'static str,
}

/// The whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub rows: Vec<Row>,
    /// Some family of hooks works, and what every family needs.
    pub tracing_possible: bool,
}

/// What a node can show of itself; tests make their own nodes.
pub trait Node {
    /// Effective capabilities, a bit each.
    fn capabilities(&self) -> u64;
    /// Tries a feature.
    fn probe(&self, feature: Feature) -> Result<(), Refusal>;
    /// The kernel's lockdown mode.
    fn lockdown(&self) -> Lockdown;
    /// Tries out what a sockmap does to sockets.
    fn self_test(&self) -> SelfTest;
    /// Loads the agent's own programs without attaching them, and says which family of hooks the kernel took, and what
    /// that family does not see.
    fn load_programs(&self) -> Result<String, String>;
}

/// This machine.
pub struct ThisNode {
    prober: Prober,
}

impl ThisNode {
    /// Reads the kernel's types, which takes a moment.
    pub fn new() -> Self {
        Self { prober: Prober::new() }
    }
}

impl Default for ThisNode {
    fn default() -> Self {
        Self::new()
    }
}

impl Node for ThisNode {
    fn capabilities(&self) -> u64 {
        effective_capabilities()
    }

    fn probe(&self, feature: Feature) -> Result<(), Refusal> {
        self.prober.probe(feature)
    }

    fn lockdown(&self) -> Lockdown {
        self.prober.lockdown(effective_capabilities())
    }

    fn self_test(&self) -> SelfTest {
        match KernelTypes::read() {
            Ok(types) => selftest::run(&types),
            Err(error) => SelfTest::without_answers(&one_line(&error.to_string())),
        }
    }

    fn load_programs(&self) -> Result<String, String> {
        use crate::sys::kernel::{Kernel, Options, RewriteFault};
        let options = Options {
            ring_bytes: 64 << 10,
            connections: 1_024,
            port_selectors: false,
            deadline_ns: 0,
            count_costs: false,
        rewrite_fault: RewriteFault::None,
        };
        KernelTypes::read()
            .and_then(|types| Kernel::load(&types, options))
            .map(|(kernel, _)| {
                let gaps: Vec<&str> = kernel.gaps().collect();
                let colon = if gaps.is_empty() { "" } else { ": " };
                format!("{}{colon}{}", kernel.family().name(), gaps.join("; "))
            })
            .map_err(|error| one_line(&error.to_string()))
    }
}

/// A capability, what is lost without it, and whether another stands for it.
struct Capability {
    name: &'static str,
    bits: u64,
    /// Without it nothing is traced.
    is_needed: bool,
    with: &'static str,
    without: &'static str,
    remedy: &'static str,
}

const GRANT: &str =
    "run as root, or grant it (systemd: AmbientCapabilities=, Kubernetes: securityContext.capabilities.add)";

const CAPABILITIES: [Capability; 5] = [
    Capability {
        name: "CAP_BPF",
        bits: 1 << CAP_BPF | 1 << CAP_SYS_ADMIN,
        is_needed: true,
        with: "programs and maps can be made",
        without: "no program can be loaded: nothing is traced",
        remedy: GRANT,
    },
    Capability {
        name: "CAP_PERFMON",
        bits: 1 << CAP_PERFMON | 1 << CAP_SYS_ADMIN,
        is_needed: true,
        with: "tracing programs can be loaded",
        without: "no tracing program can be loaded: nothing is traced",
        remedy: GRANT,
    },
    Capability {
        name: "CAP_NET_ADMIN",
        bits: 1 << CAP_NET_ADMIN,
        is_needed: false,
        with: "socket programs can be loaded",
        without: "sockops and sk_msg are refused: no header can be written (not needed to observe)",
        remedy: GRANT,
    },
    Capability {
        name: "CAP_SYS_PTRACE",
        bits: 1 << CAP_SYS_PTRACE,
        is_needed: false,
        with: "every process can be identified",
        without: "other users' processes are not identified: service names fall back, exe selectors do not match",
        remedy: GRANT,
    },
    Capability {
        name: "CAP_SYS_ADMIN",
        bits: 1 << CAP_SYS_ADMIN,
        is_needed: false,
        with: "uprobes work on every kernel",
        without: "uprobes may be refused (not needed for plain HTTP)",
        remedy: "none needed",
    },
];

/// Capabilities without which no tracing program can be loaded, and what to do about it, on one line; `None` when
/// nothing is missing.
pub fn missing_to_trace(capabilities: u64) -> Option<String> {
    let missing: Vec<&str> = CAPABILITIES
        .iter()
        .filter(|capability| capability.is_needed && capability.bits & capabilities == 0)
        .map(|capability| capability.name)
        .collect();
    if missing.is_empty() {
        return None;
    }
    let (verb, which) = if missing.len() == 1 {
        ("is", "it")
    } else {
        ("are", "them")
    };
    Some(format!(
        "{} {verb} missing: run as root, or grant {which} (systemd: AmbientCapabilities=, Kubernetes: \
         securityContext.capabilities.add)",
        missing.join(" and ")
    ))
}

/// What a feature is for.
struct Meaning {
    feature: Feature,
    name: &'static str,
    /// It needs bpf(2) and is not tried without the capabilities for it.
    needs_bpf: bool,
    with: &'static str,
    without: &'static str,
    remedy: &'static str,
}

const fn by_bpf(
    feature: Feature,
    name: &'static str,
    with: &'static str,
    without: &'static str,
    remedy: &'static str,
) -> Meaning {
    Meaning {
        feature,
        name,
        needs_bpf: true,
        with,
        without,
        remedy,
    }
}

const fn by_looking(
    feature: Feature,
    name: &'static str,
    with: &'static str,
    without: &'static str,
    remedy: &'static str,
) -> Meaning {
    Meaning {
        feature,
        name,
        needs_bpf: false,
        with,
        without,
        remedy,
    }
}

const FEATURES: [Meaning; 19] = [
    by_looking(
        Feature::Btf,
        "kernel BTF",
        "field offsets are read from this kernel's own types",
        "field offsets are unknown: nothing is traced",
        "use a kernel with CONFIG_DEBUG_INFO_BTF and mount /sys",
    ),
    by_bpf(
        Feature::SocketTracepoints,
        "sock_send_length, sock_recv_length",
        "every send and receive is seen by two BTF tracepoints",
        "another family of hooks is used instead (docs/kernels.md)",
        "none needed where a fallback works; these came with Linux 6.3",
    ),
    by_bpf(
        Feature::LifeTracepoints,
        "connection and process tracepoints",
        "connects, closes, forks, execs and exits are seen",
        "failed connects and ended processes are not seen",
        "use a kernel with BTF tracepoints (5.5)",
    ),
    by_bpf(
        Feature::Fentry,
        "fentry, fexit",
        "the fallback where those two are missing",
        "this fallback is left out",
        "none needed where another family works",
    ),
    by_bpf(
        Feature::Kprobe,
        "kprobe, kretprobe",
        "the fallback where fexit is missing, too",
        "this fallback is left out",
        "none needed where another family works",
    ),
    by_bpf(
        Feature::SyscallTracepoints,
        "system-call tracepoints",
        "the last fallback: io_uring and 32-bit programs are not seen by it",
        "this fallback is left out",
        "none needed where another family works",
    ),
    by_bpf(
        Feature::Uprobe,
        "uprobes",
        "functions of libraries can be traced",
        "encrypted connections will stay opaque",
        "use a kernel with CONFIG_UPROBE_EVENTS, grant CAP_SYS_ADMIN",
    ),
    by_bpf(
        Feature::RingBuffer,
        "ring buffer",
        "records reach the agent in order",
        "no record reaches the agent: nothing is traced",
        "use Linux 5.8 or newer",
    ),
    by_bpf(
        Feature::MapInMap,
        "map in map",
        "each CPU has a ring buffer of its own",
        "no record reaches the agent: nothing is traced",
        "use Linux 5.8 or newer",
    ),
    by_bpf(
        Feature::SocketStorage,
        "socket storage in tracing",
        "state lives with its socket and ends with it",
        "kprobes or system-call tracepoints are used, with a table of sockets",
        "use Linux 5.11 or newer",
    ),
    by_bpf(
        Feature::SocketCookie,
        "socket cookie in tracing",
        "a socket is known by a number that is never used again",
        "kprobes or system-call tracepoints are used, with numbers of their own",
        "use Linux 5.12 or newer",
    ),
    by_bpf(
        Feature::TaskRegisters,
        "task registers in tracing",
        "user buffers are found from the tracepoints",
        "kprobes or system-call tracepoints are used, and look for the registers on the task's stack",
        "use Linux 5.15 or newer",
    ),
    by_bpf(
        Feature::UserMemory,
        "reading user memory",
        "heads of messages can be read",
        "no head can be read: nothing is traced",
        "use Linux 5.5 or newer",
    ),
    by_bpf(
        Feature::KernelMemory,
        "reading kernel memory",
        "fields behind plain pointers can be read",
        "addresses behind some pointers stay unknown",
        "boot with lockdown=integrity at most",
    ),
    by_looking(
        Feature::Cgroup2,
        "cgroup v2",
        "cgroups have ids, containers are told apart by them",
        "cgroup ids are missing, sockops cannot be attached",
        "mount it: mount -t cgroup2 none /sys/fs/cgroup/unified",
    ),
    by_bpf(
        Feature::SockOps,
        "sockops",
        "sockets can be enrolled as they connect (for writing headers)",
        "no header can be written; traces are joined by wire identity all the same",
        "mount cgroup v2, grant CAP_NET_ADMIN",
    ),
    by_bpf(
        Feature::SkMsg,
        "sk_msg",
        "messages can be changed before they are sent (for writing headers; the sockmap rows say where)",
        "no header can be written; traces are joined by wire identity all the same",
        "grant CAP_NET_ADMIN; use a kernel with CONFIG_BPF_STREAM_PARSER",
    ),
    by_bpf(
        Feature::Memlock,
        "locked memory",
        "maps of the size needed can be made",
        "maps are refused for lack of locked memory",
        "raise the limit (systemd: LimitMEMLOCK=infinity), or grant CAP_SYS_RESOURCE",
    ),
    by_looking(
        Feature::HostPids,
        "host pid namespace",
        "process ids are the node's",
        "processes outside this pid namespace cannot be identified",
        "Kubernetes: hostPID: true; a container runtime: --pid=host",
    ),
];

/// `spanwire doctor [--json]`: exit status 1 when tracing is impossible.
pub fn run(json: bool, out: &mut impl Write) -> io::Result<ExitCode> {
    let report = examine(&ThisNode::new());
    print(&report, json, out)?;
    Ok(if report.tracing_possible {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Looks at everything.
pub fn examine(node: &dyn Node) -> Report {
    let capabilities = node.capabilities();
    let has = |bits: u64| capabilities & bits != 0;
    let mut rows: Vec<Row> = CAPABILITIES
        .iter()
        .map(|capability| capability.row(has(capability.bits)))
        .collect();
    let may_load = has(CAPABILITIES[0].bits) && has(CAPABILITIES[1].bits);

    let mut works = Vec::new();
    for meaning in &FEATURES {
        if meaning.needs_bpf && !may_load {
            rows.push(meaning.not_probed());
            continue;
        }
        let outcome = node.probe(meaning.feature);
        if outcome.is_ok() {
            works.push(meaning.feature);
        }
        rows.push(meaning.row(outcome));
    }
    if works.contains(&Feature::SkMsg) {
        rows.extend(sockmap::rows(&node.self_test()));
    } else {
        rows.push(sockmap::not_probed());
    }
    rows.push(lockdown(if may_load { node.lockdown() } else { Lockdown::Unknown }));

    let needed = [
        Feature::Btf,
        Feature::LifeTracepoints,
        Feature::RingBuffer,
        Feature::MapInMap,
        Feature::UserMemory,
        Feature::KernelMemory,
    ];
    let have = |feature: &Feature| works.contains(feature);
    let by_types = [Feature::SocketStorage, Feature::SocketCookie, Feature::TaskRegisters]
        .iter()
        .all(have)
        && [Feature::SocketTracepoints, Feature::Fentry].iter().any(have);
    let by_address = [Feature::Kprobe, Feature::SyscallTracepoints].iter().any(have);
    let kernel_can = needed.iter().all(have) && (by_types || by_address);
    let programs = kernel_can.then(|| node.load_programs());
    let tracing_possible = programs.as_ref().is_some_and(Result::is_ok);
    rows.push(own_programs(programs));
    Report { rows, tracing_possible }
}

impl Capability {
    fn row(&self, granted: bool) -> Row {
        Row {
            feature: self.name.to_owned(),
            state: if granted { "yes" } else { "no" },
            consequence: if granted { self.with } else { self.without }.to_owned(),
            remedy: if granted { "" } else { self.remedy },
        }
    }
}

impl Meaning {
    fn row(&self, outcome: Result<(), Refusal>) -> Row {
        let feature = self.name.to_owned();
        match outcome {
            Ok(()) => Row {
                feature,
                state: "yes",
                consequence: self.with.to_owned(),
                remedy: "",
            },
            Err(refusal) => {
                let consequence = format!("{} [{refusal}]", self.without);
                Row {
                    feature,
                    state: "no",
                    consequence,
                    remedy: self.remedy,
                }
            }
        }
    }

    fn not_probed(&self) -> Row {
        Row {
            feature: self.name.to_owned(),
            state: "not probed",
            consequence: "needs CAP_BPF and CAP_PERFMON to find out".to_owned(),
            remedy: "",
        }
    }
}

fn lockdown(mode: Lockdown) -> Row {
    let (state, consequence, remedy) = match mode {
        Lockdown::None => ("none", "nothing is held back", ""),
        Lockdown::Integrity => (
            "integrity",
            "writing into programs is refused, which spanwire never does",
            "",
        ),
        Lockdown::Confidentiality => (
            "confidentiality",
            "reading kernel memory through helpers is refused",
            "boot with lockdown=integrity where addresses are missing",
        ),
        Lockdown::Unknown => (
            "not probed",
            "the mode cannot be read",
            "mount securityfs at /sys/kernel/security",
        ),
    };
    Row {
        feature: "lockdown".to_owned(),
        state,
        consequence: consequence.to_owned(),
        remedy,
    }
}

fn own_programs(loaded: Option<Result<String, String>>) -> Row {
    let (state, consequence, remedy) = match loaded {
        Some(Ok(family)) => (
            "yes",
            format!("the kernel accepts them; sends and receives are seen by {family}"),
            "",
        ),
        Some(Err(error)) => (
            "no",
            format!("nothing is traced [{error}]"),
            "report it with this output and `uname -r`",
        ),
        None => ("not probed", "something they need is missing, see above".to_owned(), ""),
    };
    Row {
        feature: "the agent's programs".to_owned(),
        state,
        consequence,
        remedy,
    }
}

/// Prints the report: a table, or a JSON array of the rows.
pub fn print(report: &Report, json: bool, out: &mut impl Write) -> io::Result<()> {
    if json {
        serde_json::to_writer_pretty(&mut *out, &report.rows)?;
        return writeln!(out);
    }
    let widest = |cells: &mut dyn Iterator<Item = usize>| cells.max().unwrap_or_default();
    let feature_width = widest(&mut report.rows.iter().map(|row| row.feature.len()));
    let state_width = widest(&mut report.rows.iter().map(|row| row.state.len()));
    writeln!(
        out,
        "{:feature_width$}  {:state_width$}  CONSEQUENCE -> REMEDY",
        "FEATURE", "STATE"
    )?;
    for row in &report.rows {
        write!(
            out,
            "{:feature_width$}  {:state_width$}  {}",
            row.feature, row.state, row.consequence
        )?;
        if row.remedy.is_empty() {
            writeln!(out)?;
        } else {
            writeln!(out, " -> {}", row.remedy)?;
        }
    }
    let verdict = if report.tracing_possible {
        "tracing is possible"
    } else {
        "tracing is impossible on this node"
    };
    writeln!(out, "\n{verdict}")
}

#[cfg(test)]
#[path = "doctor_tests.rs"]
mod tests;
