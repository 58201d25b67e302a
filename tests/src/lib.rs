//! End-to-end tests: the real agent binary watching real, unmodified services.
//!
//! Nothing here knows how the agent works; everything rests on the interface users have (command line,
//! configuration, HTTP API, OTLP export, self-metrics). One file per concern:
//!
//! - [`place`]: a directory of a test's own, free ports, where binaries and workloads are
//! - [`service`]: a process that a test started, and that ends with it
//! - [`apps`]: one file per application, started with a configuration of the test's own
//! - [`http`], [`load`]: a client that knows the truth: every request has an id of its own in its path
//! - [`agent`]: the agent under test, its API and its metrics
//! - [`receiver`]: an OTLP/HTTP endpoint that keeps what it is sent, or misbehaves as told
//! - [`spans`], [`judge`]: exported spans held against the truth
//! - [`search`]: where a secret is found: files, bytes, a process's memory
//! - [`kernel`], [`metrics`]: what is loaded in the kernel, and what the agent counts
//! - [`manifests`], [`pod`]: the files of `deploy/`, and the agent started as they say
//! - [`differential`]: exchanges of which every byte is known, played without and with the agent
//! - [`steady`]: a thousand connections that are kept, each byte of them known, for an agent that comes and goes
//! - [`pace`]: how much longer everything may take on an emulated machine
//! - [`cases`]: several cases against one set of services, all run, all reported
//!
//! The tests need root (the agent loads eBPF programs) and the packages that `cargo xtask` installs. A test that
//! cannot run fails and says what is missing; none is skipped.
#![allow(
    clippy::return_self_not_must_use,
    reason = "builders of a test, used where they are made"
)]

pub mod agent;
pub mod apps;
pub mod cases;
pub mod differential;
pub mod http;
pub mod judge;
pub mod kernel;
pub mod load;
pub mod manifests;
pub mod metrics;
pub mod pace;
pub mod place;
pub mod pod;
pub mod receiver;
pub mod search;
pub mod service;
pub mod spans;
pub mod steady;
