//! What this kernel lets us do, found by doing it: tiny programs are loaded, attached and dropped again. No version is
//! looked at.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya_obj::btf::{Btf, BtfKind};

use super::bpf::{
    attach_cgroup, attach_map, attach_perf, attach_tracing, create_map, create_socket_storage, insn, load, page_bytes,
    raise_memlock, MapShape, PerfTarget, Program, Refusal,
};
use super::tracefs::Tracefs;

/// Program types (enum bpf_prog_type).
mod prog_type {
    pub(super) const KPROBE: u32 = 2;
    pub(super) const TRACEPOINT: u32 = 5;
    pub(super) const SOCK_OPS: u32 = 13;
    pub(super) const SK_MSG: u32 = 16;
    pub(super) const TRACING: u32 = 26;
}

/// Attach types (enum bpf_attach_type).
mod attach_type {
    pub(super) const CGROUP_SOCK_OPS: u32 = 3;
    pub(super) const SK_MSG_VERDICT: u32 = 7;
    pub(super) const TRACE_RAW_TP: u32 = 23;
    pub(super) const TRACE_FENTRY: u32 = 24;
    pub(super) const TRACE_FEXIT: u32 = 25;
}

/// Map types (enum bpf_map_type).
mod map_type {
    pub(super) const ARRAY: u32 = 2;
    pub(super) const ARRAY_OF_MAPS: u32 = 12;
    pub(super) const SOCKHASH: u32 = 18;
    pub(super) const RINGBUF: u32 = 27;
}

/// Helper numbers (FN list of bpf.h).
mod helper {
    pub(super) const PROBE_WRITE_USER: i32 = 36;
    pub(super) const GET_SOCKET_COOKIE: i32 = 46;
    pub(super) const SK_STORAGE_GET: i32 = 107;
    pub(super) const PROBE_READ_USER: i32 = 112;
    pub(super) const PROBE_READ_KERNEL: i32 = 113;
    pub(super) const GET_CURRENT_TASK_BTF: i32 = 158;
    pub(super) const TASK_PT_REGS: i32 = 175;
}

/// `return 0;`
const NOTHING: [u64; 2] = [insn::set(0, 0), insn::exit()];
/// `return 1;`: go on, for sockops and sk_msg.
const PASS: [u64; 2] = [insn::set(0, 1), insn::exit()];

/// One thing a node can do or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Feature {
    /// The kernel's types, with those the agent reads.
    Btf,
    /// BTF tracepoints `sock_send_length` and `sock_recv_length`.
    SocketTracepoints,
    /// BTF tracepoints of connections and processes.
    LifeTracepoints,
    /// fentry and fexit on `tcp_sendmsg` and `tcp_recvmsg`.
    Fentry,
    /// kprobe and kretprobe on the same.
    Kprobe,
    /// Tracepoints of single system calls.
    SyscallTracepoints,
    Uprobe,
    RingBuffer,
    MapInMap,
    SocketStorage,
    SocketCookie,
    TaskRegisters,
    UserMemory,
    KernelMemory,
    /// A mounted cgroup v2 hierarchy, alone or beside v1.
    Cgroup2,
    SockOps,
    SkMsg,
    /// Maps of the size the agent needs.
    Memlock,
    /// `/proc` shows every process of the node.
    HostPids,
}

/// Lockdown of the kernel (Documentation/admin-guide/LSM, kernel_lockdown.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lockdown {
    None,
    Integrity,
    Confidentiality,
    /// Neither the file nor a probe could tell.
    Unknown,
}

/// Capabilities by their number (include/uapi/linux/capability.h).
pub const CAP_NET_ADMIN: u32 = 12;
pub const CAP_SYS_PTRACE: u32 = 19;
pub const CAP_SYS_ADMIN: u32 = 21;
pub const CAP_PERFMON: u32 = 38;
pub const CAP_BPF: u32 = 39;

/// Effective capabilities of this process, a bit each.
pub fn effective_capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    capabilities_of(&status)
}

