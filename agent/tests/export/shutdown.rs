//! Stopping: what is queued is sent if the backend takes it in time; the rest is counted. And what logs may say.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use spanwire::export::Protocol;
use tonic::Status;

use crate::receiver::{listener, raw, GrpcAnswer, GrpcBackend, HttpAnswer, HttpBackend};
use crate::sample::{batch, quick, settings, until, Bench};

#[tokio::test]
async fn stopping_sends_what_still_waits_for_company() {
    let backend = GrpcBackend::default();
    let server = backend.serve().await;
    let mut tuning = quick();
    tuning.batching.wait = Duration::from_hours(1);
    let Bench { exporters, counters } = Bench::new(&[settings("main", Protocol::Grpc, &server.url())], tuning);
    exporters.push(&batch(0..300));
    exporters.push(&batch(300..400));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(backend.requests(), 0);
    assert_eq!(exporters.shutdown(Duration::from_secs(30)).await, 0);
    assert_eq!(backend.spans(), 400);
    assert_eq!(counters.exporter("main").sent.value(), 400);
}

#[tokio::test]
async fn stopping_keeps_its_deadline_with_a_hanging_backend() {
    let mute = raw(|listener| async move {
        let mut held = Vec::new();
        while let Ok((connection, _)) = listener.accept().await {
            held.push(connection);
        }
    })
    .await;
    let live = HttpBackend::default();
    let live_server = live.serve().await;
    let exporters = [
        settings("mute", Protocol::Grpc, &mute.url()),
        settings("live", Protocol::Http, &live_server.url()),
    ];
    let Bench { exporters, counters } = Bench::new(&exporters, quick());
    let handles = exporters.handles();
    exporters.push(&batch(0..3_000));
    let started = Instant::now();
    assert_eq!(exporters.shutdown(Duration::from_secs(1)).await, 3_000);
    assert!(started.elapsed() >= Duration::from_secs(1));
    assert!(started.elapsed() < Duration::from_secs(8));
    assert_eq!(live.spans(), 3_000);
    assert_eq!(counters.exporter("mute").dropped.value(), 3_000);
    assert_eq!(counters.exporter("live").sent.value(), 3_000);
    assert_eq!(counters.queue("export/mute").value(), 0);
    // Whoever is late is counted too.
    handles[0].push(batch(0..7));
    assert_eq!(counters.exporter("mute").dropped.value(), 3_007);
}

#[tokio::test]
async fn stopping_does_not_wait_for_a_backend_that_is_gone() {
    let gone = listener().await.local_addr().unwrap();
    let mut tuning = quick();
    tuning.retry.first = Duration::from_hours(1);
    tuning.retry.longest = Duration::from_hours(1);
    tuning.retry.give_up = Duration::from_hours(10);
    let Bench { exporters, counters } =
        Bench::new(&[settings("main", Protocol::Grpc, &format!("http://{gone}"))], tuning);
    exporters.push(&batch(0..5_000));
    until(|| counters.queue("export/main").value() > 0).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let started = Instant::now();
    let dropped = exporters.shutdown(Duration::from_secs(50)).await;
    assert!(started.elapsed() < Duration::from_secs(40));
    assert!(dropped > 0);
    assert_eq!(counters.exporter("main").dropped.value(), 5_000);
}

#[tokio::test]
async fn stopping_tries_again_what_was_waiting_for_its_next_attempt() {
    let backend = GrpcBackend::scripted([GrpcAnswer::Fail(Status::unavailable("later"))]);
    let server = backend.serve().await;
    let mut tuning = quick();
    tuning.retry.first = Duration::from_hours(1);
    tuning.retry.longest = Duration::from_hours(1);
    tuning.retry.give_up = Duration::from_hours(10);
    let Bench { exporters, counters } = Bench::new(&[settings("main", Protocol::Grpc, &server.url())], tuning);
    exporters.push(&batch(0..10));
    until(|| backend.requests() == 1).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(exporters.shutdown(Duration::from_secs(30)).await, 0);
    assert_eq!(counters.exporter("main").sent.value(), 10);
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The runtime of this test has one thread, so the subscriber of that thread sees every line.
#[tokio::test]
async fn logs_name_the_trouble_once_and_no_secret() {
    let lines = Lines::default();
    let sink = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || sink.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let backend = HttpBackend::scripted([
        HttpAnswer::status(503).body("busy\n\x1b[31mred"),
        HttpAnswer::status(503).body("busy still"),
        HttpAnswer::status(401).body("who are you"),
    ]);
    let server = backend.serve().await;
    let gone = listener().await.local_addr().unwrap();
    let exporters = [
        settings("main", Protocol::Http, &format!("{}?key=s3cr3t-query", server.url())),
        settings("gone", Protocol::Grpc, &format!("http://{gone}")),
    ];
    let Bench { exporters, .. } = Bench::new(&exporters, quick());
    exporters.push(&batch(0..10));
    until(|| backend.requests() >= 3).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    exporters.shutdown(Duration::from_secs(30)).await;
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let ours: Vec<&str> = text.lines().filter(|line| line.contains("spanwire::export")).collect();
    let count = |part: &str| ours.iter().filter(|line| line.contains(part)).count();
    assert!(!text.contains("s3cr3t"), "{text}");
    assert!(!text.contains('\x1b') || !text.contains("\x1b[31mred"), "{text}");
    assert_eq!(count("HTTP 503: busy"), 1, "{text}");
    assert_eq!(count("HTTP 401: who are you"), 1, "{text}");
    assert_eq!(count(&format!("http://{}/v1/traces", server.address)), 2, "{text}");
    assert!(
        ours.iter()
            .any(|line| line.contains("gone") && line.contains("refused")),
        "{text}"
    );
}
