//! `x check`: everything that needs neither root nor a BPF kernel, cheapest first. All checks run; each prints a line.

mod deny;
mod layers;
mod sources;
mod stack;
mod symbols;

use std::path::PathBuf;
use std::process::{ExitCode, Stdio};

use anyhow::{bail, Context, Result};
use serde_json::Value;

use crate::{packages, process, setup, toolchain, workspace};

type Check = fn() -> Result<()>;

const CHECKS: [(&str, Check); 9] = [
    ("file lengths and ignored tests", sources::check),
    ("layers", layers::check),
    ("formatting", formatting),
    ("licences, bans, sources", deny::check),
    ("lints", lints),
    ("lints of the kernel side", kernel_lints),
    ("panics in the eBPF objects", panics),
    ("stack of the eBPF objects", stacks),
    ("documentation", documentation),
];

/// Runs every check.
pub(crate) fn check() -> Result<ExitCode> {
    setup::ensure()?;
    ensure_components()?;
    let mut failed = 0;
    for (name, check) in CHECKS {
        match check() {
            Ok(()) => println!("ok      {name}"),
            Err(problem) => {
                println!("FAILED  {name}: {problem:#}");
                failed += 1;
            }
        }
    }
    println!("{} checks passed, {failed} failed", CHECKS.len() - failed);
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// rustfmt and clippy of the toolchain that builds userspace.
fn ensure_components() -> Result<()> {
    let answers = |subcommand: &str| {
        let mut cargo = workspace::cargo();
        cargo
            .args([subcommand, "--version"])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        cargo.status().is_ok_and(|status| status.success())
    };
    if answers("fmt") && answers("clippy") {
        return Ok(());
    }
    if workspace::cargo().get_program() == "/usr/bin/cargo" {
        return packages::ensure(&["rustfmt-web", "rust-web-clippy"]);
    }
    bail!("this cargo has no fmt or no clippy: `rustup component add rustfmt clippy`")
}

fn formatting() -> Result<()> {
    process::run(workspace::cargo().args(["fmt", "--all", "--check"]))
}

fn lints() -> Result<()> {
    process::run(workspace::cargo().args(["clippy", "--all-targets", "--", "-Dwarnings"]))
}

/// Clippy that belongs to the rustc which has the target's core; called as cargo-clippy would, since a `cargo clippy`
/// found on PATH may belong to another toolchain.
fn kernel_lints() -> Result<()> {
    let rustc = setup::ensure_bpf_rustc()?;
    let driver = rustc.rustc.with_file_name("clippy-driver");
    if !driver.is_file() {
        packages::ensure(&["rust-web-clippy"])?;
    }
    let linker = toolchain::find_bpf_linker(rustc.llvm_major).map_err(anyhow::Error::msg)?;
    let target_dir = workspace::target_dir()?.join("ebpf-check");
    for object in toolchain::EBPF_OBJECTS {
        let mut cargo = toolchain::ebpf_cargo(&rustc, &linker, &workspace::root(), &target_dir, "check");
        cargo
            .args(object.arguments)
            .env("RUSTC_WORKSPACE_WRAPPER", &driver)
            .env("CLIPPY_ARGS", "-Dwarnings__CLIPPY_HACKERY__");
        process::run(&mut cargo)?;
    }
    Ok(())
}

fn panics() -> Result<()> {
    for object in ebpf_objects()? {
        let bytes = std::fs::read(&object).with_context(|| format!("cannot read {}", object.display()))?;
        symbols::check(&bytes).with_context(|| object.display().to_string())?;
    }
    Ok(())
}

fn stacks() -> Result<()> {
    for object in ebpf_objects()? {
        let bytes = std::fs::read(&object).with_context(|| format!("cannot read {}", object.display()))?;
        stack::check(&bytes).with_context(|| object.display().to_string())?;
    }
    Ok(())
}

/// The objects that the agent embeds; its build script tells.
fn ebpf_objects() -> Result<Vec<PathBuf>> {
    let mut cargo = workspace::cargo();
    cargo.args([
        "check",
        "--quiet",
        "--package",
        "spanwire",
        "--message-format=json-render-diagnostics",
    ]);
    let variables: Vec<Value> = process::output(&mut cargo)?
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["reason"] == "build-script-executed")
        .flat_map(|message| message["env"].as_array().cloned().unwrap_or_default())
        .collect();
    let path = |object: toolchain::EbpfObject| {
        let told = variables.iter().find(|variable| variable[0] == object.variable)?;
        told[1].as_str().map(PathBuf::from)
    };
    toolchain::EBPF_OBJECTS
        .into_iter()
        .map(path)
        .collect::<Option<Vec<_>>>()
        .context("agent/build.rs did not say where the eBPF objects are")
}

fn documentation() -> Result<()> {
    let mut cargo = workspace::cargo();
    cargo.args([
        "doc",
        "--quiet",
        "--no-deps",
        // Its readers are who works on it.
        "--document-private-items",
        "--package",
        "spanwire-common",
        "--package",
        "spanwire",
        "--lib",
    ]);
    process::run(cargo.env("RUSTDOCFLAGS", "-Dwarnings"))
}