fn capabilities_of(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok())
        .unwrap_or_default()
}

/// Probes one node. Holds the kernel's types, which several probes need.
pub struct Prober {
    types: Result<Btf, String>,
}

impl Default for Prober {
    fn default() -> Self {
        Self::new()
    }
}

impl Prober {
    /// Reads the kernel's types; that they are missing is told by the probes.
    pub fn new() -> Self {
        // A failed raise is no failure: newer kernels do not charge maps to it. The probe for memlock finds out.
        let _ = raise_memlock();
        Self {
            types: Btf::from_sys_fs().map_err(|error| error.to_string()),
        }
    }

    /// Tries the feature.
    pub fn probe(&self, feature: Feature) -> Result<(), Refusal> {
        match feature {
            Feature::Btf => self.btf(),
            Feature::SocketTracepoints => self.tracepoints(&["sock_send_length", "sock_recv_length"]),
            Feature::LifeTracepoints => self.tracepoints(&[
                "inet_sock_set_state",
                "tcp_destroy_sock",
                "sched_process_fork",
                "sched_process_exec",
                "sched_process_exit",
            ]),
            Feature::Fentry => self.fentry(),
            Feature::Kprobe => kprobes(),
            Feature::SyscallTracepoints => syscall_tracepoints(),
            Feature::Uprobe => uprobe(),
            Feature::RingBuffer => create_map(ring_buffer(), None).map(drop),
            Feature::MapInMap => map_in_map(),
            Feature::SocketStorage => self.socket_storage(),
            Feature::SocketCookie => {
                self.in_socket_tracepoint(&[insn::read(1, 1, 0), insn::call(helper::GET_SOCKET_COOKIE)])
            }
            Feature::TaskRegisters => self.in_socket_tracepoint(&[
                insn::call(helper::GET_CURRENT_TASK_BTF),
                insn::copy(1, 0),
                insn::call(helper::TASK_PT_REGS),
            ]),
            Feature::UserMemory => self.in_socket_tracepoint(&read_to_stack(helper::PROBE_READ_USER)),
            Feature::KernelMemory => self.in_socket_tracepoint(&read_to_stack(helper::PROBE_READ_KERNEL)),
            Feature::Cgroup2 => cgroup2().map(drop),
            Feature::SockOps => sock_ops(),
            Feature::SkMsg => sk_msg(),
            Feature::Memlock => big_map(),
            Feature::HostPids => host_pids(),
        }
    }

    /// Reads the mode; where securityfs is not mounted, two refused helpers tell it. Only then is
    /// `bpf_probe_write_user` asked for: a kernel that grants it says so in its log.
    pub fn lockdown(&self, capabilities: u64) -> Lockdown {
        if let Ok(text) = fs::read_to_string("/sys/kernel/security/lockdown") {
            return lockdown_of(&text);
        }
        let granted = |body: &[u64]| self.in_socket_tracepoint(body).is_ok();
        if !granted(&read_to_stack(helper::PROBE_READ_USER)) {
            Lockdown::Unknown
        } else if !granted(&read_to_stack(helper::PROBE_READ_KERNEL)) {
            Lockdown::Confidentiality
        } else if capabilities & 1 << CAP_SYS_ADMIN == 0 {
            // Without it the helper is refused in every mode.
            Lockdown::Unknown
        } else if granted(&write_from_stack(helper::PROBE_WRITE_USER)) {
            Lockdown::None
        } else {
            Lockdown::Integrity
        }
    }

    fn btf(&self) -> Result<(), Refusal> {
        for name in [
            "sock",
            "tcp_sock",
            "unix_sock",
            "socket",
            "file",
            "net",
            "task_struct",
            "linux_binprm",
        ] {
            self.type_id(name, BtfKind::Struct)?;
        }
        Ok(())
    }

    fn type_id(&self, name: &str, kind: BtfKind) -> Result<u32, Refusal> {
        let types = self.types.as_ref().map_err(|error| Refusal::absent(error.clone()))?;
        types
            .id_by_type_name_kind(name, kind)
            .map_err(|_| Refusal::absent(format!("no {name} in the kernel's types")))
    }

