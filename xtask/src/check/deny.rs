//! Licences, banned crates and sources of the dependencies: cargo-deny with deny.toml.

use anyhow::{anyhow, Result};

use crate::{process, setup, toolchain, workspace};

const CARGO_DENY_VERSION: &str = "0.20.2";

pub(super) fn check() -> Result<()> {
    let cache = toolchain::cache_dir().map_err(|problem| anyhow!(problem))?;
    let root = cache.join(format!("cargo-deny-{CARGO_DENY_VERSION}"));
    let program = root.join("bin/cargo-deny");
    if !program.is_file() {
        eprintln!(
            "x: installing cargo-deny {CARGO_DENY_VERSION} into {} (a minute or two)",
            root.display()
        );
        let mut cargo = workspace::cargo();
        // It runs for a second; compiling it well would take ten times as long as compiling it at all.
        cargo
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0")
            .env("CARGO_PROFILE_RELEASE_LTO", "off");
        cargo
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
            .env("CARGO_PROFILE_RELEASE_DEBUG", "0");
        setup::cargo_install(
            &mut cargo,
            &["cargo-deny", "--version", &format!("={CARGO_DENY_VERSION}")],
            &root,
        )?;
    }
    let mut deny = std::process::Command::new(program);
    deny.current_dir(workspace::root())
        .args(["--log-level", "warn", "check", "--hide-inclusion-graph"]);
    process::run(deny.args(["licenses", "bans", "sources"]))
}
