//! Reading the per-CPU rings.

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

    /// File descriptors that become readable when a program asks to be looked at at once.
    pub fn descriptors(&self) -> impl Iterator<Item = std::os::fd::BorrowedFd<'_>> {
        use std::os::fd::AsFd;
        self.rings.iter().map(AsFd::as_fd)
    }
}
