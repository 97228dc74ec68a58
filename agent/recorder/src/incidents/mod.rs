//! Events of one pod that belong together in time become one incident.
//!
//! Pure: it is shown events and asked, now and then, what has changed. Bounded in pods, and in what is kept of each.
//! Must not know: the store, clocks, how anything is rendered.

mod correlate;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use jiff::{SignedDuration, Timestamp};

use podopsy_model::pod_incident::PodIncident;
use podopsy_model::{Detail, Event, Losses};

/// Silence that ends an incident.
const QUIET: SignedDuration = SignedDuration::from_secs(120);
/// Longer than this, what goes on is the next one.
const LONGEST: SignedDuration = SignedDuration::from_secs(3600);
/// So many failed lookups in such a time are a streak.
const STREAK: usize = 3;
const STREAK_WITHIN: SignedDuration = SignedDuration::from_secs(60);
/// Failed lookups of a pod that are remembered: their times, to be laid beside its memory.
const FAILURES_MAX: usize = 1024;
const FAILURES_WITHIN: SignedDuration = SignedDuration::from_secs(600);
/// Pods that something is remembered of; beyond that, the one that was silent the longest is forgotten.
const PODS_MAX: usize = 1024;
const EVENTS_MAX: usize = 64;
const NAMES_MAX: usize = 64;
const NAMES_TOLD: usize = 5;

/// Open incidents, and what may become one.
#[derive(Default)]
pub struct PodIncidents {
    /// What ids begin with.
    boot: String,
    pods: HashMap<String, Pod>,
    evicted: EvictedPods,
}

/// How many pods were forgotten early because there were too many; may outlive what counts.
#[derive(Clone, Default)]
pub struct EvictedPods(Arc<AtomicU64>);

impl EvictedPods {
    /// `incidents_evicted`, if there are any.
    pub fn losses(&self) -> Losses {
        let count = Some(self.0.load(Relaxed)).filter(|count| *count > 0);
        count.map(|count| ("incidents_evicted".to_owned(), count)).into_iter().collect()
    }
}

/// By uid.
#[derive(Default)]
struct Pod {
    /// When each lookup failed, its name, and its event's id.
    failures: VecDeque<(Timestamp, String, Option<i64>)>,
    /// Container → the attempt that was seen last.
    attempts: BTreeMap<String, u32>,
    open: Option<PodIncident>,
    names: BTreeMap<String, u64>,
    changed: bool,
    last: Timestamp,
}

impl PodIncidents {
    /// `boot_id`: of `/proc/sys/kernel/random/boot_id`.
    pub fn new(boot_id: &str) -> PodIncidents {
        PodIncidents { boot: boot_id.chars().take(4).collect(), ..PodIncidents::default() }
    }

    /// Looks at an event; `id` is its own in the store.
    pub fn see(&mut self, event: &Event, id: Option<i64>) {
        let Some(owner) = &event.pod else { return };
        let failed = match &event.detail {
            Detail::Lookup(lookup) if lookup.result.is_failure() => Some(lookup.name.clone()),
            Detail::Oom(_) | Detail::Sigkill(_) => None,
            Detail::Lookup(_) | Detail::Dns(_) => return,
        };
        self.make_room(&owner.uid);
        let pod = self.pods.entry(owner.uid.clone()).or_default();
        pod.last = pod.last.max(event.time);
        let restarts = pod.restarts(event);
        if let Some(name) = &failed {
            pod.failures.push_back((event.time, name.clone(), id));
            pod.forget(event.time);
        }
        if pod.open.as_ref().is_some_and(|open| is_over(open, event.time)) {
            // Nobody asked in time: the next question has the new one only, and the old one stays as it was told.
            pod.open = None;
        }
        if pod.open.is_none() {
            let streak = pod.streak(event.time);
            if failed.is_some() && streak.is_none() {
                return;
            }
            pod.begin(&self.boot, event, streak);
        } else if let Some(name) = failed {
            pod.count(name, id);
        }
        let Pod { open: Some(open), failures, changed, .. } = pod else { return };
        *changed = true;
        open.until = open.until.max(event.time);
        open.restarts += restarts;
        if let Some(container) = &event.container
            && !open.containers.contains(&container.name)
        {
            open.containers.push(container.name.clone());
        }
        match (&event.incident, &event.detail) {
            (Some(oom), _) => {
                if !open.ooms.contains(&oom.id) {
                    open.ooms.push(oom.id.clone());
                }
                let times: Vec<Timestamp> = failures.iter().map(|(time, _, _)| *time).collect();
                let container = event.container.as_ref().map_or("", |container| &container.name);
                let found =
                    oom.curve.as_ref().and_then(|curve| correlate::correlate(&times, curve, event.time));
                if let Some(mut found) = found {
                    (found.oom, found.container) = (oom.id.clone(), container.to_owned());
                    open.correlated = Some(found);
                }
            }
            (None, Detail::Oom(kill)) => open.oom_kills += u64::from(!kill.already_dying),
            (None, Detail::Sigkill(_)) => open.sigkills += 1,
            (None, _) => return,
        }
        note(open, id);
    }

