//! Metrics: the counts of each container, the recorder's losses, and the agent's own cost.
//!
//! [`Metrics::observe`] counts events. A scrape adds the recorder's sums ([`Scrape`]) before the page is rendered.
//! This module must not depend on HTTP, aya or the container runtime. Label values are container names and podopsy's own
//! terms, never DNS names, pids or paths: the number of series is that of the containers, up to a bound.

mod own;
mod series;
pub mod text;

#[cfg(test)]
mod docs_tests;
#[cfg(test)]
mod tests;

pub(crate) use own::bpf_memory;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

use self::series::{SeriesKey, SeriesTable};
use podopsy_model::dns::{Latencies, upper_bound};
use podopsy_model::event::{Detail, Losses};
use podopsy_model::incident::{Level, Verdict};
use podopsy_model::lookup::LookupResult;
use podopsy_model::metric::{
    Exemplar, Histogram, Labels, MetricFamily, MetricKind, MetricSample, MetricValue,
};
use podopsy_model::sigkill::Sender;
use podopsy_model::{Event, EventKind, Outcome};
use podopsy_recorder::Scrape;
use podopsy_recorder::shed::ShedCount;
use podopsy_system::sync::lock;

/// Returns the families that another module counts.
type FamilySource = Box<dyn Fn() -> Vec<MetricFamily> + Send + Sync>;

/// The counts since the agent's start.
#[derive(Default)]
pub struct Metrics {
    table: Mutex<SeriesTable>,
    events: Mutex<BTreeMap<EventKind, u64>>,
    losses: Mutex<Losses>,
    own_kills: AtomicU64,
    other_families: OnceLock<FamilySource>,
    shed: Mutex<Vec<ShedCount>>,
    state_dir: OnceLock<PathBuf>,
    degraded: OnceLock<Box<dyn Fn() -> usize + Send + Sync>>,
    other_losses: OnceLock<Box<dyn Fn() -> Losses + Send + Sync>>,
    probes: Mutex<BTreeMap<&'static str, bool>>,
}

/// Outcomes that have a series from the start, at 0: an alert on the first timeout needs it.
const OUTCOMES: [Outcome; 12] = [
    Outcome::Noerror,
    Outcome::Nxdomain,
    Outcome::Servfail,
    Outcome::Refused,
    Outcome::Formerr,
    Outcome::Nodata,
    Outcome::Truncated,
    Outcome::Timeout,
    Outcome::Late,
    Outcome::Unreachable,
    Outcome::Abandoned,
    Outcome::Other,
];

/// The same for results, levels and senders. The rare ones get a series with their first count, so that the page stays
/// small.
const RESULTS: [LookupResult; 3] = [LookupResult::Nxdomain, LookupResult::Servfail, LookupResult::Timeout];
const LEVELS: [Level; 3] = [Level::Container, Level::Pod, Level::Node];
const SENDERS: [Sender; 2] = [Sender::Runtime, Sender::Kubelet];

impl Metrics {
    /// Counts an event. Each event must be passed once.
    pub fn observe(&self, event: &Event) {
        *lock(&self.events).entry(event.kind).or_default() += 1;
        let (mut table, now) = (lock(&self.table), Instant::now());
        let key = SeriesKey::new(event.pod.as_ref(), event.container.as_ref());
        match (event.kind, &event.detail) {
            (EventKind::OomKill, Detail::Oom(kill)) if !kill.already_dying => {
                let series = table.series(key, now);
                series.oom_kills += 1;
                let exemplar = |id: &String| Exemplar {
                    labels: vec![("incident_id", id.clone())],
                    value: 1.0,
                    time: event.time.as_millisecond() as f64 / 1e3,
                };
                series.last_kill = kill.incident.as_ref().map(exemplar);
            }
            (EventKind::OomIncident, _) => {
                let Some(incident) = &event.incident else { return };
                let series = table.series(key, now);
                *series.incidents.entry(incident.limit.of).or_default() += 1;
                series.silent += u64::from(incident.verdicts.contains(&Verdict::SilentChildKill));
            }
            (EventKind::Sigkill, Detail::Sigkill(sigkill)) => {
                *table.series(key, now).sigkills.entry(sigkill.by).or_default() += 1;
            }
            (EventKind::DnsLookup, Detail::Lookup(lookup)) => {
                let series = table.series(key, now);
                series.search_path_misses += u64::from(lookup.search_path_misses.queries);
                if lookup.result.is_failure() {
                    *series.lookups_failed.entry(lookup.result).or_default() += 1;
                }
            }
            // Queries are counted by the recorder, whether they become events or not.
            _ => {}
        }
    }

