//! The kernel side of rewriting: its two programs, which connections they may touch, and how it ends.

use std::fs::File;
use std::os::fd::AsFd;

use aya::maps::{Array, HashMap, SockHash};
use aya::programs::{CgroupAttachMode, Program, ProgramError, SkMsg, SockOps};
use aya::Ebpf;
use spanwire_common::abi::{ingress_key, setting, AddressRange, PortValue, ReturnLines, RANGES_MOST};

use super::hooks::BPF_SEND;
use super::kernel::{named, refused, Kernel, KernelError};
use super::older::Enrolled;
use super::{pod, probe};

/// The program that sees the points in the life of a TCP connection.
const ENROL: &str = "enrol_connections";
/// The program that sees the messages of enrolled sockets.
const REWRITE: &str = "rewrite_messages";
/// The sockets whose messages it sees.
const ENROLLED: &str = "ENROLLED";

/// Both, as `spanwire_hook_attached` names them.
pub const HOOKS: [&str; 2] = [ENROL, REWRITE];

/// What may be rewritten.
#[derive(Clone, Debug, Default)]
pub struct Reach {
    /// The other end has to be in one of these.
    pub destinations: Vec<AddressRange>,
    /// ... and not on one of these ports.
    pub spared_ports: Vec<u16>,
    /// Peers whose inbound context is adopted; none: every peer's.
    pub trusted: Vec<AddressRange>,
    /// Ports that items of `propagate.include` and `propagate.exclude` name: the masks of those items.
    pub ports: Vec<(u16, Masks)>,
    /// Items that name no port.
    pub any_port: Masks,
    /// What is put into responses.
    pub return_lines: ReturnLines,
    /// What is done at all: [`setting::REWRITE`], [`setting::RETURN`].
    pub settings: u32,
}

/// Bits of items of `propagate`: those of `include`, those of `exclude`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Masks {
    pub include: u32,
    pub exclude: u32,
}

impl Kernel {
    /// Loads the two programs and attaches them. From then on, connections that processes with leave to rewrite make are
    /// enrolled.
    ///
    /// # Errors
    /// What the kernel refuses. Nothing is attached then.
    pub fn begin_rewriting(&mut self, reach: &Reach) -> Result<(), KernelError> {
        self.set_reach(reach)?;
        if reach.settings == 0 {
            return Ok(());
        }
        if !self.sees_enrolled_sockets() {
            return Err(KernelError::Blind(format!(
                "this kernel's types have no {BPF_SEND}: what enrolled sockets send would not be seen"
            )));
        }
        let attached = attach(self.ebpf());
        if let Err(error) = attached.and_then(|()| self.allow_rewriting(reach.settings)) {
            self.end_rewriting();
            return Err(error);
        }
        Ok(())
    }

    /// Nothing is rewritten any more, and every enrolled socket is its own again. May be called at any time.
    pub fn end_rewriting(&mut self) {
        // First what costs nothing: the programs do nothing from here on.
        let _ = self.allow_rewriting(0);
        let ebpf = self.ebpf();
        unload(ebpf, ENROL);
        release_all(ebpf);
        unload(ebpf, REWRITE);
        // Those whose enrolment came in between.
        release_all(ebpf);
    }

    /// The sockets that are enrolled, for whoever adds to them.
    ///
    /// # Errors
    /// [`KernelError::Map`], [`KernelError::Missing`].
    pub fn enrolled(&mut self) -> Result<Enrolled, KernelError> {
        Enrolled::of(self.ebpf())
    }

    fn allow_rewriting(&mut self, what: u32) -> Result<(), KernelError> {
        let mut settings = self.settings()?;
        settings.flags &= !(setting::REWRITE | setting::RETURN);
        settings.flags |= what;
        self.set_settings(settings)
    }

    /// Connections to a listening socket are enrolled for their responses, or no longer.
    ///
    /// # Errors
    /// [`KernelError::Map`].
    pub fn set_ingress(&mut self, netns: u32, port: u16, is_one: bool) -> Result<(), KernelError> {
        let map = self.map("INGRESS")?;
        let mut ingress = HashMap::<_, u64, u32>::try_from(map).map_err(named("INGRESS"))?;
        let key = ingress_key(netns, port);
        if is_one {
            return ingress.insert(key, 1, 0).map_err(named("INGRESS"));
        }
        // Not there is as good as gone.
        let _ = ingress.remove(&key);
        Ok(())
    }

    fn set_reach(&mut self, reach: &Reach) -> Result<(), KernelError> {
        self.set_ranges("DESTINATIONS", &reach.destinations)?;
        self.set_ranges("TRUSTED", &reach.trusted)?;
        let mut settings = self.settings()?;
        settings.flags &= !setting::TRUST;
        if !reach.trusted.is_empty() {
            settings.flags |= setting::TRUST;
        }
        settings.propagate_include_any_port = reach.any_port.include;
        settings.propagate_exclude_any_port = reach.any_port.exclude;
        self.set_settings(settings)?;
        self.set_ports_of_propagate(&reach.ports)?;
        let map = self.map("RETURN_LINES")?;
        let mut lines = Array::<_, pod::ReturnLines>::try_from(map).map_err(named("RETURN_LINES"))?;
        lines
            .set(0, pod::ReturnLines(reach.return_lines), 0)
            .map_err(named("RETURN_LINES"))?;
        let map = self.map("SPARED_PORTS")?;
        let mut spared = HashMap::<_, u32, u32>::try_from(map).map_err(named("SPARED_PORTS"))?;
        for port in &reach.spared_ports {
            spared.insert(u32::from(*port), 1, 0).map_err(named("SPARED_PORTS"))?;
        }
        Ok(())
    }

