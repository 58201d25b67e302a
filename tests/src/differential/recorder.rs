//! A server that keeps every byte it receives, connection by connection, and answers as the path says.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread::{sleep, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{bail, Result};
use rustix::net::sockopt;

use crate::pace::patient;

use super::message::{Added, Compare, Expected, Message, Messages};

/// No client keeps a connection open for longer without a byte.
const IDLE: Duration = Duration::from_secs(20);
/// From a client's end until its connections are over.
const SETTLE: Duration = Duration::from_secs(5);

/// The scripts by name: `/s/NAME/ID`.
pub const SCRIPTS: [&str; 13] = [
    "length", "empty", "none", "chunked", "close", "interim", "trickle", "error", "cut", "reset", "refuse", "large",
    "early",
];
/// Bytes of a large response.
pub const LARGE: usize = 20 << 20;

/// What came on one connection, and how it ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    pub messages: Vec<Message>,
    pub end: String,
}

/// Connections by the path of their first request, and which of that path it is.
pub type Connections = BTreeMap<(String, usize), Connection>;

#[derive(Default)]
struct Shared {
    open: usize,
    connections: Connections,
    messages: Vec<Message>,
}

/// The server; it stops listening when dropped.
pub struct Recorder {
    address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    stop: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

impl Recorder {
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Mutex::new(Shared::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let (kept, stopped) = (Arc::clone(&shared), Arc::clone(&stop));
        let listener = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let kept = Arc::clone(&kept);
                kept.lock().unwrap_or_else(PoisonError::into_inner).open += 1;
                std::thread::spawn(move || {
                    let connection = record(&stream, &kept);
                    drop(stream);
                    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                    kept.open -= 1;
                    let path = connection
                        .messages
                        .first()
                        .map(Message::second_word)
                        .unwrap_or_default();
                    let key = free_key(&kept.connections, path);
                    kept.connections.insert(key, connection);
                });
            }
        });
        Ok(Self {
            address,
            shared,
            stop,
            listener: Some(listener),
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Everything recorded since the last time, when no connection is open any more.
    pub fn take(&self) -> Result<Connections> {
        let start = Instant::now();
        loop {
            let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
            if shared.open == 0 {
                shared.messages.clear();
                return Ok(std::mem::take(&mut shared.connections));
            }
            if start.elapsed() > patient(SETTLE) {
                bail!("{} connections are still open", shared.open);
            }
            drop(shared);
            sleep(Duration::from_millis(20));
        }
    }
}

impl Recorder {
    /// Every message since the last time, as if each had a connection of its own: a proxy uses its connections as it
    /// likes, and keeps them.
    pub fn take_messages(&self) -> Connections {
        // For bodies that are still on their way behind an early answer.
        sleep(Duration::from_millis(200));
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.connections.clear();
        let mut taken = Connections::new();
        for message in shared.messages.drain(..) {
            let key = free_key(&taken, message.second_word());
            let messages = vec![message];
            let end = String::new();
            taken.insert(key, Connection { messages, end });
        }
        taken
    }
}

/// The path, and how many of it there are already.
fn free_key(connections: &Connections, path: String) -> (String, usize) {
    let before = connections
        .range((path.clone(), 0)..=(path.clone(), usize::MAX))
        .count();
    (path, before)
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

fn record(stream: &TcpStream, kept: &Mutex<Shared>) -> Connection {
    let mut connection = Connection::default();
    let _ = stream.set_read_timeout(Some(patient(IDLE)));
    let _ = stream.set_nodelay(true);
    let mut messages = Messages::new(stream);
    loop {
        let mut early = false;
        let at_head = |head: &Message| {
            // What the client waits for before it sends its body.
            if head.field("expect").is_some() {
                let _ = send(stream, b"HTTP/1.1 100 Continue\r\n\r\n");
            } else if script(head) == "early" {
                early = answer(stream, head).is_ok();
            }
        };
        match messages.next(Expected::Request, at_head) {
            Ok(message) => {
                let broken = message.broken.is_some();
                kept.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .messages
                    .push(message.clone());
                let stays = if early {
                    Ok(keeps(&message))
                } else {
                    answer(stream, &message)
                };
                connection.messages.push(message);
                match stays {
                    Ok(true) if !broken => {}
                    Ok(_) => {
                        "ended here".clone_into(&mut connection.end);
                        return connection;
                    }
                    Err(error) => {
                        connection.end = super::message::name(&error);
                        return connection;
                    }
                }
            }
            Err(end) => {
                connection.end = end;
                return connection;
            }
        }
    }
}

fn script(message: &Message) -> String {
    let path = message.second_word();
    // A proxy's client may name the whole URL.
    let path = path.find("/s/").and_then(|at| path.get(at + 3..)).unwrap_or_default();
    path.split(['/', '?']).next().unwrap_or_default().to_owned()
}

fn send(mut stream: &TcpStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)
}

/// Answers as the path says. False when that ends the connection.
fn answer(stream: &TcpStream, message: &Message) -> io::Result<bool> {
    let to_head = message.head.starts_with(b"HEAD ");
    let text = b"It is what it is.\r\nGET / HTTP/1.1\r\n\r\n".repeat(9);
    let with_length = |status: &str, body: &[u8]| {
        let mut bytes = format!(
            "HTTP/1.1 {status}\r\nServer: recorder\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        if !to_head {
            bytes.extend_from_slice(body);
        }
        bytes
    };
    match script(message).as_str() {
        "empty" => send(stream, &with_length("200 OK", b""))?,
        "none" => send(stream, b"HTTP/1.1 204 No Content\r\nServer: recorder\r\n\r\n")?,
        "error" => send(stream, &with_length("500 Internal Server Error", b"sorry"))?,
        "interim" => {
            send(stream, b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")?;
            send(stream, &with_length("200 OK", &text))?;
        }
        "chunked" => {
            let mut bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            if !to_head {
                for part in text.chunks(100) {
                    bytes.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
                    bytes.extend_from_slice(part);
                    bytes.extend_from_slice(b"\r\n");
                }
                bytes.extend_from_slice(b"0\r\n\r\n");
            }
            send(stream, &bytes)?;
        }
        "trickle" => {
            for part in with_length("200 OK", &text).chunks(61) {
                send(stream, part)?;
                sleep(Duration::from_millis(1));
            }
        }
        "close" => {
            send(stream, b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
            send(stream, if to_head { b"" } else { &text })?;
            return Ok(false);
        }
        "cut" => {
            send(stream, b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\nshort")?;
            return Ok(false);
        }
        "reset" => {
            send(stream, b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\nshort")?;
            // Late enough that the client is in its next receive.
            sleep(Duration::from_millis(20));
            return reset(stream);
        }
        "refuse" => return reset(stream),
        "large" => {
            let length = if to_head { 0 } else { LARGE };
            send(
                stream,
                format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n").as_bytes(),
            )?;
            for part in large_body().chunks(1 << 16).take(length >> 16) {
                send(stream, part)?;
            }
        }
        _ => send(stream, &with_length("200 OK", &text))?,
    }
    Ok(keeps(message))
}

/// Whether the client goes on after this request.
fn keeps(message: &Message) -> bool {
    message
        .field("connection")
        .is_none_or(|value| !value.eq_ignore_ascii_case("close"))
}

fn reset(stream: &TcpStream) -> io::Result<bool> {
    sockopt::set_socket_linger(stream.as_fd(), Some(Duration::ZERO))?;
    Ok(false)
}

/// A body of [`LARGE`] bytes in which each position looks different.
pub fn large_body() -> &'static [u8] {
    static BODY: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let words = 0..LARGE as u64 / 8;
        words
            .flat_map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
            .collect()
    });
    &BODY
}

/// What was other in the second of two recordings, and what the agent added to it.
pub fn compare(
    off: &Connections,
    on: &Connections,
    names: &[String],
    how: Compare,
    corrected: bool,
) -> (Vec<String>, Added, usize) {
    let mut differences = Vec::new();
    let mut added = Added::default();
    let mut messages = 0;
    for (key, connection) in off {
        let (path, _) = key;
        let Some(other) = on.get(key) else {
            differences.push(format!(
                "{path}: no such connection with the agent; without: {}",
                summary(connection)
            ));
            continue;
        };
        if connection.messages.len() != other.messages.len() || connection.end != other.end {
            differences.push(format!("{path}: off {}, on {}", summary(connection), summary(other)));
            continue;
        }
        for (message, other) in connection.messages.iter().zip(&other.messages) {
            messages += 1;
            match message.difference(other, names, how, corrected) {
                Ok(more) => {
                    added.inserted += more.inserted;
                    added.corrected += more.corrected;
                }
                Err(difference) => differences.push(format!("{}: {difference}", message.second_word())),
            }
        }
    }
    let extra = on.iter().filter(|(key, _)| !off.contains_key(key));
    differences
        .extend(extra.map(|((path, _), connection)| format!("{path}: only with the agent: {}", summary(connection))));
    (differences, added, messages)
}

fn summary(connection: &Connection) -> String {
    let first = connection
        .messages
        .first()
        .map(|message| message.head.escape_ascii().to_string());
    format!(
        "{} messages, {}, first {}",
        connection.messages.len(),
        connection.end,
        first.unwrap_or_default()
    )
}
