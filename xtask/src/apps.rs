//! The real applications that the end-to-end tests run: Debian packages, and a Python environment of their own.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{bail, Context, Result};

use crate::{packages, process, workspace};

const PACKAGES: [&str; 19] = [
    "apache2",
    "bpftool",
    "ca-certificates",
    "curl",
    "haproxy",
    "hey",
    "iproute2",
    "libapache2-mod-php",
    "libcap2-bin",
    "nginx-light",
    "php-cgi",
    "php-cli",
    "php-fpm",
    "puma",
    "python3-venv",
    "ruby",
    "ruby-webrick",
    "systemd",
    "wrk",
];

/// Pinned, so that a test that passed once is the same test later.
const PYTHON: [&str; 8] = [
    "flask==3.1.3",
    "gunicorn==27.0.1",
    "requests==2.34.2",
    "aiohttp==3.14.5",
    "opentelemetry-sdk==1.45.1",
    "opentelemetry-exporter-otlp-proto-http==1.45.1",
    "opentelemetry-instrumentation-flask==0.66b1",
    "opentelemetry-instrumentation-requests==0.66b1",
];

/// Makes sure that they are there.
pub(crate) fn ensure() -> Result<()> {
    packages::ensure(&PACKAGES)?;
    // A node that is not Debian's is as good.
    if process::find("node").is_none() {
        packages::ensure(&["nodejs"])?;
    }
    ensure_python(&workspace::target_dir()?.join("e2e-venv"))
}

/// Fills the environment once; a file in it says with what.
fn ensure_python(environment: &Path) -> Result<()> {
    let wanted = PYTHON.join("\n");
    let stamp = environment.join("installed");
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    eprintln!("x: installing into {}: {}", environment.display(), PYTHON.join(" "));
    quiet(Command::new("/usr/bin/python3").args(["-m", "venv"]).arg(environment))?;
    quiet(
        Command::new(environment.join("bin/pip"))
            .args(["install", "--quiet"])
            .args(PYTHON),
    )?;
    std::fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))
}

/// Runs a program whose output matters only when it fails.
fn quiet(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    if output.status.success() {
        return Ok(());
    }
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    bail!("{command:?} failed, for the reason above")
}
