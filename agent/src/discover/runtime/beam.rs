//! Erlang and Elixir: processes of the virtual machine move between scheduler threads.

use spanwire_common::abi::ProcessClass;

use super::{Runtime, Verdict};
use crate::discover::process::ProcessInfo;

pub(super) struct Beam;

impl Runtime for Beam {
    fn detect(&self, process: &ProcessInfo) -> Option<Verdict> {
        matches!(process.exe_name(), "beam.smp" | "beam").then_some(Verdict::settled(
            ProcessClass::EventLoop,
            Some("BEAM"),
            "executable beam.smp",
        ))
    }
}
