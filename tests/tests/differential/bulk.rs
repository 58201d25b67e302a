//! Generated exchanges in great number, played by processes of their own: blocking and polling ones at both ends.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{bail, ensure, Context, Result};
use serde_json::json;
use spanwire_tests::agent::{Agent, Setup};
use spanwire_tests::cases::say;
use spanwire_tests::differential::record::{Coverage, Record, Run};
use spanwire_tests::differential::socket::NUMBERS;
use spanwire_tests::place::{free_port, program, Place};
use spanwire_tests::service::{Launch, Service, Target};

use crate::{rewriting, rewriting_of, REQUEST_NAMES, RESPONSE_NAMES};

/// In the ordinary run; `SPANWIRE_EXCHANGES` says otherwise.
const EXCHANGES: u32 = 100_000;
/// Exchanges of one agent's life, so that the ordinary run has as many lives as there are [`Seeing`]s.
const ROUND: u32 = 33_334;
/// What servers are run as, and clients.
const SERVER: &str = "exchange-server";
const CLIENT: &str = "exchange-client";
const SERVER_GLOB: &str = "*/exchange-server";
const MODES: [&str; 2] = ["blocking", "polling"];
const CALLERS: usize = 6;
const ROUND_LIMIT: Duration = Duration::from_mins(10);
/// From the last client's end until the last server's line.
const LAST_LINES: Duration = Duration::from_secs(20);
/// Differences printed of each kind of exchange; the rest is counted.
const PRINTED: usize = 3;
/// A stall by Nagle's algorithm and a delayed acknowledgement is at least this long.
const STALL: u64 = 38_000;

/// What a round's agent sees, and may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Seeing {
    /// Both ends, as it decides by itself.
    Both,
    /// Both ends; sockets that do not block stay enrolled, whatever FIONREAD says on this kernel. So nobody asks it.
    BothStaying,
    /// Only the servers, where requests come in then; the sockets of those that poll stay enrolled.
    ServersStaying,
}

impl Seeing {
    fn of(round: u32) -> Self {
        match round % 3 {
            0 => Self::Both,
            1 => Self::BothStaying,
            _ => Self::ServersStaying,
        }
    }

    pub(crate) fn setup(self) -> Setup {
        match self {
            Self::Both => rewriting(),
            Self::BothStaying => rewriting().with("propagate", "enabled", json!(true)),
            Self::ServersStaying => {
                rewriting_of(&[json!({"exe": SERVER_GLOB})]).with("ingress", "enabled", json!(true))
            }
        }
    }

    pub(crate) fn fionread(self) -> &'static str {
        match self {
            Self::Both => "asks",
            Self::BothStaying | Self::ServersStaying => "never-asks",
        }
    }
}

/// Plays every exchange twice and compares.
pub(crate) fn generated(place: &Place) -> Result<String> {
    let count: u32 = match std::env::var("SPANWIRE_EXCHANGES") {
        Ok(text) => text.parse().context("SPANWIRE_EXCHANGES is no number")?,
        Err(_) => EXCHANGES,
    };
    ensure!(
        (1..NUMBERS).contains(&count),
        "between 1 and {NUMBERS} exchanges can be played"
    );
    let seed = seed()?;
    let mut total = Total::default();
    for round in 0..count.div_ceil(ROUND) {
        let from = round * ROUND;
        let numbers = (from, count.min(from + ROUND));
        let start = Instant::now();
        let seeing = Seeing::of(round);
        let off = play(place, seed, numbers, seeing, "off")?;
        let without = start.elapsed();
        let agent = Agent::start(&seeing.setup())?;
        let ready = start.elapsed();
        let on = play(place, seed, numbers, seeing, "on")?;
        let with = start.elapsed().saturating_sub(ready);
        drop(agent);
        say(&format!(
            "exchanges {} to {}, {seeing:?}: {without:.1?} without, {with:.1?} with the agent",
            numbers.0, numbers.1
        ));
        total.add(seed, seeing, &off, &on);
    }
    total.judge(count)
}

