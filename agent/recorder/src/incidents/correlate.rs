//! Decides whether a pod's failed lookups and a container's memory line up in time before its OOM kill. Pure: no I/O.

use jiff::Timestamp;

use podopsy_model::memory::Curve;
use podopsy_model::pod_incident::Correlation;

/// With fewer failures or less growth, nothing can be concluded.
const FAILURES_MIN: u64 = 5;
const GROWN_MIN_MIB: f64 = 1.0;
/// The points at which the curves are compared: at most and at least.
const POINTS: usize = 30;
const POINTS_MIN: usize = 6;
/// The coefficient from which on the two are called correlated.
const COEFFICIENT_MIN: f64 = 0.9;
/// At least this share of the growth must come after the first failure.
const SINCE_FIRST_MIN: f64 = 0.5;
const MIB: f64 = (1u64 << 20) as f64;

/// Correlates the times of failed lookups with a memory curve. None: they do not line up, or too little is known. The
/// caller fills in `oom` and `container`.
pub fn correlate(failures: &[Timestamp], curve: &Curve, kill: Timestamp) -> Option<Correlation> {
    let held_mib = |index: usize| -> Option<f64> {
        // Page cache does not count: it is reclaimed before a limit is hit.
        Some(curve.current_bytes.get(index)?.saturating_sub(*curve.file_bytes.get(index)?) as f64 / MIB)
    };
    let points: Vec<(Timestamp, f64)> =
        curve.time.iter().enumerate().filter_map(|(index, time)| Some((*time, held_mib(index)?))).collect();
    let (from, until) = (points.first()?.0, kill.max(points.last()?.0));
    let mut failures: Vec<Timestamp> =
        failures.iter().copied().filter(|time| (from..=until).contains(time)).collect();
    failures.sort_unstable();
    let first = *failures.first()?;
    let step = points.len().div_ceil(POINTS).max(1);
    // The last point is always compared: it is the nearest to the kill.
    let skip = (points.len() - 1) % step;
    let compared: Vec<(Timestamp, f64)> = points.iter().skip(skip).step_by(step).copied().collect();
    let memory: Vec<f64> = compared.iter().map(|(_, held)| *held).collect();
    let failures_until = |time: Timestamp| failures.partition_point(|failure| *failure <= time) as f64;
    let failed: Vec<f64> = compared.iter().map(|(time, _)| failures_until(*time)).collect();
    let grown_mib = memory.last()? - memory.first()?;
    if compared.len() < POINTS_MIN || (failures.len() as u64) < FAILURES_MIN || grown_mib < GROWN_MIN_MIB {
        return None;
    }
    let before =
        points.iter().take_while(|(time, _)| *time <= first).last().map_or(memory[0], |(_, held)| *held);
    let since_first = ((memory.last()? - before) / grown_mib).clamp(0.0, 1.0);
    let coefficient = pearson(&memory, &failed)?;
    (coefficient >= COEFFICIENT_MIN && since_first >= SINCE_FIRST_MIN).then(|| Correlation {
        oom: String::new(),
        container: String::new(),
        from,
        until,
        failures: failures.len() as u64,
        grown_mib,
        grown_since_first_failure: since_first,
        coefficient,
        steps_coefficient: pearson(&steps(&memory), &steps(&failed)),
        points: compared.len(),
    })
}

/// The differences between neighbours.
fn steps(values: &[f64]) -> Vec<f64> {
    values.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

/// Pearson's correlation coefficient; None: one of the two series does not vary.
pub fn pearson(a: &[f64], b: &[f64]) -> Option<f64> {
    let count = a.len().min(b.len());
    let mean = |all: &[f64]| all.iter().take(count).sum::<f64>() / count as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let (mut sum_ab, mut sum_aa, mut sum_bb) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        let (a, b) = (a - mean_a, b - mean_b);
        sum_ab += a * b;
        sum_aa += a * a;
        sum_bb += b * b;
    }
    let scale = (sum_aa * sum_bb).sqrt();
    // The rounding errors of equal numbers are no variation.
    let vary = count >= 2 && sum_aa > 1e-9 && sum_bb > 1e-9 && scale.is_finite();
    vary.then(|| (sum_ab / scale).clamp(-1.0, 1.0))
}
