//! The only unsafe code of user space: loading and attaching programs, reading rings and maps.

pub mod bpf;
pub mod btf;
pub mod hooks;
pub mod kernel;
pub mod memory;
mod object;
pub mod older;
pub mod pod;
pub mod probe;
pub mod rewrite;
pub mod ring;
pub mod selftest;
mod tracefs;
mod trial;
pub mod types;
pub mod usage;
