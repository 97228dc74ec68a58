//! The last minute of a heap's figures.

use std::collections::VecDeque;
use std::time::Duration;

use podopsy_model::heap::HeapFigures;

/// How far back a trend looks.
const REACH: Duration = Duration::from_secs(60);

/// The figures of a JVM, oldest first, with CLOCK_BOOTTIME in ns.
#[derive(Debug, Default)]
pub struct HeapSamples(VecDeque<(u64, HeapFigures)>);

impl HeapSamples {
    pub fn push(&mut self, now_ns: u64, figures: HeapFigures) {
        let is_old = |at: u64| now_ns.saturating_sub(at) > REACH.as_nanos() as u64;
        while self.0.front().is_some_and(|(at, _)| is_old(*at)) {
            self.0.pop_front();
        }
        self.0.push_back((now_ns, figures));
    }

    /// The newest figures, with their change since the oldest ones. None: there are none.
    pub fn figures(&self) -> Option<HeapFigures> {
        let ((first_ns, first), (last_ns, last)) = (self.0.front()?, self.0.back()?);
        let seconds = last_ns.saturating_sub(*first_ns) as f64 / 1e9;
        let stopped = (last.collection_seconds - first.collection_seconds).max(0.0);
        Some(HeapFigures {
            recent_collections: last.collections.saturating_sub(first.collections),
            recent_collection_share: if seconds > 0.0 { (stopped / seconds).min(1.0) } else { 0.0 },
            committed_change_bytes: last.committed_bytes.wrapping_sub(first.committed_bytes) as i64,
            trend_seconds: seconds,
            ..*last
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_figures_have_their_change_within_a_minute() {
        let mut samples = HeapSamples::default();
        assert_eq!(samples.figures(), None);
        for second in 0..=100u64 {
            let figures = HeapFigures {
                used_bytes: second,
                committed_bytes: 1000 - second,
                collections: second * 2,
                collection_seconds: second as f64 / 4.0,
                ..HeapFigures::default()
            };
            samples.push(second * 1_000_000_000, figures);
        }
        let figures = samples.figures().unwrap();
        assert_eq!((figures.used_bytes, figures.trend_seconds), (100, 60.0));
        assert_eq!((figures.recent_collections, figures.recent_collection_share), (120, 0.25));
        assert_eq!(figures.committed_change_bytes, -60);
    }
}
