//! Writing trace context into messages: where it may be done at all.

pub mod modes;
