//! Stage: export.

pub mod otlp;
pub mod wire;
