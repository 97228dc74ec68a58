//! Kills that the kernel counted (`/proc/vmstat` oom_kill) against victims that the probe saw.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::memory::files::machine_oom_kills;
use podopsy_model::Losses;

const EVERY: Duration = Duration::from_secs(1);

/// The two sums since the start.
#[derive(Debug)]
pub struct KillReconciler {
    start: Option<u64>,
    /// The kernel's count at the last look: victims counted by then must have been seen by now.
    before: u64,
    looked: Instant,
    unseen: u64,
    uncounted: u64,
}

impl KillReconciler {
    /// `start`: the kernel's count when the recorder began; None: this kernel does not count.
    pub fn new(start: Option<u64>) -> KillReconciler {
        KillReconciler { start, before: 0, looked: Instant::now(), unseen: 0, uncounted: 0 }
    }

    /// Looks again, at most once a second unless it is the end. `seen`: victims that the probe saw; of them some
    /// the kernel does not count as kills (`dying`), and some twice.
    pub fn update(&mut self, seen: u64, (dying, twice): (u64, u64), last: bool) {
        if self.looked.elapsed() < EVERY && !last {
            return;
        }
        self.looked = Instant::now();
        let Some(now) = machine_oom_kills(Path::new("/proc")) else { return };
        // At the end nobody has time to find out who of the last ones was dying.
        let uncounted = self.uncounted;
        self.compare(now, (seen + twice).saturating_sub(dying));
        if last {
            self.uncounted = uncounted;
        }
    }

    /// `expected`: what the kernel should have counted.
    fn compare(&mut self, now: u64, expected: u64) {
        let Some(start) = self.start else { return };
        let counted = now.saturating_sub(start);
        // What was counted since the last look may still be on its way through the ring.
        self.unseen = self.before.saturating_sub(expected);
        self.uncounted = expected.saturating_sub(counted);
        self.before = counted;
    }

    /// `oom_unseen`: kills that the kernel counted and no probe saw; `oom_uncounted`: victims that were marked
    /// and neither killed nor known to be dying.
    pub fn losses(&self) -> Losses {
        let all = [("oom_unseen", self.unseen), ("oom_uncounted", self.uncounted)];
        all.into_iter().filter(|(_, n)| *n > 0).map(|(name, n)| (name.to_owned(), n)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_counts_only_once_it_has_had_time_to_close() {
        let mut tally = KillReconciler::new(Some(100));
        tally.compare(103, 1);
        assert!(tally.losses().is_empty(), "two are on their way");
        tally.compare(103, 3);
        assert!(tally.losses().is_empty());
        tally.compare(105, 3);
        tally.compare(105, 4);
        assert_eq!(tally.losses(), [("oom_unseen".to_owned(), 1)].into());
        tally.compare(105, 5);
        assert!(tally.losses().is_empty());
        tally.compare(105, 6);
        assert_eq!(tally.losses(), [("oom_uncounted".to_owned(), 1)].into());
    }

    #[test]
    fn a_kernel_that_does_not_count_is_no_loss() {
        let mut tally = KillReconciler::new(None);
        tally.compare(5, 0);
        tally.compare(5, 0);
        assert!(tally.losses().is_empty());
    }
}
