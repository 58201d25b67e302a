//! Whatever is wrong around the agent ends in a message that names it or in a counter, and nothing else is lost.
#![allow(clippy::unwrap_used, reason = "test")]

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use rustix::process::Signal;
use serde_json::{json, Value};
use spanwire_tests::agent::{command, Agent, Setup, STOP_LIMIT};
use spanwire_tests::apps::nginx::{requests_of, Site};
use spanwire_tests::apps::App;
use spanwire_tests::cases::Cases;
use spanwire_tests::load::{wrk, Load};
use spanwire_tests::place::{agent_binary, free_port, program, Place};
use spanwire_tests::receiver::{Manner, Receiver};

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The agent ended as told, with a short message that says each of the words.
fn refused(output: &Output, code: i32, words: &[&str]) -> Result<String> {
    let text = stderr(output);
    ensure!(
        output.status.code() == Some(code),
        "ended with {}, expected exit {code}:\n{text}",
        output.status
    );
    let lower = text.to_lowercase();
    for word in words {
        ensure!(
            lower.contains(&word.to_lowercase()),
            "the message does not say {word:?}:\n{text}"
        );
    }
    ensure!(
        !text.contains("panicked") && !text.contains("RUST_BACKTRACE"),
        "a panic is no message:\n{text}"
    );
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    ensure!(
        (1..=6).contains(&lines.len()),
        "{} lines for one mistake:\n{text}",
        lines.len()
    );
    Ok(format!("exit {code}: {}", lines.last().unwrap_or(&"").trim()))
}

/// The agent run by an ordinary user.
fn no_root(place: &Place) -> Result<String> {
    let binary = place.join("spanwire");
    std::fs::copy(agent_binary()?, &binary)?;
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755))?;
    let store = place.join("nobody");
    std::fs::create_dir_all(&store)?;
    std::fs::set_permissions(&store, std::fs::Permissions::from_mode(0o777))?;
    let output = Command::new(program("setpriv")?)
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"])
        .arg(&binary)
        .args(["run", "--listen", &format!("127.0.0.1:{}", free_port()?), "--store"])
        .arg(&store)
        .current_dir("/")
        .output()?;
    let line = refused(&output, 1, &[])?;
    let text = stderr(&output);
    ensure!(text.trim().lines().count() == 1, "more than a line:\n{text}");
    for word in ["CAP_BPF", "CAP_PERFMON", "run as root"] {
        ensure!(text.contains(word), "the message does not say {word}:\n{text}");
    }
    Ok(line)
}

/// Files that are refused with file, line and key.
fn broken_configuration(place: &Place) -> Result<String> {
    let cases = [
        ("syntax", "capture:\n  include: [{port: 80\n", "2", ""),
        (
            "unknown",
            "capture:\n  paths: raw\n  pahts: raw\n",
            "3",
            "capture.pahts",
        ),
        (
            "value",
            "store:\n  retention:\n    age: soon\n",
            "3",
            "store.retention.age",
        ),
        (
            "credential",
            "capture:\n  headers: [x-tenant-id, authorization]\n",
            "2",
            "capture.headers",
        ),
        (
            "twice",
            "api:\n  listen: \"127.0.0.1:4319\"\n  listen: \"127.0.0.1:4320\"\n",
            "3",
            "listen",
        ),
        (
            "later",
            "sampling:\n  head:\n    ratio: 0.5\n",
            "3",
            "sampling.head.ratio",
        ),
        ("off loopback", "api:\n  listen: \"0.0.0.0:4319\"\n", "2", "api.listen"),
    ];
    let mut lines = Vec::new();
    for (name, text, line, key) in cases {
        let file = place.write(&format!("{name}.yaml"), text)?;
        let file_text = file.display().to_string();
        let output = command(&["run", "--config", &file_text])?;
        // A file that ends inside a list may be blamed on the line after its last.
        let at = if name == "syntax" {
            file_text.clone()
        } else {
            format!("{file_text}:{line}:")
        };
        lines.push(refused(&output, 2, &[&at, key]).with_context(|| name.to_owned())?);
    }
    let missing = command(&["run", "--config", "/nonexistent/spanwire.yaml"])?;
    lines.push(refused(&missing, 2, &["/nonexistent/spanwire.yaml"]).context("missing file")?);
    let flag = command(&["run", "--no-such-flag"])?;
    ensure!(
        flag.status.code() == Some(2),
        "an unknown flag ended with {}",
        flag.status
    );
    Ok(format!(
        "{} mistakes refused, e.g. {}",
        lines.len() + 1,
        lines.get(1).cloned().unwrap_or_default()
    ))
}

