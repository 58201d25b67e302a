//! The families of programs that see every send and receive. All lead to the same handlers; one of them is used, the
//! first that the kernel takes.

use std::collections::{HashMap, VecDeque};
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use aya::programs::{FExit, KProbe, ProbeKind, Program, ProgramError, TracePoint};
use aya::{Btf as AyaBtf, Ebpf};
use thiserror::Error;

use super::bpf::{attach_perf, PerfTarget, Refusal};
use super::btf::Btf;
use super::kernel::{refused, KernelError};
use super::object::Object;
use super::probe::{format_bit, pmu};
use super::tracefs::Tracefs;

/// Hooks that every family is used with, in the order they are attached: what forgets comes before what remembers.
pub const ALWAYS: [&str; 5] = [
    "sched_process_exit",
    "sched_process_exec",
    "sched_process_fork",
    "inet_sock_set_state",
    "tcp_destroy_sock",
];

/// A way to see every send and receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// BTF tracepoints sock_recv_length and sock_send_length (6.3+).
    TpBtf,
    /// fexit on the protocols' own functions, where they have the parameters that the programs expect.
    Fexit,
    /// kprobes on the same functions.
    Kprobe,
    /// Tracepoints of the system calls.
    Syscalls,
}

/// A program, and the parameters that it takes its function to have.
struct Hook {
    name: &'static str,
    parameters: usize,
    /// Later kernels have no such function, and need none.
    optional: bool,
}

const fn hook(name: &'static str, parameters: usize, optional: bool) -> Hook {
    Hook {
        name,
        parameters,
        optional,
    }
}

/// Receives before sends, as in [`Family::hooks`] of the tracepoints.
const FEXIT: [Hook; 8] = [
    hook("tcp_recvmsg", 5, false),
    hook("unix_stream_recvmsg", 4, false),
    hook("tcp_sendmsg", 3, false),
    hook("unix_stream_sendmsg", 3, false),
    hook("tcp_sendpage", 5, true),
    hook("unix_stream_sendpage", 5, true),
    hook(BPF_SEND, 3, true),
    hook("tcp_bpf_sendpage", 5, true),
];

/// What sends on sockets that are in a sockmap, past `tcp_sendmsg`.
pub(super) const BPF_SEND: &str = "tcp_bpf_sendmsg";

