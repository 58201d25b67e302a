//! `x bench [NAME]`: benchmarks; rewrites docs/benchmarks.md.
//!
//! Every comparison is interleaved: each round measures without the agent and with it, one right after the other,
//! and the ratio is taken inside the round. What else runs on the machine then meets both sides alike.

mod budget;
mod ceiling;
mod cost;
mod idle;
mod measure;
mod nginx;
mod page;
mod rewriting;
mod services;
mod stage;

use std::env;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{bail, Context, Result};

use self::page::{Section, Verdict};
use self::stage::Place;
use crate::{apps, build, process, run, workspace};

/// What every benchmark gets.
struct Bench {
    agent: PathBuf,
    place: Place,
}

type Measure = fn(&Bench) -> Result<Section>;

/// In the order of the page.
const ALL: [(&str, Measure); 7] = [
    ("nginx", nginx::measure),
    ("budget", budget::measure),
    ("cost", cost::measure),
    ("rewriting", rewriting::measure),
    ("services", services::measure),
    ("ceiling", ceiling::measure),
    ("idle", idle::measure),
];

/// Runs every benchmark, or the one named; the page keeps what was not run again. A broken budget is a failure.
pub(crate) fn bench(name: Option<&str>) -> Result<ExitCode> {
    let chosen: Vec<_> = ALL
        .iter()
        .filter(|(own, _)| name.is_none_or(|name| name == *own))
        .collect();
    if chosen.is_empty() {
        let names: Vec<&str> = ALL.iter().map(|(name, _)| *name).collect();
        bail!(
            "no benchmark {}; there are: {}",
            name.unwrap_or_default(),
            names.join(", ")
        );
    }
    if !process::is_root() {
        bail!("the benchmarks load eBPF programs and read other processes' costs: run this command as root");
    }
    run::need_btf()?;
    apps::ensure()?;
    let bench = Bench {
        agent: match env::var_os("SPANWIRE_BIN") {
            Some(agent) => agent.into(),
            None => build::agent(true)?,
        },
        place: Place::new()?,
    };
    let page = workspace::root().join("docs/benchmarks.md");
    let mut broken = false;
    for (name, measure) in chosen {
        eprintln!("x: benchmark {name}");
        let section = measure(&bench).with_context(|| format!("benchmark {name}"))?;
        println!("{section}");
        broken |= section.rows.iter().any(|row| row.verdict == Verdict::Broken);
        // After each, so that an interrupted run keeps what it has.
        page::rewrite(&page, name, &section, &machine()?)?;
    }
    Ok(if broken { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// When and on what: kernel, processors, load, commit.
fn machine() -> Result<String> {
    let text = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(workspace::root());
        process::output(&mut command).map(|output| output.trim().to_owned())
    };
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let info = std::fs::read_to_string("/proc/cpuinfo")?;
    let models: Vec<&str> = info.lines().filter(|line| line.starts_with("model name")).collect();
    let model = models
        .first()
        .and_then(|line| line.split(": ").nth(1))
        .unwrap_or("unknown processor");
    Ok(format!(
        "{}, Linux {}, {} x {model}, load average after the run {}, commit {}{}",
        text("date", &["-u", "+%Y-%m-%d %H:%M UTC"])?,
        text("uname", &["-r"])?,
        models.len(),
        load.split_whitespace().next().unwrap_or_default(),
        text("git", &["rev-parse", "--short", "HEAD"])?,
        // The commit says nothing about such a binary.
        if env::var_os("SPANWIRE_BIN").is_some() {
            " (the agent a build given by SPANWIRE_BIN)"
        } else {
            ""
        },
    ))
}