fn port_taken(nginx: &App) -> Result<String> {
    let holder = TcpListener::bind(("127.0.0.1", 0))?;
    let taken = holder.local_addr()?.to_string();
    let setup = Setup::of_services(&[&nginx.service]).arg("--listen").arg(&taken);
    ends_with(&setup, &[&taken])
}

/// Starts an agent that must end by itself with exit 1 and say these words.
fn ends_with(setup: &Setup, words: &[&str]) -> Result<String> {
    let mut agent = Agent::spawn(setup)?;
    let status = agent.service().wait_end(Duration::from_secs(15))?;
    let log = agent.log();
    ensure!(status.code() == Some(1), "ended with {status}:\n{log}");
    for word in words {
        ensure!(log.contains(word), "the message does not say {word:?}:\n{log}");
    }
    ensure!(!log.contains("panicked"), "a panic is no message:\n{log}");
    Ok(format!("exit 1: {}", log.lines().last().unwrap_or_default().trim()))
}

/// A file system in memory, of a size, unmounted when dropped.
struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    fn mount(place: &Place, name: &str, options: &str) -> Result<Self> {
        let path = place.join(name);
        std::fs::create_dir_all(&path)?;
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "spanwire-test"])
            .arg(&path)
            .status()?;
        ensure!(
            status.success(),
            "could not mount a tmpfs at {}: {status}",
            path.display()
        );
        Ok(Self { path })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

/// A store that cannot be written: below a file, and on a read-only file system.
fn unwritable_store(place: &Place, nginx: &App) -> Result<String> {
    let file = place.write("a-file", "not a folder")?;
    let below = file.join("store");
    let first = ends_with(&at_store(nginx, &below), &[&file.display().to_string()])?;
    let disk = SmallDisk::mount(place, "readonly", "ro,size=1m")?;
    let second = ends_with(&at_store(nginx, &disk.path), &[&disk.path.display().to_string()])?;
    Ok(format!("{first}; {second}"))
}

fn at_store(nginx: &App, path: &Path) -> Setup {
    Setup::of_services(&[&nginx.service]).with("store", "path", json!(path))
}

fn load(nginx: &App, prefix: &str, requests: usize) -> Result<usize> {
    Ok(Load {
        target: &nginx.target,
        prefix,
        requests,
        concurrency: 8,
        keep_alive: true,
    }
    .run()
    .all()?
    .len())
}

fn otlp(name: &str, endpoint: &str) -> Value {
    json!({"name": name, "protocol": "otlp_http", "endpoint": endpoint, "timeout": "1s"})
}

fn sent(agent: &Agent, exporter: &str, results: &[&str]) -> Result<u64> {
    let metrics = agent.metrics()?;
    let of = |result: &&str| {
        metrics.sum(
            "spanwire_export_spans_total",
            &[("exporter", exporter), ("result", result)],
        )
    };
    Ok(results.iter().map(of).sum())
}

