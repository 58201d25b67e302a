//! `x test`: sets up, builds everything, runs every test program, closes with `N passed, N failed`.

mod programs;
mod results;

use std::env;
use std::io::Write;
use std::process::{Command, ExitCode};

use anyhow::{bail, Context, Result};

use self::programs::Program;
use self::results::Tally;
use crate::{apps, process, run, setup, vm, workspace};

/// Tests that load eBPF programs and start real services, as root.
const PRIVILEGED: &str = "spanwire-tests";
/// A test program that runs longer than this hangs: in the ordinary run, and where kernels are emulated and loads are long.
const LIMIT_SECONDS: u32 = 600;
const LIMIT_OF_ALL_SECONDS: u32 = 5_400;
/// The privileged programs that say whether the agent works on a kernel: every socket call, whole trees, and what is written
/// into messages.
const ON_EVERY_KERNEL: [&str; 5] = ["calls", "trees", "w3c", "rewriting", "differential"];
/// One of a supported series from before a fault of its sockmaps was mended, and the programs that meet it.
const WITH_FIONREAD_FAULT: &str = "6.12.95";
const ON_FAULTY_SOCKMAPS: [&str; 3] = ["w3c", "rewriting", "differential"];
/// A node has one agent at a time; and what a privileged test measured is worth reading when it passed, too.
const ONE_AT_A_TIME: [&str; 2] = ["--test-threads=1", "--nocapture"];
/// What the end-to-end tests read from their environment.
const ENVIRONMENT: [&str; 9] = [
    "CARGO_MANIFEST_DIR",
    "CARGO_TARGET_DIR",
    "PATH",
    "RUST_BACKTRACE",
    "SPANWIRE_BIN",
    "SPANWIRE_E2E_VENV",
    EXCHANGES,
    "SPANWIRE_SEED",
    "SPANWIRE_COVERAGE",
];
/// How many generated exchanges the differential test plays; `--all` plays more than it does by itself.
const EXCHANGES: &str = "SPANWIRE_EXCHANGES";
const EXCHANGES_OF_ALL: &str = "1000000";
/// On an emulated machine, where each takes many times as long.
const EXCHANGES_EMULATED: &str = "2000";

/// Runs the unit tests, then the privileged ones; with `all` the same privileged ones on every supported kernel.
pub(crate) fn test(all: bool) -> Result<ExitCode> {
    if !process::is_root() && process::find("sudo").is_none() {
        bail!("the end-to-end tests load eBPF programs and need root; there is no sudo here: run this command as root");
    }
    run::need_btf()?;
    setup::ensure()?;
    apps::ensure()?;

    // Everything is built before anything runs: a build that fails leaves no line that looks like a result.
    let agent = crate::build::agent(true)?;
    let (privileged, unit): (Vec<Program>, Vec<Program>) = programs::build()?
        .into_iter()
        .partition(|program| program.package == PRIVILEGED);

    env::set_var("SPANWIRE_BIN", &agent);
    let asked = env::var_os(EXCHANGES);
    if all && asked.is_none() {
        env::set_var(EXCHANGES, EXCHANGES_OF_ALL);
    }
    env::set_var("CARGO_TARGET_DIR", workspace::target_dir()?);

    let limit = if all { LIMIT_OF_ALL_SECONDS } else { LIMIT_SECONDS };
    let out = &mut std::io::stdout().lock();
    let mut tally = Tally::default();
    for program in &unit {
        announce(out, &program.name)?;
        tally.add(results::run(limited(Command::new("timeout"), limit, program), out)?);
    }
    announce(out, "documentation examples")?;
    tally.add(results::run(documentation(), out)?);
    for program in &privileged {
        announce(out, &program.name)?;
        let mut command = limited(process::as_root("timeout".as_ref(), &ENVIRONMENT)?, limit, program);
        command.args(ONE_AT_A_TIME);
        tally.add(results::run(command, out)?);
    }
    if all {
        if asked.is_none() {
            env::set_var(EXCHANGES, EXCHANGES_EMULATED);
        }
        tally.add(on_every_kernel(&privileged, out)?);
    }
    writeln!(out, "{tally}")?;
    Ok(if tally.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn announce(out: &mut dyn Write, what: &str) -> Result<()> {
    Ok(writeln!(out, "\n== {what}")?)
}

/// `timeout` around a test program, where cargo would run it.
fn limited(mut timeout: Command, limit_seconds: u32, program: &Program) -> Command {
    timeout
        .args(["--foreground", "--kill-after=20", &limit_seconds.to_string()])
        .arg(&program.executable)
        .current_dir(&program.directory)
        .env("CARGO_MANIFEST_DIR", &program.directory);
    timeout
}

/// The examples in the documentation of the libraries; rustdoc builds and runs them itself.
fn documentation() -> Command {
    let mut cargo = workspace::cargo();
    cargo.args([
        "test",
        "--quiet",
        "--doc",
        "--package",
        "spanwire-common",
        "--package",
        "spanwire",
    ]);
    cargo
}

/// Boots each supported kernel and runs there what must hold on all of them.
fn on_every_kernel(privileged: &[Program], out: &mut dyn Write) -> Result<Tally> {
    let mut tally = Tally::default();
    let supported = vm::SUPPORTED.map(|kernel| (kernel, &ON_EVERY_KERNEL[..]));
    for (kernel, targets) in supported
        .into_iter()
        .chain([(WITH_FIONREAD_FAULT, &ON_FAULTY_SOCKMAPS[..])])
    {
        for target in targets {
            let program = privileged.iter().find(|program| program.target == *target);
            let program =
                program.with_context(|| format!("there is no test program {target} to run on Linux {kernel}"))?;
            announce(out, &format!("{} on Linux {kernel}", program.name))?;
            tally.add(results::run(on_kernel(kernel, program)?, out)?);
        }
    }
    Ok(tally)
}

/// `x vm` with a test program.
fn on_kernel(kernel: &str, program: &Program) -> Result<Command> {
    let mut timeout = Command::new("timeout");
    timeout.args(["--foreground", "--kill-after=20", &LIMIT_OF_ALL_SECONDS.to_string()]);
    timeout
        .arg(env::current_exe().context("cannot find out where xtask itself is")?)
        .args(["vm", kernel, "--"]);
    timeout
        .arg(&program.executable)
        .args(ONE_AT_A_TIME)
        .current_dir(&program.directory);
    Ok(timeout)
}
