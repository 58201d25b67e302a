//! Stage: enrich.