    /// Takes the place of what was there, and leaves what PORTS holds for `capture`.
    fn set_ports_of_propagate(&mut self, ports: &[(u16, Masks)]) -> Result<(), KernelError> {
        let map = self.map("PORTS")?;
        let mut table = HashMap::<_, u32, pod::Port>::try_from(map).map_err(named("PORTS"))?;
        let mut named_now: Vec<u32> = table.keys().filter_map(Result::ok).collect();
        named_now.extend(ports.iter().map(|(port, _)| u32::from(*port)));
        for port in named_now {
            let of_port = ports.iter().find(|(named, _)| u32::from(*named) == port);
            let masks = of_port.map_or_else(Masks::default, |(_, masks)| *masks);
            let mut value = table.get(&port, 0).unwrap_or(pod::Port(PortValue::default()));
            value.0.propagate_include = masks.include;
            value.0.propagate_exclude = masks.exclude;
            table.insert(port, value, 0).map_err(named("PORTS"))?;
        }
        Ok(())
    }

    /// Takes the sockets out that are to leave and that no callback reaches any more (`LEAVING`). Returns how many.
    pub fn release_leaving(&mut self) -> u64 {
        let leaving = self.take_leaving().unwrap_or_default();
        let sockets = self.ebpf().map_mut(ENROLLED);
        let Some(Ok(mut sockets)) = sockets.map(SockHash::<_, u64>::try_from) else {
            return 0;
        };
        // One that is closed meanwhile is out already.
        let removed = leaving.iter().filter(|cookie| sockets.remove(cookie).is_ok());
        removed.count() as u64
    }

    fn take_leaving(&mut self) -> Result<Vec<u64>, KernelError> {
        let map = self.map("LEAVING")?;
        let mut leaving = HashMap::<_, u64, u32>::try_from(map).map_err(named("LEAVING"))?;
        let cookies: Vec<u64> = leaving.keys().filter_map(Result::ok).collect();
        for cookie in &cookies {
            let _ = leaving.remove(cookie);
        }
        Ok(cookies)
    }

    fn set_ranges(&mut self, name: &'static str, ranges: &[AddressRange]) -> Result<(), KernelError> {
        let mut table = Array::<_, pod::AddressRange>::try_from(self.map(name)?).map_err(named(name))?;
        let unused = AddressRange::default();
        for index in 0..RANGES_MOST {
            let range = ranges.get(index).unwrap_or(&unused);
            table
                .set(index as u32, pod::AddressRange(*range), 0)
                .map_err(named(name))?;
        }
        Ok(())
    }
}

fn attach(ebpf: &mut Ebpf) -> Result<(), KernelError> {
    let cgroup = probe::cgroup2().map_err(|refusal| KernelError::Perf { name: ENROL, refusal })?;
    let cgroup = File::open(cgroup).map_err(|error| refused(ENROL)(ProgramError::IOError(error)))?;
    let sockets = SockHash::<_, u64>::try_from(ebpf.map(ENROLLED).ok_or(KernelError::Missing(ENROLLED))?);
    let sockets = sockets
        .and_then(|sockets| sockets.fd().try_clone().map_err(aya::maps::MapError::IoError))
        .map_err(named(ENROLLED))?;
    let program: &mut SkMsg = program_named(ebpf, REWRITE)?.try_into().map_err(refused(REWRITE))?;
    program.load().map_err(refused(REWRITE))?;
    program.attach(&sockets).map_err(refused(REWRITE))?;
    let program: &mut SockOps = program_named(ebpf, ENROL)?.try_into().map_err(refused(ENROL))?;
    program.load().map_err(refused(ENROL))?;
    // A link always leaves room for others' (`cgroup_bpf_link_attach`), and takes no flag that says so.
    program
        .attach(cgroup.as_fd(), CgroupAttachMode::Single)
        .map_err(refused(ENROL))?;
    Ok(())
}

fn program_named<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Program, KernelError> {
    ebpf.program_mut(name).ok_or(KernelError::Missing(name))
}

/// Detaches a program and lets the kernel forget it; one that is not loaded stays so.
fn unload(ebpf: &mut Ebpf, name: &'static str) {
    let _ = match ebpf.program_mut(name) {
        Some(Program::SkMsg(program)) => program.unload(),
        Some(Program::SockOps(program)) => program.unload(),
        _ => Ok(()),
    };
}

/// Takes every socket out of the sockhash: its own functions are put back (`sk_psock_drop`).
fn release_all(ebpf: &mut Ebpf) {
    let Some(map) = ebpf.map_mut(ENROLLED) else { return };
    let Ok(mut sockets) = SockHash::<_, u64>::try_from(map) else {
        return;
    };
    // A key whose socket is closed meanwhile is gone, and the walk begins anew behind it: what one round misses, the next
    // finds.
    for _ in 0..RELEASE_ROUNDS {
        let keys: Vec<u64> = sockets.keys().filter_map(Result::ok).collect();
        if keys.is_empty() {
            return;
        }
        for key in keys {
            let _ = sockets.remove(&key);
        }
    }
}

/// Rounds over the sockhash; more than one only where sockets come and go meanwhile.
const RELEASE_ROUNDS: usize = 16;
