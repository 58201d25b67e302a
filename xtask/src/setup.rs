//! Makes sure of everything a build needs beyond the cargo that `x` found; quick when nothing is missing.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{anyhow, bail, Context, Result};

use crate::toolchain::{self, BpfRustc};
use crate::{packages, process, workspace};

/// What a build in a fresh target directory takes, with room for the tests' programs.
const BUILD_MB: u64 = 4_000;
/// What a build takes where most of it is there already.
const REBUILD_MB: u64 = 500;

/// Checks this machine, and installs what is missing for building the agent with its eBPF object.
pub(crate) fn ensure() -> Result<()> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!("spanwire builds and runs on Linux x86_64 only");
    }
    let target_dir = workspace::target_dir()?;
    let built_before = target_dir.join("debug/spanwire").exists() || target_dir.join("release/spanwire").exists();
    need_space(
        &target_dir,
        if built_before { REBUILD_MB } else { BUILD_MB },
        "the build",
    )?;

    let rustc = ensure_bpf_rustc()?;
    ensure_bpf_linker(&rustc)
}

/// The rustc for the kernel side, installed where there is none.
pub(crate) fn ensure_bpf_rustc() -> Result<BpfRustc> {
    if let Ok(found) = toolchain::find_bpf_rustc() {
        return Ok(found);
    }
    if std::env::var_os("SPANWIRE_BPF_RUSTC").is_none() {
        if process::find("apt-get").is_none() {
            bail!("no rustc that can build eBPF: install a nightly with its source (`rustup toolchain install nightly -c rust-src`)");
        }
        packages::ensure(&["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"])?;
    }
    toolchain::find_bpf_rustc().map_err(|problem| anyhow!(problem))
}

fn ensure_bpf_linker(rustc: &BpfRustc) -> Result<()> {
    let llvm = rustc.llvm_major;
    if toolchain::find_bpf_linker(llvm).is_ok() {
        return Ok(());
    }
    if std::env::var_os("SPANWIRE_BPF_LINKER").is_some() {
        toolchain::find_bpf_linker(llvm).map_err(|problem| anyhow!(problem))?;
    }
    let prefix = ensure_llvm(llvm)?;
    let version = toolchain::BPF_LINKER_VERSION;
    let root = toolchain::bpf_linker_root(llvm).map_err(|problem| anyhow!(problem))?;
    eprintln!(
        "x: installing bpf-linker {version} into {} (about a minute)",
        root.display()
    );
    cargo_install(
        Command::new(rustc.cargo())
            .env("RUSTC", &rustc.rustc)
            .env("LLVM_PREFIX", &prefix),
        &[
            "bpf-linker",
            "--version",
            &format!("={version}"),
            "--no-default-features",
            "--features",
            &format!("llvm-{llvm}"),
        ],
        &root,
    )
}

/// LLVM's own files, for bpf-linker: `$LLVM_PREFIX`, else Debian's package.
fn ensure_llvm(major: u32) -> Result<String> {
    if let Ok(prefix) = std::env::var("LLVM_PREFIX") {
        return Ok(prefix);
    }
    let prefix = format!("/usr/lib/llvm-{major}");
    let has_llvm = Path::new(&prefix).join("include/llvm-c/Core.h").exists();
    let has_cxx = process::find("c++").is_some();
    if !has_llvm || !has_cxx {
        if process::find("apt-get").is_none() {
            bail!("bpf-linker needs LLVM {major}'s development files and a C++ compiler: install them and set LLVM_PREFIX");
        }
        let wanted = format!("llvm-{major}-dev");
        packages::ensure(&[&wanted, "g++"])?;
    }
    Ok(prefix)
}

/// `cargo install` of a pinned tool into a directory of its own; what cargo says is shown when it fails.
pub(crate) fn cargo_install(cargo: &mut Command, what: &[&str], root: &Path) -> Result<()> {
    need_space(&std::env::temp_dir(), 1_500, "compiling a tool")?;
    std::fs::create_dir_all(root).with_context(|| format!("cannot create {}", root.display()))?;
    let output = cargo
        .args(["install", "--locked", "--root"])
        .arg(root)
        .args(what)
        // It is built in a temporary directory, not in (and not waiting for) ours.
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .stdin(Stdio::null())
        .output()
        .context("cannot run cargo")?;
    if output.status.success() {
        return Ok(());
    }
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    bail!(
        "cargo install {} failed, for the reason above",
        what.first().unwrap_or(&"?")
    )
}

/// Fails when the file system that holds `path` has less than `needed_mb` free.
pub(crate) fn need_space(path: &Path, needed_mb: u64, purpose: &str) -> Result<()> {
    let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(path);
    let table = process::output(Command::new("df").args(["-Pk"]).arg(existing))?;
    let free_mb = free_mb(&table).with_context(|| format!("cannot read df's answer for {}", existing.display()))?;
    if free_mb < needed_mb {
        bail!(
            "{purpose} needs {needed_mb} MB on {}, {free_mb} MB are free: make room, then try again",
            existing.display()
        );
    }
    Ok(())
}

/// The column "Available" of `df -Pk`, in MB.
fn free_mb(table: &str) -> Option<u64> {
    let free_kb: u64 = table.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()?;
    Some(free_kb / 1024)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;

    #[test]
    fn free_space_is_the_fourth_column() {
        let table = "Filesystem     1024-blocks     Used Available Capacity Mounted on\n\
                     /dev/vda         263174212 13631488  82837504      15% /\n";
        assert_eq!(free_mb(table), Some(80_896));
        assert_eq!(free_mb("Filesystem"), None);
    }

    #[test]
    fn too_little_space_says_how_much_is_needed() {
        let problem = need_space(Path::new("/proc"), 1, "the build").unwrap_err().to_string();
        assert_eq!(
            problem,
            "the build needs 1 MB on /proc, 0 MB are free: make room, then try again"
        );
    }
}
