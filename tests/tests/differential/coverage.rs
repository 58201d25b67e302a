//! How many requests carry the header, and how many responses the id: by program and by how connections are used, counted
//! where they arrive. The tables of docs/rewriting.md are what this prints.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use spanwire_tests::agent::{Agent, Setup};
use spanwire_tests::apps::nginx::Site;
use spanwire_tests::apps::python::{self, Workers};
use spanwire_tests::apps::{apache, haproxy, node, php_fpm, App, Calls};
use spanwire_tests::cases::say;
use spanwire_tests::differential::recorder::{Connections, Recorder};
use spanwire_tests::http::Connection;
use spanwire_tests::pace::patient;
use spanwire_tests::place::{free_port, program, Place};
use spanwire_tests::service::{Launch, Target};

use crate::{clients, rewriting, servers};

/// Requests to each server and by each client, in each manner; the tables of docs/rewriting.md are of 1,000.
const REQUESTS_VARIABLE: &str = "SPANWIRE_COVERAGE";
const REQUESTS: usize = 200;
/// Connections that are kept, where the test itself is the client.
const KEPT: usize = 5;
/// Requests of a client before those that count, each on a connection of its own, and what their paths have: a process has to
/// be known when it connects.
const WARM: usize = 30;
const WARMING: &str = "warming";
/// From a server's first answer until the agent has looked at it again.
const KNOWN_AFTER: Duration = Duration::from_secs(2);
/// Where the agent says that a server's responses bear the id, this share of them does.
const SHARE: f64 = 0.9;
/// Connections are ended by the answer, or kept. The recorder's scripts by that name do so.
const MANNERS: [&str; 2] = ["close", "length"];

fn requests() -> usize {
    let asked = std::env::var(REQUESTS_VARIABLE).ok();
    asked.and_then(|number| number.parse().ok()).unwrap_or(REQUESTS)
}

/// What arrived in one manner.
#[derive(Clone, Copy, Default)]
struct Count {
    messages: usize,
    with: usize,
    connections: usize,
}

impl Count {
    fn of(connections: &Connections) -> Self {
        let counted = || connections.iter().filter(|((path, _), _)| !path.contains(WARMING));
        let messages: Vec<_> = counted().flat_map(|(_, connection)| &connection.messages).collect();
        let with = messages.iter().filter(|message| message.field("traceparent").is_some());
        Self {
            messages: messages.len(),
            with: with.count(),
            connections: counted().count(),
        }
    }

    fn share(self) -> f64 {
        self.with as f64 / self.messages.max(1) as f64
    }

    fn cell(self) -> String {
        format!(
            "{:.1} % of {} on {}",
            100.0 * self.share(),
            self.messages,
            self.connections
        )
    }
}

/// Both tables.
pub(crate) fn measured(place: &Place) -> Result<String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let release = release.trim();
    let requests = of_requests(place)?;
    let responses = of_responses(place)?;
    say(&format!(
        "| requests on {release}, with a header | one request each | kept |\n|---|---|---|"
    ));
    for (name, counts) in &requests {
        let cells: Vec<_> = counts.iter().map(|count| count.cell()).collect();
        say(&format!("| {name} | {} |", cells.join(" | ")));
    }
    say(&format!(
        "| responses on {release}, with the id | one request each | kept | `ingress` |\n|---|---|---|---|"
    ));
    for (name, counts, verdict) in &responses {
        let cells: Vec<_> = counts.iter().map(|count| count.cell()).collect();
        say(&format!("| {name} | {} | {verdict} |", cells.join(" | ")));
    }
    for (name, counts) in &requests {
        let first = counts.first().context("a manner")?;
        ensure!(first.with > 0, "{name}: no request carried a header");
    }
    for (name, counts, verdict) in &responses {
        for count in counts {
            let expected = verdict == "yes";
            ensure!(
                if expected {
                    count.share() >= SHARE
                } else {
                    count.with == 0
                },
                "{name}: {} while the agent says {verdict}",
                count.cell()
            );
        }
    }
    Ok(format!(
        "{} clients and proxies, {} servers, {release}",
        requests.len(),
        responses.len()
    ))
}

/// A list that a client reads: what makes it known, then requests of one script.
fn list(place: &Place, name: &str, script: &str) -> Result<PathBuf> {
    let first = (0..WARM).map(|index| format!("GET /s/close/{WARMING}-{index} 0\n"));
    let lines = (0..requests()).map(|index| format!("GET /s/{script}/{name}-{index} 0\n"));
    place.write(
        &format!("{name}-{script}.list"),
        &first.chain(lines).collect::<String>(),
    )
}

fn of_requests(place: &Place) -> Result<Vec<(String, Vec<Count>)>> {
    let recorder = Recorder::start()?;
    let base = format!("http://{}", recorder.address());
    let agent = Agent::start(&rewriting())?;
    let mut table: Vec<(String, Vec<Count>)> = Vec::new();
    for script in MANNERS {
        let own = Place::new("coverage")?;
        for (nth, client) in clients::clients(&own, &base, |name| list(&own, name, script))?
            .iter()
            .enumerate()
        {
            let count = Count::of(&clients::run(&own, &recorder, client)?.connections);
            ensure!(
                count.messages >= requests(),
                "{}: {} requests arrived",
                client.name,
                count.messages
            );
            if let Some((_, counts)) = table.get_mut(nth) {
                counts.push(count);
            } else {
                table.push((client.name.to_owned(), vec![count]));
            }
        }
    }
    drop(agent);
    table.extend(of_proxies(place)?);
    Ok(table)
}

