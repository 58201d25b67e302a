//! Stage: sample.
