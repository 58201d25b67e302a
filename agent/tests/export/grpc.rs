//! gRPC: what each answer leads to.

use std::time::Duration;

use spanwire::export::Protocol;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::receiver::{partial_success, GrpcAnswer, GrpcBackend};
use crate::sample::{batch, quick, settings, Bench};

async fn outcome(answers: Vec<GrpcAnswer>) -> ((u64, u64, u64), GrpcBackend) {
    let backend = GrpcBackend::scripted(answers);
    let server = backend.serve().await;
    let bench = Bench::single(Protocol::Grpc, &server.url());
    bench.exporters.push(&batch(0..10));
    (bench.settled("main", 10).await, backend)
}

#[tokio::test]
async fn partial_success_counts_the_rejected_and_is_not_tried_again() {
    let (counts, backend) = outcome(vec![GrpcAnswer::Accept(partial_success(3, "too old"))]).await;
    assert_eq!(counts, (7, 3, 0));
    assert_eq!(backend.requests(), 1);
}

#[tokio::test]
async fn a_count_of_rejected_spans_that_cannot_be_is_cut() {
    let (counts, _) = outcome(vec![GrpcAnswer::Accept(partial_success(i64::MAX, ""))]).await;
    assert_eq!(counts, (0, 10, 0));
    let (counts, _) = outcome(vec![GrpcAnswer::Accept(partial_success(-5, "a warning"))]).await;
    assert_eq!(counts, (10, 0, 0));
}

#[tokio::test]
async fn passing_failures_are_tried_again_until_accepted() {
    let codes = [
        Code::Unavailable,
        Code::Cancelled,
        Code::DeadlineExceeded,
        Code::Aborted,
        Code::OutOfRange,
        Code::DataLoss,
    ];
    let (counts, backend) = outcome(codes.map(|code| GrpcAnswer::Fail(Status::new(code, "later"))).into()).await;
    assert_eq!(counts, (10, 0, 0));
    assert_eq!(backend.requests(), codes.len() + 1);
    let arrivals = backend.arrivals.lock().unwrap();
    assert!(arrivals.iter().all(|arrival| arrival.request == arrivals[0].request));
}

#[tokio::test]
async fn lasting_failures_are_not_tried_again() {
    for code in [
        Code::InvalidArgument,
        Code::Unauthenticated,
        Code::Unimplemented,
        Code::Internal,
        Code::ResourceExhausted,
    ] {
        let (counts, backend) = outcome(vec![GrpcAnswer::Fail(Status::new(code, "never"))]).await;
        assert_eq!(counts, (0, 10, 0), "{code:?}");
        assert_eq!(backend.requests(), 1, "{code:?}");
    }
}

#[tokio::test]
async fn retry_info_is_honoured() {
    let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(700)));
    let status = Status::with_error_details(Code::ResourceExhausted, "slow down", details);
    let (counts, backend) = outcome(vec![GrpcAnswer::Fail(status)]).await;
    assert_eq!(counts, (10, 0, 0));
    let arrivals = backend.arrivals.lock().unwrap();
    assert_eq!(arrivals.len(), 2);
    assert!(arrivals[1].at - arrivals[0].at >= Duration::from_millis(700));
}

#[tokio::test]
async fn a_hanging_request_is_cut_off_and_tried_again() {
    let backend = GrpcBackend::scripted([GrpcAnswer::Hang(Duration::from_mins(2))]);
    let server = backend.serve().await;
    let mut impatient = settings("main", Protocol::Grpc, &server.url());
    impatient.timeout = Duration::from_millis(500);
    let bench = Bench::new(&[impatient], quick());
    bench.exporters.push(&batch(0..10));
    assert_eq!(bench.settled("main", 10).await, (10, 0, 0));
    assert!(backend.requests() >= 2);
}

#[tokio::test]
async fn a_batch_is_given_up_after_its_time() {
    let failures = (0..10_000).map(|_| GrpcAnswer::Fail(Status::unavailable("never back")));
    let backend = GrpcBackend::scripted(failures);
    let server = backend.serve().await;
    let mut tuning = quick();
    tuning.retry.give_up = Duration::from_millis(300);
    let bench = Bench::new(&[settings("main", Protocol::Grpc, &server.url())], tuning);
    bench.exporters.push(&batch(0..10));
    assert_eq!(bench.settled("main", 10).await, (0, 10, 0));
    assert!(backend.requests() >= 2);
}