/// Proxies are told apart from their clients: those are not captured, so that every request begins a trace.
fn of_proxies(place: &Place) -> Result<Vec<(String, Vec<Count>)>> {
    let recorder = Recorder::start()?;
    let behind = recorder.address();
    let nginx = Site::new()
        .http(&format!("upstream recorder {{ server {behind}; keepalive 8; }}"))
        .location(
            "location /s/ { proxy_pass http://recorder; proxy_http_version 1.1; proxy_set_header Connection \"\"; }",
        )
        .start("nginx-proxy", place)?;
    let haproxy = haproxy_if_it_runs(place, behind)?;
    let apache = apache::proxy("apache-proxy", place, &format!("http://{behind}"))?;
    let mut proxies = vec![("nginx", &nginx), ("Apache", &apache)];
    proxies.extend(haproxy.iter().map(|app| ("HAProxy", app)));
    let services: Vec<_> = proxies.iter().map(|(_, app)| &app.service).collect();
    let agent = Agent::start(&Setup::of_services(&services))?;
    let mut table = Vec::new();
    for (name, app) in proxies {
        ask(&app.target, "/s/length/warm", 1, KEPT)?;
        std::thread::sleep(patient(KNOWN_AFTER));
        let mut counts = Vec::new();
        for script in MANNERS {
            recorder.take_messages();
            ask(&app.target, &format!("/s/{script}/{name}"), requests(), KEPT)?;
            // A proxy keeps its connections: each message is taken for one.
            let mut count = Count::of(&recorder.take_messages());
            count.connections = if script == "close" { count.messages } else { KEPT };
            ensure!(
                count.messages >= requests(),
                "{name}: {} requests arrived",
                count.messages
            );
            counts.push(count);
        }
        table.push((format!("{name} as a proxy"), counts));
    }
    drop(agent);
    Ok(table)
}

fn of_responses(place: &Place) -> Result<Vec<(&'static str, Vec<Count>, String)>> {
    let none = Calls::none();
    let fpm = php_fpm::unix("php-fpm", place, &none)?;
    let script = php_fpm::script(place, "php-fpm")?;
    let mut apps = vec![
        ("aiohttp", python::aiohttp("aiohttp", place, &none)?, "/r/"),
        (
            "gunicorn gthread",
            python::gunicorn("gunicorn", place, Workers::Threads(4), &none)?,
            "/r/",
        ),
        ("Node http", node::node("node", place, &none)?, "/r/"),
        ("nginx", Site::new().returning().start("nginx", place)?, "/r/"),
        (
            "nginx before PHP-FPM",
            Site::new().fastcgi(&script, &fpm.target).start("nginx-fpm", place)?,
            "/r/",
        ),
        ("Apache mod_php", apache::mod_php("apache", place, &none)?, "/r/"),
        ("PHP's own", php_builtin(place)?, "/r/"),
    ];
    let nowhere = SocketAddr::from(([127, 0, 0, 1], free_port()?));
    apps.extend(haproxy_if_it_runs(place, nowhere)?.map(|app| ("HAProxy", app, "/return/")));
    let services: Vec<_> = apps.iter().map(|(_, app, _)| &app.service).collect();
    let agent = Agent::start(&Setup::of_services(&services))?;
    let mut table = Vec::new();
    for (name, app, path) in &apps {
        ask(&app.target, &format!("{path}warm"), 20, KEPT)?;
        std::thread::sleep(patient(KNOWN_AFTER));
        let single = ask(&app.target, &format!("{path}single"), requests(), usize::MAX)?;
        let kept = ask(&app.target, &format!("{path}kept"), requests(), KEPT)?;
        let verdicts: BTreeSet<_> = agent
            .permits(&app.service)?
            .into_iter()
            .map(|permit| shortened(&permit.responses))
            .collect();
        table.push((*name, vec![single, kept], Vec::from_iter(verdicts).join("; ")));
    }
    drop(agent);
    Ok(table)
}

fn haproxy_if_it_runs(place: &Place, behind: SocketAddr) -> Result<Option<App>> {
    let runs = haproxy::runs_here()?;
    runs.then(|| servers::haproxy(place, behind)).transpose()
}

/// Without what was seen in the self-test, which stands in parentheses.
fn shortened(verdict: &str) -> String {
    let mut text = String::new();
    let mut depth = 0;
    for letter in verdict.chars() {
        depth += i32::from(letter == '(');
        if depth == 0 {
            text.push(letter);
        }
        depth -= i32::from(letter == ')');
    }
    text.replace(" ;", ";").trim_end().to_owned()
}

/// PHP's built-in server.
fn php_builtin(place: &Place) -> Result<App> {
    let target = Target::loopback(free_port()?);
    let script = php_fpm::script(place, "php-builtin")?;
    let service = Launch::new("php-builtin", program("php")?, place)
        .arg("-S")
        .arg(format!("127.0.0.1:{}", target.port()?))
        .arg(script)
        .start(std::slice::from_ref(&target))?;
    Ok(App { service, target })
}

/// Asks so often, on so many connections at most, one after the other; how many answers there were, and how many had an id.
fn ask(target: &Target, path: &str, times: usize, connections: usize) -> Result<Count> {
    let mut count = Count::default();
    let single = connections > times;
    let share = times.div_ceil(connections.min(times));
    let mut left = times;
    while left > 0 {
        let mut connection = Connection::open(target)?;
        count.connections += 1;
        for _ in 0..share.min(left) {
            let headers: &[(&str, &str)] = if single { &[("Connection", "close")] } else { &[] };
            let response = connection.request("GET", &format!("{path}-{left}"), headers, &[])?;
            ensure!(response.status == 200, "{path}: status {}", response.status);
            count.messages += 1;
            count.with += usize::from(response.header("server-timing").is_some());
            left -= 1;
            if !connection.is_open() {
                break;
            }
        }
    }
    Ok(count)
}
