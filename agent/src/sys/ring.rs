//! Reading the per-CPU rings.
#![allow(unsafe_code, reason = "poll(2)")]

use std::os::fd::AsRawFd;
use std::time::Duration;

use aya::maps::{MapData, RingBuf};

/// The rings of all CPUs.
pub struct Rings {
    rings: Vec<RingBuf<MapData>>,
}

impl Rings {
    /// Takes the rings over.
    pub fn new(rings: Vec<RingBuf<MapData>>) -> Self {
        Self { rings }
    }

    /// Hands every record that is there to `each`, at most `limit` per ring, oldest first within a ring. Returns how
    /// many there were.
    pub fn drain(&mut self, limit: usize, mut each: impl FnMut(&[u8])) -> usize {
        let mut records = 0;
        for ring in &mut self.rings {
            for _ in 0..limit {
                let Some(record) = ring.next() else { break };
                each(&record);
                records += 1;
            }
        }
        records
    }

    /// Sleeps until a program asks to be looked at at once, at most `limit`.
    pub fn wait(&self, limit: Duration) {
        let mut polled: Vec<libc::pollfd> = self
            .rings
            .iter()
            .map(|ring| libc::pollfd {
                fd: ring.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            })
            .collect();
        let milliseconds = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: a valid array of its own length; an early return (a signal) only means an early look.
        unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, milliseconds) };
    }
}
