//! HTTP: what each answer leads to.

use std::time::Duration;

use prost::Message;
use spanwire::export::Protocol;

use crate::receiver::{partial_success, HttpAnswer, HttpBackend};
use crate::sample::{batch, quick, settings, Bench};

async fn outcome(answers: Vec<HttpAnswer>) -> ((u64, u64, u64), HttpBackend) {
    let backend = HttpBackend::scripted(answers);
    let server = backend.serve().await;
    let bench = Bench::single(Protocol::Http, &server.url());
    bench.exporters.push(&batch(0..10));
    (bench.settled("main", 10).await, backend)
}

#[tokio::test]
async fn partial_success_counts_the_rejected_and_is_not_tried_again() {
    let (counts, backend) = outcome(vec![HttpAnswer::otlp(&partial_success(4, "too old"))]).await;
    assert_eq!(counts, (6, 4, 0));
    assert_eq!(backend.requests(), 1);
}

#[tokio::test]
async fn answers_that_mean_success() {
    let json = |body: &str| {
        HttpAnswer::status(200)
            .with("content-type", "application/json; charset=utf-8")
            .body(body)
    };
    for answer in [
        HttpAnswer::status(200),
        HttpAnswer::status(202),
        HttpAnswer::status(204),
        json("{}"),
        json(r#"{"partialSuccess":{}}"#),
        json(r#"{"partialSuccess":{"rejectedSpans":"0","errorMessage":"a warning"}}"#),
    ] {
        let (counts, backend) = outcome(vec![answer]).await;
        assert_eq!(counts, (10, 0, 0));
        assert_eq!(backend.requests(), 1);
    }
    for rejected in [r#""2""#, "2"] {
        let body = format!(r#"{{"partialSuccess":{{"rejectedSpans":{rejected},"errorMessage":"old"}}}}"#);
        let (counts, _) = outcome(vec![json(&body)]).await;
        assert_eq!(counts, (8, 2, 0));
    }
}

#[tokio::test]
async fn a_success_that_is_not_otlp_is_no_success() {
    let typed = |media_type: &str, body: &[u8]| HttpAnswer::status(200).with("content-type", media_type).body(body);
    for answer in [
        typed("text/html", b"<h1>It works!</h1>"),
        typed("text/plain", b"ok"),
        typed("application/x-protobuf", b"\xff\xff\xff\xff garbage"),
        typed("application/json", b"[1, 2]"),
        typed("application/json", b"{\"partial"),
        HttpAnswer::status(200).body("no type, no protobuf"),
    ] {
        let (counts, backend) = outcome(vec![answer]).await;
        assert_eq!(counts, (0, 10, 0));
        assert_eq!(backend.requests(), 1);
    }
}

#[tokio::test]
async fn passing_failures_are_tried_again_until_accepted() {
    let statuses = [503, 502, 504, 429];
    let (counts, backend) = outcome(statuses.map(|status| HttpAnswer::status(status).body("later")).into()).await;
    assert_eq!(counts, (10, 0, 0));
    assert_eq!(backend.requests(), statuses.len() + 1);
    let arrivals = backend.arrivals.lock().unwrap();
    assert!(arrivals.iter().all(|arrival| arrival.request == arrivals[0].request));
}

#[tokio::test]
async fn lasting_failures_are_not_tried_again() {
    for status in [400, 401, 403, 404, 413, 500, 501] {
        let error = tonic_types::Status {
            code: 3,
            message: "never".to_owned(),
            details: Vec::new(),
        };
        let answer = HttpAnswer::status(status)
            .with("content-type", "application/x-protobuf")
            .body(error.encode_to_vec());
        let (counts, backend) = outcome(vec![answer]).await;
        assert_eq!(counts, (0, 10, 0), "{status}");
        assert_eq!(backend.requests(), 1, "{status}");
    }
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let elsewhere = HttpBackend::default();
    let other = elsewhere.serve().await;
    let (counts, backend) = outcome(vec![HttpAnswer::status(307).with("location", other.url())]).await;
    assert_eq!(counts, (0, 10, 0));
    assert_eq!((backend.requests(), elsewhere.requests()), (1, 0));
}

#[tokio::test]
async fn retry_after_is_honoured_by_every_request() {
    let backend = HttpBackend::scripted([HttpAnswer::status(429).with("retry-after", "1")]);
    let server = backend.serve().await;
    let bench = Bench::single(Protocol::Http, &server.url());
    bench.exporters.push(&batch(0..10));
    crate::sample::until(|| backend.requests() == 1).await;
    // Long enough for the answer to have come back, far shorter than the pause it asks for.
    tokio::time::sleep(Duration::from_millis(200)).await;
    bench.exporters.push(&batch(10..20));
    assert_eq!(bench.settled("main", 20).await, (20, 0, 0));
    let arrivals = backend.arrivals.lock().unwrap();
    assert_eq!(arrivals.len(), 3);
    for arrival in &arrivals[1..] {
        assert!(arrival.at - arrivals[0].at >= Duration::from_secs(1));
    }
}

#[tokio::test]
async fn an_endless_retry_after_is_bounded() {
    let backend = HttpBackend::scripted([HttpAnswer::status(503).with("retry-after", "4000000000")]);
    let server = backend.serve().await;
    let mut tuning = quick();
    tuning.retry.longest_pause = Duration::from_millis(200);
    let bench = Bench::new(&[settings("main", Protocol::Http, &server.url())], tuning);
    bench.exporters.push(&batch(0..10));
    assert_eq!(bench.settled("main", 10).await, (10, 0, 0));
    let arrivals = backend.arrivals.lock().unwrap();
    assert!(arrivals[1].at - arrivals[0].at >= Duration::from_millis(200));
}

#[tokio::test]
async fn a_hanging_request_is_cut_off_and_tried_again() {
    let backend = HttpBackend::scripted([HttpAnswer::status(200).after(Duration::from_mins(2))]);
    let server = backend.serve().await;
    let mut impatient = settings("main", Protocol::Http, &server.url());
    impatient.timeout = Duration::from_millis(500);
    let bench = Bench::new(&[impatient], quick());
    bench.exporters.push(&batch(0..10));
    assert_eq!(bench.settled("main", 10).await, (10, 0, 0));
    assert!(backend.requests() >= 2);
}
