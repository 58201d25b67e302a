//! Services that do some work: where the agent must not be seen.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{json, Value};

use super::measure::{wrk, Samples};
use super::page::{Row, Section};
use super::stage::{free_port, Agent, Nginx, Place, Running, Sinks};
use super::Bench;
use crate::{process, workspace};

const ROUNDS: usize = 3;
const SECONDS: u32 = 3;

/// A service under load.
struct Case {
    name: &'static str,
    url: String,
    connections: u32,
    selector: Value,
    throughput: Samples,
    p99: Samples,
}

impl Case {
    fn new(name: &'static str, port: u16, path: &str, connections: u32, selector: Value) -> Self {
        Self {
            name,
            url: format!("http://127.0.0.1:{port}{path}"),
            connections,
            selector,
            throughput: Samples::default(),
            p99: Samples::default(),
        }
    }
}

/// Off and on for each service, then the same again; one more service is never captured.
pub(super) fn measure(bench: &Bench) -> Result<Section> {
    let place = &bench.place;
    let (node, node_port) = node(place)?;
    let (flask, flask_port) = flask(place)?;
    let upstream = format!("upstream back {{ server 127.0.0.1:{node_port}; keepalive 16; }}");
    let proxied = "location / { proxy_pass http://back; proxy_http_version 1.1; proxy_set_header Connection \"\"; }";
    let locations = format!("location /page.html {{ }}\n{proxied}");
    let nginx = Nginx::start(place, "services", &locations, &upstream)?;
    let other = json!({"exe": "*/no-such-program"});
    let mut cases = [
        Case::new(
            "nginx, static page of 1 KiB",
            nginx.port,
            "/page.html",
            16,
            nginx.selector(),
        ),
        Case::new("nginx, proxied to Node", nginx.port, "/r/1", 16, nginx.selector()),
        Case::new("Flask on gunicorn", flask_port, "/r/1", 8, json!({"pid": flask.pid()})),
        Case::new("Node", node_port, "/r/1", 8, json!({"pid": node.pid()})),
        Case::new("nginx, static, **not captured**", nginx.port, "/page.html", 16, other),
    ];
    for case in &cases {
        wrk(&case.url, case.connections, 1, &[])?;
    }
    for _ in 0..ROUNDS {
        for case in &mut cases {
            let off = wrk(&case.url, case.connections, SECONDS, &[])?;
            let agent = Agent::start(&bench.agent, place, &json!([case.selector]), Sinks::Store, false)?;
            let on = wrk(&case.url, case.connections, SECONDS, &[])?;
            drop(agent);
            case.throughput.push(on.per_second / off.per_second);
            case.p99.push(on.p99_ms / off.p99_ms);
        }
    }
    let rows = cases.iter().flat_map(|case| {
        let (throughput, p99) = (case.throughput.median(), case.p99.median());
        [
            Row::new(
                format!("{}: throughput at least 0.97", case.name),
                case.throughput.to_string(),
                throughput >= 0.97,
            ),
            Row::new(
                format!("{}: p99 at most 1.05", case.name),
                case.p99.to_string(),
                p99 <= 1.05,
            ),
        ]
    });
    Ok(Section {
        method: format!(
            "{ROUNDS} rounds of off and on for each service, `wrk -t1 -d{SECONDS}s` on kept connections at full speed; ratios on / off. The \
             load, the service and the agent with its store share the processors, so what the agent spends \
             is missing to the service: at full speed the agent's CPU is in these ratios."
        ),
        rows: rows.collect(),
        notes: Vec::new(),
    })
}

fn workload(name: &str) -> std::path::PathBuf {
    workspace::root().join("tests/workloads").join(name)
}

fn node(place: &Place) -> Result<(Running, u16)> {
    let port = free_port()?;
    let mut command = Command::new(process::find("node").context("no node on PATH")?);
    command.arg(workload("node_app.js")).arg(port.to_string());
    Ok((
        Running::start(&mut command, place, "node.log")?.wait_for_port(port)?,
        port,
    ))
}

fn flask(place: &Place) -> Result<(Running, u16)> {
    let port = free_port()?;
    let venv = match std::env::var_os("SPANWIRE_E2E_VENV") {
        Some(venv) => venv.into(),
        None => workspace::target_dir()?.join("e2e-venv"),
    };
    let mut command = Command::new(venv.join("bin/gunicorn"));
    command
        .args([
            "--bind",
            &format!("127.0.0.1:{port}"),
            "--worker-class=gthread",
            "--threads=8",
        ])
        .args([
            "--keep-alive=60",
            "--no-control-socket",
            "--worker-tmp-dir=/dev/shm",
            "--chdir",
        ])
        .arg(workload(""))
        .arg("flask_app:app")
        .env("PYTHONDONTWRITEBYTECODE", "1");
    Ok((
        Running::start(&mut command, place, "flask.log")?.wait_for_port(port)?,
        port,
    ))
}
