//! Stage: export.
