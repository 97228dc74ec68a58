//! Lookups and queries → statistics by pod, by name and by resolver. The number of keys is bounded: further keys are
//! summed up under `(others)`.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use podopsy_model::lookup::{LookupResult, LookupTransaction, SearchList};
use podopsy_model::{DnsTransaction, Lookup, Outcome};

/// Pods, names and resolvers with an entry of their own, each.
const KEYS_MAX: usize = 2048;
const OTHERS: &str = "(others)";

/// A histogram of latencies with 16 steps for each power of two: a percentile is at most 6 % too high.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    buckets: BTreeMap<u32, u64>,
    count: u64,
    max: u64,
}

impl Histogram {
    /// log2 of the steps for each power of two.
    const STEP_BITS: u32 = 4;

    pub fn add(&mut self, value: u64) {
        *self.buckets.entry(Self::bucket(value)).or_default() += 1;
        self.count += 1;
        self.max = self.max.max(value);
    }

    fn bucket(value: u64) -> u32 {
        let power = 63 - (value | 1).leading_zeros();
        match power {
            0..Self::STEP_BITS => value as u32,
            _ => (power << Self::STEP_BITS) | ((value >> (power - Self::STEP_BITS)) & 15) as u32,
        }
    }

    /// The highest value of a bucket.
    fn top(bucket: u32) -> u64 {
        let power = bucket >> Self::STEP_BITS;
        match power {
            0 => u64::from(bucket),
            _ => {
                let step = 1u64 << (power - Self::STEP_BITS);
                (1u64 << power) + (u64::from(bucket & 15) * step) + (step - 1)
            }
        }
    }

    /// The value that this part of all values does not exceed; None: there are no values.
    pub fn percentile(&self, part: f64) -> Option<u64> {
        let wanted = ((self.count as f64 * part).ceil() as u64).max(1);
        let mut below = 0;
        for (&bucket, &count) in &self.buckets {
            below += count;
            if below >= wanted {
                return Some(Self::top(bucket).min(self.max));
            }
        }
        None
    }

    pub fn percentiles(&self) -> Percentiles {
        Percentiles {
            p50_ns: self.percentile(0.5),
            p90_ns: self.percentile(0.9),
            p99_ns: self.percentile(0.99),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Percentiles {
    pub p50_ns: Option<u64>,
    pub p90_ns: Option<u64>,
    pub p99_ns: Option<u64>,
}

#[derive(Clone, Debug, Serialize)]
pub struct PodLookups {
    pub pod: String,
    pub lookups: u64,
    /// The lookups that failed, by result.
    pub failed: BTreeMap<&'static str, u64>,
    /// First query sent → last outcome.
    pub wait: Percentiles,
    pub queries: u64,
    #[serde(rename = "futile_queries")]
    pub search_path_misses: u64,
    /// What would have saved the search-path misses; null: there were none, or the search list is not known.
    pub advice: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct NameLookups {
    pub name: String,
    pub lookups: u64,
    pub failed: BTreeMap<&'static str, u64>,
}

#[derive(Clone, Debug, Serialize)]
pub struct ResolverQueries {
    pub resolver: String,
    pub queries: u64,
    /// Queries with any response in time.
    pub answered: u64,
    pub timeouts: u64,
    pub unreachable: u64,
    pub late: u64,
    pub malformed: u64,
    pub latency: Percentiles,
}

#[derive(Clone, Debug, Serialize)]
pub struct LookupSummary {
    pub pods: Vec<PodLookups>,
    /// The names whose lookups failed, the most failures first.
    pub names: Vec<NameLookups>,
    pub resolvers: Vec<ResolverQueries>,
}

#[derive(Debug, Default)]
struct PodTotals {
    lookups: u64,
    failed: BTreeMap<&'static str, u64>,
    wait: Histogram,
    queries: u64,
    search_path_misses: u64,
    /// Search-path misses of lookups in which the name itself was asked for, too: a trailing dot would have saved them.
    savable: u64,
    search: Option<SearchList>,
    /// The fewest dots in such a name.
    dots: u32,
}

#[derive(Debug, Default)]
struct NameTotals {
    lookups: u64,
    failed: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Default)]
struct ResolverTotals {
    outcomes: BTreeMap<Outcome, u64>,
    latency: Histogram,
}

/// Sums up lookups and queries.
#[derive(Debug, Default)]
pub struct LookupStatistics {
    pods: HashMap<String, PodTotals>,
    names: HashMap<String, NameTotals>,
    resolvers: HashMap<String, ResolverTotals>,
}

/// The entry of a key, or the common entry if there are too many keys.
fn entry<'a, T: Default>(map: &'a mut HashMap<String, T>, key: &str) -> &'a mut T {
    let key = if map.len() < KEYS_MAX || map.contains_key(key) { key } else { OTHERS };
    map.entry(key.to_owned()).or_default()
}

impl LookupStatistics {
    pub fn add_lookup(&mut self, pod: &str, lookup: &Lookup) {
        let of_pod = entry(&mut self.pods, pod);
        of_pod.lookups += 1;
        of_pod.wait.add(lookup.wait_ns);
        of_pod.queries += u64::from(lookup.queries);
        of_pod.search_path_misses += u64::from(lookup.search_path_misses.queries);
        if lookup.search_path_misses.queries > 0 {
            of_pod.search = lookup.search.clone().or(of_pod.search.take());
            let is_name_itself = |step: &LookupTransaction| step.name.eq_ignore_ascii_case(&lookup.name);
            if lookup.transactions.iter().any(is_name_itself) {
                let dots = super::search::dots(&lookup.name);
                of_pod.dots = if of_pod.savable == 0 { dots } else { of_pod.dots.min(dots) };
                of_pod.savable += u64::from(lookup.search_path_misses.queries);
            }
        }
        let of_name = entry(&mut self.names, &lookup.name);
        of_name.lookups += 1;
        if lookup.result.is_failure() {
            let result = LookupResult::as_str(lookup.result);
            *of_pod.failed.entry(result).or_default() += 1;
            *of_name.failed.entry(result).or_default() += 1;
        }
    }

