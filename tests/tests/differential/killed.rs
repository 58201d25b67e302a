//! Generated exchanges of every kind while agents come and are killed: what both ends see is what they see without any agent.
//! (`tests/tests/killed/` has many connections, here they are of every kind.)

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{ensure, Result};
use spanwire_tests::agent::Agent;
use spanwire_tests::cases::say;
use spanwire_tests::differential::record::Run;
use spanwire_tests::kernel::Inventory;
use spanwire_tests::place::Place;

use crate::bulk::{print_by_kind, seed, Playing, Seeing};

/// Exchanges of one load, played again while there are agents to be killed.
const LOAD: u32 = 20_000;
const LOADS: u32 = 10;
const KILLED: usize = 5;
/// Messages that an agent has rewritten before it counts.
const REWRITTEN: u64 = 100;
/// From its start until it has; a load may be over before.
const EFFECT_LIMIT: Duration = Duration::from_secs(15);
/// Programs and maps are freed after the kernel's grace periods.
const FREE_LIMIT: Duration = Duration::from_secs(5);

pub(crate) fn in_the_middle(place: &Place) -> Result<String> {
    let seed = seed()?;
    let kernel = Inventory::now()?;
    let seeing = Seeing::BothStaying;
    let off = Playing::start(place, seed, (0, LOAD), seeing.fionread(), "off")?.finish()?;
    let mut differences = off.faults();
    let (mut killed, mut exchanges, mut rewritten) = (0, 0, 0);
    while killed < KILLED && exchanges < LOADS * LOAD {
        let mut playing = Playing::start(place, seed, (0, LOAD), seeing.fionread(), "on")?;
        while playing.goes_on()? && killed < KILLED {
            killed += usize::from(one_life(&mut playing, seeing, &kernel, killed)?);
        }
        let on = playing.finish()?;
        differences.extend(off.differences(&on));
        rewritten += heads(&on);
        exchanges += LOAD;
    }
    print_by_kind(&differences);
    ensure!(differences.is_empty(), "{} differences, see above", differences.len());
    ensure!(
        killed >= KILLED,
        "only {killed} agents were killed in the middle of a load"
    );
    Ok(format!(
        "{exchanges} exchanges, {rewritten} heads with an added header, {killed} agents killed meanwhile, 0 differences"
    ))
}

/// One agent, killed at another instant each time. It counts if it had rewritten something, and the load outlives it.
fn one_life(playing: &mut Playing, seeing: Seeing, kernel: &Inventory, number: usize) -> Result<bool> {
    let mut agent = Agent::start(&seeing.setup())?;
    let start = Instant::now();
    let written = loop {
        let written = agent.metrics()?.sum("spanwire_injections_total", &[("result", "ok")]);
        if written >= REWRITTEN || !playing.goes_on()? {
            break written;
        }
        ensure!(
            start.elapsed() < EFFECT_LIMIT,
            "{written} messages rewritten after {EFFECT_LIMIT:?}"
        );
        sleep(Duration::from_millis(20));
    };
    sleep(Duration::from_millis(37 * number as u64));
    agent.kill()?;
    let counts = written >= REWRITTEN && playing.goes_on()?;
    let gone = Inventory::wait_gone_since(kernel, FREE_LIMIT)?;
    if counts {
        say(&format!(
            "killed after {written} rewritten messages or more, kernel clean after {gone:.0?}"
        ));
    }
    Ok(counts)
}

/// Requests and responses that were received with an added header.
fn heads(run: &Run) -> u64 {
    run.coverage(|_| String::new()).values().map(|row| row.inserted).sum()
}
