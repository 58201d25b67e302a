//! The objects of the kernel side, and what is needed to load one: offsets, sizes, settings.

use aya::maps::{ArrayOfMaps, MapData};
use aya::programs::Iter;
use aya::{Ebpf, EbpfLoader};

use super::bpf::one_line;
use super::hooks::{self, ALWAYS};
use super::kernel::{chain, named, refused, KernelError, SWEEP_NS};
use super::types::KernelTypes;

/// Built by build.rs.
static TYPED: &[u8] = aya::include_bytes_aligned!(env!("SPANWIRE_EBPF_TYPED"));
static UNTYPED: &[u8] = aya::include_bytes_aligned!(env!("SPANWIRE_EBPF_UNTYPED"));
static SCALARS: &[u8] = aya::include_bytes_aligned!(env!("SPANWIRE_EBPF_SCALARS"));

/// The kernel side, built in one of three ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Object {
    /// Arguments of programs have types; the state of a socket lies in the socket.
    Typed,
    /// Arguments are bare addresses; states lie in a table by address.
    Untyped,
    /// As [`Object::Untyped`], for kernels whose global functions take numbers only (before 5.13).
    Scalars,
}

impl Object {
    /// The best first.
    pub(super) const ALL: [Self; 3] = [Self::Typed, Self::Untyped, Self::Scalars];

    /// The file.
    pub(super) const fn bytes(self) -> &'static [u8] {
        match self {
            Self::Typed => TYPED,
            Self::Untyped => UNTYPED,
            Self::Scalars => SCALARS,
        }
    }

    /// What its programs do less well, for people, whatever their family.
    pub(super) const fn gaps(self) -> &'static [&'static str] {
        match self {
            Self::Typed | Self::Untyped => &[],
            Self::Scalars => &[
                "the programs for kernels before Linux 5.15 look up what they work on at every step: a captured call costs more",
                "the programs for kernels before Linux 5.15 do without atomic operations that tell what was there: a connection \
                 that is reset while a call on it ends on another CPU may be recorded twice",
                "the programs for kernels before Linux 5.15 keep no tracestate: a traceparent that is put into a request goes alone",
            ],
        }
    }
}

/// What the programs are told before they are loaded.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes of each CPU's ring; a power of two and a multiple of the page size.
    pub ring_bytes: u32,
    /// Connections to have room for in the tables that are kept by connection.
    pub connections: u32,
    /// Some selector names a port.
    pub port_selectors: bool,
    /// How long an exchange may go without a byte before it is overdue; told within [`SWEEP_NS`] after.
    pub deadline_ns: u64,
    /// Count what an exchange costs (user reads, clock reads, ...): benchmarks only.
    pub count_costs: bool,
    /// The step of rewriting that is to fail: tests only.
    pub rewrite_fault: RewriteFault,
}

/// A step of rewriting a message (`agent-ebpf/src/message.rs`, `fault`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum RewriteFault {
    /// None is to fail.
    #[default]
    None = 0,
    Pull = 1,
    Push = 2,
    Linearise = 3,
    Write = 4,
    Pop = 5,
    Enrol = 6,
    LineariseAndPop = 7,
}

impl RewriteFault {
    /// By its name in `SPANWIRE_REWRITE_FAULT`.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "" => Self::None,
            "pull" => Self::Pull,
            "push" => Self::Push,
            "linearise" => Self::Linearise,
            "write" => Self::Write,
            "pop" => Self::Pop,
            "enrol" => Self::Enrol,
            "linearise_and_pop" => Self::LineariseAndPop,
            _ => return None,
        })
    }
}

