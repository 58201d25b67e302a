//! An exchange that never ends: told once when its deadline has passed, and never again.
#![allow(clippy::unwrap_used, reason = "test")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{ensure, Result};
use serde_json::json;
use spanwire_tests::agent::{Agent, Setup};
use spanwire_tests::cases::Cases;
use spanwire_tests::place::Place;
use spanwire_tests::spans::{Kind, Span};

/// What the agent is told, and what a sweep may add (`SWEEP_NS` in agent/src/sys/kernel.rs).
const DEADLINE: Duration = Duration::from_secs(5);
const SWEEP: Duration = Duration::from_secs(5);
/// For a busy machine.
const SLACK: Duration = Duration::from_secs(15);

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Either end of a connection.
trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// Reads a head without a body.
fn head(stream: &mut impl Stream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).unwrap() == 0 {
            break;
        }
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// Answers, but requests for `/slow/..` only when told to.
fn serve(mut stream: impl Stream + 'static, go_on: Receiver<()>) -> JoinHandle<()> {
    thread::spawn(move || loop {
        let head = head(&mut stream);
        if head.is_empty() {
            return;
        }
        if head.starts_with("GET /slow/") {
            go_on.recv().unwrap();
        }
        stream.write_all(ANSWER).unwrap();
    })
}

/// A connection of this process with itself.
struct Pair {
    client: Box<dyn Stream>,
    server: JoinHandle<()>,
    go_on: Sender<()>,
}

impl Pair {
    fn tcp() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let client = TcpStream::connect(listener.local_addr()?)?;
        Ok(Self::new(client, listener.accept()?.0))
    }

    fn unix(place: &Place) -> Result<Self> {
        let path = place.join("slow.sock");
        let listener = UnixListener::bind(&path)?;
        let client = UnixStream::connect(&path)?;
        Ok(Self::new(client, listener.accept()?.0))
    }

    fn new(client: impl Stream + 'static, server: impl Stream + 'static) -> Self {
        let (go_on, told) = channel();
        Self {
            client: Box::new(client),
            server: serve(server, told),
            go_on,
        }
    }

    fn ask(&mut self, path: &str) -> Result<()> {
        write!(self.client, "GET {path} HTTP/1.1\r\nHost: deadline\r\n\r\n")?;
        Ok(())
    }

    fn answered(&mut self) -> Result<()> {
        let mut answer = vec![0; ANSWER.len()];
        self.client.read_exact(&mut answer)?;
        ensure!(answer == ANSWER, "the answer came out changed");
        Ok(())
    }
}

fn of<'a>(spans: &'a [Span], path: &str) -> Vec<&'a Span> {
    let own = |span: &&Span| span.path().as_deref() == Some(path);
    spans.iter().filter(own).collect()
}

/// Both spans of an exchange that ran into its deadline, after the fact.
fn timed_out(spans: &[Span], path: &str) -> Result<()> {
    let own = of(spans, path);
    for kind in [Kind::Client, Kind::Server] {
        let one: Vec<_> = own.iter().filter(|span| span.kind == kind).collect();
        ensure!(one.len() == 1, "{} {kind:?} spans of {path}", one.len());
        ensure!(one[0].error, "{kind:?}: no error");
        ensure!(one[0].status().is_none(), "{kind:?}: status {:?}", one[0].status());
        let error = one[0].attribute("error.type");
        ensure!(error.as_deref() == Some("timeout"), "{kind:?}: error.type {error:?}");
        let lasted = Duration::from_nanos(one[0].end_ns - one[0].start_ns);
        ensure!(
            (DEADLINE..DEADLINE + SWEEP + SLACK).contains(&lasted),
            "{kind:?}: lasted {lasted:?}"
        );
    }
    Ok(())
}

#[test]
fn what_never_ends_is_told_once() {
    let place = Place::new("deadline").unwrap();
    let setup = Setup::capturing(&[json!({"pid": std::process::id()})])
        .env("SPANWIRE_DEADLINE_S", &DEADLINE.as_secs().to_string());
    let agent = Agent::start(&setup).unwrap();
    let mut pairs = [("tcp", Pair::tcp().unwrap()), ("unix", Pair::unix(&place).unwrap())];

    let began = Instant::now();
    for (name, pair) in &mut pairs {
        pair.ask(&format!("/fast/{name}")).unwrap();
        pair.answered().unwrap();
        pair.ask(&format!("/slow/{name}")).unwrap();
    }
    thread::sleep(DEADLINE / 2);
    let early = agent.spans_when(|spans| spans.len() >= 4).unwrap();
    let early_at = began.elapsed();
    let late = agent.spans_when(|spans| spans.len() >= 8).unwrap();
    for (name, pair) in &mut pairs {
        pair.go_on.send(()).unwrap();
        pair.answered().unwrap();
        pair.ask(&format!("/after/{name}")).unwrap();
        pair.answered().unwrap();
    }
    let last = agent.spans_when(|spans| spans.len() >= 12).unwrap();
    let balance = agent.drained().unwrap().balance();

    let mut cases = Cases::new("deadline");
    for name in ["tcp", "unix"] {
        let slow = format!("/slow/{name}");
        cases.run(&format!("{name}: not before its time"), || {
            ensure!(
                early_at > DEADLINE || of(&early, &slow).is_empty(),
                "told after {early_at:?}"
            );
            Ok(format!("nothing after {early_at:?}"))
        });
        cases.run(&format!("{name}: told when it has passed"), || {
            timed_out(&late, &slow)?;
            Ok("both ends, error.type timeout".into())
        });
        cases.run(&format!("{name}: what comes later makes no other span"), || {
            timed_out(&last, &slow)?;
            let after = of(&last, &format!("/after/{name}"));
            ensure!(after.len() == 2, "{} spans of the request after it", after.len());
            ensure!(after.iter().all(|span| span.status() == Some(200)), "not answered");
            Ok("the next request is its own".into())
        });
    }
    cases.run("nothing was lost uncounted", || {
        ensure!(balance.closes(), "{balance:?}");
        ensure!(balance.spans == 12, "{balance:?}");
        Ok(format!("{balance:?}"))
    });
    for (_, pair) in pairs {
        drop(pair.client);
        pair.server.join().unwrap();
    }
    cases.finish();
}
