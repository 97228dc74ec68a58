//! Converts the kernel's boot clock to wall-clock time, and reads a thread's CPU time.

use std::sync::OnceLock;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nix::time::{ClockId, clock_gettime};

/// The current CLOCK_BOOTTIME in nanoseconds.
pub fn boot_now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap_or_else(|_| nix::sys::time::TimeSpec::new(0, 0));
    (now.tv_sec() as u64).saturating_mul(1_000_000_000).saturating_add(now.tv_nsec() as u64)
}

/// The CPU time of the calling thread.
pub fn thread_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// The wall-clock time of `boot_ns`. The offset is read on each call, so that a correction of the clock takes effect.
pub fn wall(boot_ns: u64) -> Timestamp {
    let ago = boot_now_ns() as i64 - boot_ns as i64;
    Timestamp::now().checked_sub(SignedDuration::from_nanos(ago)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The start time of a process. None: not known. Together with the pid it identifies the process, so it must always be the
/// same for one process: it is rounded to the tick of /proc/PID/stat (10 ms), and the offset is read once.
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
    fn the_start_of_a_process_is_always_the_same() {
        let first = start(5_123_456_789);
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!(start(5_123_456_789), first);
        assert_eq!(start(0), None);
    }

    #[test]
    fn boot_times_are_converted_to_wall_clock_times() {
        let now = boot_now_ns();
        let error = Timestamp::now().duration_since(wall(now)).as_millis().abs();
        assert!(error < 100, "{error} ms");
        let span = wall(now).duration_since(wall(now - 1_000_000_000)).as_millis();
        assert!((900..=1100).contains(&span), "{span} ms");
    }
}
