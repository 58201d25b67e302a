//! Backends that refuse, break off, babble or never stop: a bounded cost, an account of every span, and life afterwards.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body::Frame;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use spanwire::export::Protocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::receiver::{listener, raw, serve, GrpcBackend, Server};
use crate::sample::{batch, quick, settings, until, Bench};

/// Answers every connection with `head`, then `chunk` over and over (once if `times` is 1) as long as it is read.
async fn babbler(head: &'static [u8], chunk: &'static [u8], times: usize, written: Arc<AtomicUsize>) -> Server {
    raw(move |listener| async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let written = Arc::clone(&written);
            tokio::spawn(async move {
                read_some(&mut connection).await;
                if connection.write_all(head).await.is_err() {
                    return;
                }
                for _ in 0..times {
                    if connection.write_all(chunk).await.is_err() {
                        return;
                    }
                    written.fetch_add(chunk.len(), SeqCst);
                }
                let _ = connection.shutdown().await;
            });
        }
    })
    .await
}

/// Enough of the request for an answer not to come before it.
async fn read_some(connection: &mut TcpStream) {
    let mut buffer = [0; 1024];
    let _ = connection.read(&mut buffer).await;
}

fn endless() -> usize {
    usize::MAX
}

#[tokio::test]
async fn a_backend_that_comes_up_late_gets_everything() {
    let reserved = listener().await;
    let address = reserved.local_addr().unwrap();
    drop(reserved);
    let bench = Bench::single(Protocol::Grpc, &format!("http://{address}"));
    bench.exporters.push(&batch(0..1_000));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(bench.counts("main"), (0, 0, 0));
    assert_eq!(bench.held("main"), 1_000);
    let backend = GrpcBackend::default();
    let _server = backend.serve_on(TcpListener::bind(address).await.unwrap());
    assert_eq!(bench.settled("main", 1_000).await, (1_000, 0, 0));
    assert_eq!(backend.spans(), 1_000);
}

/// Passes connections on to a backend; dropping it cuts them all.
fn proxy(listener: TcpListener, backend: SocketAddr) -> Server {
    serve(listener, move |listener| async move {
        let mut connections = JoinSet::new();
        while let Ok((mut near, _)) = listener.accept().await {
            connections.spawn(async move {
                let mut far = TcpStream::connect(backend).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    })
}

#[tokio::test]
async fn a_backend_that_goes_and_comes_back_gets_the_rest() {
    let backend = GrpcBackend::default();
    let server = backend.serve().await;
    let way = proxy(listener().await, server.address);
    let address = way.address;
    let bench = Bench::single(Protocol::Grpc, &way.url());
    bench.exporters.push(&batch(0..10));
    assert_eq!(bench.settled("main", 10).await, (10, 0, 0));
    drop(way);
    tokio::time::sleep(Duration::from_millis(50)).await;
    bench.exporters.push(&batch(10..20));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(bench.counts("main"), (10, 0, 0));
    let _way = proxy(rebind(address).await, server.address);
    assert_eq!(bench.settled("main", 20).await, (20, 0, 0));
    assert_eq!(backend.spans(), 20);
}

/// Connections of the server before may still be closing.
async fn rebind(address: SocketAddr) -> TcpListener {
    for _ in 0..1_000 {
        if let Ok(listener) = TcpListener::bind(address).await {
            return listener;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{address} stays taken");
}

/// Neither protocol's answers: tried again (something may be in the way), given up in the end, counted.
#[tokio::test]
async fn garbage_is_given_up_and_counted() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        for garbage in [
            &b"\x00\x01\x02\x03 no protocol at all \xff\xff\r\n\r\n"[..],
            b"",
            b"HTTP/1.1 999999 what\r\n\r\n",
        ] {
            let server = babbler(garbage, b"", 1, Arc::default()).await;
            let mut tuning = quick();
            tuning.retry.give_up = Duration::from_millis(200);
            let bench = Bench::new(&[settings("main", protocol, &server.url())], tuning);
            bench.exporters.push(&batch(0..10));
            assert_eq!(bench.settled("main", 10).await, (0, 10, 0), "{protocol:?} {garbage:?}");
        }
    }
}

#[tokio::test]
async fn an_endless_http_body_is_cut_off() {
    let heads = [
        &b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\n\r\n"[..],
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n",
        b"HTTP/1.1 500 Oh\r\ncontent-type: text/plain\r\n\r\n",
    ];
    for head in heads {
        let written = Arc::new(AtomicUsize::new(0));
        let server = babbler(head, &[b'x'; 16 * 1024], endless(), Arc::clone(&written)).await;
        let bench = Bench::single(Protocol::Http, &server.url());
        bench.exporters.push(&batch(0..10));
        assert_eq!(bench.settled("main", 10).await, (0, 10, 0));
        assert_stays_small(&written).await;
    }
}

#[tokio::test]
async fn endless_http_headers_are_cut_off() {
    let written = Arc::new(AtomicUsize::new(0));
    let server = babbler(
        b"HTTP/1.1 200 OK\r\n",
        b"x-more: xxxxxxxxxxxxxxxxxxxxxxxx\r\n",
        endless(),
        Arc::clone(&written),
    )
    .await;
    let mut tuning = quick();
    tuning.retry.give_up = Duration::from_millis(100);
    let bench = Bench::new(&[settings("main", Protocol::Http, &server.url())], tuning);
    bench.exporters.push(&batch(0..10));
    assert_eq!(bench.settled("main", 10).await, (0, 10, 0));
    assert_stays_small(&written).await;
}

/// What the sockets' buffers of a few connections can hold, but nothing like what an endless answer writes; and once the
/// exporter is done with it nothing more is taken.
async fn assert_stays_small(written: &AtomicUsize) {
    tokio::time::sleep(Duration::from_millis(100)).await;
    let before = written.load(SeqCst);
    assert!(before < 64 << 20, "{before} bytes were taken");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(written.load(SeqCst), before);
}

#[tokio::test]
async fn an_answer_reset_midway_is_tried_again() {
    let connections = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&connections);
    let server = raw(move |listener| async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            read_some(&mut connection).await;
            let first = seen.fetch_add(1, SeqCst) == 0;
            let announced = if first { 1_000 } else { 0 };
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: {announced}\r\n\r\n"
            );
            connection.write_all(head.as_bytes()).await.unwrap();
            if first {
                connection.write_all(b"\x0a\x05").await.unwrap();
                // Closing with the rest of the request unread resets the connection.
                continue;
            }
            let mut rest = Vec::new();
            let _ = tokio::time::timeout(Duration::from_millis(200), connection.read_to_end(&mut rest)).await;
        }
    })
    .await;
    let bench = Bench::single(Protocol::Http, &server.url());
    bench.exporters.push(&batch(0..100));
    assert_eq!(bench.settled("main", 100).await, (100, 0, 0));
    assert!(connections.load(SeqCst) >= 2);
}