    /// Sets the source of other modules' families. It is read for each page; only the first call counts.
    pub fn set_family_source(&self, source: impl Fn() -> Vec<MetricFamily> + Send + Sync + 'static) {
        let _ = self.other_families.set(Box::new(source));
    }

    /// Sets the count of degraded features. It is read for each page, because some are detected late; only the first call
    /// counts.
    pub fn set_degraded_count(&self, count: impl Fn() -> usize + Send + Sync + 'static) {
        let _ = self.degraded.set(Box::new(count));
    }

    /// Sets the source of losses outside the recorder, by counter name. It is read for each page; only the first call counts.
    pub fn set_loss_source(&self, losses: impl Fn() -> Losses + Send + Sync + 'static) {
        let _ = self.other_losses.set(Box::new(losses));
    }

    /// Sets the state folder, whose size is a metric.
    pub fn set_state_dir(&self, state_dir: &Path) {
        let _ = self.state_dir.set(state_dir.to_owned());
    }

    /// Replaces the sums by those of a scrape.
    pub fn apply_scrape(&self, scrape: Scrape) {
        let now = Instant::now();
        let mut table = lock(&self.table);
        table.set_alive(&scrape.alive, now);
        table.add_dns(&scrape.dns, now);
        table.clear_growth();
        for (owner, growth) in &scrape.growth {
            let key = SeriesKey::new(owner.pod.as_ref(), owner.container.as_ref());
            table.series(key, now).growth = Some(*growth);
        }
        *lock(&self.losses) = scrape.losses;
        *lock(&self.shed) = scrape.shed;
        self.own_kills.store(scrape.own_kills, Relaxed);
    }

    /// Sets whether a requested probe is attached.
    pub fn set_probe_attached(&self, name: &'static str, attached: bool) {
        lock(&self.probes).insert(name, attached);
    }

    /// All families, with the sums of the last scrape.
    pub fn families(&self) -> Vec<MetricFamily> {
        let table = lock(&self.table);
        let mut families = kill_families(&table);
        families.extend(dns_families(&table));
        families.extend(growth_families(&table));
        families.extend(self.agent_families(table.refused));
        drop(table);
        families.extend(self.other_families.get().into_iter().flat_map(|source| source()));
        families.extend(own::families(self.state_dir.get().map(PathBuf::as_path)));
        families
    }

