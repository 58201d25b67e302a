//! What a benchmark starts: services, loads, the agent. All of it ends with the value that stands for it.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use serde_json::{json, Value};

use crate::process;

/// From start to `/readyz`, on a busy machine.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// From SIGTERM to the end; afterwards SIGKILL.
const STOP_LIMIT: Duration = Duration::from_secs(8);

/// A directory that goes with the value; readable by all, since nginx's workers give up root.
pub(super) struct Place(PathBuf);

impl Place {
    pub(super) fn new() -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("spanwire-bench-{}", std::process::id()));
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        Ok(Self(directory))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let file = self.0.join(name);
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A loopback port nobody listens on right now.
pub(super) fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?;
    Ok(listener.local_addr()?.port())
}

/// A started process and its group.
pub(super) struct Running(Child);

impl Running {
    /// Starts a program in a group of its own, its output in a file of the place.
    pub(super) fn start(command: &mut Command, place: &Place, log: &str) -> Result<Self> {
        let log = fs::File::create(place.path().join(log))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Self(child))
    }

    pub(super) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Waits until a port accepts.
    pub(super) fn wait_for_port(mut self, port: u16) -> Result<Self> {
        let start = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if let Some(status) = self.0.try_wait()? {
                bail!("a service ended ({status}) before it listened on port {port}");
            }
            if start.elapsed() > READY_LIMIT {
                bail!("nothing listens on port {port} after {READY_LIMIT:?}");
            }
            sleep(Duration::from_millis(20));
        }
        Ok(self)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let signal = |name: &str, whom: String| {
            let _ = Command::new("kill")
                .args([name, "--", &whom])
                .stderr(Stdio::null())
                .status();
        };
        signal("-TERM", self.0.id().to_string());
        let start = Instant::now();
        while matches!(self.0.try_wait(), Ok(None)) && start.elapsed() < STOP_LIMIT {
            sleep(Duration::from_millis(20));
        }
        signal("-KILL", format!("-{}", self.0.id()));
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the agent does with its spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sinks {
    Nothing,
    Store,
    Otlp { port: u16, gzip: bool },
}

/// The agent, ready.
pub(super) struct Agent {
    running: Running,
    port: u16,
    /// From the start of the process to the first 200 of `/readyz`.
    pub(super) ready: Duration,
}

impl Agent {
    /// Starts the agent on what the selectors name and waits until its hooks are attached.
    pub(super) fn start(program: &Path, place: &Place, include: &Value, sinks: Sinks, count: bool) -> Result<Self> {
        Self::start_with(program, place, include, sinks, count, &json!({}))
    }

    /// The same with further sections of the configuration.
    pub(super) fn start_with(
        program: &Path,
        place: &Place,
        include: &Value,
        sinks: Sinks,
        count: bool,
        sections: &Value,
    ) -> Result<Self> {
        let port = free_port()?;
        let store = place.path().join("store");
        let _ = fs::remove_dir_all(&store);
        let export = match sinks {
            Sinks::Otlp { port, gzip } => json!([{
                "name": "sink", "protocol": "otlp_http", "endpoint": format!("http://127.0.0.1:{port}"),
                "compression": if gzip { "gzip" } else { "none" },
            }]),
            _ => json!([]),
        };
        let mut config = json!({
            "capture": {"include": include},
            "export": export,
            "store": {"enabled": sinks == Sinks::Store, "path": store},
            "api": {"listen": format!("127.0.0.1:{port}")},
        });
        for (name, section) in sections.as_object().into_iter().flatten() {
            config[name] = section.clone();
        }
        let config = place.write("spanwire.yaml", &config.to_string())?;
        let mut command = Command::new(program);
        command.args(["run", "--config"]).arg(config);
        if count {
            command.env("SPANWIRE_COUNT_COSTS", "1");
        }
        let start = Instant::now();
        let running = Running::start(&mut command, place, "agent.log")?;
        let mut agent = Self {
            running,
            port,
            ready: Duration::ZERO,
        };
        while !agent
            .get("/readyz")
            .is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
        {
            let ended = agent.running.0.try_wait()?;
            if ended.is_some() || start.elapsed() > READY_LIMIT {
                let log = fs::read_to_string(place.path().join("agent.log")).unwrap_or_default();
                bail!("the agent is not ready after {:?} ({ended:?}):\n{log}", start.elapsed());
            }
            sleep(Duration::from_millis(20));
        }
        agent.ready = start.elapsed();
        Ok(agent)
    }

