//! The kernel's boot clock to wall-clock time.

use std::sync::OnceLock;

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

/// A process's start; None: not known. With its pid it names a process, so that one process always gets
/// one value: to the tick of /proc/PID/stat (10 ms), by an offset that is taken once.
pub fn start(start_ns: u64) -> Option<Timestamp> {
    const TICK: i128 = 10_000_000;
    static BOOT: OnceLock<i128> = OnceLock::new();
    let boot = *BOOT.get_or_init(|| wall(0).as_nanosecond());
    let to_tick = |ns: i128| ns - ns.rem_euclid(TICK);
    let at = to_tick(boot) + to_tick(i128::from(start_ns));
    (start_ns > 0).then(|| Timestamp::from_nanosecond(at).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_one_start() {
        let first = start(5_123_456_789);
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!(start(5_123_456_789), first);
        assert_eq!(start(0), None);
    }

    #[test]
    fn now_is_now_and_a_second_ago_was_a_second_ago() {
        let now = boot_now_ns();
        let error = Timestamp::now().duration_since(wall(now)).as_millis().abs();
        assert!(error < 100, "{error} ms");
        let span = wall(now).duration_since(wall(now - 1_000_000_000)).as_millis();
        assert!((900..=1100).contains(&span), "{span} ms");
    }
}
