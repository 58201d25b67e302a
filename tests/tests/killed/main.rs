//! Zero harm, at the agent's end: a thousand live connections whose requests and responses are being rewritten, an agent that is
//! killed, stopped, started and told to leave off in the middle of them. Every byte of every exchange is known, no request
//! fails, and each life of an agent counts only if it had rewritten what was live when it ended.
#![allow(clippy::unwrap_used, reason = "test")]

mod load;

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{ensure, Result};
use rustix::process::Signal;
use spanwire_tests::agent::{Agent, STOP_LIMIT};
use spanwire_tests::cases::{say, Cases};
use spanwire_tests::kernel::Inventory;
use spanwire_tests::place::Place;
use spanwire_tests::steady::wire::Lane;

use self::load::{Load, Mode, Now};

/// Programs and maps are freed after the kernel's grace periods.
const FREE_LIMIT: Duration = Duration::from_secs(5);
/// What was sent before the agent's end has arrived after this.
const ON_THE_WAY: Duration = Duration::from_millis(150);
/// From SIGUSR1 until nothing is sent rewritten any more; a second, with what is on its way then.
const OFF_WITHIN: Duration = Duration::from_millis(850);

/// When an agent's life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// With the first messages that it has rewritten: sockets are being enrolled.
    AtOnce,
    /// When so much has been rewritten that everything has settled.
    Settled,
    /// Inside a send whose head it has rewritten, and whose body is still on its way.
    Sending,
}

impl When {
    /// Messages rewritten in one life.
    const FIRST: u64 = 10;
    const SETTLED: u64 = 1_000;
    /// Connections whose last request was rewritten, where every request is.
    const SETTLED_OPEN: u64 = 250;

    fn is_it(self, mode: Mode, before: &Now, now: &Now) -> bool {
        let rewritten = now.rewritten(mode) - before.rewritten(mode);
        let open = mode != Mode::All || now.served.rewritten_open >= Self::SETTLED_OPEN;
        match self {
            Self::AtOnce => rewritten >= Self::FIRST,
            Self::Settled => rewritten >= Self::SETTLED && open,
            Self::Sending => now.lane(Lane::Upload) > before.lane(Lane::Upload) && now.called.sending > 0,
        }
    }
}

/// A life of an agent in the middle of the load, from its start to a while after its end.
fn one_life(
    load: &mut Load,
    kernel: &Inventory,
    mode: Mode,
    when: When,
    end: impl FnOnce(&mut Agent) -> Result<String>,
) -> Result<String> {
    let before = load.now()?;
    before.is_live()?;
    let start = Instant::now();
    let mut agent = Agent::start(&load.setup(mode))?;
    let ready = start.elapsed();
    let what = format!("an agent ({mode:?}) to be ended {when:?}");
    let at = load.until(&what, |now| when.is_it(mode, &before, now))?;
    at.is_live()?;
    let ended = end(&mut agent)?;
    let gone = Inventory::wait_gone_since(kernel, FREE_LIMIT)?;
    // What stays enrolled goes on untouched only after the end; of the others all requests but the first do.
    let evidence = goes_on_untouched(load, mode, if mode == Mode::First { &before } else { &at })?;
    Ok(format!(
        "{mode:?}, ready after {ready:.1?}, {ended} {when:?}: {} rewritten before, {} connections live, {} last rewritten, \
         {} in a send; kernel clean after {gone:.0?}; {evidence}",
        at.rewritten(mode) - before.rewritten(mode),
        at.called.open,
        at.served.rewritten_open,
        at.called.sending,
    ))
}

/// Nothing is added any more; every connection goes on, those that were rewritten too.
fn goes_on_untouched(load: &mut Load, mode: Mode, since: &Now) -> Result<String> {
    sleep(ON_THE_WAY);
    let after = load.now()?;
    let later = load.until("every connection to ask again", |now| {
        now.heads() >= after.heads() + after.called.open
    })?;
    later.is_live()?;
    ensure!(
        later.rewritten(mode) == after.rewritten(mode),
        "{} messages were rewritten without an agent",
        later.rewritten(mode) - after.rewritten(mode)
    );
    let went_on = later.went_on(mode) - since.went_on(mode);
    ensure!(
        went_on > 0,
        "no connection that was rewritten has gone on: {since:?}, {later:?}"
    );
    Ok(format!(
        "{went_on} rewritten connections went on, {} answers, 0 failed",
        later.called.answered - since.called.answered
    ))
}

