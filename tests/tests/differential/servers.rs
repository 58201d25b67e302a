//! Real servers and proxies, unmodified, between a client and a server that keep every byte.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use spanwire_tests::agent::Agent;
use spanwire_tests::apps::nginx::Site;
use spanwire_tests::apps::python::{self, Workers};
use spanwire_tests::apps::{apache, haproxy, node, App, Calls};
use spanwire_tests::cases::say;
use spanwire_tests::differential::message::{name, Added, Compare, Expected, Messages};
use spanwire_tests::differential::recorder::{compare, Connection, Connections, Recorder, LARGE, SCRIPTS};
use spanwire_tests::pace::{is_slow, patient};
use spanwire_tests::place::{free_port, program, Place};
use spanwire_tests::service::{Launch, Target};

use crate::{names, rewriting, rewriting_of, REQUEST_NAMES, RESPONSE_NAMES};

/// Connections to each server, and where the machine is emulated.
const CONNECTIONS: usize = 120;
const CONNECTIONS_SLOW: usize = 40;
const PATIENCE: Duration = Duration::from_secs(6);
/// Connections to a server on which nothing came: with so many, the rest is not tried.
const STALLED: usize = 3;

/// A server under test and the paths it has: `{}` becomes an id.
struct Server {
    name: &'static str,
    app: App,
    paths: Vec<String>,
}

/// One request, in the pieces in which it is sent.
struct Request {
    pieces: Vec<Vec<u8>>,
    to_head: bool,
}

/// Both ends of everything that passed one server.
struct Seen {
    responses: Connections,
    requests: Connections,
}

impl Seen {
    /// What the other run saw otherwise, what was added to how many responses, and to how many requests.
    fn differences(&self, with: &Self) -> (Vec<String>, (Added, usize), (Added, usize)) {
        let (mut found, back, responses) = compare(
            &self.responses,
            &with.responses,
            &names(RESPONSE_NAMES),
            Compare::Payload,
            false,
        );
        let (more, out, requests) = compare(
            &self.requests,
            &with.requests,
            &names(REQUEST_NAMES),
            Compare::Payload,
            true,
        );
        found.extend(more);
        (found, (back, responses), (out, requests))
    }
}

/// All servers without the agent, then with one that sees everything, then with one that does not see the client.
pub(crate) fn compared(place: &Place) -> Result<String> {
    let recorder = Recorder::start()?;
    let servers = servers(place, &recorder)?;
    let off = servers
        .iter()
        .map(|server| drive(server, &recorder))
        .collect::<Result<Vec<_>>>()?;
    let mut faults = Vec::new();
    for (server, off) in servers.iter().zip(&off) {
        let found = off.differences(&drive(server, &recorder)?).0;
        faults.extend(
            found
                .into_iter()
                .map(|text| format!("{}, twice without the agent: {text}", server.name)),
        );
    }
    let services: Vec<_> = servers
        .iter()
        .map(|server| json!({"pid": server.app.service.pid()}))
        .collect();
    let unseen_client = rewriting_of(&services);
    let mut total = [Added::default(), Added::default()];
    let mut messages = 0;
    for (setup, whose) in [
        (rewriting(), "everything captured"),
        (unseen_client, "servers captured"),
    ] {
        let agent = Agent::start(&setup)?;
        for (server, off) in servers.iter().zip(&off) {
            let on = drive(server, &recorder)?;
            let (found, (back, responses), (out, requests)) = off.differences(&on);
            say(&format!(
                "{}, {whose}: {responses} responses, {} with an added header; {requests} requests behind it, {} with an \
                 added header, {} corrected; {} differences",
                server.name, back.inserted, out.inserted, out.corrected, found.len()
            ));
            faults.extend(
                found
                    .into_iter()
                    .map(|text| format!("{}, {whose}: {text}", server.name)),
            );
            messages += responses + requests;
            total[0] = sum(total[0], out);
            total[1] = sum(total[1], back);
        }
        drop(agent);
    }
    for fault in faults
        .iter()
        .filter(|fault| !fault.contains("no such connection"))
        .take(40)
    {
        say(fault);
    }
    ensure!(faults.is_empty(), "{} differences, see above", faults.len());
    let [out, back] = total;
    ensure!(
        out.inserted + out.corrected > 0,
        "no request carried an added header: nothing was shown"
    );
    Ok(format!(
        "{} servers, {messages} messages compared, 0 differences; {} requests with an added header, {} corrected, {} responses",
        servers.len(),
        out.inserted,
        out.corrected,
        back.inserted
    ))
}

fn sum(one: Added, other: Added) -> Added {
    Added {
        inserted: one.inserted + other.inserted,
        corrected: one.corrected + other.corrected,
    }
}

