//! The agent under test: the real binary, its configuration, its API.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use rustix::process::Signal;
use serde_json::{json, Value};

use crate::cases::say;
use crate::http::{self, Response};
use crate::metrics::Metrics;
use crate::pace::{is_slow, patient};
use crate::place::{agent_binary, free_port, need_root, program, Place};
use crate::service::{Launch, Service, Target};
use crate::spans::{read_otlp_json, Span};

/// From start to `/readyz`; DESIGN.md promises a first span within 2 s on an idle machine.
const READY_LIMIT: Duration = Duration::from_mins(1);
/// A span reaches store and exporters within 1.8 s of its end (contract.md); the rest is for a busy machine.
const SETTLE_LIMIT: Duration = Duration::from_secs(12);
/// Counts that have not moved for so long will not: a span may take 1.8 s.
const STILL: Duration = Duration::from_millis(1_900);
/// Runs of the self-test, after the first, on a machine that is too slow for it.
const SELF_TESTS: usize = 5;
/// SIGTERM: detach and flush within this.
pub const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Tests run the agent as it is built for debugging, on machines that are busy, and want every span.
const UNLIMITED_CPU: u32 = 64;

/// What the agent is started with. Written as JSON, which is YAML.
#[derive(Clone, Debug)]
pub struct Setup {
    document: Value,
    args: Vec<String>,
    env: Vec<(String, String)>,
}

impl Setup {
    /// Captures what the selectors name and nothing else, keeps raw paths (the ids of the ground truth are in them).
    pub fn capturing(include: &[Value]) -> Self {
        let document = json!({
            "capture": {"include": include, "paths": "raw", "client_address": "full"},
            "export": [],
            "limits": {"cpu": UNLIMITED_CPU},
        });
        Self {
            document,
            args: Vec::new(),
            env: Vec::new(),
        }
    }

    /// Captures services by the pids of their first processes, descendants included.
    pub fn of_services(services: &[&Service]) -> Self {
        let include: Vec<_> = services.iter().map(|service| json!({"pid": service.pid()})).collect();
        Self::capturing(&include)
    }

    /// Captures both ends of every connection to the given ports.
    pub fn of_ports(ports: &[u16]) -> Self {
        let include: Vec<_> = ports.iter().map(|port| json!({"port": port})).collect();
        Self::capturing(&include)
    }

    /// Adds a selector to `capture.include`.
    pub fn include(mut self, selector: Value) -> Self {
        if let Some(Value::Array(include)) = self.document.pointer_mut("/capture/include") {
            include.push(selector);
        }
        self
    }

    /// Sets `section.key`, whatever was there.
    pub fn with(mut self, section: &str, key: &str, value: Value) -> Self {
        self.document[section][key] = value;
        self
    }

    /// Sets a top-level key.
    pub fn with_section(mut self, section: &str, value: Value) -> Self {
        self.document[section] = value;
        self
    }

    /// Adds an exporter.
    pub fn export(mut self, exporter: Value) -> Self {
        if let Some(Value::Array(exporters)) = self.document.get_mut("export") {
            exporters.push(exporter);
        }
        self
    }

    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.to_owned(), value.to_owned()));
        self
    }
}

/// A running agent. Dropping it ends it.
pub struct Agent {
    service: Service,
    api: SocketAddr,
    /// What `--store` names.
    pub store: PathBuf,
    // Last, so that the directory goes after the process that writes into it.
    place: Place,
}

/// A row of `processes` in `GET /api/status`: which messages of a process bear context, or why not more.
#[derive(Clone, Debug)]
pub struct Permit {
    pub name: String,
    pub requests: String,
    /// `yes`, or `no: ` and why.
    pub responses: String,
}

/// A row of `GET /api/traces`.
#[derive(Clone, Debug)]
pub struct Summary {
    pub trace_id: String,
    pub start_ns: u64,
    pub span_count: u64,
    pub services: Vec<String>,
}

impl Agent {
    /// Starts an agent and waits until every hook it will use is attached.
    pub fn start(setup: &Setup) -> Result<Self> {
        let mut agent = Self::spawn(setup)?;
        let target = Target::Tcp(agent.api);
        agent.service.wait_for("/readyz to answer 200", READY_LIMIT, || {
            http::get(&target, "/readyz").is_ok_and(|response| response.status == 200)
        })?;
        if is_slow() {
            agent.repeat_self_test()?;
        }
        Ok(agent)
    }

