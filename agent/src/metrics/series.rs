//! What is counted of each container, by its names: it goes on over restarts, and ends a while after the last of them.
//!
//! Must not know: how it is written, where anything comes from.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use podopsy_model::incident::Level;
use podopsy_model::lookup::LookupResult;
use podopsy_model::metric::Exemplar;
use podopsy_model::owner::Owner;
use podopsy_model::sigkill::Sender;
use podopsy_model::{ContainerRef, DnsCounts, Outcome, PodRef};
use podopsy_recorder::memory::MemoryTrend;

/// How long a container's series outlive it: several scrapes, so that its last kill is seen.
pub const OUTLIVE: Duration = Duration::from_secs(600);
/// Containers with series of their own; a node has 110 pods as a rule. The rest is counted together.
pub const SERIES_MAX: usize = 1024;

/// As Prometheus and kube-state-metrics call them. All empty: a process of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub namespace: String,
    pub pod: String,
    pub container: String,
}

impl Key {
    pub fn new(pod: Option<&PodRef>, container: Option<&ContainerRef>) -> Key {
        Key {
            namespace: pod.map(|pod| pod.namespace.clone()).unwrap_or_default(),
            pod: pod.map(|pod| pod.name.clone()).unwrap_or_default(),
            container: container.map(|container| container.name.clone()).unwrap_or_default(),
        }
    }

    /// No Kubernetes name has a parenthesis.
    fn others() -> Key {
        let others = || "(others)".to_owned();
        Key { namespace: others(), pod: others(), container: others() }
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
    /// Of the last minute.
    pub growth: Option<MemoryTrend>,
    touched: Option<Instant>,
}

#[derive(Debug, Default)]
pub struct Book {
    series: BTreeMap<Key, Series>,
    alive: BTreeSet<Key>,
    /// What each container's DNS counts were when they were last read, by container id or cgroup.
    dns_read: HashMap<String, DnsCounts>,
    /// Containers counted with the others, for want of room.
    pub refused: u64,
}

impl Book {
    /// The container's series; those of all others together, if there are too many.
    pub fn series(&mut self, key: Key, now: Instant) -> &mut Series {
        let full = self.series.len() >= SERIES_MAX && !self.series.contains_key(&key);
        self.refused += u64::from(full);
        let series = self.series.entry(if full { Key::others() } else { key }).or_default();
        series.touched = Some(now);
        series
    }

    /// Who lives now: each has series from the start, for `increase()` misses a first kill that has no zero before it.
    pub fn alive<'a>(&mut self, owners: impl IntoIterator<Item = &'a Owner>, now: Instant) {
        let of = |owner: &Owner| Key::new(owner.pod.as_ref(), owner.container.as_ref());
        self.alive = owners.into_iter().map(of).collect();
        for key in self.alive.clone() {
            self.series(key, now);
        }
        let old =
            |series: &Series| series.touched.is_none_or(|at| now.saturating_duration_since(at) > OUTLIVE);
        // The host and the sum of the others are no containers, and do not end.
        self.series.retain(|key, series| {
            self.alive.contains(key) || *key == Key::default() || *key == Key::others() || !old(series)
        });
    }

    /// What the recorder has counted of each container's DNS since its own start. Only the difference is added: a
    /// restarted container begins anew there, and goes on here.
    pub fn dns(&mut self, counts: &[DnsCounts], now: Instant) {
        let mut read = HashMap::with_capacity(counts.len());
        for counts in counts {
            let owner = &counts.owner;
            let id = match &owner.container {
                Some(container) => container.id.clone(),
                None => format!("cgroup {}", owner.cgroup.id),
            };
            let before = self.dns_read.remove(&id).unwrap_or_default();
            let key = Key::new(owner.pod.as_ref(), owner.container.as_ref());
            let grown = difference(counts, &before);
            if grown.queries
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

    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Series)> {
        self.series.iter()
    }

    /// Forgets how fast everyone grew: who still does is told next.
    pub fn clear_growth(&mut self) {
        self.series.values_mut().for_each(|series| series.growth = None);
    }
}

/// What was added since; a count that is smaller than before began anew.
fn difference(now: &DnsCounts, before: &DnsCounts) -> DnsCounts {
    let less = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
    let mut grown = DnsCounts {
        queries: less(now.queries, before.queries),
        resends: less(now.resends, before.resends),
        events_dropped: less(now.events_dropped, before.events_dropped),
        ..DnsCounts::default()
    };
    let outcome = |(outcome, count): (&Outcome, &u64)| (*outcome, less(*count, before.outcome(*outcome)));
    grown.outcomes = now.outcomes.iter().map(outcome).filter(|(_, count)| *count > 0).collect();
    let bucket =
        |(at, count): (usize, &u64)| less(*count, before.latency.buckets.get(at).copied().unwrap_or(0));
    grown.latency.sum_us = less(now.latency.sum_us, before.latency.sum_us);
    grown.latency.buckets = now.latency.buckets.iter().enumerate().map(bucket).collect();
    grown.not_visible.tls = less(now.not_visible.tls, before.not_visible.tls);
    grown.not_visible.https = less(now.not_visible.https, before.not_visible.https);
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

    fn asked(owner: Owner, queries: u64, timeouts: u64) -> DnsCounts {
        let mut counts = DnsCounts { owner, queries, ..DnsCounts::default() };
        counts.outcomes.insert(Outcome::Timeout, timeouts);
        counts
    }

    fn key(pod: &str) -> Key {
        Key { namespace: "shop".into(), pod: pod.into(), container: "app".into() }
    }

    #[test]
    fn counts_go_on_over_a_restart_and_are_never_counted_twice() {
        let (mut book, now) = (Book::default(), Instant::now());
        book.dns(&[asked(owner("a", "1"), 10, 2)], now);
        book.dns(&[asked(owner("a", "1"), 12, 2)], now);
        // A second container of that name; the first one's counts are still there, and then forgotten.
        book.dns(&[asked(owner("a", "1"), 12, 2), asked(owner("a", "2"), 5, 1)], now);
        book.dns(&[asked(owner("a", "2"), 6, 1)], now);
        let dns = &book.series(key("a"), now).dns;
        assert_eq!((dns.queries, dns.outcome(Outcome::Timeout)), (18, 3));
    }

    #[test]
    fn series_begin_with_the_container_and_outlive_it_for_a_while() {
        let (mut book, now) = (Book::default(), Instant::now());
        book.alive(&[owner("a", "1"), owner("b", "2")], now);
        assert_eq!(book.iter().count(), 2);
        assert!(book.iter().all(|(_, series)| series.oom_kills == 0));
        book.alive(&[owner("b", "2")], now + OUTLIVE);
        assert_eq!(book.iter().count(), 2);
        book.alive(&[owner("b", "2")], now + OUTLIVE + Duration::from_secs(1));
        assert_eq!(book.iter().map(|(key, _)| key.pod.as_str()).collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn beyond_the_bound_they_are_counted_together() {
        let (mut book, now) = (Book::default(), Instant::now());
        for at in 0..SERIES_MAX + 10 {
            book.series(key(&format!("p{at}")), now).oom_kills += 1;
        }
        assert_eq!((book.iter().count(), book.refused), (SERIES_MAX + 1, 10));
        assert_eq!(book.series(Key::others(), now).oom_kills, 10);
    }
}
