// Where the tools that build the eBPF object are found, and how they are called.
//
// Shared by `xtask` (which installs what is missing) and by `agent/build.rs` (which includes this file, so that a
// plain `cargo build` works as well): standard library only, errors are plain sentences.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The one target the kernel side is built for.
pub(crate) const BPF_TARGET: &str = "bpfel-unknown-none";
/// Pinned: the linker decides what the verifier gets to see.
pub(crate) const BPF_LINKER_VERSION: &str = "0.13.0";

/// One of the objects that the kernel side is built into.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EbpfObject {
    /// What cargo is told besides.
    pub(crate) arguments: &'static [&'static str],
    /// The variable by which the agent finds it.
    pub(crate) variable: &'static str,
}

/// Programs whose arguments have types (BTF tracepoints, fexit), and those whose arguments are bare addresses (kprobes,
/// tracepoints of system calls), the latter also for kernels whose global functions take no pointers (before 5.13).
pub(crate) const EBPF_OBJECTS: [EbpfObject; 3] = [
    EbpfObject {
        arguments: &[],
        variable: "SPANWIRE_EBPF_TYPED",
    },
    EbpfObject {
        arguments: &["--features", "untyped"],
        variable: "SPANWIRE_EBPF_UNTYPED",
    },
    EbpfObject {
        arguments: &["--features", "scalars"],
        variable: "SPANWIRE_EBPF_SCALARS",
    },
];

/// A rustc that can compile for [`BPF_TARGET`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BpfRustc {
    pub(crate) rustc: PathBuf,
    /// The LLVM it writes bitcode with; bpf-linker must be linked to the same one.
    pub(crate) llvm_major: u32,
    /// No prebuilt `core` for the target: cargo builds it from rust-src.
    pub(crate) build_std: bool,
}

impl BpfRustc {
    /// The cargo that came with this rustc, else the one that is running us.
    pub(crate) fn cargo(&self) -> PathBuf {
        let sibling = self.rustc.with_file_name("cargo");
        if sibling.is_file() {
            return sibling;
        }
        env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
    }
}

/// Finds a rustc for the kernel side: `SPANWIRE_BPF_RUSTC`, else Debian's rustc-web with libstd-rust-web-dev-bpf, else
/// rustup's nightly with rust-src.
pub(crate) fn find_bpf_rustc() -> Result<BpfRustc, String> {
    if let Some(path) = env::var_os("SPANWIRE_BPF_RUSTC").filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        return probe_rustc(&path).ok_or_else(|| {
            format!(
                "SPANWIRE_BPF_RUSTC={} has neither a core for {BPF_TARGET} nor rust-src",
                path.display()
            )
        });
    }
    let debian = probe_rustc(Path::new("/usr/bin/rustc")).filter(|found| !found.build_std);
    debian.or_else(|| probe_rustc(&nightly_rustc()?)).ok_or_else(|| {
        format!("no rustc with a core for {BPF_TARGET}: `./x build` installs it (Debian: rustc-web, libstd-rust-web-dev-bpf)")
    })
}

/// Finds the pinned bpf-linker built for that rustc's LLVM: `SPANWIRE_BPF_LINKER`, else the cache `./x` fills.
pub(crate) fn find_bpf_linker(llvm_major: u32) -> Result<PathBuf, String> {
    if let Some(path) = env::var_os("SPANWIRE_BPF_LINKER").filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        return if path.is_file() {
            Ok(path)
        } else {
            Err(format!("SPANWIRE_BPF_LINKER={} is not a file", path.display()))
        };
    }
    let path = bpf_linker_root(llvm_major)?.join("bin/bpf-linker");
    if path.is_file() {
        Ok(path)
    } else {
        Err(format!(
            "no bpf-linker {BPF_LINKER_VERSION} for LLVM {llvm_major}: `./x build` installs it"
        ))
    }
}

/// Where `./x` installs bpf-linker, one place per version and LLVM.
pub(crate) fn bpf_linker_root(llvm_major: u32) -> Result<PathBuf, String> {
    Ok(cache_dir()?.join(format!("bpf-linker-{BPF_LINKER_VERSION}-llvm{llvm_major}")))
}

/// `$SPANWIRE_CACHE`, else `spanwire` in the user's cache directory: tools that outlive `cargo clean`.
pub(crate) fn cache_dir() -> Result<PathBuf, String> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("SPANWIRE_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("spanwire")))
        .or_else(|| env::home_dir().map(|home| home.join(".cache/spanwire")))
        .ok_or_else(|| "no home directory to keep tools in: set SPANWIRE_CACHE to a directory".to_owned())
}

