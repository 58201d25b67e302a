//! Stage: export. Spans leave for OTLP backends; nothing here can reach upstream.
//!
//! ```text
//! push -> queue (8,192 spans, 8 MiB, oldest out) -> batch (512 spans, 0.5 s) -> encode -> gRPC | HTTP, with retries
//! ```
//!
//! Every configured exporter has its own queue, connections and tasks, so that a dead backend starves no other. Whatever a
//! backend does (nothing, slowly, wrongly, endlessly), it costs the bounds above and a counter; `docs/export.md` says
//! what each failure leads to.

mod client;
mod endpoint;
mod grpc;
mod http;
pub mod otlp;
pub mod queue;
mod retry;
mod sender;
pub mod wire;

pub use endpoint::{ExportError, ExporterSettings, Protocol};
pub use retry::RetryPolicy;
pub use sender::{ExporterHandle, Exporters, Tuning};
