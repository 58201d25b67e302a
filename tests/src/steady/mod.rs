//! A steady load: a thousand connections that are kept, each with a request every now and then, at a rate that leaves the
//! processor to the agent. One thread serves and one asks, so that a connection costs no thread; both know every byte of both
//! directions from the path alone.
//!
//! - [`wire`]: what is asked and answered, and received bytes held against it
//! - [`call`], `upload`: the side that asks
//! - [`serve`]: the side that answers, and tells which requests came with a header that nobody sent
//! - [`count`]: what both have seen so far, line by line, for the test to read while they run

pub mod call;
pub mod count;
pub mod serve;
mod upload;
pub mod wire;
