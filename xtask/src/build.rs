//! `x build`: the agent, with the eBPF object inside.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use crate::{process, setup, workspace};

/// Sets up, builds, says where the program is.
pub(crate) fn build(release: bool) -> Result<ExitCode> {
    let program = agent(release)?;
    println!("{}", program.display());
    Ok(ExitCode::SUCCESS)
}

/// Sets up and builds the agent; returns its path.
pub(crate) fn agent(release: bool) -> Result<PathBuf> {
    setup::ensure()?;
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--package", "spanwire"]);
    if release {
        cargo.arg("--release");
    }
    process::run(&mut cargo)?;
    Ok(workspace::target_dir()?
        .join(if release { "release" } else { "debug" })
        .join("spanwire"))
}
