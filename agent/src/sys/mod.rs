//! Stage: sys.
