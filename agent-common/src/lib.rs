//! What the kernel side and the host share.
//!
//! Compiled for BPF (`bpfel-unknown-none`) and for the host from the same source, so that the parser that runs in
//! the kernel is the one the unit tests, the property tests and the fuzzer run.
//!
//! Principles:
//! - `no_std`, no allocation, no I/O, no clock, no logging, no `unsafe`.
//! - Nothing here can panic: no indexing, no unchecked arithmetic on lengths. A panicking symbol in the BPF object
//!   fails `cargo xtask check`.
//! - Loops are bounded by constants, because the BPF verifier walks them.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

#[cfg(any(test, feature = "host"))]
extern crate std;

pub mod abi;
pub mod drop;
pub mod protocol;
pub mod trial;
