//! Trace context put into requests: what it costs beside observing alone, and whether any request waits for it.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{json, Value};

use super::budget::{programs, times_during};
use super::measure::{wrk, Samples};
use super::page::{Row, Section};
use super::stage::{Agent, Nginx, Place, Sinks};
use super::Bench;
use crate::{process, workspace};

const ROUNDS: usize = 5;
const SECONDS: u32 = 3;
const CONNECTIONS: u32 = 16;

/// Nothing is changed in what the service sends.
fn observing() -> Value {
    json!({"propagate": {"enabled": false}, "ingress": {"enabled": false}})
}

/// Requests get their context, responses stay as they are.
fn injecting() -> Value {
    json!({"ingress": {"enabled": false}})
}

/// nginx in front of another nginx.
struct Proxied {
    name: &'static str,
    url: String,
    throughput: Samples,
    p99: Samples,
    /// Headers by requests sent on.
    coverage: Samples,
}

impl Proxied {
    fn new(name: &'static str, port: u16, path: &str) -> Self {
        Self {
            name,
            url: format!("http://127.0.0.1:{port}{path}"),
            throughput: Samples::default(),
            p99: Samples::default(),
            coverage: Samples::default(),
        }
    }

    /// Observed, then injected into, in the same round.
    fn round(&mut self, bench: &Bench, front: &Nginx) -> Result<()> {
        let include = json!([front.selector()]);
        let start =
            |sections: &Value| Agent::start_with(&bench.agent, &bench.place, &include, Sinks::Nothing, false, sections);
        let agent = start(&observing())?;
        let off = wrk(&self.url, CONNECTIONS, SECONDS, &[])?;
        drop(agent);
        let agent = start(&injecting())?;
        let on = wrk(&self.url, CONNECTIONS, SECONDS, &[])?;
        agent.drained()?;
        self.throughput.push(on.per_second / off.per_second);
        self.p99.push(on.p99_ms / off.p99_ms);
        self.coverage.push(injected(&agent)? / clients(&agent)?);
        Ok(())
    }
}

fn injected(agent: &Agent) -> Result<f64> {
    agent.metric("spanwire_injections_total", "result=\"ok\"")
}

fn clients(agent: &Agent) -> Result<f64> {
    Ok(agent.metric("spanwire_exchanges_total", "side=\"client\"")?.max(1.0))
}

/// What `tests/workloads/steady_client.py` says.
struct Steady {
    per_second: f64,
    cpu_us: f64,
    latencies: Vec<u64>,
}

fn steady(python: &Python, url: &str, manner: &str) -> Result<Steady> {
    let mut command = Command::new(&python.interpreter);
    command
        .arg(&python.script)
        .args([url, &SECONDS.to_string(), manner])
        .env("PYTHONDONTWRITEBYTECODE", "1");
    let answer: Value = serde_json::from_str(&process::output(&mut command)?).context("the client's report")?;
    let number = |key: &str| answer[key].as_f64().with_context(|| format!("no {key} in {answer}"));
    let latencies = answer["latencies"].as_array().context("no latencies")?;
    Ok(Steady {
        per_second: number("requests")? / number("seconds")?,
        cpu_us: number("cpu_seconds")? / number("requests")? * 1e6,
        latencies: latencies.iter().filter_map(Value::as_u64).collect(),
    })
}

struct Python {
    interpreter: std::path::PathBuf,
    script: std::path::PathBuf,
}

impl Python {
    fn new() -> Result<Self> {
        let venv = match std::env::var_os("SPANWIRE_E2E_VENV") {
            Some(venv) => venv.into(),
            None => workspace::target_dir()?.join("e2e-venv"),
        };
        Ok(Self {
            interpreter: venv.join("bin/python"),
            script: workspace::root().join("tests/workloads/steady_client.py"),
        })
    }
}

/// A client in Python, on connections of one kind.
struct Client {
    manner: &'static str,
    name: &'static str,
    throughput: Samples,
    cpu: Samples,
    coverage: Samples,
    untraced: Vec<u64>,
    traced: Vec<u64>,
}

impl Client {
    fn new(manner: &'static str, name: &'static str) -> Self {
        Self {
            manner,
            name,
            throughput: Samples::default(),
            cpu: Samples::default(),
            coverage: Samples::default(),
            untraced: Vec::new(),
            traced: Vec::new(),
        }
    }

    fn round(&mut self, bench: &Bench, python: &Python, server: &Nginx) -> Result<()> {
        let url = format!("http://127.0.0.1:{}/", server.port);
        let off = steady(python, &url, self.manner)?;
        // The client's process does not exist yet.
        let include = json!([{"port": server.port}]);
        let exclude = json!({"include": include, "exclude": [server.selector()]});
        let mut sections = injecting();
        sections["capture"] = exclude;
        let agent = Agent::start_with(&bench.agent, &bench.place, &include, Sinks::Nothing, false, &sections)?;
        let on = steady(python, &url, self.manner)?;
        agent.drained()?;
        self.throughput.push(on.per_second / off.per_second);
        self.cpu.push(on.cpu_us - off.cpu_us);
        self.coverage.push(injected(&agent)? / clients(&agent)?);
        add(&mut self.untraced, &off.latencies);
        add(&mut self.traced, &on.latencies);
        Ok(())
    }
}

fn add(sum: &mut Vec<u64>, more: &[u64]) {
    sum.resize(more.len().max(sum.len()), 0);
    for (sum, more) in sum.iter_mut().zip(more) {
        *sum += more;
    }
}

