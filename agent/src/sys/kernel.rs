//! Loads the programs, sets what they need to know, attaches them, and reaches into their maps.
#![allow(unsafe_code, reason = "clock_gettime and the memory of map values")]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, RingBuf};
use aya::Ebpf;
use spanwire_common::abi;
use spanwire_common::drop::KERNEL_COUNTERS;
use thiserror::Error;

use super::bpf::{self, one_line};
use super::btf::BtfError;
use super::hooks::{self, Family, HooksError, ALWAYS};
use super::object::{Loader, Object};
pub use super::object::{Options, RewriteFault};
use super::pod;
use super::trial;
use super::types::KernelTypes;

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
    /// A kprobe or a tracepoint of a system call could not be had.
    #[error("program {name}: {refusal}")]
    Perf {
        /// The program.
        name: &'static str,
        /// What the kernel said.
        refusal: bpf::Refusal,
    },
    /// The hooks are attached, and see nothing.
    #[error("{0}")]
    Blind(String),
    /// The kernel took no family of hooks.
    #[error("no family of socket hooks works: {0}")]
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
pub(super) fn chain(error: &dyn std::error::Error) -> String {
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
        return format!("{complaint}: this kernel is too old for it (docs/kernels.md)");
    }
    complaint
}

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
    loaded: Loaded,
    options: Options,
    /// What the readers read, for another object should one be needed.
    rings: Vec<MapData>,
    attached: Vec<&'static str>,
    /// Attachments that aya does not keep.
    links: Vec<OwnedFd>,
    old_sockets_marked: bool,
    /// How often this side has changed the map PROCESSES.
    process_changes: u64,
}

/// An object, and the family whose programs are loaded from it.
struct Loaded {
    ebpf: Ebpf,
    object: Object,
    family: Family,
    hooks: Vec<&'static str>,
    /// What is left to try, should it not attach.
    rest: VecDeque<(Family, Object)>,
    /// Why the ones before it are not used.
    refusals: Vec<String>,
}

impl Kernel {
    /// Loads the object and its programs; attaches nothing.
    ///
    /// # Errors
    /// [`KernelError`], naming what the kernel refused.
    pub fn load(types: &KernelTypes, options: Options) -> Result<(Self, Vec<RingBuf<MapData>>), KernelError> {
        let loader = Loader { options, types };
        let cpus = aya::util::nr_cpus().map_err(|_| KernelError::Missing("number of CPUs"))?;
        let (rings, readers) = make_rings(cpus, options.ring_bytes)?;
        let loaded = Loaded::first(&loader, &rings)?;
        let kernel = Self {
            loaded,
            options,
            rings,
            attached: Vec::new(),
            links: Vec::new(),
            old_sockets_marked: false,
            process_changes: 0,
        };
        Ok((kernel, readers))
    }

    /// Attaches the hooks, in an order in which none sees what another should have prepared. A family that was loaded
    /// and cannot be attached is replaced by the next.
    ///
    /// # Errors
    /// [`KernelError::Program`], [`KernelError::NoFamily`].
    pub fn attach(&mut self) -> Result<(), KernelError> {
        loop {
            if self.attached.is_empty() {
                self.attach_each(&ALWAYS)?;
            }
            let hooks = self.loaded.hooks.clone();
            match self.attach_each(&hooks).and_then(|()| self.try_out()) {
                Ok(()) => {
                    self.rings.clear();
                    return Ok(());
                }
                Err(error) => self.give_way(&error)?,
            }
        }
    }

    /// Whether the hooks see something; nothing is asked of them while capture is off.
    fn try_out(&mut self) -> Result<(), KernelError> {
        if self.settings()?.flags & abi::setting::CAPTURE == 0 {
            return Ok(());
        }
        trial::try_out(self.loaded.family, &self.loaded.ebpf).map_err(KernelError::Blind)
    }

    /// The family that was loaded does not attach, or sees nothing: takes the next.
    fn give_way(&mut self, error: &KernelError) -> Result<(), KernelError> {
        self.links.clear();
        let hooks = std::mem::take(&mut self.loaded.hooks);
        for name in &hooks {
            hooks::unload(&mut self.loaded.ebpf, name);
        }
        self.attached.retain(|name| !hooks.contains(name));
        let refused = (self.loaded.family, self.loaded.object);
        self.loaded.refusals.push(refusal(refused, error));
        let before = self.loaded.object;
        let loader = Loader {
            options: self.options,
            types: &KernelTypes::read()?,
        };
        self.loaded.next(&loader, &self.rings)?;
        if self.loaded.object != before {
            // They went with the object.
            self.attached.clear();
        }
        Ok(())
    }

