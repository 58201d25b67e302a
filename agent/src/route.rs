//! Stage: route.
