//! Fits a line to a curve by least squares, and judges whether the curve is flat. Pure functions.

/// A line through points, by least squares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    pub mean: f64,
    /// In the points' unit per hour.
    pub slope: f64,
    /// The slope's standard error, assuming that the residuals are independent.
    pub error: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Flat,
    /// Above the limit, but not by two standard errors: a longer run is needed.
    Unclear,
    Grows,
}

/// The growth per hour up to which a curve is flat: this part of the mean, or the column's slack if that is more.
pub const ALLOWED: f64 = 0.02;

impl Verdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Flat => "flat",
            Verdict::Unclear => "not clear",
            Verdict::Grows => "**grows**",
        }
    }
}

/// Fits a line to points (hours, value). None if there are fewer than three, or all are at one time.
pub fn fit(points: &[(f64, f64)]) -> Option<Line> {
    let n = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / n;
    let (at, value) = (mean(|point| point.0), mean(|point| point.1));
    let spread: f64 = points.iter().map(|(x, _)| (x - at).powi(2)).sum();
    if points.len() < 3 || spread <= 0.0 {
        return None;
    }
    let slope = points.iter().map(|(x, y)| (x - at) * (y - value)).sum::<f64>() / spread;
    let off: f64 = points.iter().map(|(x, y)| (y - value - slope * (x - at)).powi(2)).sum();
    Some(Line { mean: value, slope, error: (off / (n - 2.0) / spread).sqrt() })
}

/// Judges by the line of the last half. A shrinking curve does not grow.
pub fn judge(line: &Line, slack: f64) -> Verdict {
    let allowed = slack.max(line.mean * ALLOWED);
    if line.slope <= allowed {
        Verdict::Flat
    } else if line.slope - 2.0 * line.error <= allowed {
        Verdict::Unclear
    } else {
        Verdict::Grows
    }
}

/// The points of the run's second half.
pub fn last_half(points: &[(f64, f64)]) -> &[(f64, f64)] {
    &points[points.len() / 2..]
}

/// The means of the first and of the last quarter.
pub fn quarters(points: &[(f64, f64)]) -> (f64, f64) {
    let quarter = (points.len() / 4).max(1);
    let mean =
        |part: &[(f64, f64)]| part.iter().map(|(_, value)| value).sum::<f64>() / part.len().max(1) as f64;
    (mean(&points[..quarter.min(points.len())]), mean(&points[points.len().saturating_sub(quarter)..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An hour of samples, one in 10 s.
    fn hour(value: impl Fn(f64) -> f64) -> Vec<(f64, f64)> {
        (0..360).map(|n| f64::from(n) / 360.0).map(|at| (at, value(at))).collect()
    }

    #[test]
    fn a_line_is_found_whatever_is_around_it() {
        let line = fit(&hour(|at| 100.0 + 3.0 * at)).unwrap();
        assert!((line.slope - 3.0).abs() < 1e-9 && line.error < 1e-6, "{line:?}");
        let noisy = fit(&hour(|at| 100.0 + 3.0 * at + (at * 7919.0).sin())).unwrap();
        assert!((noisy.slope - 3.0).abs() < 0.5 && noisy.error > 0.05, "{noisy:?}");
        assert_eq!(fit(&[(0.0, 1.0), (1.0, 2.0)]), None);
        assert_eq!(fit(&[(1.0, 1.0); 5]), None);
    }

    #[test]
    fn a_leak_is_no_noise_and_noise_is_no_leak() {
        let verdict = |points: &[(f64, f64)]| judge(&fit(last_half(points)).unwrap(), 1.0);
        // 100 MiB: two of a hundred may come in an hour.
        assert_eq!(verdict(&hour(|at| 100.0 + 1.5 * at)), Verdict::Flat);
        assert_eq!(verdict(&hour(|at| 100.0 + 6.0 * at)), Verdict::Grows);
        // A curve that rises in the first half and then stays is flat, and so is one that shrinks.
        assert_eq!(verdict(&hour(|at| 50.0 + 100.0 * at.min(0.5))), Verdict::Flat);
        assert_eq!(verdict(&hour(|at| 100.0 - 20.0 * at)), Verdict::Flat);
        // Up and down by a third: a growth of 5 an hour cannot be distinguished within that.
        let wild = hour(|at| 100.0 + 5.0 * at + 40.0 * (at * 7919.0).sin());
        assert_eq!(verdict(&wild), Verdict::Unclear);
        // The slack is for small numbers: two descriptors of ten are a fifth.
        assert_eq!(judge(&Line { mean: 10.0, slope: 1.9, error: 0.0 }, 2.0), Verdict::Flat);
    }

    #[test]
    fn quarters_are_the_ends() {
        let points: Vec<_> = (0..8).map(|n| (f64::from(n), f64::from(n))).collect();
        assert_eq!(quarters(&points), (0.5, 6.5));
        assert_eq!(quarters(&points[..1]), (0.0, 0.0));
    }
}
