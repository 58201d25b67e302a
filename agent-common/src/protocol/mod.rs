//! Protocol parsers: one file each, no `unsafe`, no panics, bounded loops.

pub mod http1;