/// Another one every time, unless `SPANWIRE_SEED` names it.
pub(crate) fn seed() -> Result<u64> {
    let seed = match std::env::var("SPANWIRE_SEED") {
        Ok(text) => text.parse().context("SPANWIRE_SEED is no number")?,
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
    };
    say(&format!(
        "seed {seed} (SPANWIRE_SEED={seed} plays the same exchanges again)"
    ));
    Ok(seed)
}

#[derive(Default)]
struct Total {
    exchanges: usize,
    faults: Vec<String>,
    differences: Vec<String>,
    /// By what the agent saw, and whether it is a request.
    added: BTreeMap<(Seeing, bool), Coverage>,
    lines: Vec<String>,
    stalls: [usize; 2],
}

impl Total {
    fn add(&mut self, seed: u64, seeing: Seeing, off: &Run, on: &Run) {
        self.exchanges += on.records.len() / 2;
        self.faults.extend(off.faults());
        let found = off.differences(on);
        self.differences
            .extend(found.into_iter().map(|text| format!("seed {seed}: {text}")));
        let without = off.coverage(|_| String::new()).remove("").unwrap_or_default();
        if without.inserted + without.corrected > 0 {
            self.faults
                .push(format!("lines were added without an agent: {without:?}"));
        }
        for (side, row) in on.coverage(|record| record.key.1.clone()) {
            let total = self.added.entry((seeing, side.starts_with("server"))).or_default();
            total.with += row.with;
            total.inserted += row.inserted;
            self.lines.push(format!(
                "{seeing:?}, {side}: {} of {} connections, {} heads",
                row.with, row.sides, row.inserted
            ));
        }
        let by_kind = on.coverage(|record: &Record| format!("{} at {}", record.kind, record.key.1));
        for (kind, row) in by_kind.iter().filter(|(_, row)| row.with > 0) {
            self.lines.push(format!(
                "  {kind}: {} of {} connections, {} heads",
                row.with, row.sides, row.inserted
            ));
        }
        self.stalls[0] += off.slower_than(STALL);
        self.stalls[1] += on.slower_than(STALL);
    }

    fn judge(self, count: u32) -> Result<String> {
        say("sides that received an added line:");
        for line in &self.lines {
            say(line);
        }
        say(&format!(
            "exchanges of 38 ms or more: {} without, {} with",
            self.stalls[0], self.stalls[1]
        ));
        print_by_kind(&self.faults);
        print_by_kind(&self.differences);
        ensure!(
            self.faults.is_empty(),
            "{} exchanges went wrong without an agent: the test is at fault",
            self.faults.len()
        );
        ensure!(
            self.differences.is_empty(),
            "{} differences, see above",
            self.differences.len()
        );
        ensure!(
            self.exchanges == count as usize,
            "{} of {count} exchanges were played",
            self.exchanges
        );
        for (seeing, row) in self.added.iter().filter_map(|((seeing, of_requests), row)| {
            let matters = *of_requests == (*seeing != Seeing::ServersStaying);
            matters.then_some((*seeing, row))
        }) {
            let later = row.inserted - row.with;
            ensure!(
                row.with > 0 && (seeing == Seeing::Both || later > 0),
                "{seeing:?}: {} connections with an added header, {later} later ones on them: nothing was shown",
                row.with
            );
        }
        let sum = |of_requests: bool| {
            let rows = self.added.iter().filter(|((_, side), _)| *side == of_requests);
            rows.fold((0, 0), |(with, heads), (_, row)| {
                (with + row.with, heads + row.inserted)
            })
        };
        let (requests, responses) = (sum(true), sum(false));
        Ok(format!(
            "{} exchanges twice, 0 differences; {} requests on {} connections with a header added, {} responses on {}",
            self.exchanges, requests.1, requests.0, responses.1, responses.0
        ))
    }
}

/// The first of each kind, and how many there are. The kind is the third field of a record.
pub(crate) fn print_by_kind(texts: &[String]) {
    let mut kinds: BTreeMap<&str, Vec<&String>> = BTreeMap::new();
    for text in texts {
        kinds
            .entry(text.split('\t').nth(2).unwrap_or_default())
            .or_default()
            .push(text);
    }
    for (kind, texts) in kinds {
        say(&format!("{kind}: {} differences", texts.len()));
        for text in texts.iter().take(PRINTED) {
            say(text);
        }
    }
}