/// A family that cannot be used.
#[derive(Debug, Error)]
pub enum HooksError {
    /// `SPANWIRE_HOOKS` names none.
    #[error(
        "SPANWIRE_HOOKS: expected one of tp_btf, fexit, kprobe, syscalls, or one of the last three with /scalars, got {0:?}"
    )]
    Unknown(String),
    /// The kernel has no such hooks.
    #[error("{0}")]
    Absent(#[from] Refusal),
    /// A function is not there, or is another one.
    #[error("this kernel's {name} {problem}")]
    Function {
        /// The kernel's function.
        name: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl Family {
    /// The best first.
    pub const ALL: [Self; 4] = [Self::TpBtf, Self::Fexit, Self::Kprobe, Self::Syscalls];

    /// As it is named in the answer of `/api/status` and in `SPANWIRE_HOOKS`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TpBtf => "tp_btf",
            Self::Fexit => "fexit",
            Self::Kprobe => "kprobe",
            Self::Syscalls => "syscalls",
        }
    }

    /// What the family's programs cannot see, for people; empty where they see every call.
    pub const fn gaps(self) -> &'static [&'static str] {
        match self {
            Self::TpBtf | Self::Fexit => &[],
            Self::Kprobe => &[
                "sends, and calls on unix sockets, are missed where more of them wait at once than the kernel has places \
                 for (two a CPU and ten at least; on older kernels that are not preemptible, one a CPU)",
            ],
            Self::Syscalls => &[
                "calls made by io_uring are not seen and not counted",
                "32-bit programs are not seen and not counted",
            ],
        }
    }

    /// What the map CALLS shows of it once a byte has gone through a TCP and a unix socket: functions as hook/kprobe.rs
    /// numbers them, or the system call a thread is in.
    pub(super) const fn traces(self) -> &'static [u64] {
        match self {
            Self::TpBtf | Self::Fexit => &[],
            Self::Kprobe => &[1, 2, 3],
            Self::Syscalls => &[0],
        }
    }

    /// Which objects have its programs.
    const fn objects(self) -> &'static [Object] {
        match self {
            Self::TpBtf => &[Object::Typed],
            Self::Fexit => &[Object::Typed, Object::Scalars],
            Self::Kprobe | Self::Syscalls => &[Object::Untyped, Object::Scalars],
        }
    }

    /// What to try, the best first: each object with the families it has, all or what `SPANWIRE_HOOKS` names.
    ///
    /// # Errors
    /// [`HooksError::Unknown`].
    pub(super) fn to_try() -> Result<VecDeque<(Self, Object)>, HooksError> {
        match std::env::var("SPANWIRE_HOOKS") {
            Err(_) => Ok(all()),
            Ok(name) => named(&name),
        }
    }

    /// The programs that this kernel needs of the family, in the order they are attached.
    ///
    /// # Errors
    /// [`HooksError::Function`], [`HooksError::Absent`].
    pub(super) fn hooks(self, object: Object, types: &Btf) -> Result<Vec<&'static str>, HooksError> {
        match self {
            Self::TpBtf => {
                let mut names = vec!["sock_recv_length", "sock_send_length"];
                if tracepoints_are_preemptible(types) {
                    names.extend(AGAIN);
                }
                Ok(names)
            }
            Self::Fexit if object == Object::Scalars => {
                trampolines_can_be_used(types)?;
                fexit_hooks(6, |name| types.parameters(name))
            }
            Self::Fexit => fexit_hooks(5, |name| types.parameters(name)),
            Self::Kprobe => {
                pmu("kprobe")?;
                Ok(KPROBES.iter().map(|(program, _)| *program).collect())
            }
            Self::Syscalls => {
                Tracefs::open()?.id("syscalls", "sys_exit_recvfrom")?;
                Ok(SYSCALLS.iter().map(|(program, _)| *program).collect())
            }
        }
    }
}

/// The families in the order of their objects.
fn all() -> VecDeque<(Family, Object)> {
    let of = |object: Object| Family::ALL.into_iter().map(move |family| (family, object));
    let all = Object::ALL.into_iter().flat_map(of);
    all.filter(|(family, object)| family.objects().contains(object))
        .collect()
}

/// `FAMILY`, or `FAMILY/scalars` for the object that only older kernels need.
fn named(name: &str) -> Result<VecDeque<(Family, Object)>, HooksError> {
    let (family, only) = match name.strip_suffix("/scalars") {
        Some(family) => (family, Some(Object::Scalars)),
        None => (name, None),
    };
    let is_meant = |(of, object): &(Family, Object)| of.name() == family && only.is_none_or(|only| only == *object);
    let meant: VecDeque<_> = all().into_iter().filter(is_meant).collect();
    if meant.is_empty() {
        return Err(HooksError::Unknown(name.to_owned()));
    }
    Ok(meant)
}

/// Second programs on the tracepoints, attached after the first.
const AGAIN: [&str; 2] = ["sock_recv_length_again", "sock_send_length_again"];

/// A thread can be preempted in a tracepoint's program, and the kernel then leaves that program out for others on the CPU.
/// So it is where tracepoints are guarded by SRCU and not by switching preemption off (7.x: include/linux/tracepoint.h,
/// `guard(srcu_fast_notrace)(&tracepoint_srcu)`). Up to 6.12 a variable of that name guarded others, and `struct
/// tracepoint` had no `ext` then.
fn tracepoints_are_preemptible(types: &Btf) -> bool {
    types.offset("tracepoint", "ext").is_ok() && types.has_percpu_variable("tracepoint_srcu_srcu_data")
}

/// Old trampolines: a call that sleeps in a function must find its trampoline when it wakes up, whoever has detached
/// meanwhile (e21aa341785c of 5.12, and what it was ported back to); and the programs without types share working memory,
/// so that none may be preempted for another: up to 5.10 `migrate_disable()` was `preempt_disable()`.
fn trampolines_can_be_used(types: &Btf) -> Result<(), HooksError> {
    if types.offset("bpf_tramp_image", "image").is_err() {
        return Err(Refusal::absent("this kernel takes trampolines away from calls that sleep").into());
    }
    if types.offset("task_struct", "migration_disabled").is_ok() {
        return Err(Refusal::absent("a thread can be preempted in a trampoline's program").into());
    }
    Ok(())
}

