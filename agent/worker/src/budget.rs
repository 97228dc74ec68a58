//! The CPU time that the files of each container may take: a bucket a container, which fills slowly.
//!
//! A container that uses up its share loses its own names and tables, and delays no other container's for longer.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::Tenant;

/// Containers that are remembered; a node has 110 pods. Beyond it, the one with the fullest bucket is forgotten.
const MAX_TENANTS: usize = 2048;
/// A bucket refills by its content in this time.
const REFILL: Duration = Duration::from_secs(300);

#[derive(Debug)]
struct Bucket {
    left: Duration,
    at: Instant,
}

#[derive(Debug)]
pub(crate) struct Budgets {
    full: Duration,
    buckets: HashMap<Tenant, Bucket>,
}

impl Budgets {
    pub fn new(full: Duration) -> Budgets {
        Budgets { full, buckets: HashMap::new() }
    }

    /// The CPU time that a container has left.
    pub fn left(&mut self, tenant: Tenant, now: Instant) -> Duration {
        let full = self.full;
        let Some(bucket) = self.buckets.get_mut(&tenant) else { return full };
        let refilled = now.saturating_duration_since(bucket.at).as_secs_f64() / REFILL.as_secs_f64();
        bucket.left = full.min(bucket.left + full.mul_f64(refilled.min(1.0)));
        bucket.at = now;
        bucket.left
    }

    /// Takes used time out of a container's bucket.
    pub fn charge(&mut self, tenant: Tenant, used: Duration, now: Instant) {
        let left = self.left(tenant, now).saturating_sub(used);
        if self.buckets.len() >= MAX_TENANTS && !self.buckets.contains_key(&tenant) {
            let fullest =
                self.buckets.iter().max_by_key(|(_, bucket)| bucket.left).map(|(tenant, _)| *tenant);
            fullest.map(|fullest| self.buckets.remove(&fullest));
        }
        self.buckets.insert(tenant, Bucket { left, at: now });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_uses_up_its_time_waits_and_others_do_not() {
        let (full, start) = (Duration::from_secs(10), Instant::now());
        let mut budgets = Budgets::new(full);
        budgets.charge(1, Duration::from_secs(12), start);
        assert_eq!(budgets.left(1, start), Duration::ZERO);
        assert_eq!(budgets.left(2, start), full);
        assert_eq!(budgets.left(1, start + REFILL / 10), Duration::from_secs(1));
        assert_eq!(budgets.left(1, start + REFILL * 5), full);
    }

    #[test]
    fn the_number_of_buckets_is_bounded_and_empty_ones_stay() {
        let now = Instant::now();
        let mut budgets = Budgets::new(Duration::from_secs(10));
        budgets.charge(0, Duration::from_secs(10), now);
        for tenant in 1..2 * MAX_TENANTS as u64 {
            budgets.charge(tenant, Duration::from_millis(1), now);
        }
        assert_eq!(budgets.buckets.len(), MAX_TENANTS);
        assert_eq!(budgets.left(0, now), Duration::ZERO);
    }
}
