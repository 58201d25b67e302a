//! Stage: cli.

pub mod client;
#[cfg(test)]
mod query_tests;
pub mod services;
pub mod status;
pub mod text;
pub mod trace;
pub mod traces;
mod tree;