/// One run over the numbers.
fn play(place: &Place, seed: u64, numbers: (u32, u32), seeing: Seeing, name: &str) -> Result<Run> {
    Playing::start(place, seed, numbers, seeing.fionread(), name)?.finish()
}

/// A run under way: two clients, two servers, and two that speak first; of each kind one in either mode.
pub(crate) struct Playing {
    clients: Vec<Service>,
    // They end when they are dropped, after the clients.
    _servers: Vec<Service>,
    files: Vec<PathBuf>,
    lines: usize,
}

impl Playing {
    /// Plays the numbers.
    pub(crate) fn start(place: &Place, seed: u64, (from, to): (u32, u32), fionread: &str, name: &str) -> Result<Self> {
        let mut files: Vec<PathBuf> = Vec::new();
        let mut file = |who: &str| {
            let file = place.join(&format!("{name}-{from}-{who}"));
            files.push(file.clone());
            file
        };
        // Every connection of both clients may be at one server.
        let threads = (2 * CALLERS + 4).to_string();
        let mut servers = Vec::new();
        let mut ports = Vec::new();
        for (who, mode) in ["usual", "first"].iter().flat_map(|who| MODES.map(|mode| (who, mode))) {
            let port = free_port()?;
            let launch = exchanges(&format!("serve-{who}-{mode}"), SERVER, place)?
                .args(["serve", mode, fionread, &seed.to_string(), &port.to_string(), &threads])
                .arg(file(&format!("server-{who}-{mode}")))
                .arg(REQUEST_NAMES);
            servers.push(launch.start(&[Target::loopback(port)])?);
            ports.push(port.to_string());
        }
        let mut clients: Vec<Service> = Vec::new();
        for (index, mode) in (0..).zip(MODES) {
            let numbers = [from + index, to, 2].map(|number| number.to_string());
            let launch = exchanges(&format!("call-{mode}"), CLIENT, place)?
                .args(["call", mode, fionread, &seed.to_string()])
                .args(numbers)
                .arg(CALLERS.to_string())
                .arg(file(&format!("client-{mode}")))
                .arg(RESPONSE_NAMES)
                .args(&ports);
            clients.push(launch.spawn()?);
        }
        Ok(Self {
            clients,
            _servers: servers,
            files,
            lines: 2 * (to - from) as usize,
        })
    }

    /// A client still has exchanges to play.
    pub(crate) fn goes_on(&mut self) -> Result<bool> {
        for client in &mut self.clients {
            if client.ended()?.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Waits for the end, and reads what everybody saw.
    pub(crate) fn finish(mut self) -> Result<Run> {
        for client in &mut self.clients {
            let status = client.wait_end(ROUND_LIMIT)?;
            ensure!(
                status.success(),
                "{} ended with {status}:\n{}",
                client.name(),
                client.log()
            );
        }
        read(&self.files, self.lines)
    }
}

/// Reads what the processes wrote once it is complete, or does not grow any more.
fn read(files: &[PathBuf], lines: usize) -> Result<Run> {
    let start = Instant::now();
    loop {
        let mut written = 0;
        for file in files {
            written += memchr::memchr_iter(b'\n', &std::fs::read(file).unwrap_or_default()).count();
        }
        if written >= lines || start.elapsed() > LAST_LINES {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut run = Run::default();
    for file in files {
        run.read(file)?;
        std::fs::remove_file(file)?;
    }
    if run.records.is_empty() {
        bail!("no exchange was played");
    }
    Ok(run)
}

/// A copy of the program under a name of its own, which selectors can tell from the other.
fn exchanges(name: &str, known_as: &str, place: &Place) -> Result<Launch> {
    let copy = place.join(known_as);
    if !copy.exists() {
        std::fs::copy(env!("CARGO_BIN_EXE_spanwire-exchanges"), &copy)?;
    }
    // The agent has to get its share of the processor beside a thousand threads.
    Ok(Launch::new(name, program("nice")?, place).args(["-n", "15"]).arg(copy))
}