    /// Loads and attaches a program of its own to each.
    fn tracepoints(&self, names: &[&str]) -> Result<(), Refusal> {
        for name in names {
            let program = self.load_tracepoint(name, &NOTHING)?;
            attach_tracing(program.as_fd())?;
        }
        Ok(())
    }

    fn load_tracepoint(&self, name: &str, insns: &[u64]) -> Result<OwnedFd, Refusal> {
        load(&Program {
            prog_type: prog_type::TRACING,
            expected_attach_type: attach_type::TRACE_RAW_TP,
            attach_btf_id: self.type_id(&format!("btf_trace_{name}"), BtfKind::Typedef)?,
            insns,
        })
    }

    /// Loads `body; return 0` where the agent's own programs run: on a tracepoint whose first argument is a socket.
    fn in_socket_tracepoint(&self, body: &[u64]) -> Result<(), Refusal> {
        let insns = [body, &NOTHING].concat();
        let primary = self.load_tracepoint("sock_send_length", &insns);
        match primary {
            Err(refusal) if refusal.errno == 0 => {
                // Before 6.3 there is no such tracepoint; this one has a socket first, too.
                self.load_tracepoint("inet_sock_set_state", &insns).map(drop)
            }
            other => other.map(drop),
        }
    }

    fn fentry(&self) -> Result<(), Refusal> {
        for function in ["tcp_sendmsg", "tcp_recvmsg"] {
            for expected_attach_type in [attach_type::TRACE_FENTRY, attach_type::TRACE_FEXIT] {
                let program = load(&Program {
                    prog_type: prog_type::TRACING,
                    expected_attach_type,
                    attach_btf_id: self.type_id(function, BtfKind::Func)?,
                    insns: &NOTHING,
                })?;
                attach_tracing(program.as_fd())?;
            }
        }
        Ok(())
    }

    fn socket_storage(&self) -> Result<(), Refusal> {
        let storage = create_socket_storage()?;
        let [map, map_high] = insn::map(1, storage.as_raw_fd());
        self.in_socket_tracepoint(&[
            insn::read(2, 1, 0),
            map,
            map_high,
            insn::set(3, 0),
            insn::set(4, 1),
            insn::call(helper::SK_STORAGE_GET),
        ])
    }
}

/// Reads eight bytes at address 0 onto the stack. Such programs are loaded, never attached.
const fn read_to_stack(number: i32) -> [u64; 5] {
    [
        insn::copy(1, 10),
        insn::add(1, -8),
        insn::set(2, 8),
        insn::set(3, 0),
        insn::call(number),
    ]
}

/// Writes eight bytes of the stack to address 0.
const fn write_from_stack(number: i32) -> [u64; 6] {
    [
        insn::zero(10, -8),
        insn::set(1, 0),
        insn::copy(2, 10),
        insn::add(2, -8),
        insn::set(3, 8),
        insn::call(number),
    ]
}

fn ring_buffer() -> MapShape {
    // One page: the size must be a power of two of pages, whatever they are.
    MapShape {
        map_type: map_type::RINGBUF,
        max_entries: page_bytes(),
        ..MapShape::default()
    }
}

fn map_in_map() -> Result<(), Refusal> {
    let inner = create_map(ring_buffer(), None)?;
    let outer = MapShape {
        map_type: map_type::ARRAY_OF_MAPS,
        key_bytes: 4,
        value_bytes: 4,
        max_entries: 1,
        ..MapShape::default()
    };
    create_map(outer, Some(inner.as_fd())).map(drop)
}

/// A map of 16 MiB: more than the limit on locked memory that most systems begin with.
fn big_map() -> Result<(), Refusal> {
    const ENTRY_BYTES: u32 = 64 << 10;
    let shape = MapShape {
        map_type: map_type::ARRAY,
        key_bytes: 4,
        value_bytes: ENTRY_BYTES,
        max_entries: 256,
        ..MapShape::default()
    };
    create_map(shape, None).map(drop)
}