/// The tracepoint that a program is for.
fn tracepoint_of(name: &'static str) -> &'static str {
    name.strip_suffix("_again").unwrap_or(name)
}

/// `recvmsg`: how many parameters `tcp_recvmsg` is to have.
fn fexit_hooks(recvmsg: usize, parameters: impl Fn(&str) -> Option<usize>) -> Result<Vec<&'static str>, HooksError> {
    let mut names = Vec::with_capacity(FEXIT.len());
    for hook in &FEXIT {
        let wanted = if hook.name == "tcp_recvmsg" {
            recvmsg
        } else {
            hook.parameters
        };
        let problem = match parameters(hook.name) {
            Some(count) if count == wanted => {
                names.push(hook.name);
                continue;
            }
            None if hook.optional => continue,
            None => "does not exist".to_owned(),
            Some(count) => format!("has {count} parameters, not {wanted}"),
        };
        return Err(HooksError::Function {
            name: hook.name,
            problem,
        });
    }
    Ok(names)
}

/// Programs of kprobes and the functions they are put on, one or several. Ends of calls before their beginnings: what a beginning has
/// noted finds its end.
const KPROBES: [(&str, &[&CStr]); 7] = [
    ("tcp_cleanup_rbuf", &[c"tcp_cleanup_rbuf"]),
    ("return_unix_receive", &[c"unix_stream_recvmsg"]),
    (
        "return_send",
        &[
            c"tcp_sendmsg",
            c"unix_stream_sendmsg",
            c"tcp_sendpage",
            c"unix_stream_sendpage",
            c"tcp_bpf_sendmsg",
            c"tcp_bpf_sendpage",
        ],
    ),
    ("enter_tcp_receive", &[c"tcp_recvmsg"]),
    ("enter_unix_receive", &[c"unix_stream_recvmsg"]),
    (
        "enter_tcp_send",
        &[c"tcp_sendmsg", c"tcp_sendpage", c"tcp_bpf_sendmsg", c"tcp_bpf_sendpage"],
    ),
    ("enter_unix_send", &[c"unix_stream_sendmsg", c"unix_stream_sendpage"]),
];

/// Functions that later kernels, or those without sockmaps, do not have and do not need.
fn is_optional(function: &CStr) -> bool {
    let name = function.to_bytes();
    name.ends_with(b"sendpage") || name.starts_with(b"tcp_bpf_")
}

/// Index of the flags among the parameters of `tcp_recvmsg`: 5.19 dropped the one before them, later kernels the one after.
pub(super) fn recvmsg_flags(types: &Btf) -> u32 {
    match types.parameters("tcp_recvmsg") {
        Some(6) => 4,
        _ => 3,
    }
}

const RECEIVING: [&str; 6] = ["read", "readv", "preadv2", "recvfrom", "recvmsg", "recvmmsg"];
const SENDING: [&str; 8] = [
    "write",
    "writev",
    "pwritev2",
    "sendto",
    "sendmsg",
    "sendmmsg",
    "sendfile64",
    "splice",
];

/// Programs of system calls, each with the tracepoints it is put on: the end of the name, and the calls.
const SYSCALLS: [(&str, &[&[&str]]); 3] = [
    ("sys_exit_receive", &[&RECEIVING]),
    ("sys_exit_send", &[&SENDING]),
    ("sys_enter", &[&RECEIVING, &SENDING]),
];

