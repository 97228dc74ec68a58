//! Pod incidents: events of one pod that are close together in time become one incident.
//!
//! The caller adds events and at intervals takes the incidents that have changed. The number of pods and the memory for
//! each are bounded. This module must not depend on the store, clocks or rendering.

mod correlate;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use jiff::{SignedDuration, Timestamp};

use podopsy_model::incident::OomIncident;
use podopsy_model::pod_incident::PodIncident;
use podopsy_model::{Detail, Event, Losses};

/// After this time without an event an incident is over.
const QUIET: SignedDuration = SignedDuration::from_secs(120);
/// The longest incident; later events start the next one.
const LONGEST: SignedDuration = SignedDuration::from_secs(3600);
/// So many failed lookups within this time are a streak, which starts an incident.
const STREAK: usize = 3;
const STREAK_WITHIN: SignedDuration = SignedDuration::from_secs(60);
/// Failed lookups of a pod that are remembered, to correlate their times with the pod's memory.
const FAILURES_MAX: usize = 1024;
const FAILURES_WITHIN: SignedDuration = SignedDuration::from_secs(600);
/// Pods at most; beyond that, the pod whose last event is the oldest is evicted.
const PODS_MAX: usize = 1024;
const EVENTS_MAX: usize = 64;
const NAMES_MAX: usize = 64;
const NAMES_SHOWN: usize = 5;

/// The open incidents, and the recent events that may start one.
#[derive(Default)]
pub struct PodIncidents {
    /// The first four digits of the boot id.
    id_prefix: String,
    /// By the pod's uid.
    pods: HashMap<String, PodHistory>,
    evicted: EvictedPods,
}

/// Counts the pods that were evicted. A clone can outlive the [`PodIncidents`].
#[derive(Clone, Default)]
pub struct EvictedPods(Arc<AtomicU64>);

impl EvictedPods {
    /// `incidents_evicted`: pods that were evicted; empty if there are none.
    pub fn losses(&self) -> Losses {
        let count = Some(self.0.load(Relaxed)).filter(|count| *count > 0);
        count.map(|count| ("incidents_evicted".to_owned(), count)).into_iter().collect()
    }
}

/// A failed lookup: its time, its name, and its event's id in the store.
type FailedLookup = (Timestamp, String, Option<i64>);

#[derive(Default)]
struct PodHistory {
    failures: VecDeque<FailedLookup>,
    /// Container name → its newest known attempt.
    attempts: BTreeMap<String, u32>,
    open: Option<PodIncident>,
    /// Failed lookups of the open incident, by name.
    names: BTreeMap<String, u64>,
    changed: bool,
    /// The time of the last event.
    last: Timestamp,
}

impl PodIncidents {
    /// `boot_id`: the content of `/proc/sys/kernel/random/boot_id`.
    pub fn new(boot_id: &str) -> PodIncidents {
        PodIncidents { id_prefix: boot_id.chars().take(4).collect(), ..PodIncidents::default() }
    }

    /// Adds an event. `id`: its id in the store.
    pub fn add(&mut self, event: &Event, id: Option<i64>) {
        let Some(owner) = &event.pod else { return };
        let failed = match &event.detail {
            Detail::Lookup(lookup) if lookup.result.is_failure() => Some(lookup.name.clone()),
            Detail::Oom(_) | Detail::Sigkill(_) => None,
            Detail::Lookup(_) | Detail::Dns(_) => return,
        };
        self.evict_if_full(&owner.uid);
        let pod = self.pods.entry(owner.uid.clone()).or_default();
        pod.last = pod.last.max(event.time);
        let restarts = pod.restarts(event);
        if let Some(name) = &failed {
            pod.failures.push_back((event.time, name.clone(), id));
            pod.forget_old_failures(event.time);
        }
        if pod.open.as_ref().is_some_and(|open| is_over(open, event.time)) {
            // The old incident ended without a call of `changed` in between: it stays as it was last returned.
            pod.open = None;
        }
        if pod.open.is_none() {
            let streak = pod.streak(event.time);
            if failed.is_some() && streak.is_none() {
                return;
            }
            pod.open_incident(&self.id_prefix, event, streak);
        } else if let Some(name) = failed {
            pod.count_failure(name, id);
        }
        let PodHistory { open: Some(open), failures, changed, .. } = pod else { return };
        *changed = true;
        open.until = open.until.max(event.time);
        open.restarts += restarts;
        if let Some(container) = &event.container
            && !open.containers.contains(&container.name)
        {
            open.containers.push(container.name.clone());
        }
        match (&event.incident, &event.detail) {
            (Some(oom), _) => add_oom_incident(open, event, oom, failures),
            (None, Detail::Oom(kill)) => open.oom_kills += u64::from(!kill.already_dying),
            (None, Detail::Sigkill(_)) => open.sigkills += 1,
            (None, _) => return,
        }
        add_event_id(open, id);
    }

    /// Returns the incidents that have changed or ended since the last call.
    pub fn changed(&mut self, now: Timestamp) -> Vec<PodIncident> {
        let mut out = Vec::new();
        for pod in self.pods.values_mut() {
            pod.forget_old_failures(now);
            let Some(open) = &mut pod.open else { continue };
            let is_over = is_over(open, now);
            if is_over || pod.changed {
                open.open = !is_over;
                open.failed_names = most_frequent(&pod.names);
                out.push(open.clone());
            }
            pod.changed = false;
            if is_over {
                pod.open = None;
                pod.names.clear();
            }
        }
        self.pods.retain(|_, pod| pod.open.is_some() || now.duration_since(pod.last) < FAILURES_WITHIN);
        out
    }

