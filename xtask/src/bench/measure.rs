//! Reading costs off /proc and wrk's report; medians.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{bail, Context, Result};

use crate::process;

/// Samples of one quantity, one for each round.
#[derive(Clone, Debug, Default)]
pub(super) struct Samples(pub(super) Vec<f64>);

impl Samples {
    pub(super) fn push(&mut self, sample: f64) {
        self.0.push(sample);
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    pub(super) fn median(&self) -> f64 {
        let sorted = self.sorted();
        match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[n / 2],
            n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
        }
    }
}

/// `median (lowest..highest)`.
impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sorted = self.sorted();
        let (low, high) = (sorted.first(), sorted.last());
        let digits = if self.median().abs() >= 100.0 { 0 } else { 2 };
        write!(f, "{:.digits$}", self.median())?;
        match (low, high) {
            (Some(low), Some(high)) => write!(f, " ({low:.digits$}..{high:.digits$})"),
            _ => Ok(()),
        }
    }
}

/// Time a single-threaded process was on a CPU, from its scheduler statistics.
pub(super) fn on_cpu_ns(pid: u32) -> Result<f64> {
    scheduled_ns(Path::new(&format!("/proc/{pid}")))
}

/// Time the threads of a process were on a CPU. Those that end meanwhile are missing: the agent's do not.
pub(super) fn cpu_ms(pid: u32) -> Result<f64> {
    let threads = format!("/proc/{pid}/task");
    let listed = fs::read_dir(&threads).with_context(|| format!("cannot read {threads}"))?;
    let mut ns = 0.0;
    for thread in listed {
        ns += scheduled_ns(&thread?.path())?;
    }
    Ok(ns / 1e6)
}

/// User and system time of a process since its start, threads that have ended included, in ticks of 10 ms.
pub(super) fn cpu_since_start_ms(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    // The name, in parentheses, may hold anything; utime and stime are the 12th and 13th field behind it (proc(5)).
    let behind_name = text.rsplit(')').next().unwrap_or_default();
    let mut ticks = behind_name
        .split_whitespace()
        .skip(11)
        .map_while(|field| field.parse::<f64>().ok());
    match (ticks.next(), ticks.next()) {
        (Some(user), Some(system)) => Ok((user + system) * 10.0),
        _ => bail!("{path} is not what proc(5) says"),
    }
}

/// The first number of a task's schedstat (Documentation/scheduler/sched-stats.rst).
fn scheduled_ns(task: &Path) -> Result<f64> {
    let path = task.join("schedstat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let first = text.split_whitespace().next().and_then(|number| number.parse().ok());
    first.with_context(|| format!("{} holds no number", path.display()))
}

/// Resident memory.
pub(super) fn resident_mib(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find(|line| line.starts_with("VmRSS:"));
    let kib: Option<f64> = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    Ok(kib.context("no VmRSS")? / 1_024.0)
}

/// What wrk saw.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) requests: f64,
    pub(super) per_second: f64,
    pub(super) p99_ms: f64,
}

/// One thread of wrk on kept connections; failed requests are an error.
pub(super) fn wrk(url: &str, connections: u32, seconds: u32, headers: &[&str]) -> Result<Load> {
    let mut command = Command::new("wrk");
    command.args([
        "-t1",
        &format!("-c{connections}"),
        &format!("-d{seconds}s"),
        "--latency",
    ]);
    for header in headers {
        command.args(["-H", header]);
    }
    let report = process::output(command.arg(url))?;
    if report.contains("Non-2xx") || report.contains("Socket errors") {
        bail!("requests failed:\n{report}");
    }
    let word = |mark: &str, place: usize| {
        let line = report.lines().find(|line| line.contains(mark));
        line.and_then(|line| line.split_whitespace().nth(place))
            .with_context(|| format!("no `{mark}` in wrk's report:\n{report}"))
    };
    Ok(Load {
        requests: word(" requests in ", 0)?.parse()?,
        per_second: word("Requests/sec:", 1)?.parse()?,
        p99_ms: milliseconds(word("99%", 1)?)?,
    })
}

fn milliseconds(text: &str) -> Result<f64> {
    let units = [("us", 0.001), ("ms", 1.0), ("s", 1_000.0)];
    let (number, factor) = units
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))
        .with_context(|| format!("{text} is no time of wrk's"))?;
    Ok(number.parse::<f64>()? * factor)
}

/// hey at a bounded rate: how many requests were answered with 200.
pub(super) fn hey(url: &str, requests: u32, per_second: u32) -> Result<f64> {
    const WORKERS: u32 = 10;
    let mut command = Command::new("hey");
    command.args(["-n", &requests.to_string(), "-c", &WORKERS.to_string()]);
    command.args(["-q", &(per_second / WORKERS).to_string(), url]);
    let report = process::output(&mut command)?;
    let line = report.lines().find(|line| line.contains("[200]"));
    let answered = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    answered.with_context(|| format!("hey's report has no line for status 200:\n{report}"))
}

/// Whether `perf` counts instructions of user and kernel here.
pub(super) fn counts_instructions() -> bool {
    let mut command = Command::new("perf");
    command.args(["stat", "-e", "instructions:u,instructions:k", "true"]);
    command.output().is_ok_and(|output| {
        output.status.success() && !String::from_utf8_lossy(&output.stderr).contains("<not supported>")
    })
}

#[cfg(test)]
mod tests {
    use super::{milliseconds, Samples};

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(Samples(vec![3.0, 1.0, 2.0]).to_string(), "2.00 (1.00..3.00)");
        assert_eq!(Samples(vec![4.0, 1.0, 2.0, 3.0]).to_string(), "2.50 (1.00..4.00)");
    }

    #[test]
    fn wrk_has_three_units() {
        let all: Vec<f64> = ["500.00us", "1.50ms", "2.00s"]
            .iter()
            .map(|text| milliseconds(text).unwrap())
            .collect();
        assert_eq!(all, [0.5, 1.5, 2_000.0]);
        assert!(milliseconds("7").is_err());
    }
}
