//! Exchanges played twice, without an agent and with one: what both ends saw must be equal, save the lines the agent adds.
//!
//! - [`exchange`]: one exchange as data: both streams, who sends which piece when and how, how it ends
//! - [`generate`]: an exchange from a seed and a number, the same in every process
//! - [`align`]: received bytes held against the expected ones, with what may be added and where
//! - [`message`], [`recorder`]: what real programs send, message by message, and a server that keeps it
//! - [`socket`], [`play`]: one side of an exchange on a real socket, call by call
//! - [`record`]: what a side saw, as a line of text, and two runs compared
//!
//! Both sides know the whole exchange, so each checks the other's bytes as they come; the two runs are compared in what
//! else an application could notice: results of calls, errors, ends.

pub mod align;
pub mod exchange;
pub mod generate;
pub mod message;
pub mod play;
pub mod record;
pub mod recorder;
pub mod socket;
