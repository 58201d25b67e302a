//! What this process itself uses, and giving memory back.
#![allow(unsafe_code, reason = "clock_gettime, sysconf, mallopt, malloc_trim")]

/// Processor time of all threads of this process since its start.
pub fn cpu_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid pointer to a timespec; every Linux has this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Bytes of this process that are in memory; 0 where /proc does not tell.
pub fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    resident_pages(&statm).unwrap_or_default() * page_bytes()
}

/// The second number of /proc/PID/statm.
fn resident_pages(statm: &str) -> Option<u64> {
    statm.split_whitespace().nth(1)?.parse().ok()
}

fn page_bytes() -> u64 {
    // SAFETY: no pointers; the name is one that every Linux knows.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.max(0) as u64
}

/// Arenas of the allocator. Each keeps what it once took, so that one for each thread holds several times what is in use;
/// the data path's spans are freed by other threads, which would wait for its arena anyway.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 2;
/// From this size on memory is mapped on its own, and goes back when it is freed. The allocator would raise it to the size
/// of the biggest block that was ever freed: the kernel's types, which are read once.
#[cfg(target_env = "gnu")]
const MAPPED_BYTES: libc::c_int = 512 << 10;

/// Makes the allocator keep little; to be called before there are threads.
pub fn keep_little_memory() {
    #[cfg(target_env = "gnu")]
    for (what, value) in [
        (libc::M_ARENA_MAX, ARENAS),
        (libc::M_MMAP_THRESHOLD, MAPPED_BYTES),
        // Setting the one ends the other's adjustment, too.
        (libc::M_TRIM_THRESHOLD, 2 * MAPPED_BYTES),
    ] {
        // SAFETY: no pointers; a refused value leaves the default.
        unsafe { libc::mallopt(what, value) };
    }
}

/// Gives memory that was freed back to the kernel. Takes some milliseconds.
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointers; takes the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;

    #[test]
    fn work_costs_time_and_memory() {
        let before = cpu_ns();
        let held = vec![1u8; 32 << 20];
        assert!(held.iter().map(|byte| u64::from(*byte)).sum::<u64>() > 0);
        assert!(cpu_ns() > before);
        assert!(resident_bytes() > 32 << 20);
    }

    #[test]
    fn resident_pages_are_the_second_number() {
        assert_eq!(resident_pages("11000 4012 2999 900 0 1200 0\n"), Some(4012));
        assert_eq!(resident_pages(""), None);
    }
}
