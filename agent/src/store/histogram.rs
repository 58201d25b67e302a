//! Latencies in logarithmic buckets: eight per power of two, so a quantile is at most 6 % off.

use super::encode::{read_varint, varint};

/// Buckets per power of two, as a power of two.
const SUB_BITS: u32 = 3;

/// Counts per bucket, sparse and sorted by bucket.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Histogram {
    counts: Vec<(u16, u64)>,
}

impl Histogram {
    /// Counts one latency.
    pub(super) fn record(&mut self, latency_ns: u64) {
        self.add(bucket_of(latency_ns), 1);
    }

    /// Adds everything `other` has counted.
    pub(super) fn merge(&mut self, other: &Self) {
        for &(bucket, count) in &other.counts {
            self.add(bucket, count);
        }
    }

    /// The latency that the share `quantile` (0..=1) of all does not exceed; 0 when nothing was counted.
    pub(super) fn quantile_ns(&self, quantile: f64) -> u64 {
        let total: u64 = self.counts.iter().map(|(_, count)| count).sum();
        let wanted = ((total as f64 * quantile).ceil() as u64).clamp(1, total.max(1));
        let mut seen = 0;
        for &(bucket, count) in &self.counts {
            seen += count;
            if seen >= wanted {
                return middle_of(bucket);
            }
        }
        0
    }

    /// Appends the counts; [`Self::read`] takes them back.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        varint(self.counts.len() as u64, out);
        for &(bucket, count) in &self.counts {
            varint(u64::from(bucket), out);
            varint(count, out);
        }
    }

    /// Takes a histogram off the front.
    pub(super) fn read(rest: &mut &[u8]) -> Option<Self> {
        let mut histogram = Self::default();
        for _ in 0..read_varint(rest)? {
            let bucket = u16::try_from(read_varint(rest)?).ok()?;
            let count = read_varint(rest)?;
            histogram.add(bucket, count);
        }
        Some(histogram)
    }

    fn add(&mut self, bucket: u16, count: u64) {
        match self.counts.binary_search_by_key(&bucket, |(bucket, _)| *bucket) {
            Ok(place) => self.counts[place].1 += count,
            Err(place) => self.counts.insert(place, (bucket, count)),
        }
    }
}

fn bucket_of(latency_ns: u64) -> u16 {
    if latency_ns < 1 << SUB_BITS {
        return latency_ns as u16;
    }
    let power = latency_ns.ilog2() - SUB_BITS;
    ((power << SUB_BITS) as u64 + (latency_ns >> power)) as u16
}

fn middle_of(bucket: u16) -> u64 {
    let bucket = u64::from(bucket);
    if bucket < 2 << SUB_BITS {
        return bucket;
    }
    let power = (bucket >> SUB_BITS) - 1;
    let low = (bucket - (power << SUB_BITS)) << power;
    low + (1 << power >> 1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;

    #[test]
    fn a_bucket_holds_its_value_within_the_promised_error() {
        for shift in 0..60 {
            for offset in [0u64, 1, 3, 7] {
                let value = (8u64 << shift >> 3).saturating_add(offset << shift >> 3);
                let back = middle_of(bucket_of(value));
                assert!(
                    back.abs_diff(value) as f64 <= value as f64 * 0.0626,
                    "{value} came back as {back}"
                );
            }
        }
    }

    #[test]
    fn buckets_rise_with_the_value() {
        let mut last = 0;
        for value in (0..100_000u64).chain((0..63).map(|bit| 1 << bit).filter(|value| *value > 100_000)) {
            assert!(bucket_of(value) >= last, "{value}");
            last = bucket_of(value);
        }
        assert!(bucket_of(u64::MAX) >= last);
        assert!(middle_of(bucket_of(u64::MAX)) > 1 << 62);
    }

    #[test]
    fn quantiles_survive_a_merge_and_a_round_trip() {
        let (mut low, mut high) = (Histogram::default(), Histogram::default());
        for value in 1..=90 {
            low.record(value * 1_000);
        }
        for _ in 0..10 {
            high.record(1_000_000);
        }
        low.merge(&high);
        let mut bytes = Vec::new();
        low.write(&mut bytes);
        let read = Histogram::read(&mut &bytes[..]).unwrap();
        assert_eq!(read, low);
        assert!(
            read.quantile_ns(0.5).abs_diff(50_000) < 4_000,
            "{}",
            read.quantile_ns(0.5)
        );
        assert!(read.quantile_ns(0.99).abs_diff(1_000_000) < 63_000);
        assert_eq!(Histogram::default().quantile_ns(0.5), 0);
    }
}
