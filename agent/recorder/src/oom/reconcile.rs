//! Compares the kills that the kernel counted (`oom_kill` of `/proc/vmstat`) with the victims that the probe saw.

use std::path::Path;
use std::time::{Duration, Instant};

use super::KnownDifferences;
use crate::memory::files::machine_oom_kills;
use podopsy_model::Losses;

const EVERY: Duration = Duration::from_secs(1);

/// Compares both sums since the start.
#[derive(Debug)]
pub struct KillReconciler {
    start: Option<u64>,
    /// The kernel's count at the last comparison: victims that were counted by then must have been seen by now.
    counted_before: u64,
    compared_at: Instant,
    unseen: u64,
    uncounted: u64,
}

impl KillReconciler {
    /// `start`: the kernel's count when the recorder started; None: this kernel does not count kills.
    pub fn new(start: Option<u64>) -> KillReconciler {
        KillReconciler { start, counted_before: 0, compared_at: Instant::now(), unseen: 0, uncounted: 0 }
    }

    /// Compares again, at most once a second, or at once if it is the last time. `seen`: victims that the probe saw.
    pub fn update(&mut self, seen: u64, known: KnownDifferences, last: bool) {
        if self.compared_at.elapsed() < EVERY && !last {
            return;
        }
        self.compared_at = Instant::now();
        let Some(now) = machine_oom_kills(Path::new("/proc")) else { return };
        // At the end there is no time to find out which of the last victims were already dying.
        let uncounted = self.uncounted;
        self.compare(now, (seen + known.counted_twice).saturating_sub(known.already_dying));
        if last {
            self.uncounted = uncounted;
        }
    }

    /// `expected`: what the kernel should have counted.
    fn compare(&mut self, now: u64, expected: u64) {
        let Some(start) = self.start else { return };
        let counted = now.saturating_sub(start);
        // The records of kills since the last comparison may still be in the ring buffer.
        self.unseen = self.counted_before.saturating_sub(expected);
        self.uncounted = expected.saturating_sub(counted);
        self.counted_before = counted;
    }

    /// `oom_unseen`: kills that the kernel counted and the probe did not see; `oom_uncounted`: victims that the probe
    /// saw, that the kernel did not count, and that are not known to have been dying already.
    pub fn losses(&self) -> Losses {
        let all = [("oom_unseen", self.unseen), ("oom_uncounted", self.uncounted)];
        all.into_iter().filter(|(_, n)| *n > 0).map(|(name, n)| (name.to_owned(), n)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_a_loss_only_if_it_is_still_there_at_the_next_comparison() {
        let mut reconciler = KillReconciler::new(Some(100));
        reconciler.compare(103, 1);
        assert!(reconciler.losses().is_empty(), "two records are still in the ring");
        reconciler.compare(103, 3);
        assert!(reconciler.losses().is_empty());
        reconciler.compare(105, 3);
        reconciler.compare(105, 4);
        assert_eq!(reconciler.losses(), [("oom_unseen".to_owned(), 1)].into());
        reconciler.compare(105, 5);
        assert!(reconciler.losses().is_empty());
        reconciler.compare(105, 6);
        assert_eq!(reconciler.losses(), [("oom_uncounted".to_owned(), 1)].into());
    }

    #[test]
    fn a_kernel_that_does_not_count_kills_gives_no_loss() {
        let mut reconciler = KillReconciler::new(None);
        reconciler.compare(5, 0);
        reconciler.compare(5, 0);
        assert!(reconciler.losses().is_empty());
    }
}
