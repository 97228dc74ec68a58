//! What a container's DNS queries came to, counted since the recorder started.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::event::Outcome;
use super::owner::Owner;

/// The counts of one container, or of a memory cgroup that is no container's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DnsCounts {
    #[serde(flatten)]
    pub owner: Owner,
    /// Queries, each once, however often it was sent; a new id is a new query.
    pub queries: u64,
    /// Queries sent again with the same id from the same socket.
    pub resends: u64,
    /// What became of them; an outcome that has not been is left out. An answer is counted by what its header says:
    /// `malformed` is never here, and a late answer's query has been counted as a timeout, too.
    pub outcomes: BTreeMap<Outcome, u64>,
    /// Of answers in time, whatever they said.
    pub latency: Latencies,
    /// Events that were due and not made, because the container had too many of them: they are in `outcomes` all the
    /// same.
    pub events_dropped: u64,
    pub not_visible: NotVisible,
}

/// TCP connections to resolvers whose queries are encrypted. Without them a container that asks nobody else looks as if
/// it asked nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotVisible {
    /// DNS over TLS (RFC 7858): port 853.
    pub tls: u64,
    /// DNS over HTTPS (RFC 8484): port 443 of a resolver known by its address.
    pub https: u64,
}

/// Latencies in buckets of powers of two: the nth counts those below 2^n µs that no lower one counts; the last has no
/// upper bound.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latencies {
    pub buckets: Vec<u64>,
    /// All of them added up, in µs.
    #[serde(default)]
    pub sum_us: u64,
}

impl Latencies {
    /// How many there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The upper bound of the bucket that the given share (0.5, 0.99) of latencies lies in: a latency of that rank was
    /// shorter, and at least half as long. None: there are none, or it lies in the last bucket, which has no bound.
    pub fn percentile(&self, share: f64) -> Option<Duration> {
        let rank = (self.count() as f64 * share.clamp(0.0, 1.0)).ceil().max(1.0) as u64;
        let mut below = 0;
        let index = self.buckets.iter().position(|count| {
            below += count;
            below >= rank
        })?;
        (index + 1 < self.buckets.len()).then(|| upper_bound(index))
    }

    fn add(&mut self, other: &Latencies) {
        if self.buckets.len() < other.buckets.len() {
            self.buckets.resize(other.buckets.len(), 0);
        }
        for (sum, count) in self.buckets.iter_mut().zip(&other.buckets) {
            *sum += count;
        }
        self.sum_us += other.sum_us;
    }
}

/// What every latency of the bucket is shorter than, but for the last one.
pub fn upper_bound(bucket: usize) -> Duration {
    Duration::from_micros(1u64.checked_shl(u32::try_from(bucket).unwrap_or(u32::MAX)).unwrap_or(u64::MAX))
}

impl DnsCounts {
    /// How many queries ended so.
    pub fn outcome(&self, outcome: Outcome) -> u64 {
        self.outcomes.get(&outcome).copied().unwrap_or(0)
    }

    /// Adds what another cgroup of the same owner counted.
    pub fn add(&mut self, other: &DnsCounts) {
        self.queries += other.queries;
        self.resends += other.resends;
        for (outcome, count) in &other.outcomes {
            *self.outcomes.entry(*outcome).or_default() += count;
        }
        self.latency.add(&other.latency);
        self.events_dropped += other.events_dropped;
        self.not_visible.tls += other.not_visible.tls;
        self.not_visible.https += other.not_visible.https;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_an_upper_bound() {
        let mut latency = Latencies { buckets: vec![0; 24], sum_us: 0 };
        assert_eq!(latency.percentile(0.5), None);
        // 90 between 64 and 128 µs, 10 between 1.0 and 2.1 s.
        (latency.buckets[7], latency.buckets[21]) = (90, 10);
        assert_eq!(latency.percentile(0.0), Some(Duration::from_micros(128)));
        assert_eq!(latency.percentile(0.9), Some(Duration::from_micros(128)));
        assert_eq!(latency.percentile(0.91), Some(Duration::from_micros(1 << 21)));
        latency.buckets[23] = 1000;
        assert_eq!(latency.percentile(0.99), None, "the last bucket has no bound");
    }

    #[test]
    fn cgroups_of_one_container_are_added() {
        let mut one = DnsCounts { queries: 3, ..DnsCounts::default() };
        one.outcomes.insert(Outcome::Timeout, 2);
        let mut other = DnsCounts { queries: 1, ..DnsCounts::default() };
        other.outcomes = [(Outcome::Timeout, 1), (Outcome::Noerror, 5)].into();
        other.latency.buckets = vec![0, 5];
        one.add(&other);
        assert_eq!((one.queries, one.outcome(Outcome::Timeout), one.outcome(Outcome::Noerror)), (4, 3, 5));
        assert_eq!(one.latency.count(), 5);
    }
}
