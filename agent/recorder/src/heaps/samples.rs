//! The last minute of a heap's figures.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;
use podopsy_model::heap::HeapFigures;

use super::perf_data::PerfData;

/// How far back a trend looks.
const REACH: Duration = Duration::from_secs(60);

/// The figures of a JVM, oldest first: CLOCK_BOOTTIME in ns, and what was read.
#[derive(Debug, Default)]
pub struct HeapSamples(VecDeque<(u64, Timestamp, PerfData)>);

impl HeapSamples {
    pub fn push(&mut self, now_ns: u64, time: Timestamp, data: PerfData) {
        let is_old = |at: u64| now_ns.saturating_sub(at) > REACH.as_nanos() as u64;
        while self.0.front().is_some_and(|(at, ..)| is_old(*at)) {
            self.0.pop_front();
        }
        self.0.push_back((now_ns, time, data));
    }

    /// The figures of the newest sample, with their change since the oldest one. None: there is no sample.
    pub fn figures(&self) -> Option<HeapFigures> {
        let ((first_ns, _, first), (last_ns, time, last)) = (self.0.front()?, self.0.back()?);
        let seconds = last_ns.saturating_sub(*first_ns) as f64 / 1e9;
        let stopped = (last.collection_seconds - first.collection_seconds).max(0.0);
        Some(HeapFigures {
            time: *time,
            used_bytes: last.used_bytes,
            committed_bytes: last.committed_bytes,
            max_bytes: last.max_bytes,
            metaspace_bytes: last.metaspace_bytes,
            threads: last.threads,
            collections: last.collections,
            collection_seconds: last.collection_seconds,
            recent_collections: last.collections.saturating_sub(first.collections),
            recent_collection_share: if seconds > 0.0 { (stopped / seconds).min(1.0) } else { 0.0 },
            committed_change_bytes: last.committed_bytes.wrapping_sub(first.committed_bytes) as i64,
            trend_seconds: seconds,
        })
    }

    /// The newest counters.
    pub fn last(&self) -> Option<&PerfData> {
        self.0.back().map(|(.., data)| data)
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
            let data = PerfData {
                used_bytes: second,
                committed_bytes: 1000 - second,
                collections: second * 2,
                collection_seconds: second as f64 / 4.0,
                ..PerfData::default()
            };
            samples.push(second * 1_000_000_000, Timestamp::UNIX_EPOCH, data);
        }
        let figures = samples.figures().unwrap();
        assert_eq!((figures.used_bytes, figures.trend_seconds), (100, 60.0));
        assert_eq!((figures.recent_collections, figures.recent_collection_share), (120, 0.25));
        assert_eq!(figures.committed_change_bytes, -60);
    }
}
