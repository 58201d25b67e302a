//! The families of programs that see every send and receive. All lead to the same handlers; one of them is used, the
//! first that the kernel takes.

use std::collections::HashMap;

use aya::programs::{FExit, Program, ProgramError};
use aya::{Btf as AyaBtf, Ebpf};
use thiserror::Error;

use super::btf::Btf;

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
const FEXIT: [Hook; 6] = [
    hook("tcp_recvmsg", 5, false),
    hook("unix_stream_recvmsg", 4, false),
    hook("tcp_sendmsg", 3, false),
    hook("unix_stream_sendmsg", 3, false),
    hook("tcp_sendpage", 5, true),
    hook("unix_stream_sendpage", 5, true),
];

/// A family that cannot be used.
#[derive(Debug, Error)]
pub enum HooksError {
    /// `SPANWIRE_HOOKS` names none.
    #[error(
        "SPANWIRE_HOOKS: expected one of tp_btf, fexit, got {0:?} (kprobe and system-call tracepoints are not built yet)"
    )]
    Unknown(String),
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
    pub const ALL: [Self; 2] = [Self::TpBtf, Self::Fexit];

    /// As it is named in the answer of `/api/status` and in `SPANWIRE_HOOKS`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TpBtf => "tp_btf",
            Self::Fexit => "fexit",
        }
    }

    /// The families to try, the best first: all, or the one that `SPANWIRE_HOOKS` names.
    ///
    /// # Errors
    /// [`HooksError::Unknown`].
    pub fn to_try() -> Result<Vec<Self>, HooksError> {
        match std::env::var("SPANWIRE_HOOKS") {
            Err(_) => Ok(Self::ALL.to_vec()),
            Ok(name) => Self::named(&name).map(|family| vec![family]),
        }
    }

    fn named(name: &str) -> Result<Self, HooksError> {
        Self::ALL
            .into_iter()
            .find(|family| family.name() == name)
            .ok_or_else(|| HooksError::Unknown(name.to_owned()))
    }

    /// The programs that this kernel needs of the family, in the order they are attached.
    ///
    /// # Errors
    /// [`HooksError::Function`].
    pub fn hooks(self, types: &Btf) -> Result<Vec<&'static str>, HooksError> {
        match self {
            Self::TpBtf => {
                let mut names = vec!["sock_recv_length", "sock_send_length"];
                if tracepoints_are_preemptible(types) {
                    names.extend(AGAIN);
                }
                Ok(names)
            }
            Self::Fexit => fexit_hooks(|name| types.parameters(name)),
        }
    }
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

/// The tracepoint that a program is for.
fn tracepoint_of(name: &'static str) -> &'static str {
    name.strip_suffix("_again").unwrap_or(name)
}

fn fexit_hooks(parameters: impl Fn(&str) -> Option<usize>) -> Result<Vec<&'static str>, HooksError> {
    let mut names = Vec::with_capacity(FEXIT.len());
    for hook in &FEXIT {
        let problem = match parameters(hook.name) {
            Some(count) if count == hook.parameters => {
                names.push(hook.name);
                continue;
            }
            None if hook.optional => continue,
            None => "does not exist".to_owned(),
            Some(count) => format!("has {count} parameters, not {}", hook.parameters),
        };
        return Err(HooksError::Function {
            name: hook.name,
            problem,
        });
    }
    Ok(names)
}

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
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// Attaches a loaded program.
///
/// # Errors
/// The kernel's.
pub fn attach(ebpf: &mut Ebpf, name: &'static str) -> Result<(), ProgramError> {
    match ebpf.program_mut(name) {
        Some(Program::BtfTracePoint(program)) => program.attach().map(drop),
        Some(Program::FExit(program)) => program.attach().map(drop),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// Detaches a program and lets the kernel forget it.
pub fn unload(ebpf: &mut Ebpf, name: &'static str) {
    // A program that cannot be unloaded now goes with its file descriptor.
    let _ = match ebpf.program_mut(name) {
        Some(Program::BtfTracePoint(program)) => program.unload(),
        Some(Program::FExit(program)) => program.unload(),
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
            ("tcp_sendpage" | "unix_stream_sendpage", "6.12") => None,
            ("tcp_recvmsg" | "tcp_sendpage" | "unix_stream_sendpage", _) => Some(5),
            ("unix_stream_recvmsg", _) => Some(4),
            ("tcp_sendmsg" | "unix_stream_sendmsg", _) => Some(3),
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
        ];
        assert_eq!(fexit_hooks(kernel("6.12")).unwrap(), needed);
        let pages = fexit_hooks(kernel("6.1")).unwrap();
        assert_eq!(pages[4..], ["tcp_sendpage", "unix_stream_sendpage"]);
        let refusal = fexit_hooks(kernel("5.15")).unwrap_err().to_string();
        assert_eq!(refusal, "this kernel's tcp_recvmsg has 6 parameters, not 5");
        let refusal = fexit_hooks(|_| None).unwrap_err().to_string();
        assert_eq!(refusal, "this kernel's tcp_recvmsg does not exist");
    }

    #[test]
    fn a_family_that_is_not_built_is_refused_by_name() {
        for family in Family::ALL {
            assert_eq!(Family::named(family.name()).unwrap(), family);
        }
        let refusal = Family::named("kprobe").unwrap_err().to_string();
        assert!(
            refusal.contains("\"kprobe\"") && refusal.contains("not built yet"),
            "{refusal}"
        );
    }
}
