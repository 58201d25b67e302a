//! The command line: every command and flag (contract.md, "Command line"), and the commands that need neither a
//! running agent nor a store.
//!
//! Exit status: 0 done, 1 could not do it, 2 bad usage or configuration. Data goes to stdout, everything else to
//! stderr.

pub mod client;
#[cfg(test)]
mod query_tests;
pub mod services;
pub mod status;
pub mod text;
pub mod trace;
pub mod traces;
mod tree;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::config::{parse_duration, Config, Environment, Flags};
use crate::doctor;

/// Exit status of bad usage and of a bad configuration, clap's own for the former.
pub const EXIT_BAD_USAGE: u8 = 2;

/// Traces services that nobody instrumented.
#[derive(Debug, Parser)]
#[command(name = "spanwire", version, propagate_version = true, disable_help_subcommand = true)]
#[command(after_help = "Exit status: 0 done, 1 could not do it, 2 bad usage or configuration.")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent in the foreground
    Run(RunArgs),
    /// Show what this node can do
    Doctor(DoctorArgs),
    /// Ask the running agent how it is: hooks, what is captured and why, drops, lag
    Status(StatusArgs),
    /// List the services seen, with rate, errors and latency
    Services(ServicesArgs),
    /// List traces, newest first
    Traces(TracesArgs),
    /// Show one trace as a tree with a waterfall
    Trace(TraceArgs),
    /// Check a configuration file
    Config(ConfigArgs),
    /// Check the acceptance contract on this installation (not built yet)
    Verify(LaterArgs),
    /// Watch traces live (not built yet)
    Top(LaterArgs),
    /// Collect from many agents (not built yet)
    Hub(LaterArgs),
    /// Print a shell's completion script
    Completions(CompletionsArgs),
    /// Print the manual page
    Man,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// Configuration file (YAML); every key is optional
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Capture only what matches, e.g. exe=*/nginx,port=80; replaces the file's list
    #[arg(long, value_name = "SEL")]
    pub include: Vec<String>,
    /// Capture nothing that matches; added to the file's list
    #[arg(long, value_name = "SEL")]
    pub exclude: Vec<String>,
    /// Export to this OTLP endpoint: over HTTP when the port is 4318 or the path ends in /v1/traces, else gRPC
    #[arg(long, value_name = "URL")]
    pub otlp: Option<String>,
    /// Keep the embedded store in this directory
    #[arg(long, value_name = "DIR", conflicts_with = "no_store")]
    pub store: Option<PathBuf>,
    /// Keep no embedded store
    #[arg(long)]
    pub no_store: bool,
    /// Serve the API and the page here [default: 127.0.0.1:4319]
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<String>,
    /// How much to log
    #[arg(long, value_name = "LEVEL", value_enum, default_value_t = LogLevel::Info)]
    pub log: LogLevel,
}

impl RunArgs {
    /// The configuration to run with, or what is wrong with it (exit status 2).
    pub fn configuration(&self) -> Result<Config, crate::config::ConfigError> {
        let flags = Flags {
            include: self.include.clone(),
            exclude: self.exclude.clone(),
            otlp: self.otlp.clone(),
            store: self.store.clone(),
            no_store: self.no_store,
            listen: self.listen.clone(),
        };
        Config::load(self.config.as_deref(), &flags, &Environment::of_process())
    }
}

/// How much the agent logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    /// The filter for `tracing`: this program at the level, its libraries at `warn` below `debug`.
    pub const fn filter(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "warn,spanwire=info",
            Self::Debug => "info,spanwire=debug",
            Self::Trace => "debug,spanwire=trace",
        }
    }
}

/// Whom a query asks.
#[derive(Clone, Debug, Args, PartialEq, Eq)]
pub struct SourceArgs {
    /// The running agent
    #[arg(
        long,
        value_name = "URL",
        default_value = "http://127.0.0.1:4319",
        conflicts_with = "store"
    )]
    pub api: String,
    /// Read this store instead, when no agent runs
    #[arg(long, value_name = "DIR")]
    pub store: Option<PathBuf>,
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, Args, PartialEq, Eq)]
pub struct OutputArgs {
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The running agent
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:4319")]
    pub api: String,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Args)]
pub struct ServicesArgs {
    #[command(flatten)]
    pub source: SourceArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Args)]
