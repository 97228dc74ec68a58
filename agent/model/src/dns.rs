//! Counts of a container's DNS queries and their outcomes since the recorder started.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::event::Outcome;
use super::owner::Owner;

/// The mnemonic of a response code, by IANA's registry "DNS RCODEs"; none for one without.
pub fn rcode_name(rcode: u16) -> Option<&'static str> {
    Some(match rcode {
        0 => "NOERROR",
        1 => "FORMERR",
        2 => "SERVFAIL",
        3 => "NXDOMAIN",
        4 => "NOTIMP",
        5 => "REFUSED",
        6 => "YXDOMAIN",
        7 => "YXRRSET",
        8 => "NXRRSET",
        9 => "NOTAUTH",
        10 => "NOTZONE",
        11 => "DSOTYPENI",
        16 => "BADVERS",
        17 => "BADKEY",
        18 => "BADTIME",
        19 => "BADMODE",
        20 => "BADNAME",
        21 => "BADALG",
        22 => "BADTRUNC",
        23 => "BADCOOKIE",
        _ => return None,
    })
}

/// The mnemonic of an operation code, by IANA's registry "DNS OpCodes"; None: a plain query.
pub fn opcode_name(opcode: u16) -> Option<String> {
    Some(match opcode {
        0 => return None,
        1 => "IQUERY".to_owned(),
        2 => "STATUS".to_owned(),
        4 => "NOTIFY".to_owned(),
        5 => "UPDATE".to_owned(),
        6 => "DSO".to_owned(),
        other => format!("OPCODE{other}"),
    })
}

/// The counts of one container, or of a memory cgroup that belongs to no container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DnsCounts {
    #[serde(flatten)]
    pub owner: Owner,
    /// Queries. A query that was sent several times counts once; a new id is a new query.
    pub queries: u64,
    /// Queries sent again with the same id from the same socket.
    pub resends: u64,
    /// Queries whose outcome was not seen, because the container had its share of queries in flight already.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub untracked: u64,
    /// Queries that were followed by the address in their packets alone, because the container had its share of sending
    /// threads already. Where that address is translated, an answer may not have been recognised.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unnamed: u64,
    /// Messages to DNS servers' ports that are not DNS, for example of a tunnel. They are not in `queries`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub not_dns: u64,
    /// Queries by outcome; an outcome without queries is left out. An answer is counted by its header, so `malformed` never
    /// appears here. A query with a late answer has been counted as a timeout, too.
    pub outcomes: BTreeMap<Outcome, u64>,
    /// Latencies of all answers that came in time, whatever their response code.
    pub latency: Latencies,
    /// Events that were dropped because the container had too many of them. The queries are counted in `outcomes`.
    pub events_dropped: u64,
    pub not_visible: NotVisible,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// TCP connections to resolvers with encrypted queries. Without these counts, a container that uses only such resolvers
/// would look as if it made no queries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NotVisible {
    /// DNS over TLS (RFC 7858): port 853.
    pub tls: u64,
    /// DNS over HTTPS (RFC 8484): port 443 of a resolver known by its address.
    pub https: u64,
}

/// A histogram of latencies. Bucket n counts those from 2^(n-1) up to 2^n µs (the first: below 1 µs); the last has no upper
/// bound.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Latencies {
    pub buckets: Vec<u64>,
    /// The sum of all latencies, in µs.
    #[serde(default)]
    pub sum_us: u64,
}

impl Latencies {
    /// The number of latencies.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The upper bound of the bucket that contains the given percentile (0.5, 0.99). The real latency of that rank is shorter,
    /// and at least half as long. None: there are no latencies, or it is in the last bucket, which has no bound.
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

/// The exclusive upper bound of a bucket, except the last one, which has none.
pub fn upper_bound(bucket: usize) -> Duration {
    Duration::from_micros(1u64.checked_shl(u32::try_from(bucket).unwrap_or(u32::MAX)).unwrap_or(u64::MAX))
}

impl DnsCounts {
    /// The number of queries with this outcome.
    pub fn outcome(&self, outcome: Outcome) -> u64 {
        self.outcomes.get(&outcome).copied().unwrap_or(0)
    }

    /// Adds what another cgroup of the same owner counted.
    pub fn add(&mut self, other: &DnsCounts) {
        self.queries += other.queries;
        self.resends += other.resends;
        self.untracked += other.untracked;
        self.unnamed += other.unnamed;
        self.not_dns += other.not_dns;
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