    pub(super) fn pid(&self) -> u32 {
        self.running.pid()
    }

    pub(super) fn get(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// Sum of the samples of a metric whose labels contain a text.
    pub(super) fn metric(&self, name: &str, labels: &str) -> Result<f64> {
        let page = self.get("/metrics")?;
        let samples = page.lines().filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']) && rest.contains(labels))
        });
        Ok(samples
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum())
    }

    /// Waits until every exchange is a span or a counted drop: the counts stand still for two seconds.
    pub(super) fn drained(&self) -> Result<()> {
        let (mut last, mut since) = (-1.0, Instant::now());
        let start = Instant::now();
        while since.elapsed() < Duration::from_secs(2) && start.elapsed() < Duration::from_secs(15) {
            let now = self.metric("spanwire_spans_total", "")? + self.metric("spanwire_exchanges_total", "")?;
            if (now - last).abs() > 0.5 {
                (last, since) = (now, Instant::now());
            }
            sleep(Duration::from_millis(200));
        }
        Ok(())
    }
}

/// nginx with one worker and the given locations.
pub(super) struct Nginx {
    pub(super) running: Running,
    pub(super) port: u16,
    pub(super) worker: u32,
}

impl Nginx {
    pub(super) fn start(place: &Place, name: &str, locations: &str, upstream: &str) -> Result<Self> {
        let port = free_port()?;
        let home = place.path().join(name);
        fs::create_dir_all(&home)?;
        let at = home.display();
        fs::write(home.join("page.html"), "x".repeat(1_024))?;
        let config = place.write(
            &format!("{name}.conf"),
            &format!(
                "daemon off; worker_processes 1; pid {at}/pid; error_log {at}/error.log warn;\n\
                 events {{ worker_connections 15000; }}\nhttp {{ access_log off; keepalive_requests 100000000;\n\
                 keepalive_timeout 600s; client_header_timeout 600s; proxy_temp_path {at}/p; client_body_temp_path {at}/b;\n\
                 fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n{upstream}\n\
                 server {{ listen 127.0.0.1:{port} backlog=4096; root {at};\n{locations}\n}} }}\n"
            ),
        )?;
        let nginx = process::find("nginx").unwrap_or_else(|| "/usr/sbin/nginx".into());
        let mut command = Command::new(nginx);
        command
            .arg("-c")
            .arg(config)
            .arg("-p")
            .arg(&home)
            .arg("-e")
            .arg(home.join("error.log"));
        let running = Running::start(&mut command, place, &format!("{name}.log"))?.wait_for_port(port)?;
        let pid = running.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let worker = children.split_whitespace().next().and_then(|pid| pid.parse().ok());
        let worker = worker.context("nginx has no worker")?;
        Ok(Self { running, port, worker })
    }

    /// Selector of this nginx: its server side, and its calls.
    pub(super) fn selector(&self) -> Value {
        json!({"pid": self.running.pid()})
    }
}

/// Accepts OTLP over HTTP and throws it away; its thread ends with this process.
pub(super) fn sink() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || swallow(stream));
        }
    });
    Ok(port)
}

fn swallow(mut stream: TcpStream) -> Option<()> {
    let mut held = Vec::new();
    let mut piece = vec![0; 65_536];
    loop {
        let head_end = loop {
            if let Some(at) = held.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            let read = stream.read(&mut piece).ok().filter(|read| *read > 0)?;
            held.extend_from_slice(&piece[..read]);
        };
        let head = String::from_utf8_lossy(&held[..head_end]).to_lowercase();
        let length = head.split("content-length:").nth(1)?.split_whitespace().next()?;
        let end = head_end + length.parse::<usize>().ok()?;
        while held.len() < end {
            let read = stream.read(&mut piece).ok().filter(|read| *read > 0)?;
            held.extend_from_slice(&piece[..read]);
        }
        held.drain(..end);
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n")
            .ok()?;
    }
}
