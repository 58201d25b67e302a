//! `x vm KERNEL [-- CMD]`: another kernel on this machine's files, in QEMU. What the guest writes is gone afterwards.

mod initramfs;
mod kernel;
mod machine;

use std::env;
use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use anyhow::{anyhow, bail, Context, Result};

use self::machine::Console;
use crate::{packages, process, toolchain};

/// The kernels that the fallbacks are tested on.
pub(crate) const SUPPORTED: [&str; 4] = ["5.10", "6.1", "6.12", "newest"];

/// How many times as long as on this machine the end-to-end tests may take, by what was seen of emulated ones.
const PATIENCE: &str = "SPANWIRE_PATIENCE";
const PATIENCE_EMULATED: &str = "8";

/// What the guest's command finds in its environment, where it is set here.
const KEEP: [&str; 12] = [
    "CARGO_MANIFEST_DIR",
    "CARGO_TARGET_DIR",
    "HOME",
    "PATH",
    "RUST_BACKTRACE",
    "SPANWIRE_BIN",
    "SPANWIRE_COVERAGE",
    "SPANWIRE_E2E_VENV",
    "SPANWIRE_EXCHANGES",
    PATIENCE,
    "SPANWIRE_SEED",
    "TERM",
];

/// Runs the command (a shell, where none is given) in the directory we are in; its exit status is ours.
pub(crate) fn vm(wanted: &str, command: &[String]) -> Result<ExitCode> {
    if !process::is_root() {
        if process::find("sudo").is_none() {
            bail!("sharing this machine's files with a virtual machine needs root; there is no sudo here: run this command as root");
        }
        return as_root(wanted, command);
    }
    ensure_tools()?;
    let kernel = kernel::obtain(wanted)?;
    let directory = env::current_dir().context("cannot find out the current directory")?;
    let (script, console) = if command.is_empty() {
        // A session and a terminal of its own, so that job control works.
        ("exec setsid -c bash -i\n".to_owned(), Console::Interactive)
    } else {
        // Line ends stay as the command writes them.
        (format!("stty -opost\nexec {}\n", joined(command)), Console::Output)
    };
    let script = format!(
        "{}cd {} || exit 1\n{script}",
        environment(),
        quoted(&directory.to_string_lossy())
    );
    let initramfs = initramfs::build(&kernel, &script)?;
    let status = machine::run(&kernel, &initramfs, console)?;
    Ok(ExitCode::from(status))
}

/// Starts over through sudo, with the cache of the user who asked.
fn as_root(wanted: &str, command: &[String]) -> Result<ExitCode> {
    let program = env::current_exe().context("cannot find out where xtask itself is")?;
    let cache = toolchain::cache_dir().map_err(|problem| anyhow!(problem))?;
    env::set_var("SPANWIRE_CACHE", cache);
    let mut keep = KEEP.to_vec();
    keep.push("SPANWIRE_CACHE");
    let problem = process::as_root(program.as_os_str(), &keep)?
        .args(["vm", wanted, "--"])
        .args(command)
        .exec();
    Err(problem).context("cannot start sudo")
}

fn ensure_tools() -> Result<()> {
    initramfs::ensure_busybox()?;
    if process::find("qemu-system-x86_64").is_none() || machine::virtiofsd().is_none() {
        packages::ensure(&["qemu-system-x86"])?;
    }
    if machine::virtiofsd().is_none() {
        // A package of its own since Debian 13.
        packages::ensure(&["virtiofsd"])?;
    }
    Ok(())
}

/// One word is a script for the shell, several are a program and its arguments.
fn joined(command: &[String]) -> String {
    match command {
        [script] => format!("/bin/sh -c {}", quoted(script)),
        words => words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "),
    }
}

fn environment() -> String {
    let lines = KEEP.iter().filter_map(|name| {
        let slow = *name == PATIENCE && !machine::runs_natively();
        let usual = slow.then(|| PATIENCE_EMULATED.to_owned());
        let value = env::var(name).ok().or(usual)?;
        Some(format!("export {name}={}\n", quoted(&value)))
    });
    lines.collect()
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use std::process::Command;

    use super::*;

    #[test]
    fn words_reach_the_shell_as_they_are() {
        let words = ["printf", "%s|", "it's", "$HOME `x`", ""].map(str::to_owned);
        let output = Command::new("sh").arg("-c").arg(joined(&words)).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "it's|$HOME `x`||");
    }

    #[test]
    fn one_word_is_a_script() {
        let output = Command::new("sh")
            .arg("-c")
            .arg(joined(&["echo a; echo b".to_owned()]))
            .output()
            .unwrap();
        assert_eq!(output.stdout, b"a\nb\n");
    }
}
