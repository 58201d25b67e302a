//! A dead, slow or misconfigured backend never delays or fails a request. No payload, credential or personal datum is
//! in any span, by construction.

use std::time::{Duration, Instant};

use anyhow::{ensure, Result};
use serde_json::json;
use spanwire_tests::agent::Agent;
use spanwire_tests::http::Connection;
use spanwire_tests::place::free_port;
use spanwire_tests::receiver::{Manner, Receiver};

use crate::{Shop, Verdict};

const SECRETS: [&str; 6] = [
    "body-5f1c9a",
    "query-5f1c9a",
    "cookie-5f1c9a",
    "bearer-5f1c9a",
    "header-5f1c9a",
    "jane.doe-5f1c9a@test.invalid",
];

pub(crate) fn test() -> Result<Verdict> {
    let shop = Shop::open()?;
    let hang = Receiver::start(Manner::Hang)?;
    let garbage = Receiver::start(Manner::Garbage)?;
    let dead = format!("http://127.0.0.1:{}", free_port()?);
    // Warm, without an agent: what the services themselves take.
    shop.visit("warm", 100)?;
    let alone = latencies(&shop, "alone")?;
    let setup = shop
        .setup()
        .with("capture", "paths", json!("templated"))
        .export(json!({"name": "dead", "protocol": "otlp_http", "endpoint": dead}))
        .export(json!({"name": "hang", "protocol": "otlp_http", "endpoint": hang.url()}))
        .export(json!({"name": "garbage", "protocol": "otlp_grpc", "endpoint": garbage.url()}));
    let agent = Agent::start(&setup)?;
    let watched = latencies(&shop, "watched")?;
    // A backend that hung in a request's way would cost its time limit of seconds; a busy machine costs milliseconds.
    ensure!(
        watched.median < alone.median * 3 + Duration::from_millis(5) && watched.longest < Duration::from_secs(1),
        "with three bad backends a request takes {watched:?}, without an agent {alone:?}"
    );
    let answered = shop.visit("bad", 300)?.len();

    let mut connection = Connection::open(&shop.front.target)?;
    let headers = [
        ("Cookie", SECRETS[2]),
        ("Authorization", SECRETS[3]),
        ("X-Private", SECRETS[4]),
    ];
    let target = format!("/r/{}?q={}", SECRETS[5].replace('@', "%40"), SECRETS[1]);
    ensure!(
        connection
            .request("POST", &target, &headers, SECRETS[0].as_bytes())?
            .status
            == 200,
        "the tainted request"
    );
    agent.drained()?;
    let mut seen = 0;
    for trace in agent.all_traces()? {
        let text = agent.get(&format!("/api/traces/{}", trace.trace_id))?.text();
        for secret in SECRETS.iter().chain(&["jane.doe-5f1c9a"]) {
            ensure!(!text.contains(secret), "{secret} is in trace {}", trace.trace_id);
        }
        seen += trace.span_count;
    }
    ensure!(seen > 0, "no span was stored");
    Ok(Verdict::Pass(format!(
        "{answered} requests answered beside a dead, a hanging and a lying backend, median {:?} against {:?} without an agent; \
         {seen} spans hold none of {} secrets",
        watched.median,
        alone.median,
        SECRETS.len()
    )))
}

#[derive(Debug)]
struct Latencies {
    median: Duration,
    longest: Duration,
}

/// One request after another, on one connection.
fn latencies(shop: &Shop, prefix: &str) -> Result<Latencies> {
    let mut connection = Connection::open(&shop.front.target)?;
    let mut taken = Vec::new();
    for n in 0..100 {
        let start = Instant::now();
        let status = connection.get(&format!("/r/{prefix}{n}"))?.status;
        ensure!(status == 200, "{prefix}{n}: status {status}");
        taken.push(start.elapsed());
    }
    taken.sort();
    Ok(Latencies {
        median: taken[taken.len() / 2],
        longest: taken[taken.len() - 1],
    })
}
