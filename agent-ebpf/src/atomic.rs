//! Read-modify-write on memory that other CPUs write as well (BPF_ATOMIC with BPF_FETCH, Linux 5.12). The target's
//! `core::sync::atomic` stops at loads and stores.
//!
//! Before 5.12 (feature `scalars`) a word can be added to, and what it held is not told. It is loaded afterwards: of two
//! CPUs that add at the same moment, both may then take themselves for the second, never both for the first.

/// Adds to a 64-bit word. Returns what it held before. Ordered with everything around it.
#[cfg(not(feature = "scalars"))]
#[inline(always)]
pub fn fetch_add(word: &mut u64, value: u64) -> u64 {
    let mut value = value;
    // SAFETY: a whole word, by exclusive reference.
    unsafe {
        core::arch::asm!("{value} = atomic_fetch_add((u64 *)({word} + 0), {value})", word = in(reg) word, value = inout(reg) value);
    }
    value
}

/// As above.
#[cfg(feature = "scalars")]
#[inline(always)]
pub fn fetch_add(word: &mut u64, value: u64) -> u64 {
    // SAFETY: a whole word, by exclusive reference.
    unsafe {
        core::arch::asm!("lock *(u64 *)({word} + 0) += {value}", word = in(reg) word, value = in(reg) value);
        core::ptr::read_volatile(word).wrapping_sub(value)
    }
}