    /// Marks the unix sockets that are older than the agent; after [`Kernel::attach`], so that none is missed. From then
    /// on a unix socket without a mark is new.
    ///
    /// # Errors
    /// [`KernelError::Walk`]: all unix sockets stay doubtful, and are joined at their first whole response.
    pub fn mark_old_sockets(&mut self) -> Result<(), KernelError> {
        self.walk("mark_old_sockets", None)?;
        self.are_all_marked()?;
        self.old_sockets_marked = true;
        let settings = self.settings()?;
        self.set_settings(settings)
    }

    pub(super) fn settings(&mut self) -> Result<abi::Settings, KernelError> {
        let map = self.map("SETTINGS")?;
        let array = Array::<_, pod::Settings>::try_from(map).map_err(named("SETTINGS"))?;
        Ok(array.get(&0, 0).map_err(named("SETTINGS"))?.0)
    }

    /// Marks in a table may be more than it holds.
    fn are_all_marked(&mut self) -> Result<(), KernelError> {
        let Map::HashMap(data) = self.map("OLD_SOCKETS")? else {
            return Ok(());
        };
        let room = data.info().map_err(named("OLD_SOCKETS"))?.max_entries();
        let marks = HashMap::<_, u64, u64>::try_from(self.map("OLD_SOCKETS")?).map_err(named("OLD_SOCKETS"))?;
        if (marks.keys().count() as u64) < u64::from(room) {
            return Ok(());
        }
        Err(KernelError::Walk {
            name: "mark_old_sockets",
            refusal: bpf::Refusal::absent(format!(
                "there are more unix sockets than the {room} that can be marked"
            )),
        })
    }

    /// Tells of the exchanges that have had no byte for the deadline. To be called every [`SWEEP_NS`].
    ///
    /// # Errors
    /// [`KernelError::Walk`].
    pub fn sweep(&mut self) -> Result<(), KernelError> {
        self.walk("sweep_sockets", Some("SOCKETS"))
    }

    fn walk(&mut self, name: &'static str, map: Option<&'static str>) -> Result<(), KernelError> {
        let program = self.loaded.ebpf.program(name).ok_or(KernelError::Missing(name))?;
        let program = program.fd().map_err(refused(name))?;
        let map = match map {
            None => None,
            Some(map) => match self.loaded.ebpf.map(map).ok_or(KernelError::Missing(map))? {
                Map::SkStorage(data) | Map::HashMap(data) => Some(data.fd().as_fd()),
                _ => return Err(KernelError::Missing("states of sockets")),
            },
        };
        bpf::iterate(program.as_fd(), map).map_err(|refusal| KernelError::Walk { name, refusal })
    }

    fn attach_each(&mut self, names: &[&'static str]) -> Result<(), KernelError> {
        for name in names {
            self.links.extend(hooks::attach(&mut self.loaded.ebpf, name)?);
            self.attached.push(name);
        }
        Ok(())
    }

    /// Detaches every hook. Records already written stay in the rings.
    pub fn detach(&mut self) {
        self.end_rewriting();
        let links = std::mem::take(&mut self.links);
        if !links.is_empty() {
            // The kernel waits for each of them, one after the other, until no CPU runs it any more: two seconds where
            // there are many. From now on they do nothing.
            if let Ok(mut settings) = self.settings() {
                settings.flags &= !abi::setting::CAPTURE;
                // What cannot be set now ends with the links.
                let _ = self.set_settings(settings);
            }
            std::thread::spawn(move || drop(links));
        }
        for name in self.attached.drain(..) {
            hooks::unload(&mut self.loaded.ebpf, name);
        }
    }

    /// Which family of hooks sees the sends and receives.
    pub fn family(&self) -> Family {
        self.loaded.family
    }

    /// Whether sends on sockets in a sockmap are among what is seen: on fexit they have functions of their own. kprobes are put
    /// on these by name, and the other families see them as they see all.
    pub(super) fn sees_enrolled_sockets(&self) -> bool {
        self.loaded.family != Family::Fexit || self.loaded.hooks.contains(&hooks::BPF_SEND)
    }

    /// What cannot be seen, or not as well as on other kernels, for people.
    pub fn gaps(&self) -> impl Iterator<Item = &'static str> {
        let (family, object) = (self.loaded.family.gaps(), self.loaded.object.gaps());
        family.iter().chain(object).copied()
    }

    /// Why better families are not used; empty when the best is.
    pub fn refusals(&self) -> &[String] {
        &self.loaded.refusals
    }

