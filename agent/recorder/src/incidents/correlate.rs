//! Whether a pod's failed lookups and a container's memory line up in time before its kill: two curves, and numbers.

use jiff::Timestamp;

use podopsy_model::memory::Curve;
use podopsy_model::pod_incident::Correlation;

/// Fewer failures, or less growth, say nothing.
const FAILURES_MIN: u64 = 5;
const GROWN_MIN_MIB: f64 = 1.0;
/// Points that the curves are compared at, and how few are too few.
const POINTS: usize = 30;
const POINTS_MIN: usize = 6;
/// From here on it is called correlated.
const COEFFICIENT_MIN: f64 = 0.9;
/// Most of the growth must not have been there before the first failure.
const SINCE_FIRST_MIN: f64 = 0.5;
const MIB: f64 = (1u64 << 20) as f64;

/// None: they do not line up, or too little is known. `oom` and `container` are the caller's to fill in.
pub fn correlate(failures: &[Timestamp], curve: &Curve, kill: Timestamp) -> Option<Correlation> {
    let held = |at: usize| -> Option<f64> {
        // Page cache is not what a limit is met by.
        Some(curve.current_bytes.get(at)?.saturating_sub(*curve.file_bytes.get(at)?) as f64 / MIB)
    };
    let points: Vec<(Timestamp, f64)> =
        curve.time.iter().enumerate().filter_map(|(at, time)| Some((*time, held(at)?))).collect();
    let (from, until) = (points.first()?.0, kill.max(points.last()?.0));
    let mut failures: Vec<Timestamp> =
        failures.iter().copied().filter(|time| (from..=until).contains(time)).collect();
    failures.sort_unstable();
    let first = *failures.first()?;
    let step = points.len().div_ceil(POINTS).max(1);
    // The last one is always among them: it is the nearest to the kill.
    let skip = (points.len() - 1) % step;
    let compared: Vec<(Timestamp, f64)> = points.iter().skip(skip).step_by(step).copied().collect();
    let memory: Vec<f64> = compared.iter().map(|(_, held)| *held).collect();
    let so_far = |time: Timestamp| failures.partition_point(|failure| *failure <= time) as f64;
    let failed: Vec<f64> = compared.iter().map(|(time, _)| so_far(*time)).collect();
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

fn steps(curve: &[f64]) -> Vec<f64> {
    curve.windows(2).map(|two| two[1] - two[0]).collect()
}

/// Pearson's r; None: one of the two does not vary.
pub fn pearson(a: &[f64], b: &[f64]) -> Option<f64> {
    let count = a.len().min(b.len());
    let mean = |all: &[f64]| all.iter().take(count).sum::<f64>() / count as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let (mut both, mut of_a, mut of_b) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        let (a, b) = (a - mean_a, b - mean_b);
        both += a * b;
        of_a += a * a;
        of_b += b * b;
    }
    let scale = (of_a * of_b).sqrt();
    // What is left of equal numbers by rounding is no variation.
    (count >= 2 && of_a > 1e-9 && of_b > 1e-9 && scale.is_finite()).then(|| (both / scale).clamp(-1.0, 1.0))
}