    /// Adds a query's outcome. Its latency counts only if a response came in time.
    pub fn add_query(&mut self, transaction: &DnsTransaction) {
        let of_resolver = entry(&mut self.resolvers, &transaction.server.to_string());
        *of_resolver.outcomes.entry(transaction.outcome).or_default() += 1;
        if !matches!(transaction.outcome, Outcome::Timeout | Outcome::Unreachable | Outcome::Late) {
            of_resolver.latency.add(transaction.latency_ns);
        }
    }

    /// `names_max`: how many of the names that failed are listed.
    pub fn summary(&self, names_max: usize) -> LookupSummary {
        let mut pods: Vec<PodLookups> = self.pods.iter().map(|(pod, totals)| totals.summary(pod)).collect();
        pods.sort_by(|a, b| (b.lookups, &a.pod).cmp(&(a.lookups, &b.pod)));
        let failed = |name: &NameLookups| name.failed.values().sum::<u64>();
        let mut names: Vec<NameLookups> = self
            .names
            .iter()
            .filter(|(_, totals)| !totals.failed.is_empty())
            .map(|(name, totals)| NameLookups {
                name: name.clone(),
                lookups: totals.lookups,
                failed: totals.failed.clone(),
            })
            .collect();
        names.sort_by(|a, b| (failed(b), &a.name).cmp(&(failed(a), &b.name)));
        names.truncate(names_max);
        let mut resolvers: Vec<ResolverQueries> =
            self.resolvers.iter().map(|(server, totals)| totals.summary(server)).collect();
        resolvers.sort_by(|a, b| (b.queries, &a.resolver).cmp(&(a.queries, &b.resolver)));
        LookupSummary { pods, names, resolvers }
    }
}

impl PodTotals {
    fn summary(&self, pod: &str) -> PodLookups {
        PodLookups {
            pod: pod.to_owned(),
            lookups: self.lookups,
            failed: self.failed.clone(),
            wait: self.wait.percentiles(),
            queries: self.queries,
            search_path_misses: self.search_path_misses,
            advice: self.advice(pod),
        }
    }

    fn advice(&self, pod: &str) -> Option<String> {
        let search = self.search.as_ref().filter(|_| self.search_path_misses > 0)?;
        let (domains, ndots) = (search.domains.len(), search.ndots);
        let plural = if domains == 1 { "" } else { "s" };
        let seen = format!(
            "{} of {} queries of {pod} were search-path misses: ndots:{ndots} and {domains} search domain{plural}",
            self.search_path_misses, self.queries
        );
        let saved = match self.savable {
            0 => return Some(seen),
            all if all == self.search_path_misses => "them".to_owned(),
            some => format!("{some} of them"),
        };
        Some(match self.dots {
            dots if dots > 1 && dots < ndots => {
                format!("{seen}; a trailing dot or ndots:{dots} would have saved {saved}")
            }
            _ => format!("{seen}; a trailing dot would have saved {saved}"),
        })
    }
}

impl ResolverTotals {
    fn summary(&self, server: &str) -> ResolverQueries {
        let count = |outcome| self.outcomes.get(&outcome).copied().unwrap_or(0);
        let (timeouts, unreachable) = (count(Outcome::Timeout), count(Outcome::Unreachable));
        // A late answer belongs to a query that has been counted as a timeout.
        let queries = self.outcomes.values().sum::<u64>() - count(Outcome::Late);
        ResolverQueries {
            resolver: server.to_owned(),
            queries,
            answered: queries - timeouts - unreachable,
            timeouts,
            unreachable,
            late: count(Outcome::Late),
            malformed: count(Outcome::Malformed),
            latency: self.latency.percentiles(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_at_most_7_percent_too_high_and_never_too_low() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.percentile(0.5), None);
        for value in 1..=10_000u64 {
            histogram.add(value * 1000);
        }
        for (part, exact) in [(0.5, 5_000_000.0), (0.9, 9_000_000.0), (0.99, 9_900_000.0)] {
            let found = histogram.percentile(part).unwrap() as f64;
            assert!((exact..exact * 1.07).contains(&found), "{part}: {found}");
        }
        for value in [0, 1, 15, 16, 17, 1 << 40, u64::MAX] {
            let mut one = Histogram::default();
            one.add(value);
            assert!(Histogram::top(Histogram::bucket(value)) >= value);
            assert_eq!(one.percentile(0.99), Some(value));
        }
    }

    #[test]
    fn the_number_of_keys_is_bounded() {
        let mut map: HashMap<String, u64> = HashMap::new();
        for key in 0..KEYS_MAX + 10 {
            *entry(&mut map, &key.to_string()) += 1;
        }
        assert_eq!((map.len(), map.get(OTHERS)), (KEYS_MAX + 1, Some(&10)));
    }
}