/// The maps that grow with the number of connections, and their sizes for so many. At 65,536 they are what maps.rs says.
/// Where programs have types, sockets themselves need none: their state lies in the socket.
fn tables(connections: u32) -> [(&'static str, u32); 5] {
    // A map that gives way to the newest keeps some entries of each CPU aside: a smaller one would forget too soon.
    let share = |divisor: u32| (connections / divisor).max(512);
    [
        ("WIRES", connections.max(1_024)),
        ("INBOUND", share(4)),
        ("CARRY", share(32)),
        ("OPAQUE_TURNS", share(32)),
        ("PIPELINE", share(64)),
    ]
}

const OFFSETS: [(&str, &str, &str); 33] = [
    ("OFF_SK_FAMILY", "sock", "skc_family"),
    ("OFF_SK_RCV_SADDR", "sock", "skc_rcv_saddr"),
    ("OFF_SK_DADDR", "sock", "skc_daddr"),
    ("OFF_SK_V6_RCV_SADDR", "sock", "skc_v6_rcv_saddr"),
    ("OFF_SK_V6_DADDR", "sock", "skc_v6_daddr"),
    ("OFF_SK_NUM", "sock", "skc_num"),
    ("OFF_SK_DPORT", "sock", "skc_dport"),
    ("OFF_SK_NET", "sock", "skc_net"),
    ("OFF_SK_TYPE", "sock", "sk_type"),
    ("OFF_SK_PROTOCOL", "sock", "sk_protocol"),
    ("OFF_SK_SOCKET", "sock", "sk_socket"),
    ("OFF_SK_ERR", "sock", "sk_err"),
    ("OFF_SK_STATE", "sock", "skc_state"),
    ("OFF_SOCKET_FILE", "socket", "file"),
    ("OFF_SOCKET_SK", "socket", "sk"),
    ("OFF_FILE_FLAGS", "file", "f_flags"),
    ("OFF_NET_INUM", "net", "ns"),
    ("OFF_SK_WMEM_QUEUED", "sock", "sk_wmem_queued"),
    ("OFF_SK_FLAGS", "sock", "skc_flags"),
    ("OFF_SK_SNDBUF", "sock", "sk_sndbuf"),
    ("OFF_TP_SND_NXT", "tcp_sock", "snd_nxt"),
    ("OFF_TP_NOTSENT_LOWAT", "tcp_sock", "notsent_lowat"),
    ("OFF_TP_WRITE_SEQ", "tcp_sock", "write_seq"),
    ("OFF_TP_COPIED_SEQ", "tcp_sock", "copied_seq"),
    ("OFF_TP_RCV_NXT", "tcp_sock", "rcv_nxt"),
    ("OFF_TP_SND_UNA", "tcp_sock", "snd_una"),
    ("OFF_TP_BYTES_ACKED", "tcp_sock", "bytes_acked"),
    ("OFF_TP_BYTES_RECEIVED", "tcp_sock", "bytes_received"),
    ("OFF_UNIX_PEER", "unix_sock", "peer"),
    ("OFF_TASK_PID", "task_struct", "pid"),
    ("OFF_TASK_TGID", "task_struct", "tgid"),
    ("OFF_TASK_REAL_PARENT", "task_struct", "real_parent"),
    ("OFF_BPRM_FILENAME", "linux_binprm", "filename"),
];

/// What the programs need besides that find a task's registers for themselves.
const OFFSETS_SCALARS: [(&str, &str, &str); 1] = [("OFF_TASK_STACK", "task_struct", "stack")];

/// What the programs without types need besides.
const OFFSETS_UNTYPED: [(&str, &str, &str); 8] = [
    ("OFF_SK_SHUTDOWN", "sock", "sk_shutdown"),
    ("OFF_TASK_FILES", "task_struct", "files"),
    ("OFF_FILES_TABLE", "files_struct", "fdt"),
    ("OFF_TABLE_SIZE", "fdtable", "max_fds"),
    ("OFF_TABLE_FILES", "fdtable", "fd"),
    ("OFF_FILE_INODE", "file", "f_inode"),
    ("OFF_FILE_PRIVATE_DATA", "file", "private_data"),
    ("OFF_INODE_MODE", "inode", "i_mode"),
];

/// For `ZERO_COPY_BIT`: every socket counts as one with SO_ZEROCOPY.
const ALL_BITS: u32 = 64;

/// Loads objects for the running kernel.
pub(super) struct Loader<'a> {
    pub(super) options: Options,
    pub(super) types: &'a KernelTypes,
}

