//! One side of a steady load, in a process of its own that an agent can trace like any other.
//!
//! `spanwire-steady serve PORT`
//! `spanwire-steady call SERVER PROXY STOP LANE=COUNT...`: ports, the file that ends it, and connections at a time
//!
//! What was seen so far is a line of standard output every few milliseconds.

use anyhow::{bail, Result};
use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};
use spanwire_tests::steady::call::{call, lanes, Plan};
use spanwire_tests::steady::serve::serve;

/// More than there are connections.
const DESCRIPTORS: u64 = 8_192;

fn main() -> Result<()> {
    let mut limit: Rlimit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < DESCRIPTORS) {
        limit.current = Some(DESCRIPTORS);
        limit.maximum = limit.maximum.map(|maximum| maximum.max(DESCRIPTORS));
        setrlimit(Resource::Nofile, limit)?;
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["serve", port] => serve(port.parse()?),
        ["call", server, proxy, stop, connections @ ..] => call(&Plan {
            server: server.parse()?,
            proxy: proxy.parse()?,
            connections: lanes(connections)?,
            stop: stop.into(),
        }),
        _ => bail!("usage: serve PORT, or call SERVER PROXY STOP LANE=COUNT..."),
    }
}
