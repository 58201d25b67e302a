//! Stage: discover. What a process is: its executable, owner, container and runtime, read from /proc once.
//!
//! ```text
//! procfs ─► process (facts) ─► runtime (one file each) ─► Verdict ─► cache (Discoverer) ─► PROCESSES map, enrich
//! ```
//!
//! Invariants:
//! - **Lazy.** A process is read when it shows traffic; idle ones cost nothing. There is no scan at start.
//! - **Positive evidence.** A class that lets the kernel side take a parent from a thread is only given when the
//!   runtime is recognised and every mapping was read; anything short of that is [`ProcessClass::Other`]. A verdict
//!   that rests on a library not being there is checked again, because libraries load late.
//! - **Private.** Of the environment two variables are looked at, and of those only listed resource attributes are
//!   kept. Of the arguments only the script's file name is kept. Buffers that held either are overwritten.
//! - **Bounded.** Every read has a ceiling; the cache has a capacity; a process that ends while it is read is told
//!   from what was read so far.
//!
//! [`ProcessClass::Other`]: spanwire_common::abi::ProcessClass::Other

pub mod addresses;
mod cache;
mod cgroup;
pub mod connections;
mod elf;
mod environment;
pub mod listeners;
mod maps;
pub mod node;
mod process;
mod procfs;
pub mod runtime;
mod script;
mod sockets;

pub use cache::{Discoverer, Hint, Limits};
pub use cgroup::{container_id, CgroupMount, CgroupPlace};
pub use environment::DeclaredResource;
pub use maps::{Library, MappedLibraries, Pattern};
pub use process::{Process, ProcessInfo};
pub use procfs::ProcRoot;
pub use runtime::{classify, Verdict};
pub use script::Arguments;
