//! Developer commands, started by `./x COMMAND` (or `cargo xtask COMMAND`). One file per command; no product logic.

mod apps;
mod bench;
mod build;
mod check;
mod fuzz;
mod later;
mod packages;
mod process;
mod run;
mod setup;
mod test;
mod toolchain;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "x", about = "Sets this machine up for spanwire, builds, runs and tests it", version = None)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build in release mode and run the agent; arguments after `--` go to `spanwire run`
    Run {
        #[arg(last = true, value_name = "ARGS")]
        arguments: Vec<std::ffi::OsString>,
    },
    /// Build target/debug/spanwire, the eBPF object inside
    Build {
        /// Build target/release/spanwire instead
        #[arg(long)]
        release: bool,
    },
    /// Build and run the tests; closes with `N passed, N failed`
    Test {
        /// Also the long suites: every supported kernel in a virtual machine
        #[arg(long)]
        all: bool,
    },
    /// Formatting, lints, layering, licences, documentation, eBPF symbol gate
    Check,
    /// Run the benchmarks (all of them, or NAME) and rewrite docs/benchmarks.md
    Bench { name: Option<String> },
    /// Boot a Debian kernel (5.10, 6.1, 6.12, newest) in QEMU on this machine's files and run a command in it
    Vm {
        kernel: String,
        /// What to run; a shell where none is given
        #[arg(last = true, value_name = "CMD")]
        command: Vec<String>,
    },
    /// Fuzz a target of agent-common/fuzz with cargo-fuzz and a nightly
    Fuzz {
        target: String,
        /// Arguments for the fuzzer, such as -max_total_time=60
        #[arg(last = true, value_name = "ARGS")]
        arguments: Vec<String>,
    },
    /// Later capability: compare parents with ground truth, per runtime
    #[command(hide = true)]
    Accuracy,
    /// Later capability: a Kubernetes cluster on this machine
    #[command(hide = true)]
    Cluster {
        #[arg(trailing_var_arg = true)]
        arguments: Vec<String>,
    },
    /// Later capability: the container image
    #[command(hide = true)]
    Image,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Run { arguments } => run::run(&arguments),
        Command::Build { release } => build::build(release),
        Command::Test { all } => test::test(all),
        Command::Check => check::check(),
        Command::Bench { name } => bench::bench(name.as_deref()),
        Command::Vm { kernel, command } => vm::vm(&kernel, &command),
        Command::Fuzz { target, arguments } => fuzz::fuzz(&target, &arguments),
        Command::Accuracy => later::refuse("accuracy", "correlation beyond threads"),
        Command::Cluster { .. } => later::refuse("cluster", "Kubernetes"),
        Command::Image => later::refuse("image", "Kubernetes"),
    };
    match done {
        Ok(code) => code,
        Err(problem) => {
            eprintln!("x: {problem:#}");
            ExitCode::FAILURE
        }
    }
}
