//! Stage: counters.
