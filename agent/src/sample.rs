//! Stage: sample. Keep a span or not, by its trace id alone, so that a trace is kept or dropped whole, on every node.

use crate::span::{Span, TraceId};

/// Keeps a given share of all traces.
///
/// The last 7 bytes of a trace id are random (W3C Trace Context Level 2, 3.2.2.3); a trace is kept when that number is not
/// below a threshold, so a smaller share is a part of a bigger one, and all who sample by this rule agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampler {
    /// Traces whose random part is below this are dropped.
    threshold: u64,
}

/// Values the random part can take.
const SPACE: u64 = 1 << 56;

impl Sampler {
    /// Keeps every trace.
    pub const fn keep_all() -> Self {
        Self { threshold: 0 }
    }

    /// Keeps the share `ratio` (0 to 1) of all traces; what is outside is taken for the nearer end.
    pub fn ratio(ratio: f64) -> Self {
        let dropped = (1.0 - ratio.clamp(0.0, 1.0)) * SPACE as f64;
        Self {
            threshold: dropped as u64,
        }
    }

    /// Whether this span is handed on.
    pub fn keep(self, span: &Span) -> bool {
        self.keeps(span.trace_id)
    }

    /// Whether the spans of this trace are handed on.
    pub fn keeps(self, TraceId(bytes): TraceId) -> bool {
        let random = u64::from_be_bytes([
            bytes[8], bytes[9], bytes[10], bytes[11], bytes[12], bytes[13], bytes[14], bytes[15],
        ]);
        random & (SPACE - 1) >= self.threshold
    }
}

impl Default for Sampler {
    fn default() -> Self {
        Self::keep_all()
    }
}

#[cfg(test)]
mod tests {
    use super::Sampler;
    use crate::span::TraceId;

    /// Trace ids spread evenly over the random part (a Weyl sequence).
    fn ids() -> impl Iterator<Item = TraceId> {
        (1..=10_000u64).map(|n| {
            let mut bytes = [0xaa; 16];
            bytes[8..].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17).to_be_bytes());
            TraceId(bytes)
        })
    }

    #[test]
    fn all_or_none() {
        assert!(ids().all(|id| Sampler::keep_all().keeps(id)));
        assert!(ids().all(|id| Sampler::ratio(1.0).keeps(id)));
        assert!(ids().all(|id| Sampler::ratio(7.0).keeps(id)));
        assert_eq!(ids().filter(|id| Sampler::ratio(0.0).keeps(*id)).count(), 0);
        assert_eq!(Sampler::ratio(f64::NAN).threshold, 0, "not a number drops nothing");
        assert!(Sampler::keep_all().keeps(TraceId([0; 16])));
    }

    #[test]
    fn a_share_is_kept_and_a_smaller_one_is_part_of_it() {
        let (half, tenth) = (Sampler::ratio(0.5), Sampler::ratio(0.1));
        let kept = ids().filter(|id| half.keeps(*id)).count();
        assert!((4_800..=5_200).contains(&kept), "{kept}");
        let kept = ids().filter(|id| tenth.keeps(*id)).count();
        assert!((900..=1_100).contains(&kept), "{kept}");
        assert!(ids().filter(|id| tenth.keeps(*id)).all(|id| half.keeps(id)));
    }

    #[test]
    fn only_the_random_part_counts() {
        let sampler = Sampler::ratio(0.5);
        for id in ids() {
            let mut other = id;
            other.0[..9].fill(0x13);
            assert_eq!(sampler.keeps(id), sampler.keeps(other));
        }
    }
}
