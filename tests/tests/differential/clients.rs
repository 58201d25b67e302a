//! Real clients, unmodified, against a server that keeps every byte: what they send and what they make of the answers.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use spanwire_tests::agent::Agent;
use spanwire_tests::cases::say;
use spanwire_tests::differential::message::Compare;
use spanwire_tests::differential::recorder::{compare, Connections, Recorder, SCRIPTS};
use spanwire_tests::pace::is_slow;
use spanwire_tests::place::{program, target_dir, venv_program, workload, Place};
use spanwire_tests::service::Launch;

use crate::{names, rewriting, REQUEST_NAMES};

/// Requests of each client, and where the machine is emulated.
const REQUESTS: usize = 400;
const REQUESTS_SLOW: usize = 80;
/// Long uploads of each client, and as many long downloads.
const LARGE: usize = 2;
const LIMIT: Duration = Duration::from_mins(1);

/// Clients that take an interim response for the response, or wait for ever behind it: what they make of one is chance.
const NO_INTERIM: [&str; 4] = ["http.client", "urllib", "requests", "java-url"];

/// A client: how it is started with a base URL and a list of requests.
pub(crate) struct Client {
    pub(crate) name: &'static str,
    program: PathBuf,
    args: Vec<OsString>,
    /// Retries of its own make other connections each time; only what it sends and gets is compared.
    list: PathBuf,
}

/// What a client did in one run.
pub(crate) struct Told {
    /// Its output.
    output: String,
    pub(crate) connections: Connections,
}

/// Every client without and with the agent.
pub(crate) fn compared(place: &Place) -> Result<String> {
    let recorder = Recorder::start()?;
    let clients = clients(place, &format!("http://{}", recorder.address()), |name| {
        list(place, name)
    })?;
    let mut off = Vec::new();
    for client in &clients {
        off.push(run(place, &recorder, client)?);
    }
    let agent = Agent::start(&rewriting())?;
    let mut differences = Vec::new();
    let (mut total, mut inserted) = (0, 0);
    for (client, off) in clients.iter().zip(&off) {
        let on = run(place, &recorder, client)?;
        let (found, added, messages) = compare(
            &off.connections,
            &on.connections,
            &names(REQUEST_NAMES),
            Compare::EveryByte,
            false,
        );
        say(&format!(
            "{}: {messages} requests on {} connections, {} with an added header, {} differences",
            client.name,
            off.connections.len(),
            added.inserted,
            found.len()
        ));
        differences.extend(found.into_iter().map(|text| format!("{}: {text}", client.name)));
        let lines = off.output.lines().zip(on.output.lines()).filter(|(off, on)| off != on);
        differences.extend(lines.map(|(off, on)| format!("{} printed {on:?}, without the agent {off:?}", client.name)));
        if off.output.lines().count() != on.output.lines().count() {
            differences.push(format!(
                "{} printed {} lines, was {}",
                client.name,
                on.output.lines().count(),
                off.output.lines().count()
            ));
        }
        if added.inserted == 0 {
            differences.push(format!(
                "{}: no request carried an added header: nothing was shown",
                client.name
            ));
        }
        total += messages;
        inserted += added.inserted;
    }
    drop(agent);
    for difference in differences.iter().take(40) {
        say(difference);
    }
    ensure!(differences.is_empty(), "{} differences, see above", differences.len());
    Ok(format!(
        "{} clients, {total} requests twice, 0 differences; {inserted} requests with an added header",
        clients.len()
    ))
}

pub(crate) fn run(place: &Place, recorder: &Recorder, client: &Client) -> Result<Told> {
    let start = Instant::now();
    let mut process = Launch::new(client.name, client.program.clone(), place)
        .args(&client.args)
        .spawn()?;
    let status = process.wait_end(LIMIT)?;
    ensure!(
        status.success(),
        "{} ended with {status}:\n{}",
        client.name,
        process.log()
    );
    let output = process.log();
    drop(process);
    let connections = recorder.take().with_context(|| format!("after {}", client.name))?;
    let requests = std::fs::read_to_string(&client.list)?.lines().count();
    ensure!(
        !connections.is_empty() && output.lines().count() >= requests,
        "{}: {} connections, {} lines for {requests} requests after {:?}:\n{output}",
        client.name,
        connections.len(),
        output.lines().count(),
        start.elapsed()
    );
    Ok(Told { output, connections })
}

