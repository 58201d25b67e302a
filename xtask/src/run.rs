//! `x run`: builds, then becomes the agent.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{bail, Context, Result};

use crate::{build, process};

/// What the agent reads from its environment, and sudo would drop.
const KEEP: [&str; 7] = [
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_SERVICE_NAME",
    "OTEL_RESOURCE_ATTRIBUTES",
    "NO_COLOR",
    "RUST_BACKTRACE",
];

/// Builds in release mode, then replaces this process with `spanwire run ARGUMENTS`, as root.
pub(crate) fn run(arguments: &[OsString]) -> Result<ExitCode> {
    need_btf()?;
    if !process::is_root() && process::find("sudo").is_none() {
        bail!("the agent loads eBPF programs and needs root; there is no sudo here: run this command as root");
    }
    let agent = build::agent(true)?;
    let problem = process::as_root(agent.as_os_str(), &KEEP)?
        .arg("run")
        .args(arguments)
        .exec();
    Err(problem).with_context(|| format!("cannot start {}", agent.display()))
}

/// Without the kernel's own type information the programs cannot find their way in its structures.
pub(crate) fn need_btf() -> Result<()> {
    if Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Ok(());
    }
    bail!("this kernel has no BTF (/sys/kernel/btf/vmlinux): boot one built with CONFIG_DEBUG_INFO_BTF=y, as Debian's are")
}
