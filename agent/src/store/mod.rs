//! Stage: store.
