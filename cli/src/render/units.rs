//! Rounded quantities with units, for people. JSON has the exact values.

use std::time::Duration;

use jiff::Timestamp;

/// `62.1 MiB`; whole numbers below 1 KiB.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would be printed as 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `850 ns`, `12 µs`, `3.4 ms`, `5.0 s`.
pub fn nanoseconds(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{} µs", ns / 1_000),
        1_000_000..1_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        _ => format!("{:.1} s", ns as f64 / 1e9),
    }
}

/// `30 s`, `0.5 s`, `5 min 3 s`, `1 h 2 min`.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 if duration.subsec_millis() == 0 => format!("{seconds} s"),
        0..60 => format!("{:.1} s", duration.as_secs_f64()),
        60..3600 if seconds.is_multiple_of(60) => format!("{} min", seconds / 60),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// The time of day in UTC, with milliseconds: nodes are in many time zones, and their logs are in UTC.
pub fn clock(time: Timestamp) -> String {
    time.strftime("%H:%M:%S.%3fZ").to_string()
}

/// Date and time in UTC, to the second.
pub fn date(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// `1 event`, `2 events`.
pub fn plural(count: u64, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_one_decimal_and_never_1024_of_a_unit() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (65_116_570, "62.1 MiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn durations_and_times_have_one_unit_or_two() {
        for (ns, text) in
            [(850, "850 ns"), (12_345, "12 µs"), (3_400_000, "3.4 ms"), (5_000_100_000, "5.0 s")]
        {
            assert_eq!(nanoseconds(ns), text);
        }
        for (ms, text) in [
            (500, "0.5 s"),
            (30_000, "30 s"),
            (300_000, "5 min"),
            (303_000, "5 min 3 s"),
            (3_720_000, "1 h 2 min"),
        ] {
            assert_eq!(duration(Duration::from_millis(ms)), text);
        }
        let time: Timestamp = "2026-03-01T03:04:05.678901234Z".parse().unwrap();
        assert_eq!((clock(time).as_str(), date(time).as_str()), ("03:04:05.678Z", "2026-03-01 03:04:05Z"));
    }
}
