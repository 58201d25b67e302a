//! The eBPF object must not be able to panic: a panic that the compiler could not rule out leaves its symbols in the
//! object, and the verifier would refuse the load. Finding them here needs neither root nor a kernel.

use anyhow::{bail, Context, Result};
use object::{Object, ObjectSection, ObjectSymbol};

pub(super) fn check(elf: &[u8]) -> Result<()> {
    let object = object::File::parse(elf).context("the eBPF object is not an ELF file")?;
    if object.sections().all(|section| section.name() != Ok(".BTF")) {
        bail!("the eBPF object has no .BTF section: bpf-linker was called without --btf");
    }
    let names = object.symbols().filter_map(|symbol| symbol.name().ok());
    let mut found: Vec<&str> = names.filter(|name| is_panic(name)).collect();
    found.sort_unstable();
    found.dedup();
    if found.is_empty() {
        return Ok(());
    }
    bail!(
        "something in the kernel side can panic (an index, an unwrap, arithmetic): {}",
        found.join(" ")
    )
}

/// Both manglings keep the words of the path: `core::panicking`, `panic_bounds_check`, `slice_index_fail`, the handler.
fn is_panic(symbol: &str) -> bool {
    [
        "panic",
        "rust_begin_unwind",
        "slice_index_fail",
        "unwrap_failed",
        "expect_failed",
        "_fail_",
    ]
    .iter()
    .any(|word| symbol.contains(word))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;

    #[test]
    fn panics_are_known_by_both_manglings() {
        assert!(is_panic("_ZN4core9panicking18panic_bounds_check17h0123456789abcdefE"));
        assert!(is_panic("_RNvNtCs123_4core9panicking5panic"));
        assert!(is_panic("_ZN4core6option13unwrap_failed17h0123456789abcdefE"));
        assert!(!is_panic("sock_send_length"));
        assert!(!is_panic(
            "_ZN15spanwire_common8protocol5http14head17h0123456789abcdefE"
        ));
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert!(check(b"#!/bin/sh\n")
            .unwrap_err()
            .to_string()
            .contains("not an ELF file"));
    }

    #[test]
    fn an_object_without_btf_is_refused() {
        // This very test program is an ELF file, and no eBPF object.
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(check(&program).unwrap_err().to_string().contains("no .BTF section"));
    }
}