/// Polls a count of the agent's until it is reached.
fn reaches(limit: Duration, what: &str, mut count: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !count()? {
        if start.elapsed() > limit {
            bail!("waited {limit:?} for {what}");
        }
        sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// The disk is full: the store loses spans and counts them, exports and requests go on.
fn full_disk(place: &Place, nginx: &App) -> Result<String> {
    let disk = SmallDisk::mount(place, "full", "size=2m")?;
    let receiver = Receiver::start(Manner::Accept)?;
    let setup = at_store(nginx, &disk.path).export(otlp("good", &receiver.url()));
    let mut agent = Agent::start(&setup)?;
    std::fs::write(disk.path.join("filler"), vec![0u8; 4 << 20])
        .err()
        .context("the disk took 4 MiB more than it has")?;
    let requests = 6_000;
    load(nginx, "full", requests)?;
    let received = receiver.wait_for_spans(requests, Duration::from_secs(15))?;
    ensure!(
        received == requests,
        "{received} of {requests} spans exported beside a full disk"
    );
    agent.drained()?;
    let lost = sent(&agent, "store", &["failed", "dropped"])?;
    let stored = sent(&agent, "store", &["sent"])?;
    ensure!(
        lost > 0,
        "nothing counted as lost with a full disk; the log:\n{}",
        agent.log()
    );
    ensure!(
        lost + stored == requests as u64,
        "{requests} spans, {stored} stored, {lost} counted as lost"
    );
    let log = agent.log().to_lowercase();
    ensure!(
        log.contains("full") || log.contains("no space"),
        "the log does not say that the disk is full:\n{log}"
    );
    std::fs::remove_file(disk.path.join("filler"))?;
    load(nginx, "roomy", 100)?;
    reaches(Duration::from_secs(15), "the store to go on once there is room", || {
        Ok(sent(&agent, "store", &["sent"])? > stored)
    })?;
    let (status, took) = agent.terminate()?;
    ensure!(
        status.success() && took <= STOP_LIMIT,
        "ended with {status} after {took:?}"
    );
    Ok(format!(
        "{received} exported; store: {stored} written, {lost} lost and counted; writes again once there is room"
    ))
}

/// A store whose files are garbage: set aside or refused, by name.
fn corrupt_store(place: &Place, nginx: &App) -> Result<String> {
    let folder = place.join("corrupt");
    std::fs::create_dir_all(&folder)?;
    let setup = at_store(nginx, &folder);
    let mut first = Agent::start(&setup)?;
    load(nginx, "intact", 50)?;
    first.drained()?;
    first.terminate()?;
    let mut spoiled = Vec::new();
    for entry in std::fs::read_dir(&folder)?.flatten() {
        if entry.path().is_file() && entry.metadata()?.len() > 0 {
            let garbage: Vec<u8> = (0..entry.metadata()?.len())
                .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
                .collect();
            std::fs::write(entry.path(), garbage)?;
            spoiled.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    ensure!(!spoiled.is_empty(), "the store has no files in {}", folder.display());
    let agent = Agent::start(&setup)?;
    load(nginx, "fresh", 50)?;
    let spans = agent.spans_when(|spans| spans.len() >= 50)?;
    ensure!(
        spans.len() == 50,
        "{} spans after a corrupt store, expected 50",
        spans.len()
    );
    let log = agent.log();
    let named = spoiled.iter().any(|name| log.contains(name.as_str())) || log.contains(&folder.display().to_string());
    ensure!(named, "the log does not name the corrupt store:\n{log}");
    Ok(format!(
        "{spoiled:?} spoiled: the agent said so and went on with a new store"
    ))
}

/// Endpoints that are dead, hang, lie or refuse: each loses its own spans, counted; the good one gets everything.
fn bad_endpoints(nginx: &App) -> Result<String> {
    let good = Receiver::start(Manner::Accept)?;
    let busy = Receiver::start(Manner::Busy)?;
    let hang = Receiver::start(Manner::Hang)?;
    let garbage = Receiver::start(Manner::Garbage)?;
    let refuse = Receiver::start(Manner::Refuse)?;
    let dead = format!("http://127.0.0.1:{}", free_port()?);
    let endpoints = [
        ("good", good.url()),
        ("busy", busy.url()),
        ("hang", hang.url()),
        ("garbage", garbage.url()),
        ("refuse", refuse.url()),
        ("dead", dead),
    ];
    let setup = endpoints
        .iter()
        .fold(Setup::of_services(&[&nginx.service]), |setup, (name, url)| {
            setup.export(otlp(name, url))
        });
    let mut agent = Agent::start(&setup)?;
    let requests = 400;
    load(nginx, "endpoints", requests)?;
    let received = good.wait_for_spans(requests, Duration::from_secs(10))?;
    ensure!(
        received == requests,
        "{received} of {requests} spans reached the good endpoint"
    );
    reaches(
        Duration::from_secs(20),
        "the busy endpoint to get every span once",
        || Ok(sent(&agent, "busy", &["sent"])? == requests as u64),
    )?;
    // 400 is final for a batch (OTLP: not to be retried).
    reaches(Duration::from_secs(10), "the refused spans to be counted", || {
        Ok(sent(&agent, "refuse", &["failed", "dropped"])? == requests as u64)
    })?;
    let stored = sent(&agent, "store", &["sent"])?;
    ensure!(stored == requests as u64, "{stored} of {requests} spans stored");
    let metrics = agent.metrics()?;
    for name in ["hang", "garbage", "dead"] {
        let sent = metrics.sum("spanwire_export_spans_total", &[("exporter", name), ("result", "sent")]);
        ensure!(sent == 0, "{sent} spans counted as sent to {name}");
    }
    let (status, took) = agent.terminate()?;
    ensure!(
        status.success() && took <= STOP_LIMIT + Duration::from_millis(500),
        "ended with {status} after {took:?}"
    );
    let log = agent.log();
    for name in ["hang", "garbage", "refuse", "dead"] {
        ensure!(log.contains(name), "the log does not name the exporter {name}:\n{log}");
    }
    Ok(format!(
        "good {received}, busy all after two refusals, refused all counted, ended in {took:?}"
    ))
}

/// How long wrk runs before the agent is stopped: it is known by then for one that is not captured. What an unknown
/// process does while nobody reads the rings is lost without anybody knowing whether it was to be captured.
const KNOWN_AFTER: Duration = Duration::from_millis(700);

/// The ring buffers overflow because nobody reads them: the agent is stopped while wrk runs at the machine's limit.
fn ring_overflow(nginx: &App) -> Result<String> {
    let mut agent = Agent::start(&Setup::of_services(&[&nginx.service]).with("store", "enabled", json!(false)))?;
    let before = agent.drained()?.balance();
    let first = requests_of(nginx)?;
    let answered = std::thread::scope(|scope| {
        let load = scope.spawn(|| wrk(&nginx.target, 64, 6));
        sleep(KNOWN_AFTER);
        agent.service().signal(Signal::STOP)?;
        let result = load.join();
        agent.service().signal(Signal::CONT)?;
        result.ok().context("wrk's thread panicked")?
    })?;
    let last = requests_of(nginx)?;
    let metrics = agent.drained()?;
    let balance = metrics.balance().since(before);
    let full = metrics.sum(
        "spanwire_dropped_total",
        &[("stage", "kernel"), ("reason", "ring_full")],
    );
    ensure!(
        full > 0,
        "{answered} requests did not fill the ring buffers: {balance:?}"
    );
    ensure!(
        balance.messages() == last - first + 1,
        "nginx served {}, the agent counted {balance:?}",
        last - first + 1
    );
    ensure!(balance.closes(), "exchanges are not spans plus drops: {balance:?}");
    let status = agent.get_json("/api/status")?.to_string();
    ensure!(
        status.contains("ring_full"),
        "the status does not name the drops: {status}"
    );
    Ok(format!(
        "{} requests = {} spans + {full} ring_full and {} other drops",
        last - first + 1,
        balance.spans,
        balance.dropped_kernel - full + balance.dropped_user
    ))
}

#[test]
fn every_mistake_has_a_message_or_a_counter() {
    let place = Place::new("bad").unwrap();
    let nginx = Site::new().returning().counting().start("nginx", &place).unwrap();
    let mut cases = Cases::new("bad input");
    cases.run("no root", || no_root(&place));
    cases.run("broken configuration", || broken_configuration(&place));
    cases.run("port taken", || port_taken(&nginx));
    cases.run("unwritable store", || unwritable_store(&place, &nginx));
    cases.run("full disk", || full_disk(&place, &nginx));
    cases.run("corrupt store", || corrupt_store(&place, &nginx));
    cases.run("bad endpoints", || bad_endpoints(&nginx));
    cases.run("ring overflow", || ring_overflow(&nginx));
    cases.finish();
}
