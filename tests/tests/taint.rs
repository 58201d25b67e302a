//! Private by construction: unique secrets are put wherever a request or a process can carry one, and searched for in
//! everything the agent keeps, sends, says or holds in memory.
#![allow(clippy::unwrap_used, reason = "test")]

use std::fmt::Write as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{bail, ensure, Result};
use serde_json::json;
use spanwire_tests::agent::{Agent, Setup};
use spanwire_tests::apps::nginx::Site;
use spanwire_tests::apps::python;
use spanwire_tests::apps::{App, Calls};
use spanwire_tests::cases::Cases;
use spanwire_tests::http::Connection;
use spanwire_tests::place::{program, Place};
use spanwire_tests::receiver::{Manner, Receiver};
use spanwire_tests::search::{in_bytes, in_folder, in_memory, Needle};

/// Digits that no other text on the machine has: time and pid, spread over both halves.
fn unique(salt: u64) -> u64 {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos() as u64;
    (now ^ (u64::from(std::process::id()) << 40) ^ salt).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A secret as a word of its own.
fn secret(what: &'static str) -> Needle {
    Needle::new(
        what,
        format!(
            "taint{:016x}{}",
            unique(what.len() as u64 * 7919),
            what.replace(' ', "")
        ),
    )
}

/// Every secret, by where it is put.
struct Secrets {
    body: Needle,
    answer: Needle,
    query: Needle,
    cookie: Needle,
    set_cookie: Needle,
    authorization: Needle,
    unlisted: Needle,
    garbage: Needle,
    argument: Needle,
    environment: Needle,
    /// Path segments: an id each, in the shapes templating has to know.
    paths: Vec<Needle>,
    /// The value of a header that is listed: kept on purpose, so it proves that the searches find what is there.
    control: Needle,
}

impl Secrets {
    fn new() -> Self {
        Self {
            body: secret("request body"),
            answer: secret("response body"),
            query: secret("query string"),
            cookie: secret("cookie"),
            set_cookie: secret("set-cookie"),
            authorization: secret("authorization"),
            unlisted: secret("unlisted header"),
            garbage: secret("not http"),
            argument: secret("argument"),
            environment: secret("environment"),
            paths: vec![
                Needle::new(
                    "path: uuid",
                    format!(
                        "{:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}",
                        unique(1) >> 32,
                        unique(1) as u16,
                        unique(2) >> 52,
                        unique(3) >> 52,
                        unique(2) >> 16
                    ),
                ),
                Needle::new(
                    "path: hash",
                    format!("{:016x}{:016x}{:08x}", unique(3), unique(4), unique(5) as u32),
                ),
                Needle::new(
                    "path: number",
                    format!("7{:018}", unique(6) % 1_000_000_000_000_000_000),
                ),
                Needle::new("path: email", format!("u{:012x}", unique(7) >> 16)),
                Needle::new("path: token", format!("sk_{:016x}_{:016X}", unique(8), unique(9))),
            ],
            control: secret("listed header"),
        }
    }

    /// What may be nowhere, agent's memory included.
    fn never(&self) -> Vec<Needle> {
        [
            &self.body,
            &self.answer,
            &self.query,
            &self.cookie,
            &self.set_cookie,
            &self.authorization,
            &self.unlisted,
            &self.garbage,
            &self.argument,
            &self.environment,
        ]
        .map(Clone::clone)
        .to_vec()
    }

    /// What may not leave the agent; path segments cross the ring buffer and end at the templating.
    fn kept_inside(&self) -> Vec<Needle> {
        [self.never(), self.paths.clone()].concat()
    }
}

/// Services whose processes carry secrets in arguments and environment.
fn services(place: &Place, secrets: &Secrets) -> Result<(App, App, App)> {
    let leaf = python::flask("leaf", place, &Calls::none())?;
    let environment = ("DATABASE_PASSWORD", secrets.environment.text.as_str());
    let calls = Calls::none().to("b", &leaf)?;
    let app = python::gunicorn_tainted("app", place, &calls, &environment, &secrets.argument.text)?;
    let front = Site::new()
        .proxying("a", &[&app.target])
        .location(&format!(
            "add_header Set-Cookie \"session={}\"; add_header X-Answer {};\nlocation /body/ {{ return 200 \"{}\"; }}",
            secrets.set_cookie.text, secrets.answer.text, secrets.answer.text
        ))
        .start("front", place)?;
    Ok((front, app, leaf))
}

/// Requests with every secret in its place; the front forwards all of it.
fn send(front: &App, secrets: &Secrets) -> Result<usize> {
    let mut sent = 0;
    let mut connection = Connection::open(&front.target)?;
    for _ in 0..5 {
        for path in &secrets.paths {
            let segment = if path.what.ends_with("email") {
                format!("{}%40test.invalid", path.text)
            } else {
                path.text.clone()
            };
            let target = format!("/r/{segment}?token={}", secrets.query.text);
            let headers = [
                ("Cookie", format!("session={}", secrets.cookie.text)),
                ("Authorization", format!("Bearer {}", secrets.authorization.text)),
                ("X-Api-Key", secrets.unlisted.text.clone()),
                ("X-Tenant-Id", secrets.control.text.clone()),
            ];
            let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let body = format!("{{\"card\": \"{}\"}}", secrets.body.text);
            let response = connection.request("POST", &target, &headers, body.as_bytes())?;
            ensure!(
                response.status == 200,
                "status {}: {}",
                response.status,
                response.text()
            );
            sent += 1;
        }
        ensure!(
            connection.get("/body/x")?.text() == secrets.answer.text,
            "the answer is not the secret one"
        );
        sent += 1;
    }
    let mut other = Connection::open(&front.target)?;
    other.send(format!("\x16\x03 {}\r\n\r\n", secrets.garbage.text).as_bytes())?;
    let _ = other.receive(false);
    let curl = Command::new(program("curl")?)
        .args(["-sf", "-o", "/dev/null", "-u"])
        .arg(format!("user:{}", secrets.argument.text))
        .args(["-H", &format!("X-Tenant-Id: {}", secrets.control.text)])
        .arg(format!("{}/r/curl", front.target.url()?))
        .output()?;
    ensure!(curl.status.success(), "curl: {}", curl.status);
    Ok(sent + 1)
}

/// Everything the API answers, in one text.
fn api_output(agent: &Agent) -> Result<String> {
    let mut all = String::new();
    for path in [
        "/",
        "/api/services",
        "/api/graph?since=15m",
        "/api/status",
        "/metrics",
        "/readyz",
        "/api/traces?since=1h&limit=1000",
    ] {
        let _ = writeln!(all, "{}", agent.get(path)?.text());
    }
    for trace in agent.all_traces()? {
        let _ = writeln!(all, "{}", agent.get(&format!("/api/traces/{}", trace.trace_id))?.text());
    }
    Ok(all)
}

/// Fails when something was found; `control` proves that the search looks where things are.
fn clean(place: &str, found: &[&str], control: bool) -> Result<String> {
    if !found.is_empty() {
        bail!("{place} holds {}", found.join(", "));
    }
    ensure!(
        control,
        "the search of {place} does not even find the listed header: it looks in the wrong place"
    );
    Ok("only the listed header is there".to_owned())
}

#[test]
fn no_secret_leaves_the_kernel() {
    let place = Place::new("taint").unwrap();
    let secrets = Secrets::new();
    let (front, app, leaf) = services(&place, &secrets).unwrap();
    let receiver = Receiver::start(Manner::Accept).unwrap();
    let setup = Setup::of_services(&[&front.service, &app.service, &leaf.service])
        .include(json!({"exe": "*/curl", "port": front.target.port().unwrap()}))
        .with("capture", "paths", json!("templated"))
        .with("capture", "headers", json!(["x-tenant-id"]))
        .export(json!({"name": "test", "protocol": "otlp_http", "endpoint": receiver.url()}))
        .arg("--log")
        .arg("debug");
    let mut agent = Agent::start(&setup).unwrap();
    let sent = send(&front, &secrets).unwrap();
    agent.drained().unwrap();

    let outside = secrets.kept_inside();
    let control = std::slice::from_ref(&secrets.control);
    let mut cases = Cases::new("taint");
    cases.run("API and page", || {
        let output = api_output(&agent)?;
        clean(
            "the API's output",
            &in_bytes(output.as_bytes(), &outside),
            !in_bytes(output.as_bytes(), control).is_empty(),
        )
    });
    cases.run("memory image and ring buffers", || {
        let image = in_memory(agent.pid(), &secrets.never())?;
        let held = in_memory(agent.pid(), control)?;
        let paths = in_memory(agent.pid(), &secrets.paths)?;
        let found: Vec<_> = image
            .found
            .iter()
            .map(|(region, what)| format!("{what} in {region}"))
            .collect();
        let found: Vec<_> = found.iter().map(String::as_str).collect();
        let line = clean("the agent's memory", &found, !held.found.is_empty())?;
        let regions: Vec<_> = paths
            .found
            .iter()
            .map(|(region, what)| format!("{what} in {region}"))
            .collect();
        Ok(format!(
            "{} MiB searched, {line}; path segments, which end at the templating: {regions:?}",
            image.bytes >> 20
        ))
    });
    cases.run("exports", || {
        receiver.wait_for_spans(sent * 3, Duration::from_secs(10))?;
        let all: Vec<u8> = receiver
            .received()
            .into_iter()
            .flat_map(|request| [request.head.into_bytes(), request.body].concat())
            .collect();
        clean(
            "the exports",
            &in_bytes(&all, &outside),
            !in_bytes(&all, control).is_empty(),
        )
    });
    cases.run("store", || {
        let (status, _) = agent.terminate()?;
        ensure!(status.success(), "the agent ended with {status}");
        let found = in_folder(&agent.store, &outside)?;
        let found: Vec<_> = found.iter().map(|(file, what)| format!("{what} in {file}")).collect();
        let found: Vec<_> = found.iter().map(String::as_str).collect();
        clean("the store", &found, !in_folder(&agent.store, control)?.is_empty())
    });
    cases.run("log", || {
        let log = agent.log();
        ensure!(!log.is_empty(), "no log at level debug");
        let found = in_bytes(log.as_bytes(), &outside);
        clean("the log", &found, true)?;
        Ok(format!("{} lines at level debug hold none", log.lines().count()))
    });
    cases.finish();
}
