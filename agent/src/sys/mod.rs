//! The only unsafe code of user space: loading and attaching programs, reading rings and maps.

pub mod bpf;
pub mod btf;
pub mod hooks;
pub mod kernel;
pub mod memory;
pub mod pod;
pub mod probe;
pub mod ring;
pub mod types;
pub mod usage;