/// Loads programs of any family, each in a thread of its own: a load is one system call, in which the kernel verifies the
/// program, and it verifies several beside each other.
///
/// # Errors
/// The verifier's about the first program that it refuses, or that there is no such program. Others may be loaded.
pub fn load(ebpf: &mut Ebpf, names: &[&'static str], types: &AyaBtf) -> Result<(), (&'static str, ProgramError)> {
    let mut programs: HashMap<String, &mut Program> = ebpf
        .programs_mut()
        .map(|(name, program)| (name.to_owned(), program))
        .collect();
    let results: Vec<_> = std::thread::scope(|scope| {
        let begun: Vec<_> = names
            .iter()
            .map(|name| {
                let program = programs.remove(*name).ok_or(ProgramError::UnexpectedProgramType);
                (*name, scope.spawn(move || load_one(program?, name, types)))
            })
            .collect();
        let ended = begun.into_iter().map(|(name, thread)| (name, thread.join()));
        ended.collect()
    });
    for (name, result) in results {
        result
            .unwrap_or(Err(ProgramError::UnexpectedProgramType))
            .map_err(|error| (name, error))?;
    }
    Ok(())
}

fn load_one(program: &mut Program, name: &'static str, types: &AyaBtf) -> Result<(), ProgramError> {
    match program {
        Program::BtfTracePoint(program) => program.load(tracepoint_of(name), types),
        Program::FExit(program) => FExit::load(program, name, types),
        Program::KProbe(program) => KProbe::load(program),
        Program::TracePoint(program) => TracePoint::load(program),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// Attaches a loaded program. What is returned has to be kept as long as it is to stay so.
///
/// # Errors
/// The kernel's.
pub fn attach(ebpf: &mut Ebpf, name: &'static str) -> Result<Vec<OwnedFd>, KernelError> {
    let attached = match ebpf.program_mut(name) {
        Some(Program::BtfTracePoint(program)) => program.attach().map(drop),
        Some(Program::FExit(program)) => program.attach().map(drop),
        Some(Program::KProbe(program)) => return attach_kprobe(program, name),
        Some(Program::TracePoint(program)) => return attach_syscalls(program, name),
        _ => Err(ProgramError::UnexpectedProgramType),
    };
    attached.map(|()| Vec::new()).map_err(refused(name))
}

/// Puts a program on its functions, or on the returns of them. By perf events, which go with their descriptors.
fn attach_kprobe(program: &KProbe, name: &'static str) -> Result<Vec<OwnedFd>, KernelError> {
    let refused_by_kernel = |refusal| KernelError::Perf { name, refusal };
    let (pmu, folder) = pmu("kprobe").map_err(refused_by_kernel)?;
    let on_return = match program.kind() {
        ProbeKind::Return => format_bit(&folder, "retprobe").map_err(refused_by_kernel)?,
        ProbeKind::Entry => 0,
    };
    let program = program.fd().map_err(refused(name))?;
    let functions = KPROBES.iter().find(|(program, _)| *program == name);
    let mut links = Vec::new();
    for function in functions.into_iter().flat_map(|(_, functions)| *functions) {
        let target = PerfTarget::Kprobe {
            pmu,
            function,
            on_return,
        };
        match attach_perf(program.as_fd(), target) {
            Ok(link) => links.push(link),
            Err(refusal) if is_optional(function) && refusal.errno == libc::ENOENT => {}
            Err(refusal) => return Err(refused_by_kernel(refusal)),
        }
    }
    Ok(links)
}

/// Puts a program on the tracepoints of its system calls.
fn attach_syscalls(program: &TracePoint, name: &'static str) -> Result<Vec<OwnedFd>, KernelError> {
    let side = if name == "sys_enter" { "sys_enter" } else { "sys_exit" };
    let refused_by_kernel = |refusal| KernelError::Perf { name, refusal };
    let program = program.fd().map_err(refused(name))?;
    let tracefs = Tracefs::open().map_err(refused_by_kernel)?;
    let calls = SYSCALLS.iter().find(|(program, _)| *program == name);
    let calls = calls.map_or(&[][..], |(_, calls)| calls);
    let mut links = Vec::new();
    for call in calls.iter().copied().flatten() {
        let id = tracefs
            .id("syscalls", &format!("{side}_{call}"))
            .map_err(refused_by_kernel)?;
        links.push(attach_perf(program.as_fd(), PerfTarget::Tracepoint(id)).map_err(refused_by_kernel)?);
    }
    Ok(links)
}

/// Detaches a program and lets the kernel forget it.
pub fn unload(ebpf: &mut Ebpf, name: &'static str) {
    // A program that cannot be unloaded now goes with its file descriptor.
    let _ = match ebpf.program_mut(name) {
        Some(Program::BtfTracePoint(program)) => program.unload(),
        Some(Program::FExit(program)) => program.unload(),
        Some(Program::KProbe(program)) => program.unload(),
        Some(Program::TracePoint(program)) => program.unload(),
        _ => Ok(()),
    };
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;

    /// Parameters by kernel: 6.1 has sendpage, 6.12 has none, 5.15's tcp_recvmsg has `nonblock`.
    fn kernel(version: &str) -> impl Fn(&str) -> Option<usize> + '_ {
        move |name| match (name, version) {
            ("tcp_recvmsg", "5.15") => Some(6),
            ("tcp_sendpage" | "unix_stream_sendpage" | "tcp_bpf_sendpage", "6.12") => None,
            ("tcp_recvmsg" | "tcp_sendpage" | "unix_stream_sendpage" | "tcp_bpf_sendpage", _) => Some(5),
            ("unix_stream_recvmsg", _) => Some(4),
            ("tcp_sendmsg" | "unix_stream_sendmsg" | "tcp_bpf_sendmsg", _) => Some(3),
            _ => None,
        }
    }

    #[test]
    fn fexit_takes_what_the_kernel_has_and_refuses_other_parameters() {
        let needed = [
            "tcp_recvmsg",
            "unix_stream_recvmsg",
            "tcp_sendmsg",
            "unix_stream_sendmsg",
            "tcp_bpf_sendmsg",
        ];
        assert_eq!(fexit_hooks(5, kernel("6.12")).unwrap(), needed);
        let pages = fexit_hooks(5, kernel("6.1")).unwrap();
        let more = [
            "tcp_sendpage",
            "unix_stream_sendpage",
            "tcp_bpf_sendmsg",
            "tcp_bpf_sendpage",
        ];
        assert_eq!(pages[4..], more);
        assert_eq!(fexit_hooks(6, kernel("5.15")).unwrap(), pages);
        let refusal = fexit_hooks(5, kernel("5.15")).unwrap_err().to_string();
        assert_eq!(refusal, "this kernel's tcp_recvmsg has 6 parameters, not 5");
        let refusal = fexit_hooks(5, |_| None).unwrap_err().to_string();
        assert_eq!(refusal, "this kernel's tcp_recvmsg does not exist");
    }

    #[test]
    fn every_function_is_entered_and_its_end_is_told() {
        let functions = |start: &str| -> Vec<&CStr> {
            let programs = KPROBES.iter().filter(|(program, _)| program.starts_with(start));
            let mut functions: Vec<_> = programs.flat_map(|(_, functions)| *functions).copied().collect();
            functions.sort_unstable();
            functions
        };
        let mut ends = functions("return");
        // What it has received, tcp_recvmsg tells by another function.
        assert_eq!(functions("tcp_cleanup_rbuf"), [c"tcp_cleanup_rbuf"]);
        ends.push(c"tcp_recvmsg");
        ends.sort_unstable();
        assert_eq!(functions("enter"), ends);
        let first_entry = KPROBES
            .iter()
            .position(|(program, _)| program.starts_with("enter"))
            .unwrap();
        assert!(KPROBES[first_entry..]
            .iter()
            .all(|(program, _)| program.starts_with("enter")));
    }

    #[test]
    fn what_costs_most_is_tried_last() {
        use Family::{Fexit, Kprobe, Syscalls, TpBtf};
        use Object::{Scalars, Typed, Untyped};
        let all = [
            (TpBtf, Typed),
            (Fexit, Typed),
            (Kprobe, Untyped),
            (Syscalls, Untyped),
            (Fexit, Scalars),
            (Kprobe, Scalars),
            (Syscalls, Scalars),
        ];
        assert_eq!(super::all(), all);
        assert_eq!(named("syscalls").unwrap(), [(Syscalls, Untyped), (Syscalls, Scalars)]);
        assert_eq!(named("syscalls/scalars").unwrap(), [(Syscalls, Scalars)]);
    }

    #[test]
    fn families_are_known_by_name() {
        for family in Family::ALL {
            assert!(named(family.name()).unwrap().iter().all(|(of, _)| *of == family));
        }
        for name in ["uprobe", "tp_btf/scalars", ""] {
            let refusal = named(name).unwrap_err().to_string();
            assert!(
                refusal.contains(&format!("{name:?}")) && refusal.contains("kprobe, syscalls"),
                "{refusal}"
            );
        }
    }
}
