//! Every call that sends or receives, every corner of HTTP/1.1 framing, on IPv4, IPv6 and unix sockets: the spans are
//! exactly the exchanges that were made, by the account of the two ends themselves.
#![allow(clippy::unwrap_used, reason = "test")]

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use serde_json::Value;
use spanwire_tests::agent::{Agent, Setup};
use spanwire_tests::cases::Cases;
use spanwire_tests::http::Connection;
use spanwire_tests::judge::{judge, Hop, Promise, Topology};
use spanwire_tests::metrics::Metrics;
use spanwire_tests::place::{venv_program, workload, Place};
use spanwire_tests::service::{Launch, Service, Target};
use spanwire_tests::spans::{Kind, Span};

/// An exchange as its two ends made it (`tests/workloads/sockets.py`).
struct Exchange {
    id: String,
    method: String,
    status: i64,
    request_bytes: i64,
    response_bytes: Option<i64>,
}

fn read_truth(text: &str) -> Result<Vec<Exchange>> {
    let rows: Vec<Value> = serde_json::from_str(text)?;
    rows.iter()
        .map(|row| {
            let path = row["path"].as_str().context("no path")?;
            Ok(Exchange {
                id: path.strip_prefix("/r/").context("not a path of the truth")?.to_owned(),
                method: row["method"].as_str().context("no method")?.to_owned(),
                status: row["status"].as_i64().context("no status")?,
                request_bytes: row["request"].as_i64().context("no request size")?,
                response_bytes: row["response"].as_i64(),
            })
        })
        .collect()
}

struct Sockets {
    server: Service,
    client: Service,
    place: Place,
}

impl Sockets {
    /// Both processes run; the client has connections that will be older than the agent, and waits.
    fn start() -> Result<Self> {
        let place = Place::new("calls")?;
        let run = |name: &str, role: &str| {
            let python = venv_program("python")?;
            Launch::new(name, python, &place)
                .arg(workload("sockets.py"))
                .arg(role)
                .arg(place.path())
                .spawn()
        };
        let mut server = run("listening", "serve")?;
        let listeners = place.join("listeners.json");
        server.wait_for("its listeners", Duration::from_secs(20), || listeners.exists())?;
        let mut client = run("calling", "call")?;
        let waiting = place.join("waiting");
        client.wait_for("its older connections", Duration::from_secs(20), || waiting.exists())?;
        Ok(Self { server, client, place })
    }

    /// Lets the client go on to the end, and returns what it did.
    fn truth(&mut self) -> Result<Vec<Exchange>> {
        std::fs::write(self.place.join("go"), "")?;
        let truth = self.place.join("truth.json");
        self.client
            .wait_for("the exchanges", Duration::from_secs(90), || truth.exists())?;
        read_truth(&std::fs::read_to_string(truth)?)
    }

    /// A listener of the server on TCP.
    fn target(&self) -> Result<Target> {
        let listeners: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(self.place.join("listeners.json"))?)?;
        let plain = listeners
            .iter()
            .find(|one| one["family"] == "four" && one["send"] == "send");
        let port = plain
            .and_then(|one| one["address"][1].as_u64())
            .context("no plain listener")?;
        Ok(Target::loopback(port as u16))
    }
}