/// All that are here, each with the list of requests that is its own.
pub(crate) fn clients(place: &Place, base: &str, list: impl Fn(&str) -> Result<PathBuf>) -> Result<Vec<Client>> {
    let mut clients = Vec::new();
    let mut add = |name: &'static str, program: PathBuf, args: &[&Path]| -> Result<()> {
        let list = list(name)?;
        let mut args: Vec<OsString> = args.iter().map(Into::into).collect();
        args.extend([base.into(), list.clone().into()]);
        clients.push(Client {
            name,
            program,
            args,
            list,
        });
        Ok(())
    };
    let script = |name: &str| workload("clients").join(name);
    let python = venv_program("python")?;
    for (name, kind) in [
        ("http.client", "http.client"),
        ("urllib", "urllib"),
        ("requests", "requests"),
    ] {
        add(name, python.clone(), &[&script("client.py"), Path::new(kind)])?;
    }
    for (name, kind) in [("node-http", "http"), ("node-fetch", "fetch")] {
        add(name, program("node")?, &[&script("client.mjs"), Path::new(kind)])?;
    }
    add(
        "php",
        program("php").or_else(|_| program("php-cgi"))?,
        &[&script("client.php")],
    )?;
    if let Ok(java) = program("java") {
        // Compiles its source by itself, where it is a whole JDK.
        for (name, kind) in [("java-url", "url"), ("java-http", "http")] {
            add(name, java.clone(), &[&script("Client.java"), Path::new(kind)])?;
        }
    } else {
        say("no Java here: its clients are not tried");
    }
    if let Some(client) = build_go(place)? {
        add("go", client, &[])?;
    } else {
        say("no Go here: its client is not tried");
    }
    clients.push(curl(place, base, list("curl")?)?);
    Ok(clients)
}

/// curl reads its requests from a configuration; a connection is kept from one to the next.
fn curl(place: &Place, base: &str, list: PathBuf) -> Result<Client> {
    let mut config = String::new();
    let body = place.write("curl-body", &"x".repeat(20 << 20))?;
    for (index, line) in std::fs::read_to_string(&list)?.lines().enumerate() {
        let mut words = line.split(' ');
        let (method, path, size) = (words.next(), words.next(), words.next());
        let (method, path, size) = (method.context("method")?, path.context("path")?, size.context("size")?);
        if index > 0 {
            config.push_str("next\n");
        }
        writeln!(
            config,
            "silent\nurl = \"{base}{path}\"\noutput = \"/dev/null\"\nmax-time = 20"
        )?;
        writeln!(
            config,
            "write-out = \"{path} %{{http_code}} %{{size_download}} %{{exitcode}} %{{num_connects}}\\n\""
        )?;
        match (method, size) {
            ("HEAD", _) => writeln!(config, "head")?,
            (_, "0") => writeln!(config, "request = \"{method}\"")?,
            _ => {
                let size: usize = size.parse()?;
                let file = if size > 1 << 20 {
                    body.clone()
                } else {
                    place.write(&format!("curl-body-{size}"), &"x".repeat(size))?
                };
                writeln!(config, "data-binary = \"@{}\"\nrequest = \"{method}\"", file.display())?;
            }
        }
    }
    let config = place.write("curl.conf", &config)?;
    // The exit status is that of the last transfer, which is one that works.
    Ok(Client {
        name: "curl",
        program: program("curl")?,
        args: vec!["--config".into(), config.into()],
        list,
    })
}

/// A list of requests; the last is one that any client gets an answer to.
fn list(place: &Place, name: &str) -> Result<PathBuf> {
    let mut rng = StdRng::seed_from_u64(4);
    let mut text = String::new();
    for index in 0..if is_slow() { REQUESTS_SLOW } else { REQUESTS } {
        let script = loop {
            let script = SCRIPTS[rng.random_range(0..SCRIPTS.len())];
            // An agent ends its rewriting when many of the requests that it rewrote are reset.
            let rare = match script {
                "reset" | "refuse" => 10,
                "cut" | "close" => 2,
                _ => 1,
            };
            let understood = script != "interim" || !NO_INTERIM.contains(&name);
            if script != "large" && understood && rng.random_ratio(1, rare) {
                break script;
            }
        };
        let (method, size) = match rng.random_range(0..10) {
            0 => ("POST", rng.random_range(1..200)),
            1 => ("PUT", rng.random_range(1_000..9_000)),
            2 if script != "reset" && script != "cut" => ("HEAD", 0),
            _ => ("GET", 0),
        };
        writeln!(text, "{method} /s/{script}/{name}-{index} {size}")?;
    }
    for index in 0..LARGE {
        writeln!(
            text,
            "GET /s/large/{name}-{index} 0\nPOST /s/length/{name}-large-{index} {}",
            20 << 20
        )?;
    }
    writeln!(text, "GET /s/length/{name}-last 0")?;
    place.write(&format!("{name}.list"), &text)
}

fn build_go(place: &Place) -> Result<Option<PathBuf>> {
    let Ok(go) = program("go").or_else(|_| find_go()) else {
        return Ok(None);
    };
    let client = place.join("go-client");
    let source = place.write(
        "client.go",
        &std::fs::read_to_string(workload("clients").join("client.go"))?,
    )?;
    let output = Command::new(go)
        .args(["build", "-o"])
        .arg(&client)
        .arg(source)
        .env("GO111MODULE", "off")
        .env("GOCACHE", target_dir()?.join("go-cache"))
        .env("CGO_ENABLED", "0")
        .output()?;
    ensure!(
        output.status.success(),
        "go build: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(Some(client))
}

/// Where the distribution of Go itself puts it.
fn find_go() -> Result<PathBuf> {
    let go = PathBuf::from("/usr/local/go/bin/go");
    ensure!(go.is_file(), "no go");
    Ok(go)
}