pub struct TracesArgs {
    /// Only traces this service has a span in
    #[arg(long, value_name = "S")]
    pub service: Option<String>,
    /// Only traces with a span of this name
    #[arg(long, value_name = "O")]
    pub operation: Option<String>,
    /// Only traces with this status
    #[arg(long, value_enum)]
    pub status: Option<StatusFilter>,
    /// Only traces at least this long, e.g. 5ms
    #[arg(long, value_name = "D", value_parser = parse_duration)]
    pub min_duration: Option<Duration>,
    /// Only traces at most this long
    #[arg(long, value_name = "D", value_parser = parse_duration)]
    pub max_duration: Option<Duration>,
    /// Only traces of this tenant
    #[arg(long, value_name = "T")]
    pub tenant: Option<String>,
    /// Only traces with a span that has this attribute; may be given several times
    #[arg(long, value_name = "K=V", value_parser = parse_attribute)]
    pub attribute: Vec<(String, String)>,
    /// From this long ago, e.g. 15m, or from a time
    #[arg(long, value_name = "TIME", default_value = "15m")]
    pub since: String,
    /// Until this long ago, or until a time
    #[arg(long, value_name = "TIME", conflicts_with = "follow")]
    pub until: Option<String>,
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
    /// Keep printing new ones
    #[arg(long)]
    pub follow: bool,
    #[command(flatten)]
    pub source: SourceArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Which traces by status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StatusFilter {
    /// A span in them failed.
    Error,
}

fn parse_attribute(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

#[derive(Debug, Args)]
pub struct TraceArgs {
    /// A trace id, a whole traceparent or a server-timing value
    #[arg(value_name = "ID")]
    pub id: String,
    #[command(flatten)]
    pub source: SourceArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    pub action: ConfigAction,
}

#[derive(Debug, Subcommand)]
pub enum ConfigAction {
    /// Say what is wrong with a file, line by line
    Check {
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Print the configuration in force (not built yet)
    Show(LaterArgs),
    /// Print the configuration's schema (not built yet)
    Schema(LaterArgs),
}

/// Whatever a command that is not built yet is given: it must not fail on its flags before it has said so.
#[derive(Debug, Args)]
pub struct LaterArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    pub rest: Vec<String>,
}

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    pub shell: clap_complete::Shell,
}

/// Does a command that needs neither a running agent nor a store; `None` for the others.
pub fn offline(command: &Command) -> Option<ExitCode> {
    let out = &mut io::stdout().lock();
    let done = match command {
        Command::Run(_) | Command::Status(_) | Command::Services(_) | Command::Traces(_) | Command::Trace(_) => {
            return None;
        }
        Command::Doctor(args) => doctor::run(args.output.json, out),
        Command::Config(args) => config(&args.action, out),
        Command::Verify(_) => Ok(not_built("verify", "page")),
        Command::Top(_) => Ok(not_built("top", "page")),
        Command::Hub(_) => Ok(not_built("hub", "kubernetes")),
        Command::Completions(args) => completions(args.shell, out).map(|()| ExitCode::SUCCESS),
        Command::Man => manual(out).map(|()| ExitCode::SUCCESS),
    };
    Some(done.unwrap_or_else(|error| {
        // Whoever read us had enough: `spanwire man | head`.
        if error.kind() == io::ErrorKind::BrokenPipe {
            return ExitCode::SUCCESS;
        }
        complain(format_args!("cannot write to stdout: {error}"));
        ExitCode::FAILURE
    }))
}

/// What is wrong with the file is the answer here, so it goes to stdout.
fn config(action: &ConfigAction, out: &mut impl Write) -> io::Result<ExitCode> {
    let file = match action {
        ConfigAction::Check { file } => file,
        ConfigAction::Show(_) => return Ok(not_built("config show", "kubernetes")),
        ConfigAction::Schema(_) => return Ok(not_built("config schema", "kubernetes")),
    };
    match Config::check(file) {
        Ok(()) => writeln!(out, "{}: ok", file.display()).map(|()| ExitCode::SUCCESS),
        Err(error) => writeln!(out, "{error}").map(|()| ExitCode::from(EXIT_BAD_USAGE)),
    }
}

fn not_built(command: &str, capability: &str) -> ExitCode {
    complain(format_args!(
        "spanwire {command} is not built yet: it comes with the {capability} capability"
    ));
    ExitCode::FAILURE
}

/// A line to stderr. If even that fails, the exit status still tells.
fn complain(message: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{message}");
}

fn completions(shell: clap_complete::Shell, out: &mut impl Write) -> io::Result<()> {
    // clap_complete panics on a failed write, so it writes to memory.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "spanwire", &mut script);
    out.write_all(&script)
}

/// One page for all commands: the overview, then a section for each.
fn manual(out: &mut impl Write) -> io::Result<()> {
    let mut command = Cli::command();
    command.build();
    let page = clap_mangen::Man::new(command.clone());
    page.render_title(out)?;
    page.render_name_section(out)?;
    page.render_synopsis_section(out)?;
    page.render_options_section(out)?;
    for below in command.get_subcommands() {
        manual_section(below, out)?;
    }
    page.render_extra_section(out)
}

/// A command's section; clap_mangen's own headings become headings below it.
fn manual_section(command: &clap::Command, out: &mut impl Write) -> io::Result<()> {
    let page = clap_mangen::Man::new(command.clone());
    let mut text = Vec::new();
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    let name = command
        .get_display_name()
        .unwrap_or(command.get_name())
        .replace('-', " ")
        .to_uppercase();
    writeln!(out, ".SH \"{name}\"")?;
    out.write_all(
        String::from_utf8_lossy(&text)
            .replace("\n.SH ", "\n.SS ")
            .replacen(".SH ", ".SS ", 1)
            .as_bytes(),
    )?;
    command
        .get_subcommands()
        .try_for_each(|below| manual_section(below, out))
}

#[cfg(test)]
mod tests;
