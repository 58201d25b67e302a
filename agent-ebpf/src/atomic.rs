//! Read-modify-write on memory that other CPUs write as well (BPF_ATOMIC with BPF_FETCH, Linux 5.12). The target's
//! `core::sync::atomic` stops at loads and stores.

/// Adds to a 64-bit word. Returns what it held before. Ordered with everything around it.
#[inline(always)]
pub fn fetch_add(word: &mut u64, value: u64) -> u64 {
    let mut value = value;
    // SAFETY: a whole word, by exclusive reference.
    unsafe {
        core::arch::asm!("{value} = atomic_fetch_add((u64 *)({word} + 0), {value})", word = in(reg) word, value = inout(reg) value);
    }
    value
}

/// Sets bits of a 64-bit word. Returns what it held before. Ordered with everything around it.
#[inline(always)]
pub fn fetch_or(word: &mut u64, value: u64) -> u64 {
    let mut value = value;
    // SAFETY: as above.
    unsafe {
        core::arch::asm!("{value} = atomic_fetch_or((u64 *)({word} + 0), {value})", word = in(reg) word, value = inout(reg) value);
    }
    value
}
