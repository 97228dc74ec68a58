//! How long to wait before a request is made again.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(60);
/// What a destination may ask for at most.
const ASKED_LONGEST: Duration = Duration::from_secs(300);

/// Exponential, and anywhere between none and all of it: agents that failed together do not come back together.
/// `chance` is 0..1.
pub fn pause(attempt: u32, asked: Option<Duration>, chance: f64) -> Duration {
    let whole = FIRST.saturating_mul(1u32.checked_shl(attempt).unwrap_or(u32::MAX)).min(LONGEST);
    let ours = whole.mul_f64(chance.clamp(0.0, 1.0));
    asked.map_or(ours, |asked| asked.min(ASKED_LONGEST) + ours.min(FIRST))
}

/// `Retry-After` in seconds (RFC 9110 §10.2.3); its other form, a date, is not read.
pub fn asked(header: Option<&str>) -> Option<Duration> {
    header?.trim().parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_up_to_a_minute_and_is_spread() {
        let whole: Vec<u64> = (0..9).map(|at| pause(at, None, 1.0).as_millis() as u64).collect();
        assert_eq!(whole, [500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000]);
        assert_eq!(pause(3, None, 0.0), Duration::ZERO);
        assert_eq!(pause(40, None, 0.5), LONGEST / 2);
    }

    #[test]
    fn who_asks_for_more_gets_it_within_reason() {
        assert_eq!(pause(0, asked(Some("7")), 0.0), Duration::from_secs(7));
        assert!(pause(9, asked(Some("999999999")), 1.0) <= ASKED_LONGEST + FIRST);
        assert_eq!(asked(Some("Wed, 21 Oct 2026 07:28:00 GMT")), None);
    }
}
