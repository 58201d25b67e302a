//! Load with ground truth: every request has an id of its own, in the path of everything it causes.
//!
//! A request comes in as `/r/<id>`; whatever a service calls for it is `/o/<id>/<hop>`, where the hop names the place
//! that calls. So a span's path alone says which exchange it is, and which other exchange caused it.

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};

use crate::http::Connection;
use crate::place::program;
use crate::service::Target;

/// A bounded number of requests from a fixed number of connections.
pub struct Load<'a> {
    pub target: &'a Target,
    /// First part of every id; unique in one run of the agent.
    pub prefix: &'a str,
    pub requests: usize,
    pub concurrency: usize,
    /// Reuse the connection as long as the server allows.
    pub keep_alive: bool,
}

/// What became of a load.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Ids that were answered with 200.
    pub answered: Vec<String>,
    /// Ids that were not, and why.
    pub failed: Vec<(String, String)>,
    pub elapsed: Duration,
}

impl Outcome {
    /// The ids, when every request was answered.
    pub fn all(self) -> Result<Vec<String>> {
        match self.failed.first() {
            None => Ok(self.answered),
            Some((id, why)) => {
                bail!(
                    "{} of {} requests failed, first {id}: {why}",
                    self.failed.len(),
                    self.failed.len() + self.answered.len()
                )
            }
        }
    }
}

impl Load<'_> {
    /// Runs to the end. Threads stop at the first id nobody has taken.
    pub fn run(&self) -> Outcome {
        let next = AtomicUsize::new(0);
        let outcome = Mutex::new(Outcome::default());
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..self.concurrency {
                scope.spawn(|| self.client(&next, &outcome));
            }
        });
        let mut outcome = outcome.into_inner().unwrap_or_default();
        outcome.elapsed = start.elapsed();
        outcome
    }

    fn client(&self, next: &AtomicUsize, outcome: &Mutex<Outcome>) {
        let mut connection = None;
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= self.requests {
                return;
            }
            let id = format!("{}n{n}", self.prefix);
            let result = self.request(&mut connection, &id);
            let Ok(mut outcome) = outcome.lock() else {
                return;
            };
            match result {
                Ok(()) => outcome.answered.push(id),
                Err(error) => {
                    connection = None;
                    outcome.failed.push((id, format!("{error:#}")));
                }
            }
        }
    }

    fn request(&self, connection: &mut Option<Connection>, id: &str) -> Result<()> {
        let mut open = match connection.take() {
            Some(open) if open.is_open() && self.keep_alive => open,
            _ => Connection::open(self.target)?,
        };
        let close: &[(&str, &str)] = if self.keep_alive {
            &[]
        } else {
            &[("Connection", "close")]
        };
        let response = open.request("GET", &format!("/r/{id}"), close, &[])?;
        if response.status != 200 {
            bail!("status {}: {}", response.status, response.text());
        }
        // Every service answers with the id it was asked for: an answer that belongs to another request is a fault.
        if !response.text().contains(id) {
            bail!("the answer does not name the request: {:?}", response.text());
        }
        *connection = Some(open);
        Ok(())
    }
}

/// hey: an exact number of requests at a bounded rate. Returns how many it says were answered with 200.
pub fn hey(target: &Target, requests: u64, workers: u64, rate_per_worker: u64) -> Result<u64> {
    let output = Command::new(program("hey")?)
        .args([
            "-n",
            &requests.to_string(),
            "-c",
            &workers.to_string(),
            "-q",
            &rate_per_worker.to_string(),
        ])
        .arg(format!("{}/r/hey", target.url()?))
        .output()?;
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = report.lines().find(|line| line.contains("[200]"));
    let answered = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    answered.with_context(|| format!("hey's report has no line for status 200:\n{report}"))
}

/// wrk at full speed. Returns how many responses it read; as many more as it has connections may have been cut off.
pub fn wrk(target: &Target, connections: u64, seconds: u64) -> Result<u64> {
    let output = Command::new(program("wrk")?)
        .args(["-t2", &format!("-c{connections}"), &format!("-d{seconds}s")])
        .arg(format!("{}/r/wrk", target.url()?))
        .output()?;
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    if report.contains("Socket errors") || report.contains("Non-2xx") {
        bail!("requests failed:\n{report}");
    }
    let line = report.lines().find(|line| line.contains(" requests in "));
    let count = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    count.with_context(|| format!("wrk's report has no count:\n{report}"))
}
