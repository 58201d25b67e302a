//! Real requests to a bound port.
#![allow(clippy::unwrap_used, clippy::panic, reason = "test")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{json, Value as Json};
use tokio::sync::oneshot;

use super::{ApiState, ListenError, Readiness, Server};
use crate::span::{Span, TraceAlias, Value};
use crate::store::sample::{service, trace_id, SpanBuilder, BASE_NS};
use crate::store::{Retention, Store};

/// The samples' times lie long before the tests'.
const DAYS: Duration = Duration::from_hours(240_000);

/// A running API over a store; stops when dropped.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    pub(crate) dir: tempfile::TempDir,
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Json {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines
            .filter(|(own, _)| own.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
            .next()
    }
}

fn state() -> ApiState {
    ApiState {
        store: None,
        metrics: Arc::new(|| "# TYPE spanwire_build_info gauge\nspanwire_build_info 1\n".to_owned()),
        status: Arc::new(|| json!({ "hooks": [] })),
        ready: Arc::new(|| Readiness {
            is_ready: false,
            body: json!({ "missing": ["sock_send_length"] }),
        }),
        token: None,
        names: vec!["node-1".to_owned()],
    }
}

impl Running {
    pub(crate) fn start(spans: Vec<Span>, aliases: &[TraceAlias], change: impl FnOnce(&mut ApiState)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(
            dir.path(),
            Retention {
                age: DAYS,
                errors: DAYS,
                ..Retention::default()
            },
        )
        .unwrap();
        let mut state = ApiState {
            store: Some(store.reader()),
            ..state()
        };
        change(&mut state);
        store.push(spans.into());
        for alias in aliases {
            store.push_alias(*alias);
        }
        assert!(store.close(Duration::from_secs(5)));
        Self::serve(dir, |address| async move { Server::api(address, state).await })
    }

