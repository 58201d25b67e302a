//! Zero harm, by difference: the same exchanges with and without the agent. Bytes at both ends, results of calls, errors
//! and ends of connections are equal, save the lines that the agent adds where it may.
#![allow(clippy::unwrap_used, reason = "test")]

mod bulk;
mod clients;
mod coverage;
mod killed;
mod probe;
mod servers;

use serde_json::{json, Value};
use spanwire_tests::agent::Setup;
use spanwire_tests::cases::Cases;
use spanwire_tests::place::Place;

/// Headers that the agent may add to requests.
const REQUEST_NAMES: &str = "traceparent,tracestate";
/// Headers that the agent may add to responses.
const RESPONSE_NAMES: &str = "server-timing";

/// Everything this test and what it starts is captured, rewritten where that is safe, and its responses bear the id.
fn rewriting() -> Setup {
    rewriting_of(&[json!({"pid": std::process::id()})])
}

/// As above, of what the selectors name.
fn rewriting_of(include: &[Value]) -> Setup {
    Setup::capturing(include)
        .with("propagate", "enabled", json!("auto"))
        .with("ingress", "enabled", json!("auto"))
}

fn names(list: &str) -> Vec<String> {
    list.split(',').map(str::to_owned).collect()
}

#[test]
fn generated_exchanges_are_the_same() {
    let place = Place::new("bulk").unwrap();
    let mut cases = Cases::new("differential");
    cases.run("generated exchanges", || bulk::generated(&place));
    cases.finish();
}

#[test]
fn generated_exchanges_are_the_same_while_agents_are_killed() {
    let place = Place::new("bulk-killed").unwrap();
    let mut cases = Cases::new("differential");
    cases.run("killed agents", || killed::in_the_middle(&place));
    cases.finish();
}

#[test]
fn system_calls_say_the_same() {
    let place = Place::new("probe").unwrap();
    let mut cases = Cases::new("differential");
    cases.run("system calls", || probe::compared(&place));
    cases.finish();
}

#[test]
fn clients_send_and_get_the_same() {
    let place = Place::new("clients").unwrap();
    let mut cases = Cases::new("differential");
    cases.run("clients", || clients::compared(&place));
    cases.finish();
}

#[test]
fn servers_and_proxies_answer_and_forward_the_same() {
    let place = Place::new("servers").unwrap();
    let mut cases = Cases::new("differential");
    cases.run("servers and proxies", || servers::compared(&place));
    cases.finish();
}

#[test]
fn coverage_is_counted() {
    let place = Place::new("coverage").unwrap();
    let mut cases = Cases::new("differential");
    cases.run("coverage", || coverage::measured(&place));
    cases.finish();
}
