//! Programs: one file per hook family. An entry reads its arguments and hands over.

#[cfg(feature = "untyped")]
pub mod call;
pub mod iter;
#[cfg(feature = "untyped")]
pub mod kprobe;
pub mod process;
pub mod rewrite;
#[cfg(not(feature = "untyped"))]
pub mod sock;
#[cfg(any(not(feature = "untyped"), feature = "scalars"))]
pub mod sock_fexit;
pub mod state;
#[cfg(feature = "untyped")]
pub mod syscall;
pub mod trial;
