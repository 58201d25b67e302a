//! `x bench [NAME]`: benchmarks; rewrites docs/benchmarks.md.

use std::process::ExitCode;

use anyhow::{bail, Result};

/// Runs every benchmark, or the one named.
pub(crate) fn bench(name: Option<&str>) -> Result<ExitCode> {
    bail!("no benchmark {} is built yet", name.unwrap_or("at all"))
}
