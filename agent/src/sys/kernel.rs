//! Loads the programs, sets what they need to know, attaches them, and reaches into their maps.
#![allow(unsafe_code, reason = "clock_gettime and the memory of map values")]

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;

use aya::maps::{Array, ArrayOfMaps, HashMap, Map, MapData, PerCpuArray, RingBuf};
use aya::programs::Iter;
use aya::{Ebpf, EbpfLoader};
use spanwire_common::abi;
use spanwire_common::drop::KERNEL_COUNTERS;
use thiserror::Error;

use super::bpf::{self, one_line};
use super::btf::BtfError;
use super::hooks::{self, Family, HooksError, ALWAYS};
use super::pod;
use super::types::KernelTypes;

/// The kernel side, built by build.rs.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("SPANWIRE_EBPF_OBJECT"));

/// Why the kernel side could not be brought up.
#[derive(Debug, Error)]
pub enum KernelError {
    /// No BTF, or fields are missing.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// aya's own BTF reader failed.
    #[error("kernel BTF: {0}")]
    AyaBtf(#[from] aya::BtfError),
    /// The object was refused.
    #[error("loading the eBPF object: {}", chain(.0))]
    Load(#[from] aya::EbpfError),
    /// A program was refused.
    #[error("program {name}: {}", refused_because(&chain(.source)))]
    Program {
        /// Which.
        name: &'static str,
        /// Why.
        source: Box<aya::programs::ProgramError>,
    },
    /// The family asked for is none.
    #[error(transparent)]
    Hooks(#[from] HooksError),
    /// The kernel took no family of hooks.
    #[error("no family of socket hooks works (kprobe and system-call tracepoints are not built yet): {0}")]
    NoFamily(String),
    /// A walk over the kernel's objects failed.
    #[error("walk {name}: {refusal}")]
    Walk {
        /// Its program.
        name: &'static str,
        /// What the kernel said.
        refusal: bpf::Refusal,
    },
    /// A map is not as expected.
    #[error("map {name}: {}", chain(.source))]
    Map {
        /// Which.
        name: &'static str,
        /// Why.
        source: Box<aya::maps::MapError>,
    },
    /// The object does not hold what this build expects.
    #[error("the eBPF object has no {0}")]
    Missing(&'static str),
}

/// An error with its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

/// The verifier's complaint on one line; that a helper is missing, in other words.
fn refused_because(error: &str) -> String {
    let complaint = one_line(error);
    if complaint.contains("unknown func") || complaint.contains("invalid func unknown") {
        return format!(
            "{complaint}: this kernel is too old, Linux 6.1 is the oldest that was tried (docs/kernels.md)"
        );
    }
    complaint
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
}

/// The maps that grow with the number of connections, and their sizes for so many. At 65,536 they are what maps.rs says.
/// TCP sockets themselves need none: their state lies in the socket.
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

const OFFSETS: [(&str, &str, &str); 28] = [
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

/// CLOCK_MONOTONIC in nanoseconds: what `bpf_ktime_get_ns` reads.
pub fn monotonic_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

/// Nanoseconds to add to CLOCK_MONOTONIC for unix time, as of now.
pub fn monotonic_to_unix_ns() -> u64 {
    clock_ns(libc::CLOCK_REALTIME).wrapping_sub(monotonic_ns())
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid pointer to a timespec; both clocks exist on every Linux.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The loaded kernel side. Dropping it detaches everything.
pub struct Kernel {
    ebpf: Ebpf,
    attached: Vec<&'static str>,
    chosen: Chosen,
    old_sockets_marked: bool,
}

impl Kernel {
    /// Loads the object and its programs; attaches nothing.
    ///
    /// # Errors
    /// [`KernelError`], naming what the kernel refused.
    pub fn load(types: &KernelTypes, options: Options) -> Result<(Self, Vec<RingBuf<MapData>>), KernelError> {
        let mut offsets = Vec::with_capacity(OFFSETS.len());
        for (global, structure, field) in OFFSETS {
            let mut offset = types.btf.offset(structure, field)?;
            if field == "ns" {
                offset += types.btf.offset("ns_common", "inum")?;
            }
            offsets.push((global, offset));
        }
        let overdue_sweeps = options.deadline_ns.div_ceil(SWEEP_NS) as u32;
        let port_selectors = u32::from(options.port_selectors);
        let count_costs = u32::from(options.count_costs);
        let cpus = aya::util::nr_cpus().map_err(|_| KernelError::Missing("number of CPUs"))? as u32;
        let mut loader = EbpfLoader::new();
        loader.verifier_log_level(aya::VerifierLogLevel::STATS);
        loader.btf(Some(&types.aya));
        for (global, offset) in &offsets {
            loader.override_global(global, offset, true);
        }
        loader.override_global("OVERDUE_SWEEPS", &overdue_sweeps, true);
        loader.override_global("PORT_SELECTORS", &port_selectors, true);
        loader.override_global("COUNT_COSTS", &count_costs, true);
        loader.map_max_entries("RINGS", cpus);
        for (table, entries) in tables(options.connections) {
            loader.map_max_entries(table, entries);
        }
        let mut ebpf = loader.load(OBJECT)?;
        let rings = make_rings(&mut ebpf, cpus, options.ring_bytes)?;
        hooks::load(&mut ebpf, &ALWAYS, &types.aya).map_err(|(name, error)| refused(name)(error))?;
        for (name, kind) in WALKS {
            let walk: &mut Iter = ebpf
                .program_mut(name)
                .ok_or(KernelError::Missing(name))?
                .try_into()
                .map_err(refused(name))?;
            // Nothing stands on these: what is lost without them, says the caller of the walk.
            if let Err(error) = walk.load(kind, &types.aya) {
                tracing::debug!(name, error = one_line(&chain(&error)), "walk not loaded");
            }
        }
        let chosen = choose(&mut ebpf, Family::to_try()?.into(), Vec::new(), types)?;
        let kernel = Self {
            ebpf,
            attached: Vec::new(),
            chosen,
            old_sockets_marked: false,
        };
        Ok((kernel, rings))
    }

    /// Attaches the hooks, in an order in which none sees what another should have prepared. A family that was loaded
    /// and cannot be attached is replaced by the next.
    ///
    /// # Errors
    /// [`KernelError::Program`], [`KernelError::NoFamily`].
    pub fn attach(&mut self) -> Result<(), KernelError> {
        self.attach_each(&ALWAYS)?;
        loop {
            let hooks = self.chosen.hooks.clone();
            let Err(error) = self.attach_each(&hooks) else {
                return Ok(());
            };
            for name in &hooks {
                hooks::unload(&mut self.ebpf, name);
            }
            self.attached.retain(|name| !hooks.contains(name));
            let (rest, mut refusals) = (self.chosen.rest.clone(), self.chosen.refusals.clone());
            refusals.push(refusal(self.chosen.family, &error));
            self.chosen = choose(&mut self.ebpf, rest, refusals, &KernelTypes::read()?)?;
        }
    }

    /// Marks the unix sockets that are older than the agent; after [`Kernel::attach`], so that none is missed. From then
    /// on a unix socket without a mark is new.
    ///
    /// # Errors
    /// [`KernelError::Walk`]: all unix sockets stay doubtful, and are joined at their first whole response.
    pub fn mark_old_sockets(&mut self) -> Result<(), KernelError> {
        self.walk("mark_old_sockets", None)?;
        self.old_sockets_marked = true;
        let settings = {
            let map = self.map("SETTINGS")?;
            let array = Array::<_, pod::Settings>::try_from(map).map_err(named("SETTINGS"))?;
            array.get(&0, 0).map_err(named("SETTINGS"))?
        };
        self.set_settings(settings.0)
    }

    /// Tells of the exchanges that have had no byte for the deadline. To be called every [`SWEEP_NS`].
    ///
    /// # Errors
    /// [`KernelError::Walk`].
    pub fn sweep(&mut self) -> Result<(), KernelError> {
        self.walk("sweep_sockets", Some("SOCKETS"))
    }

    fn walk(&mut self, name: &'static str, map: Option<&'static str>) -> Result<(), KernelError> {
        let program = self.ebpf.program(name).ok_or(KernelError::Missing(name))?;
        let program = program.fd().map_err(refused(name))?;
        let map = match map {
            None => None,
            Some(map) => match self.ebpf.map(map).ok_or(KernelError::Missing(map))? {
                Map::SkStorage(data) => Some(data.fd().as_fd()),
                _ => return Err(KernelError::Missing("socket storage")),
            },
        };
        bpf::iterate(program.as_fd(), map).map_err(|refusal| KernelError::Walk { name, refusal })
    }

    fn attach_each(&mut self, names: &[&'static str]) -> Result<(), KernelError> {
        for name in names {
            hooks::attach(&mut self.ebpf, name).map_err(refused(name))?;
            self.attached.push(name);
        }
        Ok(())
    }

    /// Detaches every hook. Records already written stay in the rings.
    pub fn detach(&mut self) {
        for name in self.attached.drain(..) {
            hooks::unload(&mut self.ebpf, name);
        }
    }

    /// Which family of hooks sees the sends and receives.
    pub fn family(&self) -> Family {
        self.chosen.family
    }

    /// Why better families are not used; empty when the best is.
    pub fn refusals(&self) -> &[String] {
        &self.chosen.refusals
    }

    /// Instructions the verifier walked for each program, where the kernel tells (5.16+).
    pub fn verified(&self) -> Vec<(String, u32)> {
        self.ebpf
            .programs()
            .filter_map(|(name, program)| {
                program
                    .info()
                    .ok()?
                    .verified_instruction_count()
                    .map(|count| (name.to_owned(), count))
            })
            .collect()
    }

    /// Names of the hooks that are attached.
    pub fn attached(&self) -> &[&'static str] {
        &self.attached
    }

    /// Replaces what may change while the agent runs.
    ///
    /// # Errors
    /// [`KernelError::Map`].
    pub fn set_settings(&mut self, settings: abi::Settings) -> Result<(), KernelError> {
        let mut settings = settings;
        if self.old_sockets_marked {
            settings.flags |= abi::setting::OLD_SOCKETS_MARKED;
        }
        let map = self.map("SETTINGS")?;
        let mut array = Array::<_, pod::Settings>::try_from(map).map_err(named("SETTINGS"))?;
        array.set(0, pod::Settings(settings), 0).map_err(named("SETTINGS"))
    }

    /// Writes what is known of a process. The kernel side's own bits (SERVES, DEMOTED) are kept.
    ///
    /// # Errors
    /// [`KernelError::Map`].
    pub fn set_process(&mut self, pid: u32, value: abi::ProcessValue) -> Result<(), KernelError> {
        let map = self.map("PROCESSES")?;
        let mut processes = HashMap::<_, u32, pod::Process>::try_from(map).map_err(named("PROCESSES"))?;
        let mut value = value;
        if let Ok(known) = processes.get(&pid, 0) {
            value.flags |= known.0.flags & (abi::process_flag::SERVES | abi::process_flag::DEMOTED);
        }
        processes
            .insert(pid, pod::Process(value), 0)
            .map_err(named("PROCESSES"))
    }

    /// Forgets a process.
    ///
    /// # Errors
    /// [`KernelError::Map`].
    pub fn forget_process(&mut self, pid: u32) -> Result<(), KernelError> {
        let map = self.map("PROCESSES")?;
        let mut processes = HashMap::<_, u32, pod::Process>::try_from(map).map_err(named("PROCESSES"))?;
        match processes.remove(&pid) {
            Ok(()) => Ok(()),
            Err(aya::maps::MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(named("PROCESSES")(error)),
        }
    }

    /// Names a port in selector items.
    ///
    /// # Errors
    /// [`KernelError::Map`].
    pub fn set_port(&mut self, port: u16, value: abi::PortValue) -> Result<(), KernelError> {
        let map = self.map("PORTS")?;
        let mut ports = HashMap::<_, u32, pod::Port>::try_from(map).map_err(named("PORTS"))?;
        ports
            .insert(u32::from(port), pod::Port(value), 0)
            .map_err(named("PORTS"))
    }

    /// Totals of the kernel side's counters, over all CPUs, indexed by `KernelCounter`.
    pub fn counters(&self) -> [u64; KERNEL_COUNTERS] {
        let mut totals = [0; KERNEL_COUNTERS];
        let Some(map) = self.ebpf.map("COUNTERS") else {
            return totals;
        };
        let Ok(counters) = PerCpuArray::<_, u64>::try_from(map) else {
            return totals;
        };
        for (index, total) in totals.iter_mut().enumerate() {
            if let Ok(values) = counters.get(&(index as u32), 0) {
                *total = values.iter().sum();
            }
        }
        totals
    }

    /// Takes the opaque turns that have had no byte since `quiet_since_ns`.
    pub fn take_quiet_turns(&mut self, quiet_since_ns: u64) -> Vec<abi::OpaqueTurn> {
        let Some(map) = self.ebpf.map_mut("OPAQUE_TURNS") else {
            return Vec::new();
        };
        let Ok(mut turns) = HashMap::<_, u64, pod::OpaqueTurn>::try_from(map) else {
            return Vec::new();
        };
        let quiet: Vec<(u64, abi::OpaqueTurn)> = turns
            .iter()
            .filter_map(Result::ok)
            .filter(|(_, turn)| turn.0.received_last_ns != 0 && turn.0.received_last_ns < quiet_since_ns)
            .map(|(cookie, turn)| (cookie, turn.0))
            .collect();
        quiet
            .into_iter()
            .filter(|(cookie, _)| turns.remove(cookie).is_ok())
            .map(|(_, turn)| turn)
            .collect()
    }

    /// Takes what a client left on the wire, if its server has not.
    pub fn take_wire(&mut self, key: u64) -> Option<abi::WireValue> {
        let mut wires = HashMap::<_, u64, pod::Wire>::try_from(self.ebpf.map_mut("WIRES")?).ok()?;
        let wire = wires.get(&key, 0).ok()?;
        // Gone by now: the server has taken it after all, and its record will say so.
        wires.remove(&key).ok()?;
        Some(wire.0)
    }

    fn map(&mut self, name: &'static str) -> Result<&mut Map, KernelError> {
        self.ebpf.map_mut(name).ok_or(KernelError::Missing(name))
    }
}

/// How often [`Kernel::sweep`] is to be called.
pub const SWEEP_NS: u64 = 5_000_000_000;

/// Programs that walk, and over what.
const WALKS: [(&str, &str); 2] = [
    ("mark_old_sockets", "task_file"),
    ("sweep_sockets", "bpf_sk_storage_map"),
];

fn named(name: &'static str) -> impl Fn(aya::maps::MapError) -> KernelError {
    move |source| KernelError::Map {
        name,
        source: Box::new(source),
    }
}

fn refused(name: &'static str) -> impl Fn(aya::programs::ProgramError) -> KernelError {
    move |source| KernelError::Program {
        name,
        source: Box::new(source),
    }
}

/// The family in use, its programs loaded.
struct Chosen {
    family: Family,
    hooks: Vec<&'static str>,
    /// What is left to try, should it not attach.
    rest: VecDeque<Family>,
    /// Why the ones before it are not used.
    refusals: Vec<String>,
}

/// Loads the programs of the first family that the kernel takes whole.
fn choose(
    ebpf: &mut Ebpf,
    mut rest: VecDeque<Family>,
    mut refusals: Vec<String>,
    types: &KernelTypes,
) -> Result<Chosen, KernelError> {
    while let Some(family) = rest.pop_front() {
        match load_family(ebpf, family, types) {
            Ok(hooks) => {
                return Ok(Chosen {
                    family,
                    hooks,
                    rest,
                    refusals,
                })
            }
            Err(error) => refusals.push(refusal(family, &error)),
        }
    }
    Err(KernelError::NoFamily(refusals.join("; ")))
}

/// On one line: the verifier's whole log is pages long.
fn refusal(family: Family, error: &KernelError) -> String {
    format!("{}: {}", family.name(), one_line(&error.to_string()))
}

fn load_family(ebpf: &mut Ebpf, family: Family, types: &KernelTypes) -> Result<Vec<&'static str>, KernelError> {
    let hooks = family.hooks(&types.btf)?;
    if let Err((name, error)) = hooks::load(ebpf, &hooks, &types.aya) {
        for name in &hooks {
            hooks::unload(ebpf, name);
        }
        return Err(refused(name)(error));
    }
    Ok(hooks)
}

/// One ring per CPU, put into RINGS.
fn make_rings(ebpf: &mut Ebpf, cpus: u32, bytes: u32) -> Result<Vec<RingBuf<MapData>>, KernelError> {
    let map = ebpf.map_mut("RINGS").ok_or(KernelError::Missing("RINGS"))?;
    let mut rings = ArrayOfMaps::<_, MapData>::try_from(map).map_err(named("RINGS"))?;
    let mut readers = Vec::with_capacity(cpus as usize);
    for cpu in 0..cpus {
        let shape = aya_obj::Map::new_from_params(RINGBUF, 0, 0, bytes, 0);
        let ring = MapData::create(shape, "ring", None).map_err(named("RINGS"))?;
        rings.set(cpu, &ring, 0).map_err(named("RINGS"))?;
        readers.push(RingBuf::try_from(Map::RingBuf(ring)).map_err(named("RINGS"))?);
    }
    Ok(readers)
}

/// BPF_MAP_TYPE_RINGBUF (include/uapi/linux/bpf.h).
const RINGBUF: u32 = 27;

#[cfg(test)]
mod tests {
    use super::{refused_because, tables};

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

    #[test]
    fn an_old_kernel_is_told_that_it_is() {
        let log = "the BPF_PROG_LOAD syscall returned Invalid argument (os error 22). Verifier output: Unrecognized arg#0 type PTR\n\
            invalid func unknown#158\nprocessed 880 insns\n: Invalid argument (os error 22)";
        assert_eq!(
            refused_because(log),
            "the BPF_PROG_LOAD syscall returned Invalid argument (os error 22): invalid func unknown#158: this kernel is too \
             old, Linux 6.1 is the oldest that was tried (docs/kernels.md)"
        );
        assert_eq!(refused_because("R1 is bad"), "R1 is bad");
    }
}
