//! `x fuzz TARGET`: cargo-fuzz on agent-common, with a nightly.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{anyhow, bail, Result};

use crate::{process, setup, toolchain, workspace};

const CARGO_FUZZ_VERSION: &str = "0.13.2";

/// Runs one fuzz target until it fails or is stopped; `arguments` go to the fuzzer.
pub(crate) fn fuzz(target: &str, arguments: &[String]) -> Result<ExitCode> {
    let directory = workspace::root().join("agent-common/fuzz");
    let known = targets(&directory);
    if !known.iter().any(|name| name == target) {
        bail!(
            "no fuzz target {target}; there are: {}",
            if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            }
        );
    }
    if !has_nightly() {
        bail!(
            "fuzzing needs a nightly compiler (sanitizer coverage): `rustup toolchain install nightly`, then try again"
        );
    }
    let cargo_fuzz = ensure_cargo_fuzz()?;
    let mut command = Command::new("rustup");
    command
        .args(["run", "nightly"])
        .arg(cargo_fuzz)
        .args(["fuzz", "run", target]);
    command
        .current_dir(workspace::root().join("agent-common"))
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("RUSTC");
    command.arg("--").args(arguments);
    process::run(&mut command)?;
    Ok(ExitCode::SUCCESS)
}

fn targets(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory.join("fuzz_targets")) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".rs").map(str::to_owned))
        .collect();
    names.sort();
    names
}

fn has_nightly() -> bool {
    let mut probe = Command::new("rustup");
    probe
        .args(["which", "--toolchain", "nightly", "cargo"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success())
}

fn ensure_cargo_fuzz() -> Result<std::path::PathBuf> {
    let cache = toolchain::cache_dir().map_err(|problem| anyhow!(problem))?;
    let root = cache.join(format!("cargo-fuzz-{CARGO_FUZZ_VERSION}"));
    let program = root.join("bin/cargo-fuzz");
    if !program.is_file() {
        eprintln!("x: installing cargo-fuzz {CARGO_FUZZ_VERSION} into {}", root.display());
        let version = format!("={CARGO_FUZZ_VERSION}");
        setup::cargo_install(&mut workspace::cargo(), &["cargo-fuzz", "--version", &version], &root)?;
    }
    Ok(program)
}
