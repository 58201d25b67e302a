//! Counters.

use spanwire_common::drop::KernelCounter;

use crate::maps::COUNTERS;

/// Adds one to a counter of this CPU.
#[inline(always)]
pub fn count(counter: KernelCounter) {
    if let Some(total) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: an element of a per-CPU array, which only this CPU writes.
        unsafe { *total += 1 };
    }
}

/// As [`count`], for the cost counters: compiled in only where the loader asks for them (`COUNT_COSTS`), since
/// counting costs as much as some of what it counts.
#[inline(always)]
pub fn cost(counter: KernelCounter) {
    // SAFETY: a static of this program, set by the loader before the load.
    if unsafe { core::ptr::read_volatile(&raw const COUNT_COSTS) } != 0 {
        count(counter);
    }
}

#[no_mangle]
static COUNT_COSTS: u32 = 0;
