//! Stage: export.

mod endpoint;
pub mod otlp;
pub mod queue;
mod retry;
pub mod wire;

pub use endpoint::{ExportError, ExporterSettings, Protocol};
pub use retry::RetryPolicy;