    fn agent_families(&self, refused: u64) -> Vec<MetricFamily> {
        let mut events = MetricFamily::counter("podopsy_events", "Events written, by kind.");
        let counted = lock(&self.events).clone();
        for kind in EventKind::ALL {
            let count = counted.get(&kind).copied().unwrap_or(0);
            events.count(vec![("kind", kind.as_str().to_owned())], count);
        }
        let mut losses = MetricFamily::counter(
            "podopsy_losses",
            "Dropped records, by the loss counter that events carry.",
        );
        for (name, count) in lock(&self.losses).iter() {
            losses.count(vec![("counter", name.clone())], *count);
        }
        for (name, count) in self.other_losses.get().map(|losses| losses()).unwrap_or_default() {
            losses.count(vec![("counter", name)], count);
        }
        losses.count(vec![("counter", "metrics_series_refused".to_owned())], refused);
        let mut own_kills = MetricFamily::counter(
            "podopsy_sigkills_within_container",
            "SIGKILLs that processes of one container sent each other; no events.",
        );
        own_kills.count(Vec::new(), self.own_kills.load(Relaxed));
        let mut build = MetricFamily::gauge("podopsy_build_info", "Always 1; the version is a label.");
        build.number(vec![("version", env!("CARGO_PKG_VERSION").to_owned())], 1.0);
        let mut shed =
            MetricFamily::counter("podopsy_shed", "Work that was shed to keep to the agent's budgets.");
        let mut shedding = MetricFamily::gauge("podopsy_shedding", "1: this work is shed at the moment.");
        for count in lock(&self.shed).iter() {
            let what = || vec![("what", count.step.as_str().to_owned())];
            shed.count(what(), count.count);
            shedding.number(what(), f64::from(u8::from(count.on)));
        }
        let help = "Features that do not work on this machine; /readyz lists them.";
        let degraded = self.degraded.get().map_or(0, |count| count()) as f64;
        let degraded = MetricFamily::gauge("podopsy_degraded", help).single(degraded);
        let help = "1: the probe is attached. 0: attaching failed, and its events are missing; /readyz has the reason.";
        let mut probes = MetricFamily::gauge("podopsy_probe_attached", help);
        for (name, attached) in lock(&self.probes).iter() {
            probes.count(vec![("probe", (*name).to_owned())], u64::from(*attached));
        }
        vec![degraded, events, losses, own_kills, probes, shed, shedding, build]
    }
}

fn kill_families(table: &SeriesTable) -> Vec<MetricFamily> {
    let mut kills =
        MetricFamily::counter("podopsy_oom_kills", "Processes that the kernel's OOM killer ended.");
    let mut silent = MetricFamily::counter(
        "podopsy_oom_silent_kills",
        "OOM incidents after which the container runs on: Kubernetes shows nothing.",
    );
    let mut incidents = MetricFamily::counter(
        "podopsy_oom_incidents",
        "Visits of the OOM killer, by the level whose limit was met.",
    );
    let mut sigkills =
        MetricFamily::counter("podopsy_sigkills", "SIGKILLs that were no OOM kills, by sender.");
    for (key, series) in table.iter() {
        let exemplar = series.last_kill.clone();
        kills.samples.push(MetricSample {
            labels: labels(key),
            value: MetricValue::Count(series.oom_kills),
            exemplar,
        });
        silent.count(labels(key), series.silent);
        for (level, count) in from_zero(&LEVELS, &series.incidents) {
            incidents.count(labels_with(key, "limit", level.as_str()), count);
        }
        for (sender, count) in from_zero(&SENDERS, &series.sigkills) {
            sigkills.count(labels_with(key, "sender", sender.as_str()), count);
        }
    }
    vec![kills, silent, incidents, sigkills]
}

