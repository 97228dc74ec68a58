//! How many SIGKILLs are told: one a process, some a container, and not too many in all. What is held back is counted.

use std::collections::{HashMap, HashSet, VecDeque};

use podopsy_decode::SigkillDecoded;

/// A container of dozens of processes that is stopped at once is told whole.
const OF_ONE: Bucket = Bucket { tokens: 64.0, at_ns: 0, most: 64.0, per_second: 1.0 };
const OF_ALL: Bucket = Bucket { tokens: 512.0, at_ns: 0, most: 512.0, per_second: 32.0 };
/// Cgroups whose buckets are kept; a full one need not be.
const CGROUPS_MAX: usize = 4096;
/// Processes that are remembered as told: only the last moments matter.
const TOLD_MAX: usize = 1024;

/// Pure: time is what records say.
#[derive(Debug)]
pub struct Gate {
    cgroups: HashMap<u64, Bucket>,
    all: Bucket,
    told: HashSet<(u32, u64)>,
    order: VecDeque<(u32, u64)>,
    pub throttled: u64,
}

impl Default for Gate {
    fn default() -> Self {
        Gate {
            cgroups: HashMap::new(),
            all: OF_ALL,
            told: HashSet::new(),
            order: VecDeque::new(),
            throttled: 0,
        }
    }
}

impl Gate {
    pub fn admits(&mut self, record: &SigkillDecoded) -> bool {
        let target = &record.target;
        // Older kernels call the second signal to another thread of a process a first one.
        if !self.told.insert((target.pid, target.start_ns)) {
            return false;
        }
        self.order.push_back((target.pid, target.start_ns));
        if self.order.len() > TOLD_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.told.remove(&oldest);
        }
        if self.cgroups.len() >= CGROUPS_MAX && !self.cgroups.contains_key(&target.cgroup_id) {
            self.cgroups.retain(|_, bucket| !bucket.is_full(record.time_ns));
            if self.cgroups.len() >= CGROUPS_MAX {
                self.cgroups.clear();
            }
        }
        let fresh = Bucket { at_ns: record.time_ns, ..OF_ONE };
        let one = self.cgroups.entry(target.cgroup_id).or_insert(fresh);
        // In this order: a flood in one container costs the others nothing.
        let admitted = one.take(record.time_ns) && self.all.take(record.time_ns);
        self.throttled += u64::from(!admitted);
        admitted
    }
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at_ns: u64,
    most: f64,
    per_second: f64,
}

impl Bucket {
    fn level(&self, now_ns: u64) -> f64 {
        let seconds = now_ns.saturating_sub(self.at_ns) as f64 / 1e9;
        (self.tokens + seconds * self.per_second).min(self.most)
    }

    fn is_full(&self, now_ns: u64) -> bool {
        self.level(now_ns) >= self.most
    }

    fn take(&mut self, now_ns: u64) -> bool {
        (self.tokens, self.at_ns) = (self.level(now_ns), self.at_ns.max(now_ns));
        let has = self.tokens >= 1.0;
        self.tokens -= if has { 1.0 } else { 0.0 };
        has
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podopsy_decode::sigkill_record;
    use podopsy_decode::testing::sigkill as record;

    const SECOND: u64 = 1_000_000_000;

    fn kill(pid: u32, cgroup_id: u64, time_ns: u64) -> SigkillDecoded {
        let mut killed = sigkill_record(&record(0));
        (killed.target.pid, killed.target.cgroup_id, killed.time_ns) = (pid, cgroup_id, time_ns);
        killed
    }

    #[test]
    fn a_process_is_told_once() {
        let mut gate = Gate::default();
        assert!(gate.admits(&kill(1, 7, 1)) && !gate.admits(&kill(1, 7, 2)));
        assert_eq!(gate.throttled, 0, "that is no loss");
        let mut later = kill(1, 7, 3);
        later.target.start_ns += 1;
        assert!(gate.admits(&later), "another process with the same pid");
        for pid in 2..5000 {
            gate.admits(&kill(pid, 7, 4));
        }
        assert_eq!((gate.told.len(), gate.order.len()), (TOLD_MAX, TOLD_MAX));
    }

    #[test]
    fn a_flood_in_one_container_is_counted_and_costs_another_nothing() {
        let mut gate = Gate::default();
        let admitted = (1..=1000).filter(|&pid| gate.admits(&kill(pid, 7, SECOND))).count();
        assert_eq!((admitted, gate.throttled), (64, 936));
        assert!(gate.admits(&kill(2000, 8, SECOND)));
        assert!(gate.admits(&kill(2001, 7, 3 * SECOND)), "it refills");
    }

    #[test]
    fn many_containers_are_bounded_in_all_and_so_is_what_is_kept_of_them() {
        let mut gate = Gate::default();
        let admitted = (1..=6000).filter(|&n| gate.admits(&kill(n, n.into(), SECOND))).count();
        assert_eq!((admitted, gate.throttled), (512, 6000 - 512));
        assert!(gate.cgroups.len() <= CGROUPS_MAX);
    }
}
