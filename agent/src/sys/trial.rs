//! Whether hooks that are attached see anything: a byte goes through a TCP connection and through a unix one, both of the
//! agent's own. A function that the compiler has put inside another can be probed, and is never called.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use aya::maps::HashMap;
use aya::Ebpf;

use super::hooks::Family;
use super::pod;

/// For a byte on the loopback interface.
const PATIENCE: Duration = Duration::from_secs(1);

/// Sends and receives, then looks for what the family's programs noted. Where nothing can be sent, nothing is said.
///
/// # Errors
/// What was not seen, for people.
pub(super) fn try_out(family: Family, ebpf: &Ebpf) -> Result<(), String> {
    if family.traces().is_empty() {
        return Ok(());
    }
    if let Err(error) = send_and_receive() {
        tracing::debug!(%error, "hooks not tried out");
        return Ok(());
    }
    let Some(calls) = ebpf
        .map("CALLS")
        .and_then(|map| HashMap::<_, pod::CallKey, pod::CallUnderWay>::try_from(map).ok())
    else {
        return Err("the table of calls cannot be read".to_owned());
    };
    let told: Vec<u64> = calls
        .iter()
        .filter_map(Result::ok)
        .filter(|(_, call)| call.0.told != 0)
        .map(|(key, _)| key.0.what)
        .collect();
    match family.traces().iter().find(|what| !told.contains(what)) {
        None => Ok(()),
        Some(what) => Err(format!("the hooks do not see the agent's own calls (kind {what})")),
    }
}

fn send_and_receive() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut client = TcpStream::connect_timeout(&listener.local_addr()?, PATIENCE)?;
    let (mut server, _) = listener.accept()?;
    server.set_read_timeout(Some(PATIENCE))?;
    client.write_all(b".")?;
    server.read_exact(&mut [0])?;
    let (mut client, mut server) = UnixStream::pair()?;
    server.set_read_timeout(Some(PATIENCE))?;
    client.write_all(b".")?;
    server.read_exact(&mut [0])
}