/// Requests that must make the socket opaque: the head, and what makes it one that cannot be trusted.
const UNTRUSTED: [(&str, &str); 6] = [
    (
        "content-length and transfer-encoding",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    ("two content-lengths", "Content-Length: 48\r\nContent-Length: 0\r\n\r\n"),
    ("a bare line feed", "X-One: 1\nX-Two: 2\r\n\r\n"),
    ("a folded line", "X-One: 1\r\n X-Two: 2\r\n\r\n"),
    ("a NUL", "X-One: \0\r\n\r\n"),
    ("a head over 16 KiB", ""),
];

/// Sends each untrusted head, then an honest request on the same connection, which must not become a span.
fn send_untrusted(target: &Target) -> Result<()> {
    for (n, (what, rest)) in UNTRUSTED.iter().enumerate() {
        let long = format!("X-Long: {}\r\n\r\n", "l".repeat(17_000));
        let rest = if rest.is_empty() { &long } else { *rest };
        let mut connection = Connection::open(target)?;
        connection.send(format!("GET /r/untrusted{n} HTTP/1.1\r\nHost: x\r\n{rest}").as_bytes())?;
        connection.receive(false).with_context(|| (*what).to_owned())?;
        connection.send(format!("GET /r/fakeafter{n} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())?;
        connection.receive(false).with_context(|| format!("after {what}"))?;
    }
    Ok(())
}

/// Holds one span against its exchange.
fn agrees(exchange: &Exchange, span: &Span) -> Result<()> {
    let method = span.attribute("http.request.method");
    ensure!(
        method.as_deref() == Some(&exchange.method),
        "method {method:?}, sent {}",
        exchange.method
    );
    ensure!(
        span.status() == Some(exchange.status),
        "status {:?}, sent {}",
        span.status(),
        exchange.status
    );
    let request = span.number("http.request.body.size");
    let chunked = exchange.id.starts_with("chunked") || exchange.id == "untilclose";
    let unknown_is_fine = exchange.request_bytes == 0 || chunked;
    ensure!(
        request == Some(exchange.request_bytes) || (request.is_none() && unknown_is_fine),
        "request body {request:?} bytes, sent {}",
        exchange.request_bytes
    );
    if let Some(sent) = exchange.response_bytes {
        let response = span.number("http.response.body.size");
        let unknown_is_fine = sent == 0 || chunked;
        ensure!(
            response == Some(sent) || (response.is_none() && unknown_is_fine),
            "response body {response:?} bytes, sent {sent}"
        );
    }
    Ok(())
}

/// Both spans of every exchange of a group, joined by the wire, and what they say.
fn group(exchanges: &[&Exchange], spans: &[Span]) -> Result<String> {
    ensure!(!exchanges.is_empty(), "no exchange of this kind was made");
    let ids: Vec<String> = exchanges.iter().map(|exchange| exchange.id.clone()).collect();
    let topology = Topology(vec![Hop {
        client: Some(Promise::Exact),
        ..Hop::ingress("r")
    }]);
    let line = judge(&topology, &ids, spans).check()?;
    let by_path: BTreeMap<String, Vec<&Span>> = spans.iter().fold(BTreeMap::new(), |mut map, span| {
        map.entry(span.path().unwrap_or_default())
            .or_insert_with(Vec::new)
            .push(span);
        map
    });
    for exchange in exchanges {
        for span in by_path.get(&format!("/r/{}", exchange.id)).into_iter().flatten() {
            agrees(exchange, span).with_context(|| format!("{} {:?}", exchange.id, span.kind))?;
        }
    }
    Ok(line)
}

/// Connections older than the agent: what is seen is right, and most of it is seen.
fn late(exchanges: &[&Exchange], spans: &[Span]) -> Result<String> {
    let mut seen = BTreeMap::new();
    for exchange in exchanges {
        let of_path = spans
            .iter()
            .filter(|span| span.path().is_some_and(|path| path == format!("/r/{}", exchange.id)));
        for span in of_path {
            agrees(exchange, span).with_context(|| format!("{} {:?}", exchange.id, span.kind))?;
            let group = exchange.id.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
            *seen.entry((group, span.kind)).or_insert(0) += 1;
        }
    }
    for kind in [Kind::Client, Kind::Server] {
        let count = seen.get(&("late".to_owned(), kind)).copied().unwrap_or(0);
        ensure!(
            (15..=20).contains(&count),
            "{count} of 20 {kind:?} spans on an idle connection older than the agent"
        );
    }
    Ok(format!("seen of 20 each: {seen:?}"))
}

fn opaque(metrics: &Metrics, reason: &str) -> u64 {
    metrics.sum("spanwire_opaque_sockets_total", &[("reason", reason)])
}

#[test]
fn spans_are_exactly_the_exchanges_made() {
    let mut sockets = Sockets::start().unwrap();
    let agent = Agent::start(&Setup::of_services(&[&sockets.server, &sockets.client])).unwrap();
    let truth = sockets.truth().unwrap();
    let before_untrusted = agent.drained().unwrap();
    send_untrusted(&sockets.target().unwrap()).unwrap();
    let on_time: Vec<&Exchange> = truth
        .iter()
        .filter(|exchange| !is_late(exchange) && !exchange.id.starts_with("uring"))
        .collect();
    let spans = agent.spans_when(|spans| spans.len() >= 2 * on_time.len()).unwrap();
    let metrics = agent.metrics().unwrap();

    let mut cases = Cases::new("calls");
    let family = |exchange: &Exchange| {
        ["four", "six", "unix"]
            .into_iter()
            .find(|family| exchange.id.starts_with(family))
    };
    for name in ["four", "six", "unix"] {
        let own: Vec<_> = on_time
            .iter()
            .copied()
            .filter(|exchange| family(exchange) == Some(name))
            .collect();
        cases.run(&format!("every call on {name}"), || group(&own, &spans));
    }
    let corners: Vec<_> = on_time
        .iter()
        .copied()
        .filter(|exchange| family(exchange).is_none())
        .collect();
    cases.run("framing", || group(&corners, &spans));
    cases.run("connections older than the agent", || {
        late(
            &truth.iter().filter(|exchange| is_late(exchange)).collect::<Vec<_>>(),
            &spans,
        )
    });
    cases.run("io_uring is counted and not guessed", || {
        let paths = ["/r/uring0", "/r/uring1", "/r/uring2"];
        let own = |kind| {
            let of_kind = spans.iter().filter(move |span| span.kind == kind);
            of_kind
                .filter(|span| span.path().is_some_and(|path| paths.contains(&path.as_str())))
                .collect::<Vec<_>>()
        };
        let servers = own(Kind::Server);
        ensure!(
            servers.len() == paths.len(),
            "{} server spans, expected {}",
            servers.len(),
            paths.len()
        );
        ensure!(
            servers.iter().all(|span| span.parent_span_id.is_none()),
            "a parent where the client was not seen"
        );
        ensure!(
            own(Kind::Client).is_empty(),
            "a client span without a buffer that could be read"
        );
        let counted = opaque(&metrics, "io_uring");
        let ready = agent.get_json("/readyz")?;
        let told = ready["family"] == "syscalls" && ready["degradations"].to_string().contains("io_uring");
        ensure!(
            told || counted >= 1,
            "no socket counted for io_uring, and not told that none is seen: {ready}"
        );
        Ok(format!(
            "{counted} sockets counted, {} server spans without a parent",
            servers.len()
        ))
    });
    cases.run("no body is taken for a request", || {
        let fakes: Vec<_> = spans
            .iter()
            .filter_map(Span::path)
            .filter(|path| path.contains("fake"))
            .collect();
        ensure!(
            fakes.is_empty(),
            "{} spans of requests that are part of bodies or of opaque sockets: {fakes:?}",
            fakes.len()
        );
        let known = |path: &str| {
            truth.iter().any(|exchange| path == format!("/r/{}", exchange.id)) || path.starts_with("/r/untrusted")
        };
        // The CONNECT has no path, and the exchanges before the agent's start may end after it.
        let others: Vec<_> = spans
            .iter()
            .filter_map(Span::path)
            .filter(|path| path.starts_with("/r/") && !known(path))
            .collect();
        ensure!(
            others.iter().all(|path| path == "/r/middle"),
            "spans nobody made: {others:?}"
        );
        Ok(format!("{} spans, all of them made", spans.len()))
    });
    cases.run("heads that cannot be trusted make the socket opaque", || {
        let added = opaque(&metrics, "framing") - opaque(&before_untrusted, "framing");
        ensure!(
            added >= UNTRUSTED.len() as u64,
            "{added} sockets counted opaque for framing, expected {}",
            UNTRUSTED.len()
        );
        Ok(format!("{added} sockets counted"))
    });
    cases.run("upgrades and tunnels are counted", || {
        let count = opaque(&metrics, "upgrade");
        // Both ends of an upgrade and of a CONNECT.
        if count < 4 {
            bail!("{count} sockets counted opaque for upgrade, expected 4");
        }
        Ok(format!("{count} sockets counted"))
    });
    cases.run("nothing was lost uncounted", || {
        let balance = metrics.balance();
        ensure!(balance.closes(), "{balance:?}");
        ensure!(
            balance.dropped_kernel == 0,
            "{} dropped at the kernel under no load",
            balance.dropped_kernel
        );
        Ok(format!("{balance:?}"))
    });
    cases.finish();
}

fn is_late(exchange: &Exchange) -> bool {
    exchange.id.starts_with("late") || exchange.id.starts_with("resumed")
}