/// `cargo SUBCOMMAND` on the eBPF crate: release profile, own target directory, and none of the environment that an
/// outer cargo, clippy or rustup set for the userspace build.
pub(crate) fn ebpf_cargo(rustc: &BpfRustc, linker: &Path, root: &Path, target_dir: &Path, subcommand: &str) -> Command {
    let mut command = Command::new(rustc.cargo());
    for (name, _) in env::vars_os() {
        if belongs_to_outer_build(&name) {
            command.env_remove(name);
        }
    }
    let flags = [
        "-Cdebuginfo=2",
        "-Cpanic=abort",
        &format!("-Clinker={}", linker.display()),
        "-Clink-arg=--btf",
        // Else LLVM leaves every memset to a function that clears byte by byte.
        "-Clink-arg=--disable-expand-memcpy-in-order",
    ]
    .join("\x1f");
    command
        .env("RUSTC", &rustc.rustc)
        // Debian's rustc is a stable one; aya-ebpf and the verifier idioms need unstable features.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        // bpf-linker optimises the whole program itself; one unit per crate keeps its input, and so the verifier's, stable.
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3")
        .env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "false")
        .env("CARGO_PROFILE_RELEASE_STRIP", "none")
        .arg(subcommand)
        .arg("--manifest-path")
        .arg(root.join("agent-ebpf/Cargo.toml"))
        .args(["--release", "--target", BPF_TARGET, "--target-dir"])
        .arg(target_dir);
    if rustc.build_std {
        command.arg("-Zbuild-std=core");
    }
    command
}

fn belongs_to_outer_build(name: &OsString) -> bool {
    let Some(name) = name.to_str() else { return false };
    let users_own = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
        "CARGO_MAKEFLAGS",
    ];
    let of_build = [
        "CARGO",
        "RUSTC",
        "RUSTDOC",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "CLIPPY_",
        "LD_LIBRARY_PATH",
    ];
    of_build.iter().any(|prefix| name.starts_with(prefix)) && !users_own.iter().any(|prefix| name.starts_with(prefix))
}

fn probe_rustc(rustc: &Path) -> Option<BpfRustc> {
    let verbose = stdout_of(Command::new(rustc).arg("-vV"))?;
    let llvm_major = llvm_major(&verbose)?;
    let libdir = stdout_of(Command::new(rustc).args(["--print", "target-libdir", "--target", BPF_TARGET]))?;
    let has_core = std::fs::read_dir(libdir.trim()).is_ok_and(|entries| {
        entries
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
    });
    if has_core {
        return Some(BpfRustc {
            rustc: rustc.to_owned(),
            llvm_major,
            build_std: false,
        });
    }
    let sysroot = stdout_of(Command::new(rustc).args(["--print", "sysroot"]))?;
    let has_source = Path::new(sysroot.trim())
        .join("lib/rustlib/src/rust/library/core/Cargo.toml")
        .is_file();
    has_source.then(|| BpfRustc {
        rustc: rustc.to_owned(),
        llvm_major,
        build_std: true,
    })
}

fn nightly_rustc() -> Option<PathBuf> {
    let path = stdout_of(Command::new("rustup").args(["which", "--toolchain", "nightly", "rustc"]))?;
    Some(PathBuf::from(path.trim()))
}

/// `22` of `rustc -vV`'s line `LLVM version: 22.1.8`.
fn llvm_major(verbose: &str) -> Option<u32> {
    let version = verbose.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}

/// Runs a probe outside any rustup override; its output, when it succeeded.
fn stdout_of(command: &mut Command) -> Option<String> {
    let output = command
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("LD_LIBRARY_PATH")
        .stderr(Stdio::null())
        .output()
        .ok()?;
    if !output.status.success() {
        return None;
    }
    String::from_utf8(output.stdout).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_is_read_from_rustc() {
        let verbose = "rustc 1.96.0 (ac68faa20 2026-05-25)\nhost: x86_64-unknown-linux-gnu\nLLVM version: 22.1.8\n";
        assert_eq!(llvm_major(verbose), Some(22));
        assert_eq!(llvm_major("rustc 1.96.0"), None);
    }

    #[test]
    fn the_outer_build_is_forgotten_and_the_users_registry_is_not() {
        for name in [
            "CARGO",
            "CARGO_PKG_NAME",
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTUP_TOOLCHAIN",
        ] {
            assert!(belongs_to_outer_build(&name.into()), "{name}");
        }
        for name in [
            "CARGO_HOME",
            "CARGO_REGISTRIES_MIRROR_INDEX",
            "CARGO_HTTP_CAINFO",
            "CARGO_NET_OFFLINE",
            "PATH",
        ] {
            assert!(!belongs_to_outer_build(&name.into()), "{name}");
        }
    }

    #[test]
    fn a_kernel_side_cargo_gets_the_linker_and_nothing_of_ours() {
        let rustc = BpfRustc {
            rustc: "/opt/rust/bin/rustc".into(),
            llvm_major: 22,
            build_std: true,
        };
        let command = ebpf_cargo(
            &rustc,
            Path::new("/opt/bpf-linker"),
            Path::new("/src"),
            Path::new("/t"),
            "build",
        );
        let value_of = |wanted: &str| {
            command
                .get_envs()
                .find(|(name, _)| *name == wanted)
                .and_then(|(_, value)| value)
        };
        let flags = value_of("CARGO_ENCODED_RUSTFLAGS")
            .and_then(std::ffi::OsStr::to_str)
            .unwrap_or_default();
        assert!(
            flags.split('\x1f').any(|flag| flag == "-Clinker=/opt/bpf-linker"),
            "{flags}"
        );
        assert!(flags.split('\x1f').any(|flag| flag == "-Clink-arg=--btf"), "{flags}");
        let removed = |wanted: &str| {
            command
                .get_envs()
                .any(|(name, value)| name == wanted && value.is_none())
        };
        assert!(removed("CARGO_MANIFEST_DIR"), "cargo set it for this very test");
        assert!(command.get_args().any(|argument| argument == "-Zbuild-std=core"));
    }
}
