//! Builds the kernel side (`agent-ebpf`, for `bpfel-unknown-none`) into each of its objects, and tells the agent where they
//! are: `aya::include_bytes_aligned!(env!("SPANWIRE_EBPF_TYPED"))`.
//!
//! The tools are those `./x` sets up; a plain `cargo build`, `test` or `clippy` finds them in the same places.

#[path = "../xtask/src/toolchain.rs"]
mod toolchain;

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            println!("cargo::error={problem}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let manifest_dir = required_path("CARGO_MANIFEST_DIR")?;
    let root = manifest_dir
        .parent()
        .ok_or("the agent's crate has no parent directory")?;
    watch(root);

    let rustc = toolchain::find_bpf_rustc()?;
    let linker = toolchain::find_bpf_linker(rustc.llvm_major)?;
    for tool in [&rustc.rustc, &linker] {
        println!("cargo::rerun-if-changed={}", tool.display());
    }
    let out = required_path("OUT_DIR")?;
    for kind in toolchain::EBPF_OBJECTS {
        let target_dir = out.join("ebpf");
        let mut cargo = toolchain::ebpf_cargo(&rustc, &linker, root, &target_dir, "build");
        cargo.args(kind.arguments);
        // Cargo shows a build script's output only when it fails, which is when the compiler's messages are wanted.
        let status = cargo
            .status()
            .map_err(|error| format!("cannot run {}: {error}", rustc.cargo().display()))?;
        if !status.success() {
            return Err("the eBPF crate did not build; the compiler's messages are below".to_owned());
        }
        // The next build writes to the same place.
        let built = target_dir.join(toolchain::BPF_TARGET).join("release/spanwire-ebpf");
        let object = out.join(kind.variable.to_lowercase());
        std::fs::copy(&built, &object)
            .map_err(|error| format!("cannot copy {} to {}: {error}", built.display(), object.display()))?;
        println!("cargo::rustc-env={}={}", kind.variable, object.display());
    }
    Ok(())
}

/// Everything the objects are made from, the tools included.
fn watch(root: &Path) {
    for path in [
        "agent-ebpf",
        "agent-common/src",
        "agent-common/Cargo.toml",
        "Cargo.lock",
        "xtask/src/toolchain.rs",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }
    for name in [
        "SPANWIRE_BPF_RUSTC",
        "SPANWIRE_BPF_LINKER",
        "SPANWIRE_CACHE",
        "XDG_CACHE_HOME",
    ] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rerun-if-changed=build.rs");
}

fn required_path(name: &str) -> Result<PathBuf, String> {
    env::var_os(name)
        .map(PathBuf::from)
        .ok_or_else(|| format!("cargo did not set {name}"))
}
