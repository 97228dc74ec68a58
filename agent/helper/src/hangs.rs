//! The containers whose files made a helper hang, and for how long no other helper is risked for them.
//!
//! A helper that waits for a file system cannot always be killed: FUSE waits for its server in an uninterruptible sleep once
//! the server has read the request (`request_wait_answer` in `fs/fuse/dev.c`). Such a process stays until the server answers or
//! ends, so a container may cost one, and not one after the other.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::Tenant;

/// How long the files of a container are refused after its first hang; after each further one, twice as long as before.
const FIRST_PAUSE: Duration = Duration::from_secs(15);
const LONGEST_PAUSE: Duration = Duration::from_secs(6 * 3600);
/// A container that has not hung a helper for this many pauses begins with the first one again.
const FORGIVEN_AFTER: u32 = 10;
/// Containers that are remembered; beyond it, the one whose pause ends first is forgotten.
const MAX_TENANTS: usize = 4096;

#[derive(Clone, Copy, Debug)]
struct Hang {
    until: Instant,
    pause: Duration,
    /// The helper that could not be killed.
    stuck: Option<i32>,
}

/// Hangs by container.
#[derive(Debug, Default)]
pub struct Hangs(HashMap<Tenant, Hang>);

impl Hangs {
    /// Whether no helper is risked for a container. `is_stuck` finds out whether a helper still hangs.
    pub fn refuses(&mut self, tenant: Tenant, now: Instant, is_stuck: impl Fn(i32) -> bool) -> bool {
        let Some(hang) = self.0.get_mut(&tenant) else { return false };
        if now < hang.until {
            return true;
        }
        if hang.stuck.is_some_and(is_stuck) {
            hang.until = now + hang.pause;
            return true;
        }
        hang.stuck = None;
        false
    }

    /// A helper hung on a file of a container. `stuck`: it could not be killed. Returns the time for which the container's
    /// files are refused.
    pub fn add(&mut self, tenant: Tenant, now: Instant, stuck: Option<i32>) -> Duration {
        if self.0.len() >= MAX_TENANTS && !self.0.contains_key(&tenant) {
            let first = self.0.iter().min_by_key(|(_, hang)| (hang.stuck.is_some(), hang.until));
            if let Some(first) = first.map(|(tenant, _)| *tenant) {
                self.0.remove(&first);
            }
        }
        let recent = self.0.get(&tenant).filter(|hang| now < hang.until + hang.pause * FORGIVEN_AFTER);
        let before = recent.map(|hang| hang.pause);
        let pause = before.map_or(FIRST_PAUSE, |pause| (pause * 2).min(LONGEST_PAUSE));
        self.0.insert(tenant, Hang { until: now + pause, pause, stuck });
        pause
    }

    /// The number of helpers that hang, as far as is known.
    pub fn stuck(&self) -> usize {
        self.0.values().filter(|hang| hang.stuck.is_some()).count()
    }

    /// Finds out which helpers still hang.
    pub fn refresh(&mut self, is_stuck: impl Fn(i32) -> bool) {
        for hang in self.0.values_mut() {
            hang.stuck = hang.stuck.filter(|pid| is_stuck(*pid));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_container_that_hung_a_helper_waits_and_others_do_not() {
        let (mut hangs, start) = (Hangs::default(), Instant::now());
        assert!(!hangs.refuses(1, start, |_| true));
        assert_eq!(hangs.add(1, start, None), FIRST_PAUSE);
        assert!(hangs.refuses(1, start, |_| false) && !hangs.refuses(2, start, |_| true));
        let after = start + FIRST_PAUSE;
        assert!(!hangs.refuses(1, after, |_| false));
        assert_eq!(hangs.add(1, after, None), FIRST_PAUSE * 2);
        assert!(hangs.refuses(1, after + FIRST_PAUSE, |_| false));
        let much_later = after + FIRST_PAUSE * 2 * (1 + FORGIVEN_AFTER);
        assert_eq!(hangs.add(1, much_later, None), FIRST_PAUSE);
    }

    #[test]
    fn a_container_costs_one_helper_that_cannot_be_killed() {
        let (mut hangs, start) = (Hangs::default(), Instant::now());
        hangs.add(1, start, Some(77));
        assert_eq!(hangs.stuck(), 1);
        let mut now = start;
        for _ in 0..100 {
            now += LONGEST_PAUSE;
            assert!(hangs.refuses(1, now, |pid| pid == 77));
        }
        now += LONGEST_PAUSE;
        assert!(!hangs.refuses(1, now, |_| false), "its server has answered");
        assert_eq!(hangs.stuck(), 0);
        hangs.add(1, now, Some(78));
        hangs.refresh(|_| false);
        assert_eq!(hangs.stuck(), 0);
    }

    #[test]
    fn the_number_of_containers_is_bounded_and_those_that_hang_stay() {
        let (mut hangs, now) = (Hangs::default(), Instant::now());
        hangs.add(0, now, Some(77));
        for tenant in 1..2 * MAX_TENANTS as u64 {
            hangs.add(tenant, now, None);
        }
        assert_eq!((hangs.0.len(), hangs.stuck()), (MAX_TENANTS, 1));
    }
}
