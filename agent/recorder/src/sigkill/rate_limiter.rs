//! Limits how many SIGKILLs are reported: one for each process, and at most so many for each container and in all.
//! SIGKILLs beyond the rate are counted as a loss.

use std::collections::{HashMap, HashSet, VecDeque};

use podopsy_decode::SigkillDecoded;
use podopsy_wire::TokenBucket;

/// One a second for one container, and 64 at once: dozens of processes that are stopped together are all reported.
const PER_CGROUP: TokenBucket = TokenBucket::new(1_000_000, 64);
/// 32 a second for all containers together, and 512 at once.
const TOTAL: TokenBucket = TokenBucket::new(1_000_000 / 32, 512);
/// Cgroups whose buckets are kept. A full bucket need not be kept.
const CGROUPS_MAX: usize = 4096;
/// Processes that are remembered as reported: duplicates follow within moments.
const REPORTED_MAX: usize = 1024;

/// Admits or drops records. Pure: the time is taken from the records.
#[derive(Debug, Default)]
pub struct RateLimiter {
    /// The time until which each cgroup's bucket is paid for.
    cgroups: HashMap<u64, u64>,
    /// The same for the bucket of all containers.
    total_paid_ns: u64,
    /// Pid and start time of the processes that were reported.
    reported: HashSet<(u32, u64)>,
    /// The same, oldest first.
    order: VecDeque<(u32, u64)>,
    /// Records that were dropped because there were too many.
    pub throttled: u64,
}

impl RateLimiter {
    /// Whether this record is to be reported. False for a process that was reported before, which is no loss.
    pub fn admits(&mut self, record: &SigkillDecoded) -> bool {
        let target = &record.target;
        // Older kernels report a second signal to another thread of the process as if it were the first one.
        if !self.reported.insert((target.pid, target.start_ns)) {
            return false;
        }
        self.order.push_back((target.pid, target.start_ns));
        if self.order.len() > REPORTED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.reported.remove(&oldest);
        }
        if self.cgroups.len() >= CGROUPS_MAX && !self.cgroups.contains_key(&target.cgroup_id) {
            self.cgroups.retain(|_, paid_ns| *paid_ns > record.time_ns);
            if self.cgroups.len() >= CGROUPS_MAX {
                self.cgroups.clear();
            }
        }
        let cgroup = self.cgroups.entry(target.cgroup_id).or_default();
        // The cgroup's bucket comes first, so that a flood in one container takes no tokens from the others.
        let admitted =
            take(PER_CGROUP, cgroup, record.time_ns) && take(TOTAL, &mut self.total_paid_ns, record.time_ns);
        self.throttled += u64::from(!admitted);
        admitted
    }
}

/// Takes a token from a bucket that is paid until `paid_ns`. False: it is empty.
fn take(bucket: TokenBucket, paid_ns: &mut u64, now_ns: u64) -> bool {
    let Some(paid) = bucket.take(*paid_ns, now_ns, 1) else { return false };
    *paid_ns = paid;
    true
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
    fn a_process_is_reported_once() {
        let mut limiter = RateLimiter::default();
        assert!(limiter.admits(&kill(1, 7, 1)) && !limiter.admits(&kill(1, 7, 2)));
        assert_eq!(limiter.throttled, 0, "a duplicate is no loss");
        let mut later = kill(1, 7, 3);
        later.target.start_ns += 1;
        assert!(limiter.admits(&later), "another process with the same pid");
        for pid in 2..5000 {
            limiter.admits(&kill(pid, 7, 4));
        }
        assert_eq!((limiter.reported.len(), limiter.order.len()), (REPORTED_MAX, REPORTED_MAX));
    }

    #[test]
    fn a_flood_in_one_container_is_counted_and_takes_nothing_from_another() {
        let mut limiter = RateLimiter::default();
        let admitted = (1..=1000).filter(|&pid| limiter.admits(&kill(pid, 7, SECOND))).count();
        assert_eq!((admitted, limiter.throttled), (64, 936));
        assert!(limiter.admits(&kill(2000, 8, SECOND)));
        assert!(limiter.admits(&kill(2001, 7, 3 * SECOND)), "it refills");
    }

    #[test]
    fn the_total_rate_and_the_number_of_buckets_are_bounded() {
        let mut limiter = RateLimiter::default();
        let admitted = (1..=6000).filter(|&n| limiter.admits(&kill(n, n.into(), SECOND))).count();
        assert_eq!((admitted, limiter.throttled), (512, 6000 - 512));
        assert!(limiter.cgroups.len() <= CGROUPS_MAX);
    }
}
