//! Metrics: what was counted of each container, the recorder's losses, and what the agent costs.
//!
//! Events flow in ([`Metrics::observe`]); a scrape takes what is only known as sums ([`Scrape`]) and writes a page.
//! Must not know: HTTP, aya, the runtime. Label values are names of containers and our own words, never names that were
//! looked up, pids or paths: there are as many series as there are containers, up to a bound.

mod own;
mod series;
pub mod text;

#[cfg(test)]
mod docs_tests;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use self::series::{Book, Key};
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

/// Families that another room counts.
type Others = Box<dyn Fn() -> Vec<MetricFamily> + Send + Sync>;

/// What is counted from events, over the agent's life.
#[derive(Default)]
pub struct Metrics {
    book: Mutex<Book>,
    events: Mutex<BTreeMap<EventKind, u64>>,
    losses: Mutex<Losses>,
    own_kills: AtomicU64,
    others: OnceLock<Others>,
    shed: Mutex<Vec<ShedCount>>,
    state_dir: OnceLock<PathBuf>,
    degraded: OnceLock<Box<dyn Fn() -> usize + Send + Sync>>,
    lost_beside: OnceLock<Box<dyn Fn() -> Losses + Send + Sync>>,
    probes: Mutex<BTreeMap<&'static str, bool>>,
}

/// Outcomes that are there from the start, at 0: an alert on the first timeout needs them.
const OUTCOMES: [Outcome; 11] = [
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
    Outcome::Other,
];

/// The same, of what is rare in its other forms: those come with the first of them, and a page stays a page.
const RESULTS: [LookupResult; 3] = [LookupResult::Nxdomain, LookupResult::Servfail, LookupResult::Timeout];
const LEVELS: [Level; 3] = [Level::Container, Level::Pod, Level::Node];
const SENDERS: [Sender; 2] = [Sender::Runtime, Sender::Kubelet];

impl Metrics {
    /// Counts an event; each must be shown once.
    pub fn observe(&self, event: &Event) {
        *lock(&self.events).entry(event.kind).or_default() += 1;
        let (mut book, now) = (lock(&self.book), Instant::now());
        let key = Key::new(event.pod.as_ref(), event.container.as_ref());
        match (event.kind, &event.detail) {
            (EventKind::OomKill, Detail::Oom(kill)) if !kill.already_dying => {
                let series = book.series(key, now);
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
                let series = book.series(key, now);
                *series.incidents.entry(incident.limit.of).or_default() += 1;
                series.silent += u64::from(incident.verdicts.contains(&Verdict::SilentChildKill));
            }
            (EventKind::Sigkill, Detail::Sigkill(sigkill)) => {
                *book.series(key, now).sigkills.entry(sigkill.by).or_default() += 1;
            }
            (EventKind::DnsLookup, Detail::Lookup(lookup)) => {
                let series = book.series(key, now);
                series.search_path_misses += u64::from(lookup.search_path_misses.queries);
                if lookup.result.is_failure() {
                    *series.lookups_failed.entry(lookup.result).or_default() += 1;
                }
            }
            // Queries are counted by the recorder, whether they become events or not.
            _ => {}
        }
    }

    /// Asked for each page; told once.
    pub fn also(&self, others: impl Fn() -> Vec<MetricFamily> + Send + Sync + 'static) {
        let _ = self.others.set(Box::new(others));
    }

    /// How many things this kernel or this machine does not allow: asked for each page, since some are known late; told
    /// once.
    pub fn degraded(&self, count: impl Fn() -> usize + Send + Sync + 'static) {
        let _ = self.degraded.set(Box::new(count));
    }

    /// What is lost beside the recorder, by counter name: asked for each page; told once.
    pub fn lost_beside(&self, losses: impl Fn() -> Losses + Send + Sync + 'static) {
        let _ = self.lost_beside.set(Box::new(losses));
    }

    /// Where the agent keeps what it keeps.
    pub fn keeps_in(&self, state_dir: &Path) {
        let _ = self.state_dir.set(state_dir.to_owned());
    }