    /// What has changed since the last time, as it is now.
    pub fn changed(&mut self, now: Timestamp) -> Vec<PodIncident> {
        let mut out = Vec::new();
        for pod in self.pods.values_mut() {
            pod.forget(now);
            let Some(open) = &mut pod.open else { continue };
            let over = is_over(open, now);
            if over || pod.changed {
                open.open = !over;
                open.failed_names = most(&pod.names);
                out.push(open.clone());
            }
            pod.changed = false;
            if over {
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

    fn make_room(&mut self, uid: &str) {
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

impl Pod {
    /// How many starts there were since the last event of this container.
    fn restarts(&mut self, event: &Event) -> u64 {
        let Some(container) = &event.container else { return 0 };
        // What the runtime said some seconds after it is newer than the event itself.
        let said = event.incident.as_ref().and_then(|incident| incident.runtime.as_ref());
        let attempt = said.map_or(container.attempt, |said| said.restarts.max(container.attempt));
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

    fn forget(&mut self, now: Timestamp) {
        let old =
            |(time, _, _): &(Timestamp, String, Option<i64>)| now.duration_since(*time) > FAILURES_WITHIN;
        while self.failures.len() > FAILURES_MAX || self.failures.front().is_some_and(old) {
            self.failures.pop_front();
        }
    }

    /// How many failures are a streak that goes on now; None: there is none.
    fn streak(&self, now: Timestamp) -> Option<usize> {
        let recent = |time: &Timestamp| now.duration_since(*time).abs() <= STREAK_WITHIN;
        let count = self.failures.iter().rev().take_while(|(time, _, _)| recent(time)).count();
        (count >= STREAK).then_some(count)
    }

    /// `streak`: failures before it that belong to it.
    fn begin(&mut self, boot: &str, event: &Event, streak: Option<usize>) {
        let Some(pod) = event.pod.clone() else { return };
        let skip = self.failures.len() - streak.unwrap_or(0);
        let streak: Vec<_> = self.failures.iter().skip(skip).cloned().collect();
        let from = streak.iter().map(|(time, _, _)| *time).min().unwrap_or(event.time).min(event.time);
        let uid: String = pod.uid.chars().take(8).collect();
        self.names.clear();
        self.open = Some(PodIncident {
            incident: format!("{boot}-i{}-{uid}", from.as_millisecond()),
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
            self.count(name, id);
        }
    }

    fn count(&mut self, name: String, id: Option<i64>) {
        let Some(open) = &mut self.open else { return };
        open.failed_lookups += 1;
        if self.names.len() < NAMES_MAX || self.names.contains_key(&name) {
            *self.names.entry(name).or_default() += 1;
        }
        note(open, id);
    }
}

fn note(open: &mut PodIncident, id: Option<i64>) {
    if let Some(id) = id.filter(|id| open.events.len() < EVENTS_MAX && !open.events.contains(id)) {
        open.events.push(id);
    }
}

/// Whether an incident that was open when it was last told has ended since: nobody tells the end of one that was open when
/// the agent was.
pub fn has_ended(until: Timestamp, now: Timestamp) -> bool {
    now.duration_since(until) > QUIET * 2
}

fn is_over(open: &PodIncident, now: Timestamp) -> bool {
    now.duration_since(open.until) > QUIET || now.duration_since(open.from) > LONGEST
}

fn most(names: &BTreeMap<String, u64>) -> Vec<(String, u64)> {
    let mut all: Vec<_> = names.iter().map(|(name, count)| (name.clone(), *count)).collect();
    all.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    all.truncate(NAMES_TOLD);
    all
}
