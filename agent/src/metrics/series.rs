//! The counts of each container, by its names. A series continues over restarts of the container and ends some time after
//! its last instance.
//!
//! This module must not depend on output formats or on the sources of the counts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use podopsy_model::incident::Level;
use podopsy_model::lookup::LookupResult;
use podopsy_model::metric::Exemplar;
use podopsy_model::owner::Owner;
use podopsy_model::sigkill::Sender;
use podopsy_model::{ContainerRef, DnsCounts, Outcome, PodRef};
use podopsy_recorder::memory::MemoryTrend;

/// How long a series outlives its container: several scrapes, so that Prometheus sees the last kill.
pub const OUTLIVE: Duration = Duration::from_secs(600);
/// Containers with a series of their own. A node has 110 pods by default. The others share one series.
pub const SERIES_MAX: usize = 1024;

/// A container by its names, with the labels of kube-state-metrics. All empty: host processes.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SeriesKey {
    pub namespace: String,
    pub pod: String,
    pub container: String,
}

impl SeriesKey {
    pub fn new(pod: Option<&PodRef>, container: Option<&ContainerRef>) -> SeriesKey {
        SeriesKey {
            namespace: pod.map(|pod| pod.namespace.clone()).unwrap_or_default(),
            pod: pod.map(|pod| pod.name.clone()).unwrap_or_default(),
            container: container.map(|container| container.name.clone()).unwrap_or_default(),
        }
    }

    /// The shared series of the containers beyond [`SERIES_MAX`]. No Kubernetes name contains a parenthesis.
    fn others() -> SeriesKey {
        let others = || "(others)".to_owned();
        SeriesKey { namespace: others(), pod: others(), container: others() }
    }
}

/// One container's counts since the agent's start.
#[derive(Clone, Debug, Default)]
pub struct Series {
    pub oom_kills: u64,
    pub last_kill: Option<Exemplar>,
    pub silent: u64,
    pub incidents: BTreeMap<Level, u64>,
    pub sigkills: BTreeMap<Sender, u64>,
    pub dns: DnsCounts,
    pub lookups_failed: BTreeMap<LookupResult, u64>,
    pub search_path_misses: u64,
    /// The trend of the last minute.
    pub growth: Option<MemoryTrend>,
    touched: Option<Instant>,
}

/// The series of all containers, bounded by [`SERIES_MAX`].
#[derive(Debug, Default)]
pub struct SeriesTable {
    series: BTreeMap<SeriesKey, Series>,
    alive: BTreeSet<SeriesKey>,
    /// The DNS counts of each container at the last scrape, by container id or cgroup.
    dns_read: HashMap<String, DnsCounts>,
    /// How often a container was counted in the shared series because the table was full.
    pub refused: u64,
}

impl SeriesTable {
    /// Returns the container's series, or the shared one if the table is full.
    pub fn series(&mut self, key: SeriesKey, now: Instant) -> &mut Series {
        let full = self.series.len() >= SERIES_MAX && !self.series.contains_key(&key);
        self.refused += u64::from(full);
        let series = self.series.entry(if full { SeriesKey::others() } else { key }).or_default();
        series.touched = Some(now);
        series
    }

    /// Sets the running containers. Each has a series from its start, because `increase()` in PromQL misses a first kill
    /// that has no zero before it.
    pub fn set_alive<'a>(&mut self, owners: impl IntoIterator<Item = &'a Owner>, now: Instant) {
        let key = |owner: &Owner| SeriesKey::new(owner.pod.as_ref(), owner.container.as_ref());
        self.alive = owners.into_iter().map(key).collect();
        for key in self.alive.clone() {
            self.series(key, now);
        }
        let old =
            |series: &Series| series.touched.is_none_or(|at| now.saturating_duration_since(at) > OUTLIVE);
        // The series of the host and the shared series belong to no container and never end.
        self.series.retain(|key, series| {
            self.alive.contains(key)
                || *key == SeriesKey::default()
                || *key == SeriesKey::others()
                || !old(series)
        });
    }

    /// Adds the recorder's DNS counts of each container instance. The recorder counts from the start of the instance, so
    /// only the difference to the last scrape is added: the series continues when a container restarts.
    pub fn add_dns(&mut self, counts: &[DnsCounts], now: Instant) {
        let mut read = HashMap::with_capacity(counts.len());
        for counts in counts {
            let owner = &counts.owner;
            let id = match &owner.container {
                Some(container) => container.id.clone(),
                None => format!("cgroup {}", owner.cgroup.id),
            };
            let before = self.dns_read.remove(&id).unwrap_or_default();
            let key = SeriesKey::new(owner.pod.as_ref(), owner.container.as_ref());
            let grown = difference(counts, &before);
            if grown.queries
                + grown.untracked
                + grown.unnamed
                + grown.not_dns
                + grown.events_dropped
                + grown.outcomes.values().sum::<u64>()
                + grown.not_visible.tls
                + grown.not_visible.https
                > 0
            {
                self.series(key, now).dns.add(&grown);
            }
            read.insert(id, counts.clone());
        }
        self.dns_read = read;
    }

    pub fn iter(&self) -> impl Iterator<Item = (&SeriesKey, &Series)> {
        self.series.iter()
    }

    /// Removes all growth trends, before the current ones are set.
    pub fn clear_growth(&mut self) {
        for series in self.series.values_mut() {
            series.growth = None;
        }
    }
}

