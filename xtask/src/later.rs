//! Commands whose names are reserved.

use std::process::ExitCode;

use anyhow::{bail, Result};

/// Says that a command belongs to a capability that is not there yet.
pub(crate) fn refuse(command: &str, capability: &str) -> Result<ExitCode> {
    bail!("`{command}` is not there yet: it comes with a later capability ({capability})")
}