    /// Instructions the verifier walked for each program, where the kernel tells (5.16+).
    pub fn verified(&self) -> Vec<(String, u32)> {
        self.loaded
            .ebpf
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
            let kept = abi::process_flag::SERVES | abi::process_flag::DEMOTED | abi::process_flag::EXPORTS;
            value.flags |= known.0.flags & kept;
        }
        processes
            .insert(pid, pod::Process(value), 0)
            .map_err(named("PROCESSES"))?;
        self.processes_changed()
    }

    /// True if the process was seen to send telemetry of its own.
    pub fn exports(&mut self, pid: u32) -> bool {
        let Ok(map) = self.map("PROCESSES") else { return false };
        let processes = HashMap::<_, u32, pod::Process>::try_from(map);
        let known = processes.ok().and_then(|processes| processes.get(&pid, 0).ok());
        known.is_some_and(|process| process.0.flags & abi::process_flag::EXPORTS != 0)
    }

    /// Forgets a process.
    ///
    /// # Errors
    /// [`KernelError::Map`].
    pub fn forget_process(&mut self, pid: u32) -> Result<(), KernelError> {
        let map = self.map("PROCESSES")?;
        let mut processes = HashMap::<_, u32, pod::Process>::try_from(map).map_err(named("PROCESSES"))?;
        match processes.remove(&pid) {
            Ok(()) => self.processes_changed(),
            Err(aya::maps::MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(named("PROCESSES")(error)),
        }
    }

    /// The kernel side remembers whom it has refused: no longer.
    fn processes_changed(&mut self) -> Result<(), KernelError> {
        self.process_changes += 1;
        let changes = self.process_changes;
        let map = self.map("GENERATIONS")?;
        let mut array = Array::<_, u64>::try_from(map).map_err(named("GENERATIONS"))?;
        array
            .set(abi::generation::OF_USER_SPACE, changes, 0)
            .map_err(named("GENERATIONS"))
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
        let Some(map) = self.loaded.ebpf.map("COUNTERS") else {
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
        let Some(map) = self.loaded.ebpf.map_mut("OPAQUE_TURNS") else {
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
        let mut wires = HashMap::<_, u64, pod::Wire>::try_from(self.loaded.ebpf.map_mut("WIRES")?).ok()?;
        let wire = wires.get(&key, 0).ok()?;
        // Gone by now: the server has taken it after all, and its record will say so.
        wires.remove(&key).ok()?;
        Some(wire.0)
    }

    pub(super) fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.loaded.ebpf
    }

    pub(super) fn map(&mut self, name: &'static str) -> Result<&mut Map, KernelError> {
        self.loaded.ebpf.map_mut(name).ok_or(KernelError::Missing(name))
    }
}

/// How often [`Kernel::sweep`] is to be called.
pub const SWEEP_NS: u64 = 5_000_000_000;

pub(super) fn named(name: &'static str) -> impl Fn(aya::maps::MapError) -> KernelError {
    move |source| KernelError::Map {
        name,
        source: Box::new(source),
    }
}

pub(super) fn refused(name: &'static str) -> impl Fn(aya::programs::ProgramError) -> KernelError {
    move |source| KernelError::Program {
        name,
        source: Box::new(source),
    }
}

impl Loaded {
    /// Loads the programs of the first family that the kernel takes whole.
    fn first(loader: &Loader, rings: &[MapData]) -> Result<Self, KernelError> {
        let mut rest = Family::to_try()?;
        let mut refusals = Vec::new();
        loop {
            let Some(&(_, object)) = rest.front() else {
                return Err(KernelError::NoFamily(refusals.join("; ")));
            };
            match loader.load(object, rings) {
                Ok(ebpf) => {
                    let mut loaded = Self {
                        ebpf,
                        object,
                        family: Family::TpBtf,
                        hooks: Vec::new(),
                        rest,
                        refusals,
                    };
                    loaded.next(loader, rings)?;
                    return Ok(loaded);
                }
                Err(error) => rest.retain(|next| {
                    let others = next.1 != object;
                    if !others {
                        refusals.push(refusal(*next, &error));
                    }
                    others
                }),
            }
        }
    }

    /// Loads the programs of the next family that the kernel takes.
    fn next(&mut self, loader: &Loader, rings: &[MapData]) -> Result<(), KernelError> {
        while let Some(next) = self.rest.pop_front() {
            match self.prepare(next, loader, rings) {
                Ok(hooks) => {
                    (self.family, self.hooks) = (next.0, hooks);
                    return Ok(());
                }
                Err(error) => self.refusals.push(refusal(next, &error)),
            }
        }
        Err(KernelError::NoFamily(self.refusals.join("; ")))
    }

    fn prepare(
        &mut self,
        (family, object): (Family, Object),
        loader: &Loader,
        rings: &[MapData],
    ) -> Result<Vec<&'static str>, KernelError> {
        let hooks = family.hooks(object, &loader.types.btf)?;
        if object != self.object {
            let mut ebpf = loader.load(object, rings)?;
            hand_over(&mut self.ebpf, &mut ebpf)?;
            (self.ebpf, self.object) = (ebpf, object);
        }
        if let Err((name, error)) = hooks::load(&mut self.ebpf, &hooks, &loader.types.aya) {
            for name in &hooks {
                hooks::unload(&mut self.ebpf, name);
            }
            return Err(refused(name)(error));
        }
        Ok(hooks)
    }
}

