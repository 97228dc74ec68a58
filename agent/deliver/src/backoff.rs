//! How long to wait before a request is sent again.

use std::time::Duration;

const FIRST_DELAY: Duration = Duration::from_millis(500);
const MAX_DELAY: Duration = Duration::from_secs(60);
/// The longest delay that a destination can ask for.
const MAX_REQUESTED_DELAY: Duration = Duration::from_secs(300);

/// Exponential backoff with full jitter, so that agents that failed together do not come back together. `jitter` is
/// 0..1.
///
/// A delay that the destination requested is kept, and at most [`FIRST_DELAY`] of jitter is added.
pub fn delay(attempt: u32, requested: Option<Duration>, jitter: f64) -> Duration {
    let full = FIRST_DELAY.saturating_mul(1u32.checked_shl(attempt).unwrap_or(u32::MAX)).min(MAX_DELAY);
    let own = full.mul_f64(jitter.clamp(0.0, 1.0));
    requested.map_or(own, |requested| requested.min(MAX_REQUESTED_DELAY) + own.min(FIRST_DELAY))
}

/// `Retry-After` in seconds (RFC 9110 §10.2.3). Its other form, a date, is ignored.
pub fn parse_retry_after(header: Option<&str>) -> Option<Duration> {
    header?.trim().parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_doubles_up_to_a_minute_and_is_spread() {
        let full: Vec<u64> = (0..9).map(|at| delay(at, None, 1.0).as_millis() as u64).collect();
        assert_eq!(full, [500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000]);
        assert_eq!(delay(3, None, 0.0), Duration::ZERO);
        assert_eq!(delay(40, None, 0.5), MAX_DELAY / 2);
    }

    #[test]
    fn a_requested_delay_is_kept_up_to_a_bound() {
        assert_eq!(delay(0, parse_retry_after(Some("7")), 0.0), Duration::from_secs(7));
        let longest = delay(9, parse_retry_after(Some("999999999")), 1.0);
        assert!(longest <= MAX_REQUESTED_DELAY + FIRST_DELAY);
        assert_eq!(parse_retry_after(Some("Wed, 21 Oct 2026 07:28:00 GMT")), None);
    }
}
