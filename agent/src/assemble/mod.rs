//! Stage: assemble.
