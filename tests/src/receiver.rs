//! An OTLP/HTTP endpoint on loopback that keeps what it is sent, or misbehaves as told.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{sleep, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;

use crate::spans::{read_otlp_json, Span};

/// How the endpoint answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// 200 to everything.
    Accept,
    /// 200, and the connection ends.
    Once,
    /// Takes the connection and the request, and never answers.
    Hang,
    /// Answers with bytes that are not HTTP.
    Garbage,
    /// 400: not to be retried.
    Refuse,
    /// 503 with Retry-After: 1, twice, then 200.
    Busy,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Received {
    pub path: String,
    pub head: String,
    pub body: Vec<u8>,
    /// The port it came from: which connection it came on.
    pub port: u16,
}

/// The endpoint; it stops listening when dropped.
pub struct Receiver {
    port: u16,
    requests: Arc<Mutex<Vec<Received>>>,
    stop: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

impl Receiver {
    pub fn start(manner: Manner) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let port = listener.local_addr()?.port();
        listener.set_nonblocking(true)?;
        let requests = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (kept, stopped) = (Arc::clone(&requests), Arc::clone(&stop));
        let listener = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let (kept, stopped) = (Arc::clone(&kept), Arc::clone(&stopped));
                        std::thread::spawn(move || serve(&stream, manner, &kept, &stopped));
                    }
                    Err(_) => sleep(Duration::from_millis(10)),
                }
            }
        });
        Ok(Self {
            port,
            requests,
            stop,
            listener: Some(listener),
        })
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Everything received so far.
    pub fn received(&self) -> Vec<Received> {
        self.requests
            .lock()
            .map(|requests| requests.clone())
            .unwrap_or_default()
    }

    /// Requests with spans in them.
    fn exports(&self) -> Vec<Received> {
        let mut received = self.received();
        received.retain(|request| request.path.ends_with("/v1/traces"));
        received
    }

    /// Spans received so far, decoded by opentelemetry-proto.
    pub fn spans(&self) -> Result<Vec<Span>> {
        let mut spans = Vec::new();
        for request in self.exports() {
            let decoded = ExportTraceServiceRequest::decode(request.body.as_slice()).context("not an OTLP request")?;
            spans.extend(read_otlp_json(&serde_json::to_value(&decoded)?)?);
        }
        Ok(spans)
    }

    /// How many spans were received so far.
    pub fn span_count(&self) -> Result<usize> {
        let mut count = 0;
        for request in self.exports() {
            let decoded = ExportTraceServiceRequest::decode(request.body.as_slice()).context("not an OTLP request")?;
            let scopes = decoded.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
            count += scopes.map(|scope| scope.spans.len()).sum::<usize>();
        }
        Ok(count)
    }

    /// Waits for a number of spans.
    pub fn wait_for_spans(&self, count: usize, limit: Duration) -> Result<usize> {
        let start = Instant::now();
        loop {
            let found = self.span_count()?;
            if found >= count || start.elapsed() > limit {
                return Ok(found);
            }
            sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

fn serve(stream: &TcpStream, manner: Manner, kept: &Mutex<Vec<Received>>, stopped: &AtomicBool) {
    let _ = stream.set_nonblocking(false);
    let _ = stream.set_read_timeout(Some(Duration::from_mins(2)));
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader) {
        let refusals = {
            let Ok(mut kept) = kept.lock() else { return };
            kept.push(request);
            kept.len()
        };
        let mut writer: &TcpStream = stream;
        let answer: &[u8] = match manner {
            Manner::Accept => b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n",
            Manner::Once => b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            Manner::Garbage => b"\x00\xff\x15garbage garbage\n\n\n",
            Manner::Refuse => b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
            Manner::Busy if refusals <= 2 => {
                b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
            }
            Manner::Busy => b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            Manner::Hang => {
                while !stopped.load(Ordering::Relaxed) {
                    sleep(Duration::from_millis(20));
                }
                return;
            }
        };
        if writer.write_all(answer).is_err() || matches!(manner, Manner::Garbage | Manner::Once) {
            return;
        }
    }
}

fn read_request(reader: &mut BufReader<&TcpStream>) -> Option<Received> {
    let mut head = String::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line.trim().is_empty() {
            break;
        }
        head.push_str(&line);
    }
    let path = head.split(' ').nth(1)?.to_owned();
    let header = |name: &str| {
        head.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim().to_owned())
    };
    let mut body = Vec::new();
    if header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let size = u64::from_str_radix(line.trim(), 16).ok()?;
            reader.take(size).read_to_end(&mut body).ok()?;
            reader.read_line(&mut line).ok()?;
            if size == 0 {
                break;
            }
        }
    } else {
        let length = header("content-length")
            .and_then(|value| value.parse().ok())
            .unwrap_or(0);
        reader.take(length).read_to_end(&mut body).ok()?;
    }
    let port = reader.get_ref().peer_addr().ok()?.port();
    Some(Received { path, head, body, port })
}
