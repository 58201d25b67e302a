//! Running other programs, with errors that name them.

use std::env;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{bail, Context, Result};

/// Runs to the end with our own input and output; an exit status other than 0 is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", name(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", name(command));
    }
    Ok(())
}

/// What the command wrote to its standard output, when it succeeded.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", name(command)))?;
    if !output.status.success() {
        bail!("{} failed ({})", name(command), output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("{} wrote something that is not text", name(command)))
}

/// A program on PATH.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    // The owner of our own entry in /proc is the effective user; no unsafe call for one number.
    std::fs::metadata("/proc/self").is_ok_and(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata) == 0)
}

/// A command to be run as root: itself where we are root, through sudo otherwise. `keep` names environment variables
/// that must survive sudo.
pub(crate) fn as_root(program: &std::ffi::OsStr, keep: &[&str]) -> Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    let Some(sudo) = find("sudo") else {
        bail!(
            "{} needs root; there is no sudo here: run this command as root",
            program.to_string_lossy()
        );
    };
    let mut command = Command::new(sudo);
    let keep: Vec<&str> = keep
        .iter()
        .copied()
        .filter(|name| env::var_os(name).is_some())
        .collect();
    if !keep.is_empty() {
        command.arg(format!("--preserve-env={}", keep.join(",")));
    }
    command.arg("--").arg(program);
    Ok(command)
}

fn name(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(
        command
            .get_args()
            .take(4)
            .map(|word| word.to_string_lossy().into_owned()),
    );
    if command.get_args().count() > 4 {
        words.push("...".to_owned());
    }
    words.join(" ")
}