fn servers(place: &Place, recorder: &Recorder) -> Result<Vec<Server>> {
    let scripts = || {
        SCRIPTS
            .iter()
            .filter(|script| **script != "large")
            .map(|script| format!("/s/{script}/{{}}"))
    };
    let mut servers = Vec::new();
    let mut add = |name: &'static str, app: App, paths: Vec<String>| servers.push(Server { name, app, paths });
    let root = place.join("www");
    std::fs::create_dir(&root)?;
    std::fs::write(root.join("small.txt"), "small\n".repeat(30))?;
    std::fs::write(
        root.join("large.bin"),
        spanwire_tests::differential::recorder::large_body(),
    )?;
    let own: Vec<String> = ["/small.txt?{}", "/missing?{}", "/r/{}"].map(str::to_owned).into();
    let behind = recorder.address();
    // Where nginx asks for the end of the connection it must not keep it: the recorder does not repeat the wish.
    let nginx = Site::new()
        .http("client_max_body_size 100m; sendfile on; tcp_nopush on;")
        .http(&format!("upstream recorder {{ server {behind}; keepalive 8; }}"))
        .http("proxy_read_timeout 5s; proxy_next_upstream off;")
        .location(&format!("root {};", root.display()))
        .location(
            "location /s/ { proxy_pass http://recorder; proxy_http_version 1.1; proxy_set_header Connection \"\"; }",
        )
        .location(&format!(
            "location /s/chunked/ {{ proxy_pass http://{behind}; proxy_http_version 1.0; proxy_buffering off; }}"
        ))
        .location(&format!(
            "location /s/length/ {{ proxy_pass http://{behind}; proxy_http_version 1.1; proxy_request_buffering off; }}"
        ))
        .returning()
        .start("nginx", place)?;
    // nginx takes an interim response for the response, and waits for the end of its body.
    let mut paths: Vec<String> = scripts().filter(|path| !path.contains("interim")).collect();
    paths.extend(own);
    paths.extend(["/large.bin?{}", "/s/large/{}"].map(str::to_owned));
    add("nginx", nginx, paths);
    if haproxy::runs_here()? {
        let mut paths: Vec<String> = scripts().collect();
        paths.extend(["/s/large/{}", "/return/{}"].map(str::to_owned));
        add("haproxy", haproxy(place, recorder.address())?, paths);
    }
    let ids = || vec!["/r/{}".to_owned()];
    add("apache", apache::mod_php("apache", place, &Calls::none())?, ids());
    add(
        "gunicorn",
        python::gunicorn("gunicorn", place, Workers::Threads(4), &Calls::none())?,
        ids(),
    );
    add("aiohttp", python::aiohttp("aiohttp", place, &Calls::none())?, ids());
    add("node", node::node("node", place, &Calls::none())?, ids());
    add(
        "http.server",
        python_files(place, &root)?,
        vec![
            "/small.txt?{}".to_owned(),
            "/missing?{}".to_owned(),
            "/large.bin?{}".to_owned(),
        ],
    );
    Ok(servers)
}

/// Forwards, but answers `/return/` itself.
pub(crate) fn haproxy(place: &Place, behind: SocketAddr) -> Result<App> {
    let target = Target::loopback(free_port()?);
    let config = place.write(
        "haproxy.cfg",
        &format!(
            "defaults\n  mode http\n  timeout connect 5s\n  timeout client 30s\n  timeout server 5s\n  retries 0\n\
             frontend in\n  bind 127.0.0.1:{}\n  http-request return status 200 content-type text/plain string \"done\" \
             if {{ path_beg /return/ }}\n  default_backend out\nbackend out\n  http-reuse safe\n  server one {behind}\n",
            target.port()?
        ),
    )?;
    let service = Launch::new("haproxy", program("haproxy")?, place)
        .args(["-db", "-f"])
        .arg(config)
        .start(std::slice::from_ref(&target))?;
    Ok(App { service, target })
}

fn python_files(place: &Place, root: &std::path::Path) -> Result<App> {
    let target = Target::loopback(free_port()?);
    let service = Launch::new("http.server", program("python3")?, place)
        .args(["-m", "http.server", "--bind", "127.0.0.1", "--directory"])
        .arg(root)
        .arg(target.port()?.to_string())
        .start(std::slice::from_ref(&target))?;
    Ok(App { service, target })
}

