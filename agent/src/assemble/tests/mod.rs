//! Replays of records through the stage, one file per question.
#![allow(clippy::unwrap_used, clippy::panic, reason = "test")]

mod bounds;
mod client_parents;
mod exclusions;
mod late;
mod orders;
mod retries;
mod returned;
mod sdk;
mod server_parents;
mod texts;
