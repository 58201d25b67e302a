//! Stage: web.