/// SIGKILL at different instants, in every mode.
fn killed(load: &mut Load, kernel: &Inventory) -> Result<String> {
    let lives = [
        (Mode::All, When::AtOnce),
        (Mode::All, When::Settled),
        (Mode::First, When::Sending),
        (Mode::First, When::Settled),
        (Mode::Responses, When::AtOnce),
        (Mode::Responses, When::Settled),
        (Mode::All, When::Sending),
    ];
    for (mode, when) in lives {
        let evidence = one_life(load, kernel, mode, when, |agent| {
            agent.kill()?;
            Ok("killed".to_owned())
        })?;
        say(&evidence);
    }
    Ok(format!(
        "{} agents killed, each with rewritten connections",
        lives.len()
    ))
}

/// SIGTERM, and the next one starts at once.
fn stopped(load: &mut Load, kernel: &Inventory) -> Result<String> {
    let lives = [Mode::All, Mode::First, Mode::Responses, Mode::All, Mode::First];
    for mode in lives {
        let evidence = one_life(load, kernel, mode, When::AtOnce, |agent| {
            let (status, took) = agent.terminate()?;
            ensure!(status.success(), "ended with {status}; its log:\n{}", agent.log());
            ensure!(took <= STOP_LIMIT, "took {took:?} to end");
            Ok(format!("stopped in {took:.1?}"))
        })?;
        say(&evidence);
    }
    Ok(format!("{} agents started and stopped", lives.len()))
}

/// SIGUSR1 takes every socket away from a running agent, SIGUSR2 lets it have new ones.
fn switched(load: &mut Load, kernel: &Inventory) -> Result<String> {
    const TIMES: usize = 2;
    let before = load.now()?;
    let mut agent = Agent::start(&load.setup(Mode::All))?;
    let mut at = load.until("rewriting", |now| When::Settled.is_it(Mode::All, &before, now))?;
    for _ in 0..TIMES {
        at.is_live()?;
        agent.service().signal(Signal::USR1)?;
        sleep(OFF_WITHIN);
        say(&format!("off: {}", goes_on_untouched(load, Mode::All, &at)?));
        let off = load.now()?;
        let start = Instant::now();
        agent.service().signal(Signal::USR2)?;
        at = load.until("rewriting again", |now| When::Settled.is_it(Mode::All, &off, now))?;
        say(&format!(
            "on again: {} rewritten within {:.1?}",
            at.requests_rewritten() - off.requests_rewritten(),
            start.elapsed()
        ));
    }
    agent.terminate()?;
    Inventory::wait_gone_since(kernel, FREE_LIMIT)?;
    Ok(format!("{TIMES} times off and on"))
}

/// Every request has its answer, and every way to be rewritten was met.
fn answered(load: Load) -> Result<String> {
    let now = load.end()?;
    let Now { called, served } = &now;
    for lane in Lane::ALL {
        ensure!(now.lane(lane) > 0, "no request of lane {} was rewritten", lane.name());
    }
    let rewritten = Lane::ALL.map(|lane| format!("{} {}", lane.name(), now.lane(lane)));
    Ok(format!(
        "{} requests over {} connections, 0 failed; with a header added: {} of {} requests ({}), {} responses; longest wait {} ms, \
         {} of 38 ms or more",
        called.answered,
        called.connections,
        now.requests_rewritten(),
        served.heads.iter().sum::<u64>(),
        rewritten.join(", "),
        called.returned,
        called.slowest_ms,
        called.stalled
    ))
}

#[test]
fn nobody_notices_an_agents_end() {
    let place = Place::new("killed").unwrap();
    let kernel = Inventory::now().unwrap();
    let mut load = Load::start(&place).unwrap();
    let mut cases = Cases::new("killed");
    cases.run("SIGKILL under 1,000 connections", || killed(&mut load, &kernel));
    cases.run("start, stop, start", || stopped(&mut load, &kernel));
    cases.run("off and on", || switched(&mut load, &kernel));
    cases.run("every request is answered", || answered(load));
    cases.finish();
}
