//! Stage: export.

pub mod otlp;
pub mod queue;
pub mod wire;
