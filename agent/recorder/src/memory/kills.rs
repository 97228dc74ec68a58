//! Compares each cgroup's own counter of kills with the victims that were reported for it. A difference means that a
//! kill was attributed to the wrong cgroup, or missed.

use std::collections::HashMap;

use podopsy_model::Losses;

/// A kill is reported some time after the kernel has counted it; only differences older than this count.
const SETTLED_NS: u64 = 5_000_000_000;

/// Counted and reported kills by cgroup id.
#[derive(Debug, Default)]
pub struct CgroupKillCounts {
    accounts: HashMap<u64, Account>,
    /// The differences of cgroups that are gone.
    gone: Difference,
}

#[derive(Debug, Default)]
struct Account {
    /// The counter at the first reading, and the time of that reading (CLOCK_BOOTTIME); None: not read yet.
    start: Option<(u64, u64)>,
    reported: u64,
    counted: u64,
    /// (CLOCK_BOOTTIME, counted, reported) at an earlier reading that has had time to settle.
    settled: (u64, u64, u64),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Difference {
    unseen: u64,
    uncounted: u64,
}

impl CgroupKillCounts {
    /// Takes a reading of a cgroup's counter. `is_new`: the cgroup was made after the start, so that all its kills must
    /// have been reported.
    pub fn update(&mut self, id: u64, now_ns: u64, counter: u64, is_new: bool) {
        let account = self.accounts.entry(id).or_default();
        let (start, _) = *account.start.get_or_insert(if is_new { (0, 0) } else { (counter, now_ns) });
        if now_ns.saturating_sub(account.settled.0) >= SETTLED_NS {
            account.settled = (now_ns, account.counted, account.reported);
        }
        account.counted = counter.saturating_sub(start);
    }

    /// Records that kills at this time (CLOCK_BOOTTIME) were reported for a cgroup.
    pub fn record_reported_kills(&mut self, id: u64, boot_ns: u64, kills: u64) {
        let account = self.accounts.entry(id).or_default();
        if account.start.is_none_or(|(_, first_reading_ns)| boot_ns >= first_reading_ns) {
            account.reported += kills;
        }
    }

    /// Closes the accounts of cgroups for which `is_kept` is false.
    pub fn clean(&mut self, is_kept: impl Fn(u64) -> bool) {
        self.accounts.retain(|&id, account| {
            let kept = is_kept(id);
            if !kept {
                self.gone = self.gone.plus(account.difference());
            }
            kept
        });
    }

    /// `oom_unseen_by_cgroup`: kills that a cgroup counted and that were not reported for it;
    /// `oom_uncounted_by_cgroup`: kills that were reported for a cgroup which did not count them.
    pub fn losses(&self) -> Losses {
        let sum = self.accounts.values().fold(self.gone, |sum, account| sum.plus(account.difference()));
        let all = [("oom_unseen_by_cgroup", sum.unseen), ("oom_uncounted_by_cgroup", sum.uncounted)];
        all.into_iter().filter(|(_, n)| *n > 0).map(|(name, n)| (name.to_owned(), n)).collect()
    }
}

impl Account {
    /// The kills that were counted or reported by the settled reading and still have no counterpart.
    fn difference(&self) -> Difference {
        // A cgroup whose counter was never read was removed too quickly to be compared.
        if self.start.is_none() {
            return Difference::default();
        }
        let (_, counted, reported) = self.settled;
        Difference {
            unseen: counted.saturating_sub(self.reported),
            uncounted: reported.saturating_sub(self.counted),
        }
    }
}

impl Difference {
    fn plus(self, other: Difference) -> Difference {
        Difference { unseen: self.unseen + other.unseen, uncounted: self.uncounted + other.uncounted }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn losses(kills: &CgroupKillCounts) -> (u64, u64) {
        let losses = kills.losses();
        let get = |name: &str| losses.get(name).copied().unwrap_or(0);
        (get("oom_unseen_by_cgroup"), get("oom_uncounted_by_cgroup"))
    }

    #[test]
    fn a_kill_that_is_reported_in_time_is_no_difference_and_one_that_never_is_reported_is() {
        let mut kills = CgroupKillCounts::default();
        kills.update(7, 10 * S, 3, false);
        kills.update(7, 16 * S, 4, false);
        kills.record_reported_kills(7, 15 * S, 1);
        kills.update(7, 22 * S, 5, false);
        kills.update(7, 23 * S, 5, false);
        assert_eq!(losses(&kills), (0, 0), "the report of the second kill may still come");
        kills.update(7, 28 * S, 5, false);
        assert_eq!(losses(&kills), (1, 0));
        kills.clean(|_| false);
        assert_eq!((losses(&kills), kills.accounts.len()), ((1, 0), 0), "the difference is remembered");
    }

    #[test]
    fn a_kill_attributed_to_the_wrong_cgroup_shows_in_both_counters() {
        let mut kills = CgroupKillCounts::default();
        for at in [10, 16, 22, 28] {
            kills.update(1, at * S, u64::from(at > 10), true);
            kills.update(2, at * S, 0, true);
            if at == 16 {
                kills.record_reported_kills(2, 15 * S, 1);
            }
        }
        assert_eq!(losses(&kills), (1, 1));
    }

    #[test]
    fn kills_before_the_first_reading_and_cgroups_never_read_are_no_difference() {
        let mut kills = CgroupKillCounts::default();
        kills.update(1, 10 * S, 5, false);
        kills.record_reported_kills(1, 9 * S, 1);
        kills.record_reported_kills(3, 9 * S, 1);
        kills.update(1, 20 * S, 5, false);
        kills.update(1, 30 * S, 5, false);
        assert_eq!(losses(&kills), (0, 0));
    }
}
