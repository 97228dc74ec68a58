//! The last ten minutes of one container's memory, at 40 bytes a sample, and the memory curve made from them.

use std::collections::VecDeque;
use std::time::Duration;

use podopsy_model::memory::{Curve, MemoryUsage};
use podopsy_system::clock;

/// How far back a ring reaches.
pub const REACH: Duration = Duration::from_secs(600);
/// Samples at most, at any rate of sampling.
const SAMPLES: usize = 600;
/// Points of a curve at most: a terminal is not wider, and the JSON line should stay readable.
const POINTS: usize = 120;
/// With fewer points than this, a slope would be a guess.
const SLOPE_MIN: usize = 5;

/// The time that a trend covers, and the points that it uses at most.
const TREND_MS: u32 = 60_000;
const TREND_POINTS: usize = 24;

/// How a container's memory has changed in the last minute.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MemoryTrend {
    /// The memory that cannot be reclaimed: everything but page cache.
    pub held_bytes: u64,
    /// As [`Curve::growth_bytes_per_second`], over the last minute.
    pub bytes_per_second: f64,
    /// The container's own limit; None: it has none.
    pub limit_bytes: Option<u64>,
}

/// A sample: in KiB, so that 4 TiB fit into 32 bits; the time is in ms since the ring's first sample.
#[derive(Clone, Copy, Debug)]
struct Sample {
    ms: u32,
    current: u32,
    anon: u32,
    file: u32,
    shmem: u32,
    kernel: u32,
    /// PSI `some`: total stall time in ms since the cgroup was made; `u32::MAX`: not known.
    waited: u32,
}

#[derive(Debug, Default)]
pub struct SampleRing {
    base_ns: u64,
    samples: VecDeque<Sample>,
    pub last: Option<MemoryUsage>,
}

impl SampleRing {
    /// Adds a sample that was taken at `boot_ns` (CLOCK_BOOTTIME).
    pub fn push(&mut self, boot_ns: u64, usage: MemoryUsage) {
        if self.samples.is_empty() {
            self.base_ns = boot_ns;
        }
        let ms = u32::try_from(boot_ns.saturating_sub(self.base_ns) / 1_000_000).unwrap_or(u32::MAX);
        let kib = |bytes: u64| u32::try_from(bytes / 1024).unwrap_or(u32::MAX);
        self.samples.push_back(Sample {
            ms,
            current: kib(usage.current_bytes),
            anon: kib(usage.anon_bytes),
            file: kib(usage.file_bytes),
            shmem: kib(usage.shmem_bytes),
            kernel: kib(usage.kernel_bytes),
            waited: usage
                .pressure
                .map_or(u32::MAX, |psi| (psi.some_us / 1000).min(u32::MAX as u64 - 1) as u32),
        });
        self.last = Some(usage);
        let oldest = ms.saturating_sub(REACH.as_millis() as u32);
        while self.samples.len() > SAMPLES || self.samples.front().is_some_and(|first| first.ms < oldest) {
            self.samples.pop_front();
        }
    }

    /// CLOCK_BOOTTIME of the last sample.
    pub fn last_ns(&self) -> u64 {
        self.samples.back().map_or(0, |last| self.base_ns + u64::from(last.ms) * 1_000_000)
    }

    /// The trend of the last minute; None: fewer than 5 samples.
    pub fn trend(&self) -> Option<MemoryTrend> {
        let last = self.samples.back()?;
        let from = last.ms.saturating_sub(TREND_MS);
        let recent = self.samples.iter().filter(|s| s.ms >= from).count();
        // A few points that include the newest: their number of pairs must stay small for hundreds of containers.
        let step = recent.div_ceil(TREND_POINTS).max(1);
        let newest = self.samples.iter().rev().take(recent).step_by(step);
        let mut points: Vec<Sample> = newest.copied().collect();
        points.reverse();
        Some(MemoryTrend {
            held_bytes: u64::from(last.current.saturating_sub(last.file)) * 1024,
            bytes_per_second: growth(&points)?,
            limit_bytes: self.last.and_then(|usage| usage.limit_bytes),
        })
    }

    pub fn curve(&self) -> Curve {
        let step = self.samples.len().div_ceil(POINTS).max(1);
        // The curve always includes the last sample, which is the nearest to the kill.
        let skip = self.samples.len().saturating_sub(1) % step;
        let points: Vec<Sample> = self.samples.iter().skip(skip).step_by(step).copied().collect();
        let column = |of: fn(&Sample) -> u32| points.iter().map(|s| u64::from(of(s)) * 1024).collect();
        Curve {
            time: points.iter().map(|s| clock::wall(self.base_ns + u64::from(s.ms) * 1_000_000)).collect(),
            current_bytes: column(|s| s.current),
            anon_bytes: column(|s| s.anon),
            file_bytes: column(|s| s.file),
            shmem_bytes: column(|s| s.shmem),
            kernel_bytes: column(|s| s.kernel),
            growth_bytes_per_second: growth(&points),
            pressure: pressure(&points),
        }
    }
}

