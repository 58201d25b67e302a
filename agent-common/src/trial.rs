//! What the self-test of rewriting (`agent/src/sys/selftest/`) and its program (`agent-ebpf/src/hook/trial.rs`) agree on.

/// A message that begins so is to have [`LINE`] put in at [`LINE_AT`].
pub const INSERT: [u8; 8] = *b"\x01insert\x02";
/// A message that begins so is to be made one piece, and left as it is otherwise.
pub const LINEARISE: [u8; 8] = *b"\x01linear\x02";

/// Bytes of a message before the line.
pub const LINE_AT: u32 = 64;
/// As long as the header that is written into requests.
pub const LINE: [u8; 70] = *b"traceparent: 00-5350414e57495245545249414c4c494e-5350414e57495245-01\r\n";