    pub fn evicted(&self) -> EvictedPods {
        self.evicted.clone()
    }

    /// Evicts the pod whose last event is the oldest, if a new pod would exceed the limit.
    fn evict_if_full(&mut self, uid: &str) {
        if self.pods.len() < PODS_MAX || self.pods.contains_key(uid) {
            return;
        }
        let oldest = self.pods.iter().min_by_key(|(_, pod)| pod.last).map(|(uid, _)| uid.clone());
        if let Some(oldest) = oldest {
            self.pods.remove(&oldest);
            self.evicted.0.fetch_add(1, Relaxed);
        }
    }
}

impl PodHistory {
    /// How often the event's container was restarted since its last event.
    fn restarts(&mut self, event: &Event) -> u64 {
        let Some(container) = &event.container else { return 0 };
        // The runtime's report was made some seconds after the event.
        let report = event.incident.as_ref().and_then(|incident| incident.runtime.as_ref());
        let attempt = report.map_or(container.attempt, |report| report.restarts.max(container.attempt));
        let known = self.attempts.len();
        let before = match self.attempts.get_mut(&container.name) {
            Some(before) => std::mem::replace(before, attempt.max(*before)),
            None if known < NAMES_MAX => {
                self.attempts.insert(container.name.clone(), attempt);
                container.attempt
            }
            None => attempt,
        };
        u64::from(attempt.saturating_sub(before))
    }

    fn forget_old_failures(&mut self, now: Timestamp) {
        let is_old = |(time, ..): &FailedLookup| now.duration_since(*time) > FAILURES_WITHIN;
        while self.failures.len() > FAILURES_MAX || self.failures.front().is_some_and(is_old) {
            self.failures.pop_front();
        }
    }

    /// The length of the streak of failed lookups that reaches until now; None: there is no streak.
    fn streak(&self, now: Timestamp) -> Option<usize> {
        let is_recent = |time: &Timestamp| now.duration_since(*time).abs() <= STREAK_WITHIN;
        let count = self.failures.iter().rev().take_while(|(time, ..)| is_recent(time)).count();
        (count >= STREAK).then_some(count)
    }

    /// `streak`: how many of the last failures belong to the incident.
    fn open_incident(&mut self, id_prefix: &str, event: &Event, streak: Option<usize>) {
        let Some(pod) = event.pod.clone() else { return };
        let skip = self.failures.len() - streak.unwrap_or(0);
        let streak: Vec<_> = self.failures.iter().skip(skip).cloned().collect();
        let from = streak.iter().map(|(time, ..)| *time).min().unwrap_or(event.time).min(event.time);
        let uid: String = pod.uid.chars().take(8).collect();
        self.names.clear();
        self.open = Some(PodIncident {
            incident: format!("{id_prefix}-i{}-{uid}", from.as_millisecond()),
            from,
            until: event.time,
            open: true,
            node: event.node.clone(),
            pod,
            containers: Vec::new(),
            oom_kills: 0,
            ooms: Vec::new(),
            sigkills: 0,
            restarts: 0,
            failed_lookups: 0,
            failed_names: Vec::new(),
            events: Vec::new(),
            correlated: None,
        });
        for (_, name, id) in streak {
            self.count_failure(name, id);
        }
    }

    fn count_failure(&mut self, name: String, id: Option<i64>) {
        let Some(open) = &mut self.open else { return };
        open.failed_lookups += 1;
        if self.names.len() < NAMES_MAX || self.names.contains_key(&name) {
            *self.names.entry(name).or_default() += 1;
        }
        add_event_id(open, id);
    }
}

/// Adds an OOM incident's id, and its correlation with the failed lookups before it, if there is one.
fn add_oom_incident(
    open: &mut PodIncident,
    event: &Event,
    oom: &OomIncident,
    failures: &VecDeque<FailedLookup>,
) {
    if !open.ooms.contains(&oom.id) {
        open.ooms.push(oom.id.clone());
    }
    let times: Vec<Timestamp> = failures.iter().map(|(time, ..)| *time).collect();
    let correlation = oom.curve.as_ref().and_then(|curve| correlate::correlate(&times, curve, event.time));
    if let Some(mut correlation) = correlation {
        correlation.oom = oom.id.clone();
        correlation.container =
            event.container.as_ref().map(|container| container.name.clone()).unwrap_or_default();
        open.correlated = Some(correlation);
    }
}

fn add_event_id(open: &mut PodIncident, id: Option<i64>) {
    if let Some(id) = id.filter(|id| open.events.len() < EVENTS_MAX && !open.events.contains(id)) {
        open.events.push(id);
    }
}

/// Whether an incident that is stored as open has ended since. An agent that ends while an incident is open cannot
/// store its end.
pub fn has_ended(until: Timestamp, now: Timestamp) -> bool {
    now.duration_since(until) > QUIET * 2
}

fn is_over(open: &PodIncident, now: Timestamp) -> bool {
    now.duration_since(open.until) > QUIET || now.duration_since(open.from) > LONGEST
}

fn most_frequent(names: &BTreeMap<String, u64>) -> Vec<(String, u64)> {
    let mut all: Vec<_> = names.iter().map(|(name, count)| (name.clone(), *count)).collect();
    all.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    all.truncate(NAMES_SHOWN);
    all
}