/// The slope of the memory that cannot be reclaimed.
fn growth(points: &[Sample]) -> Option<f64> {
    // Some kernel memory is reclaimable, too, but not much.
    let held = |s: &Sample| f64::from(s.current.saturating_sub(s.file)) * 1024.0;
    slope(&points.iter().map(|s| (f64::from(s.ms) / 1000.0, held(s))).collect::<Vec<_>>())
}

/// The Theil–Sen slope of (seconds, bytes): it tolerates many outliers (a start, a pause, a garbage collection). None: fewer than
/// 5 points.
pub fn slope(points: &[(f64, f64)]) -> Option<f64> {
    if points.len() < SLOPE_MIN {
        return None;
    }
    let mut slopes = Vec::with_capacity(points.len() * (points.len() - 1) / 2);
    for (i, a) in points.iter().enumerate() {
        for b in points[i + 1..].iter().filter(|b| b.0 > a.0) {
            slopes.push((b.1 - a.1) / (b.0 - a.0));
        }
    }
    let middle = slopes.len() / 2;
    (!slopes.is_empty()).then(|| *slopes.select_nth_unstable_by(middle, f64::total_cmp).1)
}

fn pressure(points: &[Sample]) -> Option<f64> {
    let (first, last) = (points.first()?, points.last()?);
    let known = first.waited != u32::MAX && last.waited != u32::MAX && last.ms > first.ms;
    known.then(|| {
        (f64::from(last.waited.saturating_sub(first.waited)) / f64::from(last.ms - first.ms)).min(1.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use podopsy_model::memory::Pressure;

    const S: u64 = 1_000_000_000;

    fn filled(seconds: u64, anon: impl Fn(u64) -> u64) -> SampleRing {
        let mut ring = SampleRing::default();
        for second in 0..seconds {
            let anon_bytes = anon(second);
            let pressure = Some(Pressure { some_us: second * 250_000, full_us: 0 });
            let usage = MemoryUsage {
                current_bytes: anon_bytes + (5 << 20),
                anon_bytes,
                file_bytes: 5 << 20,
                pressure,
                ..MemoryUsage::default()
            };
            ring.push(7 * S + second * S, usage);
        }
        ring
    }

    #[test]
    fn a_leak_has_the_right_rate_although_a_third_of_the_points_are_outliers() {
        let ring = filled(300, |s| if s % 3 == 0 { 50 << 20 } else { (10 << 20) + s * (1 << 20) });
        let slope = ring.curve().growth_bytes_per_second.unwrap();
        assert!((slope / f64::from(1 << 20) - 1.0).abs() < 0.1, "{slope}");
    }

    #[test]
    fn a_ring_is_bounded_and_its_curve_is_short_and_includes_the_last_sample() {
        let ring = filled(2000, |s| s << 20);
        assert!(ring.samples.len() <= SAMPLES);
        let curve = ring.curve();
        assert!(curve.time.len() <= POINTS && curve.time.len() > POINTS / 2);
        assert_eq!(curve.anon_bytes.last(), Some(&(1999 << 20)));
        assert!((curve.pressure.unwrap() - 0.25).abs() < 0.01);
        assert!((590.0..=600.0).contains(&curve.seconds()), "{}", curve.seconds());
    }

    #[test]
    fn a_trend_covers_the_last_minute() {
        let ring = filled(300, |s| if s < 200 { s << 20 } else { 200 << 20 });
        let trend = ring.trend().unwrap();
        assert_eq!((trend.bytes_per_second, trend.held_bytes, trend.limit_bytes), (0.0, 200 << 20, None));
        assert_eq!(filled(4, |s| s << 20).trend(), None);
        assert!(filled(5, |s| s << 20).trend().is_some_and(|trend| trend.bytes_per_second > 1e6));
    }

    #[test]
    fn few_points_have_no_slope_and_a_flat_line_has_slope_zero() {
        assert_eq!(filled(4, |s| s).curve().growth_bytes_per_second, None);
        assert_eq!(filled(60, |_| 3 << 20).curve().growth_bytes_per_second, Some(0.0));
        assert_eq!(SampleRing::default().curve(), Curve::default());
    }
}
