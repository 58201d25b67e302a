//! What a process runs on, and which rule its parents may therefore rest on.
//!
//! One file per runtime, each with one [`Runtime`]; a runtime is added by its file and its line in `RUNTIMES`.
//! The first that recognises a process decides, so what is certain (the linker that made the executable) stands
//! before what is a name.

use std::sync::LazyLock;

use spanwire_common::abi::ProcessClass;

use super::maps::Library;
use super::process::ProcessInfo;
use super::script::Arguments;

mod apache;
mod beam;
mod dotnet;
mod go;
mod interpreter;
mod jvm;
mod nginx;
mod node;
mod php;
mod proxy;
mod python;
mod ruby;

/// Recognises one runtime.
pub trait Runtime: Sync {
    /// Libraries whose presence or absence the rule asks for.
    fn libraries(&self) -> &'static [Library] {
        &[]
    }

    /// How the runtime reads its command line, if the executable's name is its own.
    fn arguments(&self, _exe_name: &str) -> Option<Arguments> {
        None
    }

    /// `None`: not this runtime.
    fn detect(&self, process: &ProcessInfo) -> Option<Verdict>;
}

/// What was found out about a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Which rules its parents may rest on.
    pub class: ProcessClass,
    /// `process.runtime.name`, by the semantic conventions' values.
    pub runtime_name: Option<&'static str>,
    /// The evidence, for `spanwire status` and the log.
    pub why: &'static str,
    /// Rests on a library not being mapped: to be checked again while the process runs.
    pub provisional: bool,
}

impl Verdict {
    /// A verdict that later mappings do not change.
    pub const fn settled(class: ProcessClass, runtime_name: Option<&'static str>, why: &'static str) -> Self {
        Self {
            class,
            runtime_name,
            why,
            provisional: false,
        }
    }

    /// A verdict that holds as long as no contrary library is mapped.
    pub const fn provisional(class: ProcessClass, runtime_name: Option<&'static str>, why: &'static str) -> Self {
        Self {
            class,
            runtime_name,
            why,
            provisional: true,
        }
    }
}

/// Every runtime, in the order of asking.
const RUNTIMES: &[&dyn Runtime] = &[
    &go::Go,
    &nginx::Nginx,
    &apache::Apache,
    &proxy::Proxy,
    &php::Php,
    &python::Python,
    &ruby::Ruby,
    &node::Node,
    &dotnet::Dotnet,
    &beam::Beam,
    &jvm::Jvm,
    &interpreter::Interpreter,
];

/// Every library some rule asks for.
pub(super) static LIBRARIES: LazyLock<Vec<Library>> = LazyLock::new(|| {
    RUNTIMES
        .iter()
        .flat_map(|runtime| runtime.libraries())
        .copied()
        .collect()
});

/// Judges a process by what was read of it.
pub fn classify(process: &ProcessInfo) -> Verdict {
    RUNTIMES
        .iter()
        .find_map(|runtime| runtime.detect(process))
        .unwrap_or(Verdict::settled(ProcessClass::Other, None, "no rule for this program"))
}

/// How the program of that name reads its arguments, if it is an interpreter.
pub(super) fn arguments_of(exe_name: &str) -> Option<Arguments> {
    RUNTIMES.iter().find_map(|runtime| runtime.arguments(exe_name))
}

/// `python3.11` is `python` with a version; `pythonista` is not.
fn is_versioned(name: &str, base: &str) -> bool {
    name.strip_prefix(base)
        .is_some_and(|version| version.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'))
}

#[cfg(test)]
mod tests;
