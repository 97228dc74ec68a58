//! CgroupKillCounts that a cgroup's own counter has, against the victims that were named as its own: the check that no kill
//! was put down to the wrong container.

use std::collections::HashMap;

use podopsy_model::Losses;

/// A kill is told some time after the kernel has counted it.
const SETTLED_NS: u64 = 5_000_000_000;

/// One account a cgroup.
#[derive(Debug, Default)]
pub struct CgroupKillCounts {
    accounts: HashMap<u64, Account>,
    /// What differed in cgroups that are gone.
    gone: Difference,
}

#[derive(Debug, Default)]
struct Account {
    /// What the counter had before anybody watched, and until when; None: nobody has looked yet.
    start: Option<(u64, u64)>,
    told: u64,
    counted: u64,
    /// CLOCK_BOOTTIME, counted, told: a look that has had time to settle.
    before: (u64, u64, u64),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Difference {
    unseen: u64,
    uncounted: u64,
}

impl CgroupKillCounts {
    /// The counter of a cgroup. `born`: it was made while we watched, so all that it counts is ours to tell.
    pub fn look(&mut self, id: u64, now_ns: u64, counter: u64, born: bool) {
        let account = self.accounts.entry(id).or_default();
        let (start, _) = *account.start.get_or_insert(if born { (0, 0) } else { (counter, now_ns) });
        if now_ns.saturating_sub(account.before.0) >= SETTLED_NS {
            account.before = (now_ns, account.counted, account.told);
        }
        account.counted = counter.saturating_sub(start);
    }

    /// So many kills at that time were told as this cgroup's.
    pub fn record_reported_kills(&mut self, id: u64, boot_ns: u64, kills: u64) {
        let account = self.accounts.entry(id).or_default();
        if account.start.is_none_or(|(_, until)| boot_ns >= until) {
            account.told += kills;
        }
    }

    /// Closes the accounts of cgroups that `is_kept` has no more use for.
    pub fn clean(&mut self, is_kept: impl Fn(u64) -> bool) {
        self.accounts.retain(|&id, account| {
            let kept = is_kept(id);
            if !kept {
                self.gone = self.gone.and(account.difference());
            }
            kept
        });
    }

    /// `oom_unseen_by_cgroup`: kills that a cgroup counted and nobody told as its own; `oom_uncounted_by_cgroup`:
    /// told as a cgroup's, which did not count them.
    pub fn losses(&self) -> Losses {
        let sum = self.accounts.values().fold(self.gone, |sum, account| sum.and(account.difference()));
        let all = [("oom_unseen_by_cgroup", sum.unseen), ("oom_uncounted_by_cgroup", sum.uncounted)];
        all.into_iter().filter(|(_, n)| *n > 0).map(|(name, n)| (name.to_owned(), n)).collect()
    }
}

impl Account {
    /// What was counted, or told, by the settled look and has no counterpart to this day.
    fn difference(&self) -> Difference {
        // A cgroup that was never looked at lived too briefly to be asked.
        if self.start.is_none() {
            return Difference::default();
        }
        let (_, counted, told) = self.before;
        Difference { unseen: counted.saturating_sub(self.told), uncounted: told.saturating_sub(self.counted) }
    }
}

impl Difference {
    fn and(self, other: Difference) -> Difference {
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
    fn a_kill_that_is_told_in_time_is_no_difference_and_one_that_never_is_told_is() {
        let mut kills = CgroupKillCounts::default();
        kills.look(7, 10 * S, 3, false);
        kills.look(7, 16 * S, 4, false);
        kills.record_reported_kills(7, 15 * S, 1);
        kills.look(7, 22 * S, 5, false);
        kills.look(7, 23 * S, 5, false);
        assert_eq!(losses(&kills), (0, 0), "the second may still be on its way");
        kills.look(7, 28 * S, 5, false);
        assert_eq!(losses(&kills), (1, 0));
        kills.clean(|_| false);
        assert_eq!((losses(&kills), kills.accounts.len()), ((1, 0), 0), "it is remembered");
    }

    #[test]
    fn a_kill_put_down_to_another_shows_on_both() {
        let mut kills = CgroupKillCounts::default();
        for at in [10, 16, 22, 28] {
            kills.look(1, at * S, u64::from(at > 10), true);
            kills.look(2, at * S, 0, true);
            if at == 16 {
                kills.record_reported_kills(2, 15 * S, 1);
            }
        }
        assert_eq!(losses(&kills), (1, 1));
    }

    #[test]
    fn what_was_before_us_is_not_ours_and_what_was_never_looked_at_is_no_difference() {
        let mut kills = CgroupKillCounts::default();
        kills.look(1, 10 * S, 5, false);
        kills.record_reported_kills(1, 9 * S, 1);
        kills.record_reported_kills(3, 9 * S, 1);
        kills.look(1, 20 * S, 5, false);
        kills.look(1, 30 * S, 5, false);
        assert_eq!(losses(&kills), (0, 0));
    }
}
