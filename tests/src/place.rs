//! Where a test lives: a directory of its own, free loopback ports, and the binaries it runs.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{bail, Context, Result};

/// Ports are handed out from here up to [`LAST_PORT`]: below the kernel's ephemeral range, so that no outgoing
/// connection takes one between the probe and the server's bind.
const FIRST_PORT: u16 = 20_000;
const LAST_PORT: u16 = 32_000;

static NEXT_PORT: AtomicU16 = AtomicU16::new(0);

/// A loopback TCP port nobody listens on, never handed out twice by this process.
pub fn free_port() -> Result<u16> {
    let span = LAST_PORT - FIRST_PORT;
    // Test binaries start at different places, so that one run does not meet the TIME_WAIT of the last.
    let offset = (std::process::id() % u32::from(span)) as u16;
    for _ in 0..span {
        let step = NEXT_PORT.fetch_add(1, Ordering::Relaxed) % span;
        let port = FIRST_PORT + (offset + step) % span;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free loopback port between {FIRST_PORT} and {LAST_PORT}")
}

/// A directory that is removed with the value. Readable by all: workers of nginx, Apache and PHP give up root.
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub fn new(name: &str) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix(&format!("spanwire-{name}-"))
            .tempdir()
            .context("could not make a temporary directory")?;
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
        Ok(Self { dir })
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file below the directory and returns its path.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&path, text).with_context(|| format!("could not write {}", path.display()))?;
        Ok(path)
    }

    /// As [`Place::write`], executable.
    pub fn write_script(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.write(name, text)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }
}

/// A file of `tests/workloads`.
pub fn workload(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads").join(name)
}

/// A program by name, looked for in `PATH` and where Debian keeps daemons. The order prefers the system's own
/// programs to version managers' shims, which are shell scripts and would be what the agent sees start.
pub fn program(name: &str) -> Result<PathBuf> {
    let known = ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/bin"].map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    known
        .into_iter()
        .chain(std::env::split_paths(&path))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
        .with_context(|| format!("{name} is not installed: run `cargo xtask test`, which installs it"))
}

/// The folder cargo builds into: `CARGO_TARGET_DIR`, else the one this test binary lies in.
pub fn target_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("CARGO_TARGET_DIR") {
        return Ok(dir.into());
    }
    // target/debug/deps/trees-0123 -> target
    let exe = std::env::current_exe()?;
    exe.ancestors()
        .nth(3)
        .map(Path::to_path_buf)
        .with_context(|| format!("{} does not lie in a target directory", exe.display()))
}

/// A program of the Python environment with Flask, gunicorn, requests, aiohttp and OpenTelemetry's SDK.
pub fn venv_program(name: &str) -> Result<PathBuf> {
    let venv = match std::env::var_os("SPANWIRE_E2E_VENV") {
        Some(dir) => PathBuf::from(dir),
        None => target_dir()?.join("e2e-venv"),
    };
    let file = venv.join("bin").join(name);
    if !file.exists() {
        bail!(
            "{} is missing: run `cargo xtask test`, which makes the Python environment, or set SPANWIRE_E2E_VENV",
            file.display()
        );
    }
    Ok(file)
}

/// The agent's binary: `SPANWIRE_BIN`, else the newer of the debug and release builds.
pub fn agent_binary() -> Result<PathBuf> {
    if let Some(file) = std::env::var_os("SPANWIRE_BIN") {
        return Ok(file.into());
    }
    let target = target_dir()?;
    ["debug", "release"]
        .iter()
        .map(|profile| target.join(profile).join("spanwire"))
        .filter_map(|file| Some((file.metadata().ok()?.modified().ok()?, file)))
        .max()
        .map(|(_, file)| file)
        .with_context(|| {
            format!(
                "no spanwire binary in {}: run `cargo xtask build` or set SPANWIRE_BIN",
                target.display()
            )
        })
}

/// Fails unless the test runs as root.
pub fn need_root() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        Ok(())
    } else {
        bail!("this test loads eBPF programs and needs root")
    }
}
