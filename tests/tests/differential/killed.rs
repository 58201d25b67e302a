//! The agent is killed and started again in the middle of a thousand live connections: nobody notices.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{ensure, Result};
use spanwire_tests::agent::{Agent, STOP_LIMIT};
use spanwire_tests::cases::say;
use spanwire_tests::differential::record::Coverage;
use spanwire_tests::kernel::Inventory;
use spanwire_tests::place::Place;

use crate::bulk::{print_by_kind, seed, Playing};
use crate::rewriting;

/// Connections at a time, of each of two clients.
const CALLERS: usize = 500;
/// Exchanges of a load, played again as long as an agent is still to be killed.
const LOAD: u32 = 60_000;
/// Loads, at most.
const LOADS: u32 = 8;
/// Agents killed in the middle of the load, and agents asked to end.
const KILLED: usize = 5;
const STOPPED: usize = 2;
/// Programs and maps are freed after the kernel's grace periods.
const FREE_LIMIT: Duration = Duration::from_secs(5);

/// What each life of an agent has come to, told by its number.
struct Lives {
    ended: usize,
    evidence: Vec<String>,
}

pub(crate) fn in_the_middle(place: &Place) -> Result<String> {
    let seed = seed()?;
    let before = Inventory::now()?;
    let mut lives = Lives {
        ended: 0,
        evidence: Vec::new(),
    };
    let mut differences = Vec::new();
    let mut covered = Coverage::default();
    let mut exchanges = 0;
    let off = Playing::start(place, seed, (0, LOAD), "off", CALLERS)?.finish()?;
    differences.extend(off.faults());
    while lives.ended < KILLED + STOPPED && exchanges < LOADS * LOAD {
        let mut playing = Playing::start(place, seed, (0, LOAD), "on", CALLERS)?;
        while playing.goes_on()? {
            lives.one_more(&before, &mut playing)?;
        }
        let on = playing.finish()?;
        differences.extend(off.differences(&on));
        let row = on.coverage(|_| String::new()).remove("").unwrap_or_default();
        covered.with += row.with;
        exchanges += LOAD;
    }
    for line in &lives.evidence {
        say(line);
    }
    print_by_kind(&differences);
    ensure!(differences.is_empty(), "{} differences, see above", differences.len());
    ensure!(
        lives.ended >= KILLED + STOPPED,
        "only {} agents ended in the middle of a load",
        lives.ended
    );
    ensure!(
        covered.with > 0,
        "no agent lived long enough to add a header: nothing was shown"
    );
    Ok(format!(
        "{exchanges} exchanges over {} connections at a time, {} agents killed or stopped meanwhile, {} connections with \
         an added header, 0 differences",
        2 * CALLERS,
        lives.ended,
        covered.with
    ))
}

impl Lives {
    /// One agent, from its start to its end, and what it leaves in the kernel. It counts if the load outlives it.
    fn one_more(&mut self, before: &Inventory, playing: &mut Playing) -> Result<()> {
        let mut agent = Agent::start(&rewriting())?;
        // Another instant each time; some before it has got to rewriting, most in the middle of it.
        sleep(Duration::from_millis(100 + 530 * (self.ended as u64 % 7)));
        let status = agent.get_json("/api/status")?;
        let rewriting = status
            .pointer("/rewriting/injections")
            .map_or_else(String::new, ToString::to_string);
        let how = if self.ended % (KILLED + STOPPED) < KILLED {
            agent.kill()?;
            "killed"
        } else {
            let (status, took) = agent.terminate()?;
            ensure!(
                status.success() && took <= STOP_LIMIT,
                "ended with {status} after {took:?}"
            );
            "stopped"
        };
        let gone = Inventory::wait_gone_since(before, FREE_LIMIT)?;
        if !playing.goes_on()? {
            return Ok(());
        }
        self.ended += 1;
        self.evidence.push(format!(
            "agent {} {how}, kernel clean after {gone:?}; rewriting: {rewriting}",
            self.ended
        ));
        Ok(())
    }
}