/// Sends the same requests every time, and returns both ends.
fn drive(server: &Server, recorder: &Recorder) -> Result<Seen> {
    let Target::Tcp(address) = server.app.target else {
        anyhow::bail!("{} is not on TCP", server.name)
    };
    let mut rng = StdRng::seed_from_u64(11);
    let mut responses = BTreeMap::new();
    for number in 0..if is_slow() { CONNECTIONS_SLOW } else { CONNECTIONS } {
        let count = rng.random_range(1..=5);
        let requests: Vec<_> = (0..count)
            .map(|index| request(server, &format!("{number}-{index}"), &mut rng))
            .collect();
        let connection =
            exchange(address, &requests).with_context(|| format!("{}: connection {number}", server.name))?;
        responses.insert((format!("connection {number}"), 0), connection);
        if responses
            .values()
            .filter(|connection| connection.end == "nothing came")
            .count()
            >= STALLED
        {
            break;
        }
    }
    Ok(Seen {
        responses,
        requests: recorder.take_messages(),
    })
}

fn request(server: &Server, id: &str, rng: &mut StdRng) -> Request {
    let large = rng.random_ratio(1, 40);
    let fitting: Vec<_> = server
        .paths
        .iter()
        .filter(|path| path.contains("large") == large)
        .collect();
    let path = fitting
        .get(rng.random_range(0..fitting.len().max(1)))
        .map_or("/r/{}", |path| path.as_str());
    let path = path.replace("{}", id);
    let large = path.contains("large");
    let method = match rng.random_range(0..8) {
        // Behind a response without a body a proxy may keep a connection that the recorder is about to end.
        0 if !large && !path.starts_with("/s/cut") && !path.starts_with("/s/reset") => "HEAD",
        1..=3 if path.starts_with("/s/") => "POST",
        _ => "GET",
    };
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: server.test\r\nUser-Agent: raw\r\n");
    if rng.random_ratio(1, 3) {
        let (trace, parent): (u128, u64) = (rng.random(), rng.random());
        let name = if rng.random_ratio(1, 4) {
            "Traceparent"
        } else {
            "traceparent"
        };
        let _ = write!(head, "{name}: 00-{trace:032x}-{parent:016x}-01\r\n");
        if rng.random() {
            head.push_str("tracestate: rojo=00f067aa0ba902b7,congo=t61rcWkgMzE\r\n");
        }
    }
    for field in 0..rng.random_range(0..6) {
        let _ = write!(head, "X-Field-{field}: {}\r\n", "v".repeat(rng.random_range(1..300)));
    }
    let mut body = Vec::new();
    if method == "POST" {
        let length = if large { LARGE } else { rng.random_range(1..5_000) };
        body.resize(length, b'b');
        if rng.random_ratio(1, 3) && !large {
            head.push_str("Transfer-Encoding: chunked\r\n");
            body = [format!("{length:x}\r\n").as_bytes(), &body, b"\r\n0\r\n\r\n"].concat();
        } else {
            let _ = write!(head, "Content-Length: {length}\r\n");
        }
    }
    head.push_str("\r\n");
    Request {
        pieces: cut(head.into_bytes(), body, rng),
        to_head: method == "HEAD",
    }
}

fn cut(mut head: Vec<u8>, body: Vec<u8>, rng: &mut StdRng) -> Vec<Vec<u8>> {
    match rng.random_range(0..4) {
        0 => {
            let rest = head.split_off(rng.random_range(1..head.len()));
            vec![head, rest, body]
        }
        1 => vec![head, body],
        _ => {
            head.extend_from_slice(&body);
            vec![head]
        }
    }
}

/// One connection: every request after the answer to the one before.
fn exchange(address: SocketAddr, requests: &[Request]) -> Result<Connection> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patient(PATIENCE)))?;
    stream.set_write_timeout(Some(patient(PATIENCE)))?;
    let mut messages = Messages::new(&stream);
    let mut connection = Connection::default();
    for request in requests {
        for piece in &request.pieces {
            if let Err(error) = (&stream).write_all(piece) {
                connection.end = name(&error);
                return Ok(connection);
            }
        }
        let expected = if request.to_head {
            Expected::ResponseToHead
        } else {
            Expected::Response
        };
        loop {
            match messages.next(expected, |_| {}) {
                Ok(response) => {
                    let interim = response.second_word().starts_with('1');
                    let last = response.broken.is_some()
                        || response.head.starts_with(b"HTTP/1.0")
                        || response
                            .field("connection")
                            .is_some_and(|value| value.eq_ignore_ascii_case("close"));
                    connection.messages.push(response);
                    if last {
                        connection.end = messages.end();
                        return Ok(connection);
                    }
                    if !interim {
                        break;
                    }
                }
                Err(end) => {
                    connection.end = end;
                    return Ok(connection);
                }
            }
        }
    }
    stream.shutdown(Shutdown::Write)?;
    connection.end = messages.end();
    Ok(connection)
}
