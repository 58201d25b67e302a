//! Uploads: each has a thread that waits in its calls, so that an agent's end meets it there.

use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::event::PollFlags;
use rustix::net::RecvFlags;

use super::call::{send_all, Plan, Shared, ADDED, OPTIONS, PATIENCE};
use super::wire::{compare, Asked, Lane};
use crate::differential::exchange::Options;
use crate::differential::socket::{connect, wait, Mode};

/// Its sender has room for this much, and waits with the rest.
const BUFFER: usize = 32 << 10;
/// Requests of a connection.
const REQUESTS: u32 = 3;

/// A thread that sends bodies for whose room it has to wait, one after the other.
pub(super) fn upload(plan: &Plan, shared: &Shared) {
    while !plan.stop.exists() {
        let connection = shared.number();
        if let Err(fault) = uploads_of(plan, connection, shared) {
            shared.count().faults.add(&format!("upload {connection}: {fault:#}"));
            sleep(Duration::from_secs(1));
        }
    }
}

/// One connection of it. Its number says whether its thread waits in the send or in poll, and whether the head is a send of its
/// own: a head in front of more than the socket has room for is left alone by an agent.
fn uploads_of(plan: &Plan, connection: u32, shared: &Shared) -> Result<()> {
    let mode = if connection.is_multiple_of(2) {
        Mode::Blocking
    } else {
        Mode::Polling
    };
    let head_apart = !connection.is_multiple_of(3);
    let server = SocketAddrV4::new(Ipv4Addr::LOCALHOST, plan.server);
    let options = Options {
        send_buffer: Some(BUFFER),
        ..OPTIONS
    };
    let stream = connect(connection, server, mode, &options)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    shared.count().connections += 1;
    let mut last_returned = false;
    for nth in 0..REQUESTS {
        if plan.stop.exists() {
            return Ok(());
        }
        let asked = Asked {
            lane: Lane::Upload,
            connection,
            nth,
        };
        shared.count().asked += 1;
        let sends = if head_apart {
            vec![asked.head(), asked.body().to_vec()]
        } else {
            vec![[&asked.head(), asked.body()].concat()]
        };
        shared.count().sending += 1;
        let sent = sends.iter().try_for_each(|bytes| send_all(&stream, bytes, mode));
        shared.count().sending -= 1;
        sent.map_err(|fault| anyhow::anyhow!(fault))?;
        let returned = answer_of(&stream, &asked)?;
        shared.answered(returned).went_on += u64::from(last_returned && !returned);
        last_returned = returned;
    }
    Ok(())
}

/// Reads an answer: whether a header was added to it.
fn answer_of(stream: &TcpStream, asked: &Asked) -> Result<bool> {
    let expected = asked.answer();
    let mut received = Vec::new();
    let mut buffer = [0; 4_096];
    loop {
        anyhow::ensure!(wait(stream, PollFlags::IN)?, "no answer");
        let (_, length) = rustix::net::recv(stream, buffer.as_mut_slice(), RecvFlags::empty()).context("recv")?;
        anyhow::ensure!(length > 0, "closed by the other side");
        received.extend_from_slice(buffer.get(..length).unwrap_or_default());
        if let Some(whole) = compare(&expected, &received, ADDED).map_err(|fault| anyhow::anyhow!(fault))? {
            return Ok(whole.added);
        }
    }
}