/// Every comparison, round by round; then the programs' own time.
pub(super) fn measure(bench: &Bench) -> Result<Section> {
    let place = &bench.place;
    let python = Python::new()?;
    let answers = "location / { return 200 \"ok\\n\"; }";
    let server = Nginx::start(place, "rewriting-server", answers, "")?;
    let front = proxy(place, &server)?;
    let mut proxied = [
        Proxied::new("a connection for each request (worst case)", front.port, "/fresh/"),
        Proxied::new("16 kept connections", front.port, "/kept/"),
    ];
    let mut clients = [
        Client::new("kept", "http.client, one connection"),
        Client::new("requests", "requests, one session"),
        Client::new("fresh", "http.client, a connection for each request"),
    ];
    for _ in 0..ROUNDS {
        for case in &mut proxied {
            case.round(bench, &front)?;
        }
        for case in &mut clients {
            case.round(bench, &python, &server)?;
        }
    }
    let mut rows = rows(&proxied, &clients);
    rows.extend(program_times(bench, &front)?);
    Ok(Section {
        method: format!(
            "{ROUNDS} rounds. nginx before nginx, the front one captured: `wrk -t1 -c{CONNECTIONS} -d{SECONDS}s`, observing alone \
             (`propagate.enabled: false`) and then injecting. Python (`tests/workloads/steady_client.py`, {SECONDS} s): without an agent \
             and then injecting. No store, no export. Header share: injected by the requests the agent saw leave."
        ),
        rows,
        notes: vec![
            "Instructions per injected request are not measured where `perf` counts none (this machine: `<not supported>`); the kernel's \
             own time of the programs stands in. `rewrite_messages` runs once for each send of an enrolled socket, `enrol_connections` \
             at the points of every TCP connection of the node, enrolled or not."
                .to_owned(),
            "Latencies are those of the Python clients, all rounds together: a request that waited for a delayed acknowledgement would \
             stand in the last column."
                .to_owned(),
        ],
    })
}

fn proxy(place: &Place, server: &Nginx) -> Result<Nginx> {
    let upstream = format!("upstream back {{ server 127.0.0.1:{}; keepalive 16; }}", server.port);
    let locations = format!(
        "location /fresh/ {{ proxy_pass http://127.0.0.1:{}/; }}\n\
         location /kept/ {{ proxy_pass http://back/; proxy_http_version 1.1; proxy_set_header Connection \"\"; }}",
        server.port
    );
    Nginx::start(place, "rewriting-front", &locations, &upstream)
}

fn rows(proxied: &[Proxied], clients: &[Client]) -> Vec<Row> {
    let mut rows = Vec::new();
    for case in proxied {
        rows.push(Row::new(
            format!(
                "nginx to its upstream, {}: throughput at least 0.90 of observing alone",
                case.name
            ),
            case.throughput.to_string(),
            case.throughput.median() >= 0.90,
        ));
        rows.push(Row::shown(
            "... p99 by that of observing alone; header share",
            format!("{}; {}", case.p99, case.coverage),
        ));
    }
    for case in clients {
        rows.push(Row::new(
            format!("Python, {}: throughput at least 0.97 of untraced", case.name),
            case.throughput.to_string(),
            case.throughput.median() >= 0.97,
        ));
        rows.push(Row::shown(
            "... the client's CPU per request, more than untraced; header share",
            format!("{} us; {}", case.cpu, case.coverage),
        ));
    }
    for (name, of) in [
        ("untraced", (|case: &Client| &case.untraced) as fn(&Client) -> &Vec<u64>),
        ("injecting", |case| &case.traced),
    ] {
        let mut sum = Vec::new();
        for case in clients {
            add(&mut sum, of(case));
        }
        rows.push(Row::shown(
            format!("Python, {name}: requests that took < 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 38 ms, and longer"),
            sum.iter().map(u64::to_string).collect::<Vec<_>>().join(", "),
        ));
    }
    rows
}

/// The time of the two programs, by requests sent on.
fn program_times(bench: &Bench, front: &Nginx) -> Result<Vec<Row>> {
    let known = programs()?;
    let include = json!([front.selector()]);
    let agent = Agent::start_with(
        &bench.agent,
        &bench.place,
        &include,
        Sinks::Nothing,
        false,
        &injecting(),
    )?;
    let mut rows = Vec::new();
    for (name, path) in [
        ("a connection for each request", "/fresh/"),
        ("kept connections", "/kept/"),
    ] {
        let url = format!("http://127.0.0.1:{}{path}", front.port);
        let before = injected(&agent)?;
        let (load, ran) = times_during(&known, || wrk(&url, CONNECTIONS, SECONDS, &[]))?;
        agent.drained()?;
        let injected = injected(&agent)? - before;
        for program in ran {
            if ["rewrite_message", "enrol_connectio"]
                .iter()
                .any(|own| program.name.starts_with(own))
                && program.runs > 0.0
            {
                rows.push(Row::shown(
                    format!(
                        "`{}`, {name}: time per run; runs and time per request; time per injected request",
                        program.name
                    ),
                    format!(
                        "{:.0} ns; {:.2}, {:.0} ns; {:.0} ns",
                        program.time_ns / program.runs,
                        program.runs / load.requests,
                        program.time_ns / load.requests,
                        program.time_ns / injected.max(1.0)
                    ),
                ));
            }
        }
    }
    Ok(rows)
}
