//! Lookups and queries → figures by pod, by name and by resolver. Bounded: what does not fit is summed under `(others)`.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use serde::Serialize;

use podopsy_model::lookup::{LookupResult, Search, Step};
use podopsy_model::{DnsTransaction, Lookup, Outcome};

/// Pods, names and resolvers that are told apart.
const KEYS_MAX: usize = 2048;
const OTHERS: &str = "(others)";

/// Latencies in 16 steps for each power of two: a percentile is at most 6 % too high.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    buckets: BTreeMap<u32, u64>,
    count: u64,
    max: u64,
}

impl Histogram {
    const STEPS: u32 = 4;

    pub fn add(&mut self, value: u64) {
        *self.buckets.entry(Self::bucket(value)).or_default() += 1;
        self.count += 1;
        self.max = self.max.max(value);
    }

    fn bucket(value: u64) -> u32 {
        let power = 63 - (value | 1).leading_zeros();
        match power {
            0..Self::STEPS => value as u32,
            _ => (power << Self::STEPS) | ((value >> (power - Self::STEPS)) & 15) as u32,
        }
    }

    /// The highest value that falls into a bucket.
    fn top(bucket: u32) -> u64 {
        let power = bucket >> Self::STEPS;
        match power {
            0 => u64::from(bucket),
            _ => {
                let step = 1u64 << (power - Self::STEPS);
                (1u64 << power) + (u64::from(bucket & 15) * step) + (step - 1)
            }
        }
    }

    /// `part` of all values are at most this; None: there are none.
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
    /// How many failed, by outcome.
    pub failed: BTreeMap<&'static str, u64>,
    /// First query sent → last outcome.
    pub wait: Percentiles,
    pub queries: u64,
    #[serde(rename = "futile_queries")]
    pub search_path_misses: u64,
    /// What the search-path misses imply; null: there were none, or the search list is not known.
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
    /// A response came in time, whatever it said.
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
    /// Those that failed, most often first.
    pub names: Vec<NameLookups>,
    pub resolvers: Vec<ResolverQueries>,
}

#[derive(Debug, Default)]
struct Pod {
    lookups: u64,
    failed: BTreeMap<&'static str, u64>,
    wait: Histogram,
    queries: u64,
    search_path_misses: u64,
    /// Search-path misses of lookups that came to ask for the name itself.
    savable: u64,
    search: Option<Search>,
    /// The fewest dots in such a name.
    dots: u32,
}

#[derive(Debug, Default)]
struct Name {
    lookups: u64,
    failed: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Default)]
struct Resolver {
    outcomes: BTreeMap<Outcome, u64>,
    latency: Histogram,
}

/// Gathers figures.
#[derive(Debug, Default)]
pub struct LookupStatistics {
    pods: HashMap<String, Pod>,
    names: HashMap<String, Name>,
    resolvers: HashMap<String, Resolver>,
}

fn at<'a, T: Default>(map: &'a mut HashMap<String, T>, key: &str) -> &'a mut T {
    let key = if map.len() < KEYS_MAX || map.contains_key(key) { key } else { OTHERS };
    map.entry(key.to_owned()).or_default()
}

impl LookupStatistics {
    pub fn lookup(&mut self, pod: &str, lookup: &Lookup) {
        let of_pod = at(&mut self.pods, pod);
        of_pod.lookups += 1;
        of_pod.wait.add(lookup.wait_ns);
        of_pod.queries += u64::from(lookup.queries);
        of_pod.search_path_misses += u64::from(lookup.search_path_misses.queries);
        if lookup.search_path_misses.queries > 0 {
            of_pod.search = lookup.search.clone().or(of_pod.search.take());
            let own = |step: &Step| step.name.eq_ignore_ascii_case(&lookup.name);
            if lookup.transactions.iter().any(own) {
                let dots = super::search::dots(&lookup.name);
                of_pod.dots = if of_pod.savable == 0 { dots } else { of_pod.dots.min(dots) };
                of_pod.savable += u64::from(lookup.search_path_misses.queries);
            }
        }
        let of_name = at(&mut self.names, &lookup.name);
        of_name.lookups += 1;
        if lookup.result.is_failure() {
            let word = LookupResult::as_str(lookup.result);
            *of_pod.failed.entry(word).or_default() += 1;
            *of_name.failed.entry(word).or_default() += 1;
        }
    }

    /// One query's outcome; its latency counts if a response came in time.
    pub fn query(&mut self, transaction: &DnsTransaction) {
        self.resolver(transaction.server, transaction.outcome, transaction.latency_ns);
    }

    fn resolver(&mut self, server: SocketAddr, outcome: Outcome, latency_ns: u64) {
        let of = at(&mut self.resolvers, &server.to_string());
        *of.outcomes.entry(outcome).or_default() += 1;
        if !matches!(outcome, Outcome::Timeout | Outcome::Unreachable | Outcome::Late) {
            of.latency.add(latency_ns);
        }
    }

    pub fn summary(&self, names_max: usize) -> LookupSummary {
        let mut pods: Vec<PodLookups> = self.pods.iter().map(|(pod, of)| of.shown(pod)).collect();
        pods.sort_by(|a, b| (b.lookups, &a.pod).cmp(&(a.lookups, &b.pod)));
        let failed = |of: &NameLookups| of.failed.values().sum::<u64>();
        let mut names: Vec<NameLookups> = self
            .names
            .iter()
            .filter(|(_, of)| !of.failed.is_empty())
            .map(|(name, of)| NameLookups {
                name: name.clone(),
                lookups: of.lookups,
                failed: of.failed.clone(),
            })
            .collect();
        names.sort_by(|a, b| (failed(b), &a.name).cmp(&(failed(a), &b.name)));
        names.truncate(names_max);
        let mut resolvers: Vec<ResolverQueries> =
            self.resolvers.iter().map(|(server, of)| of.shown(server)).collect();
        resolvers.sort_by(|a, b| (b.queries, &a.resolver).cmp(&(a.queries, &b.resolver)));
        LookupSummary { pods, names, resolvers }
    }
}

impl Pod {
    fn shown(&self, pod: &str) -> PodLookups {
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

impl Resolver {
    fn shown(&self, server: &str) -> ResolverQueries {
        let count = |outcome| self.outcomes.get(&outcome).copied().unwrap_or(0);
        let (timeouts, unreachable) = (count(Outcome::Timeout), count(Outcome::Unreachable));
        // A late answer is the second word on a query that timed out.
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
    fn percentiles_are_near_and_never_below() {
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
    fn keys_are_bounded() {
        let mut map: HashMap<String, u64> = HashMap::new();
        for key in 0..KEYS_MAX + 10 {
            *at(&mut map, &key.to_string()) += 1;
        }
        assert_eq!((map.len(), map.get(OTHERS)), (KEYS_MAX + 1, Some(&10)));
    }
}