    /// Takes over what others know now.
    pub fn take(&self, scrape: Scrape) {
        let now = Instant::now();
        let mut book = lock(&self.book);
        book.alive(&scrape.alive, now);
        book.dns(&scrape.dns, now);
        book.clear_growth();
        for (owner, growth) in &scrape.growth {
            let key = Key::new(owner.pod.as_ref(), owner.container.as_ref());
            book.series(key, now).growth = Some(*growth);
        }
        *lock(&self.losses) = scrape.losses;
        *lock(&self.shed) = scrape.shed;
        self.own_kills.store(scrape.own_kills, Relaxed);
    }

    /// Says of a probe that was wanted whether it is attached.
    pub fn probe(&self, name: &'static str, attached: bool) {
        lock(&self.probes).insert(name, attached);
    }

    /// All that is known, with the sums as they were last taken over.
    pub fn families(&self) -> Vec<MetricFamily> {
        let book = lock(&self.book);
        let mut families = of_kills(&book);
        families.extend(of_dns(&book));
        families.extend(of_growth(&book));
        families.extend(self.of_agent(book.refused));
        drop(book);
        families.extend(self.others.get().into_iter().flat_map(|others| others()));
        families.extend(own::families(self.state_dir.get().map(PathBuf::as_path)));
        families
    }