/// The type number of a PMU, and where its format says how a return probe is asked for.
pub(super) fn pmu(name: &str) -> Result<(u32, PathBuf), Refusal> {
    let folder = Path::new("/sys/bus/event_source/devices").join(name);
    let text =
        fs::read_to_string(folder.join("type")).map_err(|_| Refusal::absent(format!("this kernel has no {name}s")))?;
    let number = text
        .trim()
        .parse()
        .map_err(|_| Refusal::absent(format!("the type of {name}s is no number")))?;
    Ok((number, folder))
}

/// The bit of `config:N`, as the PMU's format file names it.
pub(super) fn format_bit(folder: &Path, name: &str) -> Result<u64, Refusal> {
    let text = fs::read_to_string(folder.join("format").join(name)).unwrap_or_default();
    let bit = text
        .trim()
        .strip_prefix("config:")
        .and_then(|bit| bit.parse::<u32>().ok());
    bit.and_then(|bit| 1u64.checked_shl(bit))
        .ok_or_else(|| Refusal::absent(format!("this kernel has no {name}s")))
}

fn kprobes() -> Result<(), Refusal> {
    let (pmu, folder) = pmu("kprobe")?;
    let on_return = format_bit(&folder, "retprobe")?;
    let program = load_plain(prog_type::KPROBE, &NOTHING)?;
    for function in [c"tcp_sendmsg", c"tcp_recvmsg"] {
        for on_return in [0, on_return] {
            attach_perf(
                program.as_fd(),
                PerfTarget::Kprobe {
                    pmu,
                    function,
                    on_return,
                },
            )?;
        }
    }
    Ok(())
}

fn load_plain(prog_type: u32, insns: &[u64]) -> Result<OwnedFd, Refusal> {
    load(&Program {
        prog_type,
        expected_attach_type: 0,
        attach_btf_id: 0,
        insns,
    })
}

fn syscall_tracepoints() -> Result<(), Refusal> {
    let program = load_plain(prog_type::TRACEPOINT, &NOTHING)?;
    let tracefs = Tracefs::open()?;
    for name in [
        "sys_enter_recvfrom",
        "sys_exit_recvfrom",
        "sys_enter_sendto",
        "sys_exit_sendto",
    ] {
        attach_perf(program.as_fd(), PerfTarget::Tracepoint(tracefs.id("syscalls", name)?))?;
    }
    Ok(())
}

/// On a function of our own that nobody calls.
fn uprobe() -> Result<(), Refusal> {
    let (pmu, _) = pmu("uprobe")?;
    let program = load_plain(prog_type::KPROBE, &NOTHING)?;
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let address = probed as *const () as u64;
    let (file, offset_bytes) =
        file_offset(&maps, address).ok_or_else(|| Refusal::absent("the agent's own file is not mapped"))?;
    let file = CString::new(file).map_err(|_| Refusal::absent("the agent's own path holds a NUL byte"))?;
    attach_perf(
        program.as_fd(),
        PerfTarget::Uprobe {
            pmu,
            file: &file,
            offset_bytes,
        },
    )
    .map(drop)
}

/// Stands for a traced function; the black box keeps it from being folded into another.
#[inline(never)]
extern "C" fn probed() {
    std::hint::black_box("probed by spanwire doctor");
}

/// Which file an address comes from, and at what offset (proc_pid_maps.5).
fn file_offset(maps: &str, address: u64) -> Option<(&str, u64)> {
    maps.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (from, to) = fields.next()?.split_once('-')?;
        let (from, to) = (u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?);
        let offset = u64::from_str_radix(fields.nth(1)?, 16).ok()?;
        let file_at = line.find('/')?;
        (from..to)
            .contains(&address)
            .then(|| (&line[file_at..], address - from + offset))
    })
}

