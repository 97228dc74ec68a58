//! Limits the number of requests for the Events of one pod, as client-go's recorder limits them for one object.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};

pub const BURST: i64 = 25;
/// A pod gets one more request after each interval.
pub const REFILL_INTERVAL: SignedDuration = SignedDuration::from_secs(300);
/// The bound on remembered pods. Beyond it, the pod with the longest pause is evicted.
const MAX_PODS: usize = 1024;

/// A token bucket for each pod, by uid.
#[derive(Debug, Default)]
pub struct PodRateLimits(HashMap<String, PodRateLimit>);

#[derive(Debug)]
struct PodRateLimit {
    tokens: i64,
    /// When `tokens` was last brought up to date, rounded down to a whole interval.
    refilled_at: Timestamp,
}

impl PodRateLimit {
    fn refill(&mut self, now: Timestamp) {
        let intervals = now.duration_since(self.refilled_at).as_secs().max(0) / REFILL_INTERVAL.as_secs();
        self.tokens = (self.tokens + intervals).min(BURST);
        self.refilled_at = if self.tokens == BURST {
            now.max(self.refilled_at)
        } else {
            self.refilled_at + REFILL_INTERVAL * intervals as i32
        };
    }
}

impl PodRateLimits {
    /// Takes a token. False: the pod has none left.
    pub fn take(&mut self, uid: &str, now: Timestamp) -> bool {
        if !self.0.contains_key(uid) && self.0.len() >= MAX_PODS {
            self.evict_oldest();
        }
        let limit = self.0.entry(uid.to_owned()).or_insert(PodRateLimit { tokens: BURST, refilled_at: now });
        limit.refill(now);
        let has_token = limit.tokens > 0;
        limit.tokens -= i64::from(has_token);
        has_token
    }

    fn evict_oldest(&mut self) {
        let oldest = self.0.iter().min_by_key(|(_, limit)| limit.refilled_at).map(|(uid, _)| uid.clone());
        if let Some(oldest) = oldest {
            self.0.remove(&oldest);
        }
    }

    /// Removes the pods whose buckets are full again.
    pub fn remove_full(&mut self, now: Timestamp) {
        self.0.retain(|_, limit| {
            limit.refill(now);
            limit.tokens < BURST
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pod_has_a_burst_and_then_one_request_in_five_minutes() {
        let mut limits = PodRateLimits::default();
        let begin = Timestamp::UNIX_EPOCH;
        let mut taken = |uid: &str, minute: i64| {
            let now = begin + SignedDuration::from_mins(minute);
            (0..100).filter(|_| limits.take(uid, now)).count()
        };
        assert_eq!((taken("a", 0), taken("b", 0), taken("a", 4)), (25, 25, 0));
        assert_eq!((taken("a", 5), taken("a", 9), taken("a", 10), taken("a", 26)), (1, 0, 1, 3));
        assert_eq!(taken("a", 100_000), 25);
        // A clock that was set back refills nothing and causes no overflow.
        assert_eq!(taken("a", 0), 0);
    }

    #[test]
    fn the_number_of_pods_is_bounded_and_full_buckets_are_removed() {
        let mut limits = PodRateLimits::default();
        let begin = Timestamp::UNIX_EPOCH;
        for n in 0..5000 {
            assert!(limits.take(&n.to_string(), begin + SignedDuration::from_millis(n)));
        }
        assert_eq!(limits.0.len(), MAX_PODS);
        limits.remove_full(begin + SignedDuration::from_secs(310));
        assert!(limits.0.is_empty());
    }
}