impl Loader<'_> {
    /// Loads an object, the hooks that every family is used with, and the walks; attaches nothing.
    pub(super) fn load(&self, object: Object, rings: &[MapData]) -> Result<Ebpf, KernelError> {
        let offsets = Self::offsets(self.types, object)?;
        let overdue_sweeps = self.options.deadline_ns.div_ceil(SWEEP_NS) as u32;
        let port_selectors = u32::from(self.options.port_selectors);
        let count_costs = u32::from(self.options.count_costs);
        // Where the kernel does not say which bit it is, no socket is enrolled for longer than it would be with it.
        let zero_copy_bit = self
            .types
            .btf
            .enumerator("sock_flags", "SOCK_ZEROCOPY")
            .unwrap_or(ALL_BITS);
        let rewrite_fault = self.options.rewrite_fault as u32;
        let thread_size = thread_size(self.types);
        let recvmsg_flags = hooks::recvmsg_flags(&self.types.btf);
        let mut loader = EbpfLoader::new();
        // For whoever changes the programs: every instruction the verifier walks, in what `--log debug` shows of a refusal.
        let is_verbose = std::env::var_os("SPANWIRE_VERIFIER_LOG").is_some();
        loader.verifier_log_level(if is_verbose {
            aya::VerifierLogLevel::VERBOSE | aya::VerifierLogLevel::STATS
        } else {
            aya::VerifierLogLevel::STATS
        });
        loader.btf(Some(&self.types.aya));
        for (global, offset) in &offsets {
            loader.override_global(global, offset, true);
        }
        loader.override_global("OVERDUE_SWEEPS", &overdue_sweeps, true);
        loader.override_global("PORT_SELECTORS", &port_selectors, true);
        loader.override_global("COUNT_COSTS", &count_costs, true);
        loader.override_global("ZERO_COPY_BIT", &zero_copy_bit, true);
        loader.override_global("REWRITE_FAULT", &rewrite_fault, true);
        loader.map_max_entries("RINGS", rings.len() as u32);
        for (table, entries) in tables(self.options.connections) {
            loader.map_max_entries(table, entries);
        }
        match object {
            Object::Typed => {}
            Object::Untyped | Object::Scalars => {
                loader.override_global("RECVMSG_FLAGS", &recvmsg_flags, true);
                loader.map_max_entries("SOCKETS", (self.options.connections / 2).max(1_024));
                if object == Object::Scalars {
                    loader.override_global("THREAD_SIZE", &thread_size, true);
                }
            }
        }
        let mut ebpf = loader.load(object.bytes())?;
        put_rings(&mut ebpf, rings)?;
        hooks::load(&mut ebpf, &ALWAYS, &self.types.aya).map_err(|(name, error)| refused(name)(error))?;
        for (name, kind) in walks(object) {
            let walk: &mut Iter = ebpf
                .program_mut(name)
                .ok_or(KernelError::Missing(name))?
                .try_into()
                .map_err(refused(name))?;
            // Nothing stands on these: what is lost without them, says the caller of the walk.
            if let Err(error) = walk.load(kind, &self.types.aya) {
                tracing::debug!(name, error = one_line(&chain(&error)), "walk not loaded");
            }
        }
        Ok(ebpf)
    }

    /// Where the fields lie that an object's programs read, by the globals that tell them.
    pub(super) fn offsets(types: &KernelTypes, object: Object) -> Result<Vec<(&'static str, u32)>, KernelError> {
        let mut offsets = Vec::with_capacity(OFFSETS.len() + OFFSETS_UNTYPED.len() + 1);
        for (global, structure, field) in OFFSETS {
            let mut offset = types.btf.offset(structure, field)?;
            if field == "ns" {
                offset += types.btf.offset("ns_common", "inum")?;
            }
            offsets.push((global, offset));
        }
        if object != Object::Typed {
            let besides = if object == Object::Scalars {
                &OFFSETS_SCALARS[..]
            } else {
                &[]
            };
            for (global, structure, field) in OFFSETS_UNTYPED.iter().chain(besides) {
                offsets.push((global, types.btf.offset(structure, field)?));
            }
            // A `struct socket` begins its `struct socket_alloc`.
            let inode = types.btf.offset("socket_alloc", "vfs_inode")?;
            offsets.push(("OFF_SOCKET_INODE_NUMBER", inode + types.btf.offset("inode", "i_ino")?));
        }
        Ok(offsets)
    }
}

/// Size of a task's stack: 16 KiB, twice that where the kernel was built to find its own bugs (KASAN_STACK_ORDER,
/// arch/x86/include/asm/page_64_types.h).
fn thread_size(types: &KernelTypes) -> u32 {
    let finds_bugs = types.btf.offset("task_struct", "kasan_depth").is_ok();
    (16 << 10) << u32::from(finds_bugs)
}

/// Programs that walk, and over what.
fn walks(object: Object) -> [(&'static str, &'static str); 2] {
    let states = match object {
        Object::Typed => "bpf_sk_storage_map",
        Object::Untyped | Object::Scalars => "bpf_map_elem",
    };
    [("mark_old_sockets", "task_file"), ("sweep_sockets", states)]
}

/// Puts each CPU's ring where the programs look for it.
fn put_rings(ebpf: &mut Ebpf, rings: &[MapData]) -> Result<(), KernelError> {
    let map = ebpf.map_mut("RINGS").ok_or(KernelError::Missing("RINGS"))?;
    let mut table = ArrayOfMaps::<_, MapData>::try_from(map).map_err(named("RINGS"))?;
    for (cpu, ring) in rings.iter().enumerate() {
        table.set(cpu as u32, ring, 0).map_err(named("RINGS"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::tables;

    #[test]
    fn tables_by_connection_follow_their_number() {
        let usual = [65_536, 16_384, 2_048, 2_048, 1_024];
        assert_eq!(tables(65_536).map(|(_, entries)| entries), usual);
        assert_eq!(
            tables(131_072).map(|(_, entries)| entries),
            usual.map(|entries| entries * 2)
        );
        assert!(tables(1_024).iter().all(|(_, entries)| (512..=1_024).contains(entries)));
    }
}