    /// Where the machine was too slow for an answer to one of the self-test's rows: tries again, as an operator would.
    fn repeat_self_test(&mut self) -> Result<()> {
        const ANEW: &str = "rewriting: settled anew";
        for _ in 0..SELF_TESTS {
            let reasons = self.get_json("/api/status")?["rewriting"]["reasons"].to_string();
            if !reasons.contains("is unknown") {
                return Ok(());
            }
            say(&format!("the self-test has no answer, and is run again: {reasons}"));
            let before = self.log().matches(ANEW).count();
            self.service.signal(Signal::USR2)?;
            let log = self.service.log_path().to_path_buf();
            self.service.wait_for("the self-test", READY_LIMIT, || {
                std::fs::read_to_string(&log).is_ok_and(|log| log.matches(ANEW).count() > before)
            })?;
            // The status is renewed once a second.
            sleep(patient(Duration::from_secs(2)));
        }
        Ok(())
    }

    /// Starts an agent without waiting for anything.
    pub fn spawn(setup: &Setup) -> Result<Self> {
        need_root()?;
        let place = Place::new("agent")?;
        let api = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let store = place.join("store");
        std::fs::create_dir(&store)?;
        let mut document = setup.document.clone();
        document["api"] = json!({"listen": api.to_string()});
        if document.pointer("/store/path").is_none() {
            document["store"]["path"] = json!(store);
        }
        let config = place.write("spanwire.yaml", &serde_json::to_string_pretty(&document)?)?;
        let mut launch = Launch::new("spanwire", agent_binary()?, &place);
        launch = launch.arg("run").arg("--config").arg(&config).args(&setup.args);
        for (key, value) in &setup.env {
            launch = launch.env(key, value);
        }
        let service = launch.spawn()?;
        Ok(Self {
            service,
            api,
            store,
            place,
        })
    }

    pub fn pid(&self) -> u32 {
        self.service.pid()
    }

    pub fn log(&self) -> String {
        self.service.log()
    }

    pub fn api(&self) -> SocketAddr {
        self.api
    }

