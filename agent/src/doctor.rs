//! Stage: doctor.