/// Where a cgroup v2 hierarchy is mounted.
pub fn cgroup2() -> Result<PathBuf, Refusal> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    cgroup2_of(&mounts).ok_or_else(|| Refusal::absent("no cgroup v2 hierarchy is mounted"))
}

/// The first mount of type cgroup2 (proc_pid_mountinfo.5: the type follows the lone dash).
fn cgroup2_of(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let path = mount.split(' ').nth(4)?;
        kind.starts_with("cgroup2 ")
            .then(|| PathBuf::from(path.replace("\\040", " ")))
    })
}

fn sock_ops() -> Result<(), Refusal> {
    let path = cgroup2()?;
    let program = load_plain(prog_type::SOCK_OPS, &PASS)?;
    let cgroup = fs::File::open(&path).map_err(|error| Refusal::absent(format!("{}: {error}", path.display())))?;
    attach_cgroup(program.as_fd(), cgroup.as_fd(), attach_type::CGROUP_SOCK_OPS).map(drop)
}

fn sk_msg() -> Result<(), Refusal> {
    let program = load_plain(prog_type::SK_MSG, &PASS)?;
    let shape = MapShape {
        map_type: map_type::SOCKHASH,
        key_bytes: 8,
        value_bytes: 4,
        max_entries: 1,
        ..MapShape::default()
    };
    let sockets = create_map(shape, None)?;
    attach_map(program.as_fd(), sockets.as_fd(), attach_type::SK_MSG_VERDICT)
}

/// The inode of the first pid namespace (PROC_PID_INIT_INO).
fn host_pids() -> Result<(), Refusal> {
    let link = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    if link == Path::new("pid:[4026531836]") {
        Ok(())
    } else {
        Err(Refusal::absent(format!("running in {}", link.display())))
    }
}

/// `none [integrity] confidentiality`: the brackets mark the mode in force.
fn lockdown_of(text: &str) -> Lockdown {
    let mode = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    match mode.map(|(mode, _)| mode) {
        Some("none") => Lockdown::None,
        Some("integrity") => Lockdown::Integrity,
        Some("confidentiality") => Lockdown::Confidentiality,
        _ => Lockdown::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read() {
        assert_eq!(
            capabilities_of("Name:\tx\nCapEff:\t000000c000001000\n"),
            1 << 39 | 1 << 38 | 1 << CAP_NET_ADMIN
        );
        assert_eq!(capabilities_of("CapEff: nonsense"), 0);
        assert_eq!(capabilities_of(""), 0);
    }

    #[test]
    fn lockdown_modes_are_read() {
        assert_eq!(lockdown_of("[none] integrity confidentiality\n"), Lockdown::None);
        assert_eq!(lockdown_of("none [integrity] confidentiality\n"), Lockdown::Integrity);
        assert_eq!(
            lockdown_of("none integrity [confidentiality]\n"),
            Lockdown::Confidentiality
        );
        assert_eq!(lockdown_of(""), Lockdown::Unknown);
    }

    #[test]
    fn cgroup2_is_found_alone_and_beside_v1() {
        let unified = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2_of(unified), Some("/sys/fs/cgroup".into()));
        let hybrid = "31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            32 30 0:28 / /sys/fs/cgroup/unified rw shared:1 master:2 - cgroup2 none rw\n";
        assert_eq!(cgroup2_of(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(
            cgroup2_of("31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"),
            None
        );
    }

    #[test]
    fn an_address_is_found_in_its_file() {
        let maps = "55d0c0000000-55d0c0100000 r--p 00000000 08:01 42 /usr/bin/span wire\n\
            55d0c0100000-55d0c0200000 r-xp 00100000 08:01 42 /usr/bin/span wire\n\
            7ffd00000000-7ffd00001000 rw-p 00000000 00:00 0 [stack]\n";
        assert_eq!(
            file_offset(maps, 0x55d0_c010_0010),
            Some(("/usr/bin/span wire", 0x0010_0010))
        );
        assert_eq!(file_offset(maps, 0x7ffd_0000_0000), None);
        assert_eq!(file_offset(maps, 1), None);
    }
}
