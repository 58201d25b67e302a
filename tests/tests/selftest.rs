//! The self-test of the sockmap, as `spanwire doctor` shows it: verdicts that are the kernel's, in less than a second, from
//! which narrower modes follow by themselves; and nothing left behind.
#![allow(clippy::unwrap_used, reason = "test")]

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use serde_json::Value;
use spanwire_tests::cases::Cases;
use spanwire_tests::kernel::Inventory;
use spanwire_tests::place::{agent_binary, need_root, program};

/// All rows together, on a machine that does nothing else.
const AT_MOST_MS: u64 = 1_000;
const ATTEMPTS: usize = 5;

/// What is tried out.
const TRIED: usize = 12;
/// The modes, from the narrowest to the widest.
const MODES: [&str; 4] = [
    "headers: first request",
    "headers: non-blocking sockets",
    "headers: with FIONREAD",
    "headers: blocking sockets",
];

/// State and consequence by feature.
type Rows = BTreeMap<String, (String, String)>;

fn doctor(mut command: Command, faulty: &str) -> Result<Rows> {
    let output = command
        .args(["doctor", "--json"])
        .env("SPANWIRE_SELFTEST_FAULTY", faulty)
        .output()?;
    let document: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("no JSON: {}", String::from_utf8_lossy(&output.stderr)))?;
    let rows = document.as_array().context("no array of rows")?;
    let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    Ok(rows
        .iter()
        .map(|row| (text(row, "feature"), (text(row, "state"), text(row, "consequence"))))
        .collect())
}

fn plain(faulty: &str) -> Result<Rows> {
    doctor(Command::new(agent_binary()?), faulty)
}

/// The rows of what was tried.
fn tried(rows: &Rows) -> impl Iterator<Item = (&str, &str, &str)> {
    rows.iter()
        .filter(|(feature, _)| feature.starts_with("sockmap ") && *feature != "sockmap self-test")
        .map(|(feature, (state, text))| (feature.as_str(), state.as_str(), text.as_str()))
}

fn state<'a>(rows: &'a Rows, feature: &str) -> Result<&'a str> {
    let row = rows.get(feature).with_context(|| format!("no row {feature:?}"))?;
    Ok(&row.0)
}

fn allowed(rows: &Rows) -> Result<[bool; 4]> {
    let mut allowed = [false; 4];
    for (mode, allowed) in MODES.into_iter().zip(&mut allowed) {
        *allowed = state(rows, mode)? == "yes";
    }
    Ok(allowed)
}

/// Every row has an answer, and what the agent's own program does is right on every kernel.
fn verdicts(rows: &Rows) -> Result<String> {
    let unknown: Vec<_> = tried(rows).filter(|(_, state, _)| *state == "unknown").collect();
    ensure!(unknown.is_empty(), "without an answer: {unknown:?}");
    ensure!(tried(rows).count() == TRIED, "{} rows", tried(rows).count());
    for feature in [
        "sockmap insertion",
        "sockmap removal",
        "sockmap large writes in one piece",
    ] {
        let (state, text) = rows.get(feature).with_context(|| format!("no row {feature:?}"))?;
        ensure!(state == "clean", "{feature} is {state}: {text}");
    }
    let faulty: Vec<&str> = tried(rows)
        .filter(|(_, state, _)| *state == "faulty")
        .map(|(feature, _, _)| feature)
        .collect();
    Ok(format!("faulty on this kernel: {}", faulty.join("; ")))
}

fn soon() -> Result<String> {
    let mut took = Vec::new();
    for _ in 0..ATTEMPTS {
        let rows = plain("")?;
        let (_, text) = rows.get("sockmap self-test").context("no row for the test itself")?;
        let words: Vec<&str> = text.split(' ').collect();
        let unit = words
            .iter()
            .position(|word| word.starts_with("ms"))
            .context("no time")?;
        let ms: u64 = words[unit - 1].parse()?;
        if ms < AT_MOST_MS {
            return Ok(text.clone());
        }
        took.push(ms);
        std::thread::sleep(Duration::from_secs(2));
    }
    bail!("it took {took:?} ms")
}

/// A row that is faulty narrows the modes that it would harm, and no others.
fn narrowing() -> Result<String> {
    let here = allowed(&plain("")?)?;
    for (faulty, left) in [
        ("zero_copy", [true; 4]),
        ("recv_signal", [true, true, true, false]),
        ("fionread", [true, true, false, false]),
        ("splice", [true, false, false, false]),
        ("non_blocking", [true, false, false, false]),
        ("large_writes,large_writes_linearised", [false; 4]),
        ("insertion", [false; 4]),
        ("removal,fionread", [false; 4]),
    ] {
        let rows = plain(faulty)?;
        let mut expected = here;
        for (expected, left) in expected.iter_mut().zip(left) {
            *expected &= left;
        }
        let seen = allowed(&rows)?;
        ensure!(seen == expected, "{faulty}: {seen:?}, expected {expected:?}");
        let told = tried(&rows)
            .filter(|(_, _, text)| text.contains("SPANWIRE_SELFTEST_FAULTY"))
            .count();
        ensure!(told == faulty.split(',').count(), "{faulty}: {told} rows say so");
    }
    Ok(format!("8 faults, from {here:?}"))
}

/// Without CAP_SYS_ADMIN there is no network namespace; the loopback interface gives the same answers.
fn on_loopback(rows: &Rows) -> Result<String> {
    let mut command = Command::new(program("setpriv")?);
    command
        .args(["--inh-caps", "-sys_admin", "--bounding-set", "-sys_admin", "--"])
        .arg(agent_binary()?);
    let without = doctor(command, "")?;
    ensure!(
        state(&without, "CAP_SYS_ADMIN")? == "no",
        "CAP_SYS_ADMIN is still there"
    );
    let (_, text) = without.get("sockmap self-test").context("no row for the test itself")?;
    ensure!(text.contains("on the loopback interface"), "{text}");
    let states = |rows: &Rows| -> Vec<(String, String)> {
        tried(rows)
            .map(|(feature, state, _)| (feature.to_owned(), state.to_owned()))
            .collect()
    };
    ensure!(
        states(&without) == states(rows),
        "other verdicts: {:?}",
        states(&without)
    );
    Ok(text.clone())
}

fn nothing_left(before: &Inventory) -> Result<String> {
    let took = Inventory::wait_gone_since(before, Duration::from_secs(5))?;
    Ok(format!(
        "no program, map, link or pin {} ms after the last run",
        took.as_millis()
    ))
}

#[test]
fn the_sockmap_is_tried_out() {
    need_root().unwrap();
    let before = Inventory::now().unwrap();
    let rows = plain("").unwrap();
    let mut cases = Cases::new("selftest");
    cases.run("every row has an answer", || verdicts(&rows));
    cases.run("in less than a second", soon);
    cases.run("a fault narrows the modes", narrowing);
    cases.run("on the loopback interface", || on_loopback(&rows));
    cases.run("nothing is left", || nothing_left(&before));
    cases.finish();
}
