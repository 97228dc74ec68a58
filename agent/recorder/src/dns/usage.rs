//! Who has how many entries of a table of the kernel side that cgroups share.

use std::collections::{HashMap, HashSet};

use podopsy_wire::DnsCounters;

/// How many entries of each cgroup are in a table, and how many user space has removed.
pub(super) struct Usage {
    /// The table's counters among those of a cgroup: entries that the kernel side inserted, and removed.
    counts: fn(&DnsCounters) -> (u64, u64),
    /// By the last sweep.
    pub present: HashMap<u64, u64>,
    pub present_all: u64,
    /// Removed by user space since the start, as the kernel side subtracts it: see [`in_flight`].
    swept: HashMap<u64, u64>,
    pub swept_all: u64,
    changed: HashSet<u64>,
    /// Insertions and removals of the kernel side at the last correction, and whether there was a sweep since.
    before: HashMap<u64, (u64, u64)>,
    has_swept: bool,
}

impl Usage {
    pub fn new(counts: fn(&DnsCounters) -> (u64, u64)) -> Usage {
        Usage {
            counts,
            present: HashMap::new(),
            present_all: 0,
            swept: HashMap::new(),
            swept_all: 0,
            changed: HashSet::new(),
            before: HashMap::new(),
            has_swept: false,
        }
    }

    pub fn begin_sweep(&mut self) {
        self.present.clear();
        self.present_all = 0;
        self.has_swept = true;
    }

    pub fn add(&mut self, cgroup_id: u64) {
        *self.present.entry(cgroup_id).or_default() += 1;
        self.present_all += 1;
    }

    /// An entry was removed by user space.
    pub fn remove(&mut self, cgroup_id: u64) {
        if let Some(present) = self.present.get_mut(&cgroup_id) {
            *present = present.saturating_sub(1);
        }
        self.present_all = self.present_all.saturating_sub(1);
        let swept = self.swept.entry(cgroup_id).or_default();
        *swept = swept.wrapping_add(1);
        self.swept_all += 1;
        self.changed.insert(cgroup_id);
    }

    pub fn present(&self, cgroup_id: u64) -> u64 {
        self.present.get(&cgroup_id).copied().unwrap_or(0)
    }

    /// The sums of user space that have changed since the last call.
    pub fn changed(&mut self) -> Vec<(u64, u64)> {
        self.changed.drain().map(|id| (id, self.swept.get(&id).copied().unwrap_or(0))).collect()
    }

    /// Forgets the cgroups that have no counters; returns those with a sum.
    pub fn forget_except(&mut self, counters: &[(u64, DnsCounters)]) -> Vec<u64> {
        let known: HashSet<u64> = counters.iter().map(|(id, _)| *id).collect();
        let gone: Vec<u64> = self.swept.keys().copied().filter(|id| !known.contains(id)).collect();
        for id in &gone {
            self.swept.remove(id);
        }
        gone
    }

    /// Returns the corrected sums of user space, where a cgroup's count does not agree with what is in the table. Only a
    /// cgroup whose counters are the same as at the last call is compared: the kernel side changes those of others during
    /// the sweep. Their difference comes from counters that were removed while the cgroup had entries.
    pub fn correct(&mut self, counters: &[(u64, DnsCounters)]) -> Vec<(u64, u64)> {
        let mut corrected = Vec::new();
        let mut before = HashMap::with_capacity(counters.len());
        for (id, counters) in counters {
            let now = (self.counts)(counters);
            let is_quiet = self.has_swept && self.before.get(id) == Some(&now);
            before.insert(*id, now);
            let swept = self.swept.get(id).copied().unwrap_or(0);
            let should_be = now.0.wrapping_sub(now.1).wrapping_sub(self.present(*id));
            if is_quiet && swept != should_be {
                self.swept.insert(*id, should_be);
                corrected.push((*id, should_be));
            }
        }
        (self.before, self.has_swept) = (before, false);
        corrected
    }
}

#[cfg(test)]
mod tests {
    use podopsy_wire::in_flight;

    use super::*;

    fn counters(inserted: u64, removed: u64) -> DnsCounters {
        DnsCounters { inserted, removed, ..DnsCounters::EMPTY }
    }

    fn usage() -> Usage {
        Usage::new(|counters| (counters.inserted, counters.removed))
    }

    fn swept_queries(usage: &mut Usage, cgroup_id: u64, present: u64) {
        usage.begin_sweep();
        (0..present).for_each(|_| usage.add(cgroup_id));
    }

    #[test]
    fn what_user_space_removes_is_published_once() {
        let mut usage = usage();
        swept_queries(&mut usage, 7, 5);
        usage.remove(7);
        usage.remove(7);
        assert_eq!((usage.present(7), usage.present_all, usage.swept_all), (3, 3, 2));
        assert_eq!((usage.changed(), usage.changed()), (vec![(7, 2)], vec![]));
    }

    #[test]
    fn the_count_of_a_quiet_cgroup_is_corrected_and_that_of_a_busy_one_is_not() {
        let mut usage = usage();
        swept_queries(&mut usage, 7, 2);
        // The counters were removed while two queries were in flight, and count from 0 again.
        assert_eq!(
            usage.correct(&[(7, counters(1, 1))]),
            [],
            "the first time there is nothing to compare with"
        );
        swept_queries(&mut usage, 7, 2);
        assert_eq!(usage.correct(&[(7, counters(4, 1))]), [], "its counters have changed");
        assert_eq!(usage.correct(&[(7, counters(4, 1))]), [], "no sweep since");
        swept_queries(&mut usage, 7, 2);
        assert_eq!(usage.correct(&[(7, counters(4, 1))]), [(7, 1)]);
        swept_queries(&mut usage, 7, 2);
        assert_eq!(usage.correct(&[(7, counters(4, 1))]), [], "it agrees now");
        // Fewer were inserted than are there: the sum wraps, and so does the difference.
        swept_queries(&mut usage, 8, 3);
        usage.correct(&[(8, counters(0, 1))]);
        swept_queries(&mut usage, 8, 3);
        let [(8, swept)] = usage.correct(&[(8, counters(0, 1))])[..] else { panic!("it is corrected") };
        assert_eq!(in_flight(0, 1, swept), 3);
    }

    #[test]
    fn a_cgroup_without_counters_is_forgotten() {
        let mut usage = usage();
        swept_queries(&mut usage, 7, 2);
        usage.add(8);
        usage.remove(7);
        usage.remove(8);
        assert_eq!(usage.forget_except(&[(8, counters(1, 0))]), [7]);
        assert!(usage.forget_except(&[(8, counters(1, 0))]).is_empty());
    }
}
