//! How many requests a pod's Events may cost: what client-go's recorder allows one object.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};

pub const BURST: i64 = 25;
/// One more each so often.
pub const REFILL: SignedDuration = SignedDuration::from_secs(300);
/// Pods that are remembered; beyond that, the one that was silent the longest is forgotten.
const PODS_MAX: usize = 1024;

/// What each pod has left, by uid.
#[derive(Debug, Default)]
pub struct Buckets(HashMap<String, Bucket>);

#[derive(Debug)]
struct Bucket {
    left: i64,
    /// Since when there is no more than `left`.
    since: Timestamp,
}

impl Bucket {
    fn refill(&mut self, now: Timestamp) {
        let passed = now.duration_since(self.since).as_secs().max(0) / REFILL.as_secs();
        self.left = (self.left + passed).min(BURST);
        self.since =
            if self.left == BURST { now.max(self.since) } else { self.since + REFILL * passed as i32 };
    }
}

impl Buckets {
    /// Whether there is one left, which is gone then.
    pub fn take(&mut self, uid: &str, now: Timestamp) -> bool {
        if !self.0.contains_key(uid) && self.0.len() >= PODS_MAX {
            let oldest = self.0.iter().min_by_key(|(_, bucket)| bucket.since).map(|(uid, _)| uid.clone());
            oldest.map(|oldest| self.0.remove(&oldest));
        }
        let bucket = self.0.entry(uid.to_owned()).or_insert(Bucket { left: BURST, since: now });
        bucket.refill(now);
        let is_left = bucket.left > 0;
        bucket.left -= i64::from(is_left);
        is_left
    }

    /// Forgets those that are full again.
    pub fn forget(&mut self, now: Timestamp) {
        self.0.retain(|_, bucket| {
            bucket.refill(now);
            bucket.left < BURST
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_one_in_five_minutes_for_each_pod() {
        let (mut buckets, begin) = (Buckets::default(), Timestamp::UNIX_EPOCH);
        let mut taken = |uid: &str, minute: i64| {
            let now = begin + SignedDuration::from_mins(minute);
            (0..100).filter(|_| buckets.take(uid, now)).count()
        };
        assert_eq!((taken("a", 0), taken("b", 0), taken("a", 4)), (25, 25, 0));
        assert_eq!((taken("a", 5), taken("a", 9), taken("a", 10), taken("a", 26)), (1, 0, 1, 3));
        assert_eq!(taken("a", 100_000), 25);
        // A clock that was set back gives nothing, and breaks nothing.
        assert_eq!(taken("a", 0), 0);
    }

    #[test]
    fn pods_are_bounded_and_the_rested_forgotten() {
        let (mut buckets, begin) = (Buckets::default(), Timestamp::UNIX_EPOCH);
        for n in 0..5000 {
            assert!(buckets.take(&n.to_string(), begin + SignedDuration::from_millis(n)));
        }
        assert_eq!(buckets.0.len(), PODS_MAX);
        buckets.forget(begin + SignedDuration::from_secs(310));
        assert!(buckets.0.is_empty());
    }
}
