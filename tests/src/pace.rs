//! How long this machine takes: limits are for one that runs its own instructions, and an emulated one gets more.

use std::sync::LazyLock;
use std::time::Duration;

/// How many times as long as usual everything may take; `x vm` sets it for the machines that it emulates.
const VARIABLE: &str = "SPANWIRE_PATIENCE";

/// A limit, on this machine. What a limit promises to users is not for this function.
///
/// # Panics
/// When the variable is no number.
pub fn patient(limit: Duration) -> Duration {
    limit * times()
}

/// True where the machine is so slow that a test may play less.
pub fn is_slow() -> bool {
    times() > 1
}

#[allow(
    clippy::panic,
    reason = "a test that would run with other limits than it was told to"
)]
fn times() -> u32 {
    static TIMES: LazyLock<u32> = LazyLock::new(|| match std::env::var(VARIABLE) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{VARIABLE} is {text:?}, which is no number")),
        Err(_) => 1,
    });
    *TIMES
}