/// What was set before the hooks were attached, for another object.
fn hand_over(from: &mut Ebpf, to: &mut Ebpf) -> Result<(), KernelError> {
    fn both<'a>(
        from: &'a mut Ebpf,
        to: &'a mut Ebpf,
        name: &'static str,
    ) -> Result<(&'a mut Map, &'a mut Map), KernelError> {
        let old = from.map_mut(name).ok_or(KernelError::Missing(name))?;
        Ok((old, to.map_mut(name).ok_or(KernelError::Missing(name))?))
    }
    let (old, new) = both(from, to, "SETTINGS")?;
    let old = Array::<_, pod::Settings>::try_from(old).map_err(named("SETTINGS"))?;
    let mut new = Array::<_, pod::Settings>::try_from(new).map_err(named("SETTINGS"))?;
    let settings = old.get(&0, 0).map_err(named("SETTINGS"))?;
    new.set(0, settings, 0).map_err(named("SETTINGS"))?;
    let (old, new) = both(from, to, "PORTS")?;
    let old = HashMap::<_, u32, pod::Port>::try_from(old).map_err(named("PORTS"))?;
    let mut new = HashMap::<_, u32, pod::Port>::try_from(new).map_err(named("PORTS"))?;
    for (port, value) in old.iter().filter_map(Result::ok) {
        new.insert(port, value, 0).map_err(named("PORTS"))?;
    }
    let (old, new) = both(from, to, "PROCESSES")?;
    let old = HashMap::<_, u32, pod::Process>::try_from(old).map_err(named("PROCESSES"))?;
    let mut new = HashMap::<_, u32, pod::Process>::try_from(new).map_err(named("PROCESSES"))?;
    for (pid, value) in old.iter().filter_map(Result::ok) {
        new.insert(pid, value, 0).map_err(named("PROCESSES"))?;
    }
    Ok(())
}

/// On one line: the verifier's whole log is pages long.
fn refusal((family, object): (Family, Object), error: &KernelError) -> String {
    let smaller = if object == Object::Scalars {
        " (smaller promise)"
    } else {
        ""
    };
    format!("{}{smaller}: {}", family.name(), one_line(&error.to_string()))
}

/// A ring for each CPU, and who reads it.
fn make_rings(cpus: usize, bytes: u32) -> Result<(Vec<MapData>, Vec<RingBuf<MapData>>), KernelError> {
    let mut rings = Vec::with_capacity(cpus);
    let mut readers = Vec::with_capacity(cpus);
    for _ in 0..cpus {
        let shape = aya_obj::Map::new_from_params(RINGBUF, 0, 0, bytes, 0);
        let ring = MapData::create(shape, "ring", None).map_err(named("RINGS"))?;
        let same = ring.fd().as_fd().try_clone_to_owned().map_err(|error| {
            let source = aya::maps::MapError::SyscallError(aya::sys::SyscallError {
                call: "dup",
                io_error: error,
            });
            named("RINGS")(source)
        })?;
        let same = MapData::from_fd(same).map_err(named("RINGS"))?;
        readers.push(RingBuf::try_from(Map::RingBuf(same)).map_err(named("RINGS"))?);
        rings.push(ring);
    }
    Ok((rings, readers))
}

/// BPF_MAP_TYPE_RINGBUF (include/uapi/linux/bpf.h).
const RINGBUF: u32 = 27;

#[cfg(test)]
mod tests {
    use super::refused_because;

    #[test]
    fn an_old_kernel_is_told_that_it_is() {
        let log = "the BPF_PROG_LOAD syscall returned Invalid argument (os error 22). Verifier output: Unrecognized arg#0 type PTR\n\
            invalid func unknown#158\nprocessed 880 insns\n: Invalid argument (os error 22)";
        assert_eq!(
            refused_because(log),
            "the BPF_PROG_LOAD syscall returned Invalid argument (os error 22): invalid func unknown#158: this kernel is too \
             old for it (docs/kernels.md)"
        );
        assert_eq!(refused_because("R1 is bad"), "R1 is bad");
    }
}
