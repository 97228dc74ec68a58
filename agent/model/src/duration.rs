//! Durations as people type them: `500ms`, `30s`, `5m`, `1h30m`, `7d`, `2w`. Both binaries use this.

use std::time::Duration;

use jiff::{Span, SpanRelativeTo};

/// Parses a duration above 0. A day has 24 hours and a week seven days. A number without a unit is rejected as ambiguous.
pub fn parse(text: &str) -> Result<Duration, String> {
    let grammar = "use a number with a unit, like 500ms, 30s, 5m, 1h30m, 7d or 2w";
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("no unit; {grammar}"));
    }
    let span: Span = text.parse().map_err(|_| grammar.to_owned())?;
    // Months and years have no fixed length, which is an error here.
    let signed = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| grammar.to_owned())?;
    match Duration::try_from(signed) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("it must be longer than 0".to_owned()),
    }
}

/// Like [`parse`], within the range for the length of a profile.
pub fn parse_sampling(text: &str) -> Result<Duration, String> {
    bounded(parse(text)?, Duration::from_millis(100), Duration::from_secs(24 * 3600), "100ms", "24h")
}

/// Like [`parse`], within the range for a DNS query timeout.
pub fn parse_dns_timeout(text: &str) -> Result<Duration, String> {
    bounded(parse(text)?, Duration::from_millis(10), Duration::from_secs(300), "10ms", "5m")
}

/// Like [`parse`], within the range for the latency above which an answer is slow.
pub fn parse_dns_slow(text: &str) -> Result<Duration, String> {
    bounded(parse(text)?, Duration::from_millis(1), Duration::from_secs(3600), "1ms", "1h")
}

/// Like [`parse`], within the range for an interval between exports.
pub fn parse_interval(text: &str) -> Result<Duration, String> {
    bounded(parse(text)?, Duration::from_secs(1), Duration::from_secs(3600), "1s", "1h")
}

/// Like [`parse`], within the range for how long an export is retried.
pub fn parse_patience(text: &str) -> Result<Duration, String> {
    bounded(parse(text)?, Duration::from_secs(1), Duration::from_secs(24 * 3600), "1s", "24h")
}

/// Like [`parse`], within the range for the timeout of a call to the runtime.
pub fn parse_cri_timeout(text: &str) -> Result<Duration, String> {
    bounded(parse(text)?, Duration::from_millis(10), Duration::from_secs(60), "10ms", "60s")
}

fn bounded(d: Duration, min: Duration, max: Duration, low: &str, high: &str) -> Result<Duration, String> {
    if (min..=max).contains(&d) { Ok(d) } else { Err(format!("it must be between {low} and {high}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_durations_are_parsed() {
        for (text, ms) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("1h30m", 5_400_000),
            ("1.5s", 1500),
            ("7d", 7 * 86_400_000),
            ("2w", 14 * 86_400_000),
            ("1d12h", 36 * 3_600_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn other_texts_are_rejected_with_an_example() {
        for text in ["", "30", "s", "-5s", "0s", "5 parsecs", "1d1x", "1mo", "1y", "99999999999999999999h"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse("30").unwrap_err().contains("30s"));
    }

    #[test]
    fn the_error_names_the_bounds() {
        assert_eq!(parse_sampling("25h").unwrap_err(), "it must be between 100ms and 24h");
        assert!(parse_dns_timeout("1ms").is_err());
        assert_eq!(parse_dns_timeout("5s"), Ok(Duration::from_secs(5)));
    }
}
