//! The `spanwire` command: parses the command line and hands over.
#![deny(unsafe_code)]
#![allow(clippy::print_stderr, reason = "refusals go to stderr, as contract.md says")]

use std::io;
use std::process::ExitCode;

use clap::Parser;
use spanwire::cli::client::{self, Source};
use spanwire::cli::text::Output;
use spanwire::cli::{self, Cli, Command, RunArgs, SourceArgs, StatusFilter, TracesArgs};
use spanwire::{cli::services, cli::status, cli::trace, cli::traces, run};

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(done) = cli::offline(&cli.command) {
        return done;
    }
    let out = &mut io::stdout().lock();
    match &cli.command {
        Command::Run(args) => agent(args),
        Command::Status(args) => {
            let source = Source::Api {
                url: args.api.clone(),
                token: token(),
            };
            client::finish(status::run(&source, &mut Output::for_stdout(out, args.output.json)))
        }
        Command::Services(args) => client::finish(services::run(
            &source(&args.source),
            &mut Output::for_stdout(out, args.output.json),
        )),
        Command::Traces(args) => client::finish(traces::run(
            &traces_options(args),
            &source(&args.source),
            &mut Output::for_stdout(out, args.output.json),
        )),
        Command::Trace(args) => client::finish(trace::run(
            &args.id,
            &source(&args.source),
            &mut Output::for_stdout(out, args.output.json),
        )),
        _ => ExitCode::FAILURE,
    }
}

/// The bearer token of an agent that wants one.
fn token() -> Option<String> {
    std::env::var("SPANWIRE_API_TOKEN").ok()
}

fn source(args: &SourceArgs) -> Source {
    match &args.store {
        Some(dir) => Source::Store(dir.clone()),
        None => Source::Api {
            url: args.api.clone(),
            token: token(),
        },
    }
}

fn traces_options(args: &TracesArgs) -> traces::TracesOptions {
    traces::TracesOptions {
        service: args.service.clone(),
        operation: args.operation.clone(),
        is_error: args.status == Some(StatusFilter::Error),
        tenant: args.tenant.clone(),
        attributes: args.attribute.clone(),
        min_duration: args.min_duration,
        max_duration: args.max_duration,
        since: Some(args.since.clone()),
        until: args.until.clone(),
        limit: Some(args.limit),
        is_follow: args.follow,
    }
}

/// `spanwire run`.
fn agent(args: &RunArgs) -> ExitCode {
    let config = match args.configuration() {
        Ok(config) => config,
        Err(problem) => {
            eprintln!("{problem}");
            return ExitCode::from(cli::EXIT_BAD_USAGE);
        }
    };
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_env_filter(args.log.filter())
        .with_target(false)
        .init();
    match run::run(&config, || args.configuration()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("spanwire: {error:#}");
            ExitCode::FAILURE
        }
    }
}
