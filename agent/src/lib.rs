//! spanwire: traces services that nobody instrumented.
//!
//! The data path, one direction (ARCHITECTURE.md draws it):
//!
//! ```text
//! sys::ring -> decode -> assemble -> enrich -> sample -> route -> export | store -> web, cli
//! ```
//!
//! Stages from `decode` to `route` are plain structs: no async, channel or clock inside. `pipeline` owns tasks,
//! channels and capacities; `sys` holds the only unsafe code.
#![deny(unsafe_code)]

pub mod assemble;
pub mod budget;
pub mod cli;
pub mod config;
pub mod counters;
pub mod decode;
pub mod discover;
pub mod doctor;
pub mod enrich;
pub mod export;
pub mod pipeline;
pub mod rewrite;
pub mod route;
pub mod run;
pub mod sample;
pub mod span;
pub mod store;
pub mod sys;
pub mod web;
