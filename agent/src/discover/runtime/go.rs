//! Go: goroutines move between threads, so that a thread names nothing.

use spanwire_common::abi::ProcessClass;

use super::{Runtime, Verdict};
use crate::discover::process::ProcessInfo;

pub(super) struct Go;

impl Runtime for Go {
    fn detect(&self, process: &ProcessInfo) -> Option<Verdict> {
        process.is_go.then_some(Verdict::settled(
            ProcessClass::Go,
            Some("go"),
            "linked by the Go toolchain",
        ))
    }
}