    pub fn service(&mut self) -> &mut Service {
        &mut self.service
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    /// One request to the API.
    pub fn get(&self, path: &str) -> Result<Response> {
        http::get(&Target::Tcp(self.api), path).with_context(|| format!("GET {path}; the agent's log:\n{}", self.log()))
    }

    /// One request to the API that must be answered with 200 and JSON.
    pub fn get_json(&self, path: &str) -> Result<Value> {
        let response = self.get(path)?;
        if response.status != 200 {
            bail!("GET {path}: status {}: {}", response.status, response.text());
        }
        serde_json::from_slice(&response.body).with_context(|| format!("GET {path}: not JSON: {}", response.text()))
    }

    /// What it says of the processes of a service that have shown traffic.
    pub fn permits(&self, service: &Service) -> Result<Vec<Permit>> {
        let status = self.get_json("/api/status")?;
        let rows = status["processes"].as_array().context("no `processes` in the answer")?;
        let is_of_service = |row: &&Value| group_of(&row["pid"]) == Some(service.pid());
        let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
        let permits = rows.iter().filter(is_of_service).map(|row| Permit {
            name: text(row, "name"),
            requests: text(row, "propagate"),
            responses: text(row, "ingress"),
        });
        Ok(permits.collect())
    }

    pub fn metrics(&self) -> Result<Metrics> {
        let response = self.get("/metrics")?;
        if response.status != 200 {
            bail!("GET /metrics: status {}", response.status);
        }
        Metrics::parse(&response.text())
    }

    /// The newest traces.
    pub fn traces(&self, query: &str) -> Result<Vec<Summary>> {
        let answer = self.get_json(&format!("/api/traces?{query}"))?;
        let traces = answer
            .get("traces")
            .and_then(Value::as_array)
            .context("no `traces` in the answer")?;
        traces.iter().map(read_summary).collect()
    }

    /// Every trace of the last hour, page by page: the API returns at most a thousand at once, newest first.
    pub fn all_traces(&self) -> Result<Vec<Summary>> {
        let mut all = BTreeMap::new();
        let mut until = String::new();
        loop {
            let page = self.traces(&format!("since=1h&limit=1000{until}"))?;
            let before = all.len();
            if let Some(oldest) = page.iter().map(|summary| summary.start_ns).min() {
                until = format!("&until={oldest}");
            }
            all.extend(page.into_iter().map(|summary| (summary.trace_id.clone(), summary)));
            if all.len() == before {
                return Ok(all.into_values().collect());
            }
        }
    }

    /// A trace by id, whole.
    pub fn trace(&self, id: &str) -> Result<Vec<Span>> {
        read_otlp_json(&self.get_json(&format!("/api/traces/{id}"))?)
    }

    /// Every span in the store, trace by trace.
    pub fn all_spans(&self) -> Result<Vec<Span>> {
        let mut spans = Vec::new();
        for summary in self.all_traces()? {
            let own = self.trace(&summary.trace_id)?;
            // More may have arrived between the two answers; fewer than the list says would be a fault.
            if (own.len() as u64) < summary.span_count {
                bail!(
                    "trace {}: {} spans listed, {} returned",
                    summary.trace_id,
                    summary.span_count,
                    own.len()
                );
            }
            spans.extend(own);
        }
        Ok(spans)
    }

    /// Polls the store until the spans satisfy `enough`, then once more after the settle window, so that what comes
    /// too much is seen as well. When the time is over the spans are returned as they are: the judge says what is
    /// missing.
    pub fn spans_when(&self, enough: impl Fn(&[Span]) -> bool) -> Result<Vec<Span>> {
        let start = Instant::now();
        self.drained()?;
        loop {
            let spans = self.all_spans()?;
            if enough(&spans) || start.elapsed() > patient(SETTLE_LIMIT) {
                return Ok(spans);
            }
            sleep(Duration::from_millis(300));
        }
    }

    /// Waits until no span is on its way any more: the counts have stood still for longer than a span may take, and
    /// the store has got every span.
    pub fn drained(&self) -> Result<Metrics> {
        let start = Instant::now();
        let mut last = self.metrics()?;
        let mut still_since = Instant::now();
        loop {
            sleep(Duration::from_millis(200));
            let now = self.metrics()?;
            let moved = |metrics: &Metrics| {
                let stored = metrics.sum("spanwire_export_spans_total", &[]);
                (metrics.balance(), stored)
            };
            if moved(&now) != moved(&last) {
                still_since = Instant::now();
            }
            last = now;
            if still_since.elapsed() > patient(STILL) || start.elapsed() > patient(SETTLE_LIMIT) {
                return Ok(last);
            }
        }
    }

    /// SIGTERM, and the time it took to end.
    pub fn terminate(&mut self) -> Result<(ExitStatus, Duration)> {
        let start = Instant::now();
        self.service.signal(Signal::TERM)?;
        let status = self.service.wait_end(STOP_LIMIT + Duration::from_secs(10))?;
        Ok((status, start.elapsed()))
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.service.signal(Signal::KILL)?;
        self.service.wait_end(Duration::from_secs(5))?;
        Ok(())
    }
}

/// A process's group, by proc(5): the third field behind the name.
fn group_of(pid: &Value) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(2)?.parse().ok()
}

fn read_summary(row: &Value) -> Result<Summary> {
    let number = |key: &str| {
        let value = row.get(key)?;
        value.as_u64().or_else(|| value.as_str()?.parse().ok())
    };
    let services = row.get("services").and_then(Value::as_array).context("no services")?;
    Ok(Summary {
        trace_id: row
            .get("traceId")
            .and_then(Value::as_str)
            .context("no traceId")?
            .to_owned(),
        start_ns: number("startTimeUnixNano").context("startTimeUnixNano is no number")?,
        span_count: number("spanCount").context("spanCount is no number")?,
        services: services
            .iter()
            .filter_map(|service| service.as_str().map(str::to_owned))
            .collect(),
    })
}

/// Runs the agent's binary to its end, as a user would a query command. One that does not end is told to (exit 124).
pub fn command(args: &[&str]) -> Result<Output> {
    let binary = agent_binary()?;
    Command::new(program("timeout")?)
        .args(["--kill-after=5", "60"])
        .arg(&binary)
        .args(args)
        .output()
        .with_context(|| format!("could not run {}", binary.display()))
}
