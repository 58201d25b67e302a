//! Where things are in this checkout.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// The repository's root: the parent of this crate.
pub(crate) fn root() -> PathBuf {
    // Cargo sets the variable when it runs us; the compiled-in one is for a binary started by hand.
    let manifest_dir = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let manifest_dir = PathBuf::from(manifest_dir);
    manifest_dir.parent().map(Path::to_owned).unwrap_or(manifest_dir)
}

/// The target directory this program was built into, and so everything else will be.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let program = env::current_exe().context("cannot find out where xtask itself is")?;
    let target = program
        .ancestors()
        .nth(2)
        .context("xtask is not in a target directory")?;
    Ok(target.to_owned())
}

/// The cargo that runs us, working on this workspace.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}