fn dns_families(table: &SeriesTable) -> Vec<MetricFamily> {
    let mut queries = MetricFamily::counter(
        "podopsy_dns_queries",
        "DNS queries, each counted once, however often it was sent.",
    );
    let mut resends =
        MetricFamily::counter("podopsy_dns_resends", "DNS queries sent again with the same id.");
    let mut outcomes = MetricFamily::counter("podopsy_dns_outcomes", "Outcomes of DNS queries.");
    let mut latency = MetricFamily::new(
        "podopsy_dns_latency_seconds",
        "Time from query to answer, taken in the kernel; only answers in time.",
        MetricKind::Histogram,
    );
    let mut failed =
        MetricFamily::counter("podopsy_dns_lookups_failed", "Failed lookups, as applications make them.");
    let mut search_path_misses =
        MetricFamily::counter("podopsy_dns_futile_queries", "Search-path misses of failed lookups.");
    let mut hidden = MetricFamily::counter(
        "podopsy_dns_not_visible",
        "Connections to resolvers with encrypted queries, which cannot be seen.",
    );
    let mut dropped = MetricFamily::counter(
        "podopsy_dns_events_dropped",
        "Events that were due and were dropped; the counts are exact all the same.",
    );
    let mut untracked = MetricFamily::counter(
        "podopsy_dns_queries_untracked",
        "DNS queries without an outcome: the container had its share of queries in flight already.",
    );
    let mut unnamed = MetricFamily::counter(
        "podopsy_dns_queries_unnamed",
        "DNS queries whose answer may not be recognised behind address translation: the container had its share of senders already.",
    );
    let mut not_dns = MetricFamily::counter(
        "podopsy_dns_not_dns",
        "Messages to DNS servers' ports that are not DNS, for example of a tunnel. They are no queries.",
    );
    for (key, series) in table.iter() {
        let dns = &series.dns;
        queries.count(labels(key), dns.queries);
        resends.count(labels(key), dns.resends);
        for outcome in OUTCOMES {
            outcomes.count(labels_with(key, "outcome", outcome.as_str()), dns.outcome(outcome));
        }
        for (result, count) in from_zero(&RESULTS, &series.lookups_failed) {
            failed.count(labels_with(key, "result", result.as_str()), count);
        }
        search_path_misses.count(labels(key), series.search_path_misses);
        dropped.count(labels(key), dns.events_dropped);
        untracked.count(labels(key), dns.untracked);
        unnamed.count(labels(key), dns.unnamed);
        not_dns.count(labels(key), dns.not_dns);
        hidden.count(labels_with(key, "protocol", "dot"), dns.not_visible.tls);
        hidden.count(labels_with(key, "protocol", "doh"), dns.not_visible.https);
        // A histogram is two dozen lines: a container without queries has none.
        if let Some(histogram) = histogram(&dns.latency) {
            let value = MetricValue::Histogram(histogram);
            latency.samples.push(MetricSample { labels: labels(key), value, exemplar: None });
        }
    }
    vec![
        queries,
        resends,
        outcomes,
        latency,
        failed,
        search_path_misses,
        hidden,
        dropped,
        untracked,
        unnamed,
        not_dns,
    ]
}

fn growth_families(table: &SeriesTable) -> [MetricFamily; 3] {
    let mut growth = MetricFamily::gauge(
        "podopsy_memory_growth_bytes_per_second",
        "How fast memory that cannot be reclaimed grew in the last minute (Theil-Sen).",
    );
    let known = table.iter().filter_map(|(key, series)| Some((key, series.growth?)));
    let mut held = MetricFamily::gauge(
        "podopsy_memory_held_bytes",
        "Memory that cannot be reclaimed, of containers whose growth is known.",
    );
    let mut limit =
        MetricFamily::gauge("podopsy_memory_limit_bytes", "The memory limit of the same containers.");
    for (key, trend) in known {
        growth.number(labels(key), trend.bytes_per_second);
        held.number(labels(key), trend.held_bytes as f64);
        if let Some(bytes) = trend.limit_bytes {
            limit.number(labels(key), bytes as f64);
        }
    }
    [growth, held, limit]
}

fn histogram(latency: &Latencies) -> Option<Histogram> {
    let (above, bounded) = latency.buckets.split_last()?;
    if latency.count() == 0 {
        return None;
    }
    let bucket = |(at, count): (usize, &u64)| (upper_bound(at).as_secs_f64(), *count);
    Some(Histogram {
        buckets: bounded.iter().enumerate().map(bucket).collect(),
        above: *above,
        sum: Some(latency.sum_us as f64 / 1e6),
    })
}

/// The counts, with a zero for each of `always` that has none.
fn from_zero<T: Copy + Ord>(always: &[T], counted: &BTreeMap<T, u64>) -> BTreeMap<T, u64> {
    let mut all: BTreeMap<T, u64> = always.iter().map(|&one| (one, 0)).collect();
    all.extend(counted);
    all
}

fn labels(key: &SeriesKey) -> Labels {
    vec![("namespace", key.namespace.clone()), ("pod", key.pod.clone()), ("container", key.container.clone())]
}

fn labels_with(key: &SeriesKey, name: &'static str, value: &str) -> Labels {
    let mut labels = labels(key);
    labels.push((name, value.to_owned()));
    labels
}
