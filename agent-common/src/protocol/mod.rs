//! Protocol parsers: no `unsafe`, no panics, loops bounded by constants. One folder each, over what they share: the
//! [`window::Window`] of bytes in view and the arithmetic on eight bytes at a time.
#![allow(
    clippy::inline_always,
    reason = "each function has to become part of the BPF function it is called from: verified there, and no BPF-to-BPF call"
)]

pub mod context;
pub mod http1;
pub mod number;
pub mod swar;
pub mod traceparent;
pub mod tracestate;
pub mod window;