/// The increase since `before`. A count that is smaller than before was reset, and counts from 0.
fn difference(now: &DnsCounts, before: &DnsCounts) -> DnsCounts {
    let increase = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
    let mut grown = DnsCounts {
        queries: increase(now.queries, before.queries),
        resends: increase(now.resends, before.resends),
        untracked: increase(now.untracked, before.untracked),
        unnamed: increase(now.unnamed, before.unnamed),
        not_dns: increase(now.not_dns, before.not_dns),
        events_dropped: increase(now.events_dropped, before.events_dropped),
        ..DnsCounts::default()
    };
    let outcome = |(outcome, count): (&Outcome, &u64)| (*outcome, increase(*count, before.outcome(*outcome)));
    grown.outcomes = now.outcomes.iter().map(outcome).filter(|(_, count)| *count > 0).collect();
    let bucket =
        |(at, count): (usize, &u64)| increase(*count, before.latency.buckets.get(at).copied().unwrap_or(0));
    grown.latency.sum_us = increase(now.latency.sum_us, before.latency.sum_us);
    grown.latency.buckets = now.latency.buckets.iter().enumerate().map(bucket).collect();
    grown.not_visible.tls = increase(now.not_visible.tls, before.not_visible.tls);
    grown.not_visible.https = increase(now.not_visible.https, before.not_visible.https);
    grown
}

#[cfg(test)]
mod tests {
    use super::*;
    use podopsy_model::owner::KnownBy;

    fn owner(pod: &str, id: &str) -> Owner {
        let pod = PodRef { namespace: "shop".into(), name: pod.into(), uid: "u".into(), labels: [].into() };
        let container = ContainerRef { name: "app".into(), id: id.into(), image: "i".into(), attempt: 0 };
        Owner { pod: Some(pod), container: Some(container), known_by: KnownBy::Cri, ..Owner::default() }
    }

    fn counts(owner: Owner, queries: u64, timeouts: u64) -> DnsCounts {
        let mut counts = DnsCounts { owner, queries, ..DnsCounts::default() };
        counts.outcomes.insert(Outcome::Timeout, timeouts);
        counts
    }

    fn key(pod: &str) -> SeriesKey {
        SeriesKey { namespace: "shop".into(), pod: pod.into(), container: "app".into() }
    }

    #[test]
    fn counts_continue_over_a_restart_and_are_never_counted_twice() {
        let (mut table, now) = (SeriesTable::default(), Instant::now());
        table.add_dns(&[counts(owner("a", "1"), 10, 2)], now);
        table.add_dns(&[counts(owner("a", "1"), 12, 2)], now);
        // A second instance of the container; the recorder still has the counts of the first one, and later drops them.
        table.add_dns(&[counts(owner("a", "1"), 12, 2), counts(owner("a", "2"), 5, 1)], now);
        table.add_dns(&[counts(owner("a", "2"), 6, 1)], now);
        let dns = &table.series(key("a"), now).dns;
        assert_eq!((dns.queries, dns.outcome(Outcome::Timeout)), (18, 3));
    }

    #[test]
    fn what_a_container_loses_is_counted_without_further_queries() {
        let (mut table, now) = (SeriesTable::default(), Instant::now());
        table.add_dns(&[counts(owner("a", "1"), 10, 2)], now);
        let lost =
            DnsCounts { untracked: 3, unnamed: 5, events_dropped: 4, ..counts(owner("a", "1"), 10, 2) };
        table.add_dns(std::slice::from_ref(&lost), now);
        table.add_dns(std::slice::from_ref(&lost), now);
        let dns = &table.series(key("a"), now).dns;
        assert_eq!((dns.queries, dns.untracked, dns.unnamed, dns.events_dropped), (10, 3, 5, 4));
    }

    #[test]
    fn a_series_begins_with_its_container_and_outlives_it_for_some_time() {
        let (mut table, now) = (SeriesTable::default(), Instant::now());
        table.set_alive(&[owner("a", "1"), owner("b", "2")], now);
        assert_eq!(table.iter().count(), 2);
        assert!(table.iter().all(|(_, series)| series.oom_kills == 0));
        table.set_alive(&[owner("b", "2")], now + OUTLIVE);
        assert_eq!(table.iter().count(), 2);
        table.set_alive(&[owner("b", "2")], now + OUTLIVE + Duration::from_secs(1));
        assert_eq!(table.iter().map(|(key, _)| key.pod.as_str()).collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn containers_beyond_the_bound_share_one_series() {
        let (mut table, now) = (SeriesTable::default(), Instant::now());
        for at in 0..SERIES_MAX + 10 {
            table.series(key(&format!("p{at}")), now).oom_kills += 1;
        }
        assert_eq!((table.iter().count(), table.refused), (SERIES_MAX + 1, 10));
        assert_eq!(table.series(SeriesKey::others(), now).oom_kills, 10);
    }
}
