//! Placeholder: builds the eBPF object.
fn main() {}