    fn of_agent(&self, refused: u64) -> Vec<MetricFamily> {
        let mut events = MetricFamily::counter("podopsy_events", "Events written, by kind.");
        let counted = lock(&self.events).clone();
        for kind in [
            EventKind::OomKill,
            EventKind::OomIncident,
            EventKind::Sigkill,
            EventKind::DnsFailure,
            EventKind::DnsAnswer,
            EventKind::DnsLookup,
        ] {
            let count = counted.get(&kind).copied().unwrap_or(0);
            events.count(vec![("kind", kind.as_str().to_owned())], count);
        }
        let mut losses =
            MetricFamily::counter("podopsy_losses", "What was lost, by the counter that is in events, too.");
        for (name, count) in lock(&self.losses).iter() {
            losses.count(vec![("counter", name.clone())], *count);
        }
        for (name, count) in self.lost_beside.get().map(|losses| losses()).unwrap_or_default() {
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
            MetricFamily::counter("podopsy_shed", "What was left out to keep to the agent's budgets.");
        let mut shedding = MetricFamily::gauge("podopsy_shedding", "1: this is left out at the moment.");
        for tally in lock(&self.shed).iter() {
            let what = || vec![("what", tally.step.as_str().to_owned())];
            shed.count(what(), tally.count);
            shedding.number(what(), f64::from(u8::from(tally.on)));
        }
        let help = "Things that this kernel or this machine does not allow; /readyz says which.";
        let degraded = self.degraded.get().map_or(0, |count| count()) as f64;
        let degraded = MetricFamily::gauge("podopsy_degraded", help).single(degraded);
        let help =
            "1: the probe is attached. 0: it could not be, and its events are missing; /readyz says why.";
        let mut probes = MetricFamily::gauge("podopsy_probe_attached", help);
        for (name, attached) in lock(&self.probes).iter() {
            probes.count(vec![("probe", (*name).to_owned())], u64::from(*attached));
        }
        vec![degraded, events, losses, own_kills, probes, shed, shedding, build]
    }
}

fn of_kills(book: &Book) -> Vec<MetricFamily> {
    let mut kills =
        MetricFamily::counter("podopsy_oom_kills", "Processes that the kernel's OOM killer ended.");
    let mut silent = MetricFamily::counter(
        "podopsy_oom_silent_kills",
        "OOM incidents after which the container runs on: Kubernetes shows nothing.",
    );
    let mut incidents =
        MetricFamily::counter("podopsy_oom_incidents", "Visits of the OOM killer, by whose limit was met.");
    let mut sigkills =
        MetricFamily::counter("podopsy_sigkills", "SIGKILLs that were no OOM kills, by who sent them.");
    for (key, series) in book.iter() {
        let exemplar = series.last_kill.clone();
        kills.samples.push(MetricSample {
            labels: labels(key),
            value: MetricValue::Count(series.oom_kills),
            exemplar,
        });
        silent.count(labels(key), series.silent);
        for (level, count) in from_zero(&LEVELS, &series.incidents) {
            incidents.count(and(key, "limit", level.as_str()), count);
        }
        for (sender, count) in from_zero(&SENDERS, &series.sigkills) {
            sigkills.count(and(key, "sender", sender.as_str()), count);
        }
    }
    vec![kills, silent, incidents, sigkills]
}

fn of_dns(book: &Book) -> Vec<MetricFamily> {
    let mut queries = MetricFamily::counter(
        "podopsy_dns_queries",
        "DNS queries sent, each once, however often it was sent again.",
    );
    let mut resends =
        MetricFamily::counter("podopsy_dns_resends", "DNS queries sent again with the same id.");
    let mut outcomes = MetricFamily::counter("podopsy_dns_outcomes", "What became of DNS queries.");
    let mut latency = MetricFamily::new(
        "podopsy_dns_latency_seconds",
        "From query to answer, taken in the kernel; answers in time only.",
        MetricKind::Histogram,
    );
    let mut failed =
        MetricFamily::counter("podopsy_dns_lookups_failed", "Lookups as applications make them that failed.");
    let mut search_path_misses = MetricFamily::counter(
        "podopsy_dns_futile_queries",
        "Queries of failed lookups for names that only the search list made.",
    );
    let mut hidden = MetricFamily::counter(
        "podopsy_dns_not_visible",
        "Connections to resolvers whose queries are encrypted: nothing is known of them.",
    );
    let mut dropped = MetricFamily::counter(
        "podopsy_dns_events_dropped",
        "Events that were due and not made; the counts are exact all the same.",
    );
    for (key, series) in book.iter() {
        let dns = &series.dns;
        queries.count(labels(key), dns.queries);
        resends.count(labels(key), dns.resends);
        for outcome in OUTCOMES {
            outcomes.count(and(key, "outcome", outcome.as_str()), dns.outcome(outcome));
        }
        for (result, count) in from_zero(&RESULTS, &series.lookups_failed) {
            failed.count(and(key, "result", result.as_str()), count);
        }
        search_path_misses.count(labels(key), series.search_path_misses);
        dropped.count(labels(key), dns.events_dropped);
        hidden.count(and(key, "protocol", "dot"), dns.not_visible.tls);
        hidden.count(and(key, "protocol", "doh"), dns.not_visible.https);
        // Two dozen lines each: who never asked has none.
        if let Some(histogram) = histogram(&dns.latency) {
            let value = MetricValue::Histogram(histogram);
            latency.samples.push(MetricSample { labels: labels(key), value, exemplar: None });
        }
    }
    vec![queries, resends, outcomes, latency, failed, search_path_misses, hidden, dropped]
}

fn of_growth(book: &Book) -> [MetricFamily; 3] {
    let mut growth = MetricFamily::gauge(
        "podopsy_memory_growth_bytes_per_second",
        "How fast memory that cannot be reclaimed grew in the last minute (Theil-Sen).",
    );
    let known = book.iter().filter_map(|(key, series)| Some((key, series.growth?)));
    let mut held = MetricFamily::gauge(
        "podopsy_memory_held_bytes",
        "Memory that cannot be reclaimed; of containers whose growth is known.",
    );
    let mut limit =
        MetricFamily::gauge("podopsy_memory_limit_bytes", "The container's own memory limit, of the same.");
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

/// What was counted, and a zero for each of `always` that was not.
fn from_zero<T: Copy + Ord>(always: &[T], counted: &BTreeMap<T, u64>) -> BTreeMap<T, u64> {
    let mut all: BTreeMap<T, u64> = always.iter().map(|&one| (one, 0)).collect();
    all.extend(counted);
    all
}

fn labels(key: &Key) -> Labels {
    vec![("namespace", key.namespace.clone()), ("pod", key.pod.clone()), ("container", key.container.clone())]
}

fn and(key: &Key, name: &'static str, word: &str) -> Labels {
    let mut labels = labels(key);
    labels.push((name, word.to_owned()));
    labels
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
