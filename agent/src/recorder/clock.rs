//! The kernel's boot clock to wall-clock time.

use jiff::{SignedDuration, Timestamp};
use nix::time::{ClockId, clock_gettime};

/// Nanoseconds of CLOCK_BOOTTIME now.
pub fn boot_now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap_or_else(|_| nix::sys::time::TimeSpec::new(0, 0));
    (now.tv_sec() as u64).saturating_mul(1_000_000_000).saturating_add(now.tv_nsec() as u64)
}

/// When `boot_ns` was. The offset is taken anew each time, so that a clock that was set right is believed.
pub fn wall(boot_ns: u64) -> Timestamp {
    let ago = boot_now_ns() as i64 - boot_ns as i64;
    Timestamp::now().checked_sub(SignedDuration::from_nanos(ago)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// A process's start; None: not known.
pub fn start(start_ns: u64) -> Option<Timestamp> {
    (start_ns > 0).then(|| wall(start_ns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn now_is_now_and_a_second_ago_was_a_second_ago() {
        let now = boot_now_ns();
        let error = Timestamp::now().duration_since(wall(now)).as_millis().abs();
        assert!(error < 100, "{error} ms");
        let span = wall(now).duration_since(wall(now - 1_000_000_000)).as_millis();
        assert!((900..=1100).contains(&span), "{span} ms");
    }
}