    fn serve<F: std::future::Future<Output = Result<Server, ListenError>> + Send + 'static>(
        dir: tempfile::TempDir,
        server: impl FnOnce(SocketAddr) -> F + Send + 'static,
    ) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(async {
                    let server = server("127.0.0.1:0".parse().unwrap()).await.unwrap();
                    tell.send(server.address().unwrap()).unwrap();
                    server.run(async { drop(stopped.await) }).await;
                });
        });
        Self {
            address: told.recv().unwrap(),
            stop: Some(stop),
            thread: Some(thread),
            dir,
        }
    }

    fn get(&self, path: &str) -> Answer {
        self.request(&format!("GET {path} HTTP/1.1\r\nhost: {}\r\n", self.address))
    }

    /// Sends a head (without the empty line) and reads the answer.
    fn request(&self, head: &str) -> Answer {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
            .write_all(format!("{head}connection: close\r\n\r\n").as_bytes())
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("no head in {answer:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer {
            status,
            head: head.to_owned(),
            body: body.to_owned(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn two_traces() -> Vec<Span> {
    let (shop, cart) = (service("shop"), service("cart"));
    vec![
        SpanBuilder::server(1, 1).resource(&shop).at_ms(0, 50).build(),
        SpanBuilder::client(1, 2).resource(&shop).parent(1).at_ms(5, 40).build(),
        SpanBuilder::server(1, 3)
            .resource(&cart)
            .parent(2)
            .at_ms(6, 30)
            .error()
            .build(),
        SpanBuilder::server(2, 4)
            .resource(&shop)
            .at_ms(1_000, 5)
            .attribute("k", Value::Static("v w"))
            .build(),
    ]
}

#[test]
fn traces_have_the_shape_of_the_contract() {
    let api = Running::start(two_traces(), &[], |_| {});
    let answer = api.get("/api/traces");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let expected = json!({ "traces": [
        { "traceId": trace_id(2).hex(), "rootService": "shop", "rootName": "GET /cart/{id}",
          "startTimeUnixNano": (BASE_NS + 1_000_000_000).to_string(), "durationNano": "5000000",
          "spanCount": 1, "errorCount": 0, "services": ["shop"] },
        { "traceId": trace_id(1).hex(), "rootService": "shop", "rootName": "GET /cart/{id}",
          "startTimeUnixNano": BASE_NS.to_string(), "durationNano": "50000000",
          "spanCount": 3, "errorCount": 1, "services": ["cart", "shop"] },
    ]});
    assert_eq!(answer.json(), expected);
}

#[test]
fn every_parameter_of_traces_is_heard() {
    let api = Running::start(two_traces(), &[], |_| {});
    let found = |query: &str| -> Vec<u64> {
        let answer = api.get(&format!("/api/traces?{query}"));
        assert_eq!(answer.status, 200, "{query}: {}", answer.body);
        let json = answer.json();
        let id = |trace: &Json| u64::from_str_radix(&trace["traceId"].as_str().unwrap()[16..], 16);
        json["traces"]
            .as_array()
            .unwrap()
            .iter()
            .map(|trace| id(trace).unwrap())
            .collect()
    };
    assert_eq!(found("service=cart"), [1]);
    assert_eq!(found("operation=GET%20/cart/%7Bid%7D&limit=1"), [2]);
    assert_eq!(found("status=error&service=&operation="), [1]);
    assert_eq!(found("minDuration=20ms"), [1]);
    assert_eq!(found("maxDuration=20ms"), [2]);
    assert_eq!(found("attribute=k%3Dv%20w"), [2]);
    assert_eq!(found("attribute=k%3Dv+w&attribute=http.request.method%3DGET"), [2]);
    assert_eq!(found("until=2026-01-01T00:00:00.5Z"), [1]);
    assert_eq!(found("since=2026-01-01T00:00:00.5Z"), [2]);
    assert_eq!(found("tenant=nobody"), [0; 0]);
    assert_eq!(found("since=1m"), [0; 0]);
    for (query, named) in [
        ("minDuration=5", "minDuration"),
        ("limit=0", "limit"),
        ("status=fine", "status"),
        ("since=soon", "since"),
        ("attribute=novalue", "attribute"),
        ("sort=up", "sort"),
    ] {
        let answer = api.get(&format!("/api/traces?{query}"));
        assert_eq!(answer.status, 400, "{query}");
        assert!(
            answer.json()["error"].as_str().unwrap().starts_with(named),
            "{}",
            answer.body
        );
    }
}

#[test]
fn a_trace_is_otlp_json_under_any_of_its_ids() {
    let alias = TraceAlias {
        alias: trace_id(77),
        canonical: trace_id(1),
    };
    let api = Running::start(two_traces(), &[alias], |_| {});
    let canonical = api.get(&format!("/api/traces/{}", trace_id(1).hex()));
    assert_eq!(canonical.status, 200);
    let json = canonical.json();
    let groups = json["resourceSpans"].as_array().unwrap();
    assert_eq!(groups.len(), 2);
    let span = &groups[1]["scopeSpans"][0]["spans"][0];
    assert_eq!(span["traceId"], trace_id(1).hex());
    assert_eq!(span["spanId"], "0000000000000003");
    assert_eq!(span["parentSpanId"], "0000000000000002");
    assert_eq!(span["startTimeUnixNano"], (BASE_NS + 6_000_000).to_string());
    let resource = &groups[1]["resource"]["attributes"][0];
    assert_eq!(
        resource,
        &json!({ "key": "service.name", "value": { "stringValue": "cart" } })
    );
    assert_eq!(
        api.get(&format!("/api/traces/{}", trace_id(77).hex())).json(),
        json,
        "by its alias"
    );
    assert_eq!(
        api.get(&format!("/api/traces/{}", trace_id(1).hex().to_uppercase()))
            .json(),
        json
    );
}

#[test]
fn unknown_and_malformed_ids_are_told_apart() {
    let api = Running::start(two_traces(), &[], |_| {});
    let unknown = api.get(&format!("/api/traces/{}", trace_id(9).hex()));
    assert_eq!(unknown.status, 404);
    assert!(unknown.json()["error"].as_str().unwrap().contains(&trace_id(9).hex()));
    for bad in [
        "xyz",
        "0",
        &"0".repeat(32),
        &"a".repeat(31),
        &"g".repeat(32),
        "%00",
        "%ff",
    ] {
        let answer = api.get(&format!("/api/traces/{bad}"));
        assert_eq!(answer.status, 400, "{bad}: {}", answer.body);
    }
    assert!(api.get("/api/traces/xyz").json()["error"]
        .as_str()
        .unwrap()
        .contains("32 hex digits"));
}

#[test]
fn services_graph_status_metrics_and_health() {
    let api = Running::start(two_traces(), &[], |_| {});
    let services = api.get("/api/services?since=2025-12-31T23:59:00Z").json();
    assert_eq!(services["services"][0]["name"], "cart");
    assert_eq!(services["services"][1]["requests"], 2);
    let graph = api.get("/api/graph?since=2025-12-31T23:59:00Z").json();
    assert_eq!(graph["edges"][0]["caller"], "shop");
    assert_eq!(graph["edges"][0]["callee"], "cart");
    assert_eq!(graph["nodes"].as_array().unwrap().len(), 2);
    assert_eq!(api.get("/api/graph?since=never").status, 400);
    assert_eq!(api.get("/api/graph?until=1m").status, 400);
    assert_eq!(api.get("/api/status").json(), json!({ "hooks": [] }));
    let metrics = api.get("/metrics");
    assert!(metrics
        .header("content-type")
        .unwrap()
        .starts_with("text/plain; version=0.0.4"));
    assert!(metrics.body.contains("spanwire_build_info 1"));
    assert_eq!(
        (api.get("/healthz").status, api.get("/healthz").body.as_str()),
        (200, "ok\n")
    );
    let ready = api.get("/readyz");
    assert_eq!(
        (ready.status, ready.json()),
        (503, json!({ "missing": ["sock_send_length"] }))
    );
    assert_eq!(api.get("/nothing").status, 404);
    assert_eq!(
        api.get("/api/nothing").json()["error"]
            .as_str()
            .unwrap()
            .split(';')
            .next(),
        Some("no such path")
    );
}

#[test]
fn without_a_store_the_answer_says_so() {
    let api = Running::start(Vec::new(), &[], |state| state.store = None);
    let answer = api.get("/api/traces");
    assert_eq!(
        (answer.status, answer.json()["error"].as_str()),
        (503, Some("the agent runs without a store"))
    );
}

#[test]
fn the_page_is_served_under_a_strict_policy() {
    let api = Running::start(Vec::new(), &[], |_| {});
    for (path, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/app.js", "text/javascript; charset=utf-8"),
        ("/waterfall.js", "text/javascript; charset=utf-8"),
        ("/style.css", "text/css; charset=utf-8"),
        ("/api/traces", "application/json"),
        ("/nothing", "application/json"),
    ] {
        let answer = api.get(path);
        assert_eq!(answer.header("content-type"), Some(kind), "{path}");
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'"));
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("x-frame-options"), Some("DENY"));
    }
    let html = api.get("/").body;
    for inline in [
        "<script>",
        "<style",
        "style=\"",
        "onclick",
        "onload",
        "javascript:",
        "http://",
        "https://",
    ] {
        assert!(!html.contains(inline), "{inline} in the page");
    }
    for path in ["/app.js", "/waterfall.js"] {
        let script = api.get(path).body;
        for markup in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
        ] {
            assert!(!script.contains(markup), "{markup} in {path}");
        }
    }
}

#[test]
fn names_full_of_markup_stay_json_strings() {
    let evil = "<script>alert(1)</script>\"'&\u{1b}[31m\u{0}";
    let span = SpanBuilder::server(1, 1).name(evil).resource(&service(evil)).build();
    let api = Running::start(vec![span], &[], |_| {});
    for path in [
        "/api/traces".to_owned(),
        format!("/api/traces/{}", trace_id(1).hex()),
        "/api/services".to_owned(),
    ] {
        let answer = api.get(&path);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert!(answer.json().to_string().contains("<script>"), "{path}: as it was");
        assert!(
            !answer.body.contains('\u{1b}') && !answer.body.contains('\u{0}'),
            "{path}: escaped by JSON"
        );
    }
    assert_eq!(api.get("/api/traces").json()["traces"][0]["rootName"], evil);
}

#[test]
fn foreign_hosts_and_origins_are_refused() {
    let api = Running::start(two_traces(), &[], |_| {});
    let port = api.address.port();
    let status = |lines: &str| api.request(&format!("GET /api/traces HTTP/1.1\r\n{lines}")).status;
    for host in [
        "localhost",
        "127.0.0.1",
        "[::1]:1",
        "node-1",
        &format!("LocalHost:{port}"),
    ] {
        assert_eq!(status(&format!("host: {host}\r\n")), 200, "{host}");
    }
    for host in [
        "evil.example",
        &format!("evil.example:{port}"),
        "127.0.0.1.evil.example",
        "10.0.0.1",
        "",
    ] {
        assert_eq!(status(&format!("host: {host}\r\n")), 403, "{host}");
    }
    assert_eq!(status(""), 403, "no Host");
    assert_eq!(status("host: localhost\r\nhost: evil.example\r\n"), 403, "two");
    let absolute = api.request("GET http://evil.example/api/traces HTTP/1.1\r\nhost: localhost\r\n");
    assert_eq!(absolute.status, 403, "a foreign name in the target");
    let own = format!("host: localhost:{port}\r\norigin: http://localhost:{port}\r\n");
    assert_eq!(status(&own), 200);
    for origin in [
        "http://evil.example",
        "null",
        "http://localhost",
        "http://127.0.0.1:1",
        "file://",
    ] {
        assert_eq!(
            status(&format!("host: localhost:{port}\r\norigin: {origin}\r\n")),
            403,
            "{origin}"
        );
    }
    assert_eq!(
        status("host: localhost\r\nsec-fetch-site: cross-site\r\nsec-fetch-mode: no-cors\r\n"),
        403
    );
    assert_eq!(
        status("host: localhost\r\nsec-fetch-site: same-origin\r\nsec-fetch-mode: cors\r\n"),
        200
    );
    assert_eq!(
        status("host: localhost\r\nsec-fetch-site: cross-site\r\nsec-fetch-mode: navigate\r\n"),
        200
    );
    let page = api.request("GET / HTTP/1.1\r\nhost: evil.example\r\n");
    assert_eq!(page.status, 403, "the page too");
    assert!(!page.head.to_lowercase().contains("access-control-allow"));
}

#[test]
fn a_token_is_wanted_where_data_is() {
    let api = Running::start(two_traces(), &[], |state| {
        state.token = Some("s3cret".into());
    });
    let with = |path: &str, authorization: &str| {
        api.request(&format!(
            "GET {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: {authorization}\r\n"
        ))
        .status
    };
    for path in [
        "/api/traces",
        "/api/services",
        "/api/graph",
        "/api/status",
        "/metrics",
        "/api/traces/x",
    ] {
        let answer = api.get(path);
        assert_eq!(
            (answer.status, answer.header("www-authenticate")),
            (401, Some("Bearer")),
            "{path}"
        );
        for wrong in [
            "Bearer",
            "Bearer s3cre",
            "Bearer s3cret2",
            "Basic s3cret",
            "s3cret",
            "Bearer  s3cret",
        ] {
            assert_eq!(with(path, wrong), 401, "{path} with {wrong:?}");
        }
        assert_ne!(with(path, "Bearer s3cret"), 401, "{path}");
    }
    assert_eq!(with("/api/traces", "bearer s3cret"), 200);
    for open in ["/healthz", "/", "/app.js"] {
        assert_eq!(api.get(open).status, 200, "{open}");
    }
}

#[test]
fn bodies_other_methods_and_endless_heads_are_refused() {
    let api = Running::start(two_traces(), &[], |_| {});
    let request = |line: &str| api.request(&format!("{line} HTTP/1.1\r\nhost: localhost\r\n"));
    assert_eq!(request("POST /api/traces").status, 405);
    assert_eq!(request("DELETE /api/traces").status, 405);
    assert_eq!(request("HEAD /api/traces").status, 200);
    let posted = api.request("GET /api/traces HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9999999\r\n");
    assert_eq!(posted.status, 413);
    let long = format!(
        "GET /api/traces HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n",
        "x".repeat(20 << 10)
    );
    assert_eq!(api.request(&long).status, 431);
    // A head that never ends is cut off.
    let mut slow = TcpStream::connect(api.address).unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nhost: loc").unwrap();
    slow.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let begun = std::time::Instant::now();
    let mut rest = Vec::new();
    let _ = slow.read_to_end(&mut rest);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn health_alone_serves_health_alone() {
    let api = Running::serve(tempfile::tempdir().unwrap(), |address| Server::health(address, state()));
    let probe = api.request("GET /healthz HTTP/1.1\r\nhost: 10.1.2.3:4320\r\n");
    assert_eq!(probe.status, 200, "probes come by the pod's address");
    assert_eq!(api.get("/readyz").status, 503);
    assert_eq!(api.get("/metrics").status, 200);
    for path in ["/", "/api/traces", "/api/status"] {
        assert_eq!(api.get(path).status, 404, "{path}");
    }
}

#[test]
fn a_taken_port_and_an_open_door_are_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let error = runtime
        .block_on(Server::api(address, state()))
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains(&address.to_string()) && error.contains("--listen"),
        "{error}"
    );
    let error = runtime
        .block_on(Server::health(address, state()))
        .err()
        .unwrap()
        .to_string();
    assert!(error.starts_with("health:"), "{error}");
    let open = runtime
        .block_on(Server::api("0.0.0.0:0".parse().unwrap(), state()))
        .err()
        .unwrap()
        .to_string();
    assert!(open.contains("bearer token"), "{open}");
    let away = runtime.block_on(Server::api(
        "192.0.2.1:1".parse().unwrap(),
        ApiState {
            token: Some("t".into()),
            ..state()
        },
    ));
    assert!(away.err().unwrap().to_string().contains("cannot listen on 192.0.2.1:1"));
}

#[test]
fn stopping_does_not_wait_for_idle_connections() {
    let api = Running::start(Vec::new(), &[], |_| {});
    let _idle = TcpStream::connect(api.address).unwrap();
    assert_eq!(api.get("/healthz").status, 200);
    let begun = std::time::Instant::now();
    drop(api);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}