#[tokio::test]
async fn a_trickling_answer_ends_with_the_timeout() {
    let server = raw(|listener| async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            tokio::spawn(async move {
                read_some(&mut connection).await;
                let _ = connection
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 60000\r\n\r\n")
                    .await;
                while connection.write_all(b"x").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
        }
    })
    .await;
    let mut impatient = settings("main", Protocol::Http, &server.url());
    impatient.timeout = Duration::from_millis(200);
    let mut tuning = quick();
    tuning.retry.give_up = Duration::from_millis(500);
    let bench = Bench::new(&[impatient], tuning);
    bench.exporters.push(&batch(0..10));
    assert_eq!(bench.settled("main", 10).await, (0, 10, 0));
}

/// A gRPC answer that never ends: `frame` over and over.
struct EndlessBody {
    frame: &'static [u8],
    written: Arc<AtomicUsize>,
}

impl http_body::Body for EndlessBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.written.fetch_add(self.frame.len(), SeqCst);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(self.frame)))))
    }
}

async fn endless_grpc(frame: &'static [u8], written: Arc<AtomicUsize>) -> Server {
    raw(move |listener| async move {
        while let Ok((connection, _)) = listener.accept().await {
            let written = Arc::clone(&written);
            let service = service_fn(move |_| {
                let body = EndlessBody {
                    frame,
                    written: Arc::clone(&written),
                };
                let response = Response::builder()
                    .header("content-type", "application/grpc")
                    .body(body);
                async move { response }
            });
            let serve = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(connection), service);
            tokio::spawn(async move {
                let _ = serve.await;
            });
        }
    })
    .await
}

#[tokio::test]
async fn endless_grpc_answers_are_cut_off() {
    let good_answer = [0u8, 0, 0, 0, 4, 0x0a, 2, 0x08, 0];
    let good_answers = good_answer.repeat(500).leak();
    // Empty messages without end, a message that announces 3 GiB, good answers without end.
    for frame in [&[0u8; 5_000][..], b"\x00\xc0\x00\x00\x00xxxxxxxxxxxxxxxx", good_answers] {
        let written = Arc::new(AtomicUsize::new(0));
        let server = endless_grpc(frame, Arc::clone(&written)).await;
        // Refused, not tried until given up: that would take longer than this test waits.
        let mut tuning = quick();
        tuning.retry.give_up = Duration::from_hours(1);
        let bench = Bench::new(&[settings("main", Protocol::Grpc, &server.url())], tuning);
        bench.exporters.push(&batch(0..10));
        assert_eq!(bench.settled("main", 10).await, (0, 10, 0), "{:?}", &frame[..5]);
        assert_stays_small(&written).await;
    }
}

#[tokio::test]
async fn a_grpc_answer_that_is_not_otlp_is_refused() {
    let server = raw(|listener| async move {
        while let Ok((connection, _)) = listener.accept().await {
            let service = service_fn(|_| async {
                let body = http_body_util::Full::new(Bytes::from_static(b"\x00\x00\x00\x00\x04\xff\xff\xff\xff"));
                Response::builder()
                    .header("content-type", "application/grpc")
                    .body(body)
            });
            let serve = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(connection), service);
            tokio::spawn(async move {
                let _ = serve.await;
            });
        }
    })
    .await;
    let bench = Bench::single(Protocol::Grpc, &server.url());
    bench.exporters.push(&batch(0..10));
    assert_eq!(bench.settled("main", 10).await, (0, 10, 0));
}

/// Takes connections and says nothing: what is under way and queued stays within the bounds, the rest is counted.
#[tokio::test]
async fn a_mute_backend_costs_its_queue() {
    let server = raw(|listener| async move {
        let mut held = Vec::new();
        while let Ok((connection, _)) = listener.accept().await {
            held.push(connection);
        }
    })
    .await;
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let bench = Bench::new(&[settings("main", protocol, &server.url())], quick());
        for start in 0..100 {
            bench.exporters.push(&batch(start * 300..(start + 1) * 300));
            tokio::task::yield_now().await;
        }
        until(|| bench.held("main") + bench.counts("main").2 == 30_000).await;
        assert!(bench.held("main") <= 8_192);
        assert_eq!((bench.counts("main").0, bench.counts("main").1), (0, 0));
    }
}
