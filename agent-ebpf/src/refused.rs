//! Processes that no selector asks for: the way out of every call on a node that is not captured, so it has to be cheap.
//!
//! What a process is refused for lies in PROCESSES. Each CPU remembers the last process that was refused there, and under
//! which generation of that table. Whatever changes the table raises the generation, after the change; a verdict is made
//! from what is read after the generation. So none outlives what it was made from.

use aya_ebpf::helpers::generated::bpf_get_current_pid_tgid;
use spanwire_common::abi::{generation, process_flag};
use spanwire_common::drop::KernelCounter;

use crate::atomic;
use crate::count::cost;
use crate::maps::{GENERATIONS, PROCESSES, REFUSED};

/// This CPU has refused the current process already, and nothing has changed since.
#[inline(always)]
pub fn is_known() -> bool {
    let Some(known) = REFUSED.get_ptr(0) else { return false };
    // SAFETY: an element of a per-CPU array; one word, so it is whole whoever else is at work on this CPU.
    unsafe { core::ptr::read_volatile(known) == verdict(pid()) }
}

/// No selector asks for the current process, whatever its ports.
#[inline(always)]
pub fn is_refused() -> bool {
    let pid = pid();
    let verdict = verdict(pid);
    cost(KernelCounter::MapOperations);
    let refused = PROCESSES.get_ptr(&pid).is_some_and(|process| {
        // SAFETY: a live map value.
        let process = unsafe { &*process };
        process.include == 0 || process.flags & process_flag::EXCLUDED != 0
    });
    if refused {
        if let Some(known) = REFUSED.get_ptr_mut(0) {
            // SAFETY: as in `is_known`.
            unsafe { core::ptr::write_volatile(known, verdict) };
        }
    }
    refused
}

/// PROCESSES has been changed: verdicts from before hold no more.
#[inline(always)]
pub fn forget() {
    if let Some(generation) = GENERATIONS.get_ptr_mut(generation::OF_THE_KERNEL_SIDE) {
        // SAFETY: an element of an array.
        atomic::fetch_add(unsafe { &mut *generation }, 1);
    }
}

#[inline(always)]
fn pid() -> u32 {
    // SAFETY: no arguments.
    (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32
}

/// What REFUSED holds where `pid` was refused under the present generation.
#[inline(always)]
fn verdict(pid: u32) -> u64 {
    let (Some(ours), Some(theirs)) = (
        GENERATIONS.get_ptr(generation::OF_THE_KERNEL_SIDE),
        GENERATIONS.get_ptr(generation::OF_USER_SPACE),
    ) else {
        return 0;
    };
    // SAFETY: elements of an array, whole words. Each only grows, so their sum tells a change of either.
    let generation = unsafe { core::ptr::read_volatile(ours).wrapping_add(core::ptr::read_volatile(theirs)) };
    u64::from(pid) << 32 | u64::from(generation as u32)
}
