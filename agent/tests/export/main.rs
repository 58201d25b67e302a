//! Exporters against real servers in this process: well-behaved, failing, and hostile ones.
#![allow(clippy::unwrap_used, clippy::panic, reason = "test")]

mod delivery;
mod grpc;
mod hostile;
mod http;
mod receiver;
mod sample;
mod shutdown;
