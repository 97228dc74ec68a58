//! Turns notices into requests: a new Event, or an update of an Event's series.
//!
//! The number of series is bounded, and so is the number of requests for each pod. No I/O.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use jiff::{SignedDuration, Timestamp};

use super::object::{EventObject, EventSeries, ObjectMeta, ObjectReference, micro_time, truncate};
use super::rate_limit::PodRateLimits;
use super::{EventWrite, NoticeCount, PodNotice, is_label, is_subdomain};

/// A series ends when there was no notice for this long (client-go's value).
const END_AFTER: SignedDuration = SignedDuration::from_secs(360);
/// The first repetition is sent at once; after that, a series is updated no more often than this.
const UPDATE_INTERVAL: SignedDuration = super::rate_limit::REFILL_INTERVAL;
/// The bound on open series. Beyond it, the series with the longest pause ends.
const MAX_SERIES: usize = 1024;
/// The limits of the API server's validation.
const MAX_INSTANCE_BYTES: usize = 128;
const MAX_NOTE_BYTES: usize = 1024;
const MAX_NAME_BYTES: usize = 253;

/// The number of notices that did not become an Event, by reason.
#[derive(Debug, Default)]
pub struct DroppedEvents {
    /// The pod had no requests left. Counts Events, and repetitions that were never sent.
    pub limited: AtomicU64,
    /// The pod's name is not known, or the API server would reject it.
    pub unnamed: AtomicU64,
}

/// Notices with the same key belong to one Event.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct SeriesKey {
    uid: String,
    container: Option<String>,
    reason: &'static str,
    incident: Option<String>,
}

#[derive(Debug)]
struct SeriesState {
    object: EventObject,
    count: u64,
    last_observed: Timestamp,
    /// The count that the API server was sent, and when.
    sent_count: u64,
    sent_at: Timestamp,
    is_repetition_sent: bool,
    last_notice_at: Timestamp,
}

/// The open series of all pods of the node.
#[derive(Debug)]
pub struct SeriesTracker {
    node: String,
    series: HashMap<SeriesKey, SeriesState>,
    limits: PodRateLimits,
    dropped: Arc<DroppedEvents>,
}

impl SeriesTracker {
    pub fn new(node: &str) -> SeriesTracker {
        SeriesTracker {
            node: truncate(node.to_owned(), MAX_INSTANCE_BYTES),
            series: HashMap::new(),
            limits: PodRateLimits::default(),
            dropped: Arc::default(),
        }
    }

    pub fn dropped(&self) -> Arc<DroppedEvents> {
        self.dropped.clone()
    }

    /// Adds a notice. Returns the request that must be sent now, if any.
    pub fn add(&mut self, notice: PodNotice, now: Timestamp) -> Option<EventWrite> {
        let pod = &notice.pod;
        if !is_label(&pod.namespace) || !is_subdomain(&pod.name) || pod.uid.is_empty() {
            self.dropped.unnamed.fetch_add(1, Relaxed);
            return None;
        }
        let key = SeriesKey {
            uid: pod.uid.clone(),
            container: notice.container.clone(),
            reason: notice.reason,
            incident: notice.incident.clone(),
        };
        let Some(state) = self.series.get_mut(&key).filter(|state| !state.is_over(now)) else {
            return self.begin(key, notice, now);
        };
        state.last_notice_at = now;
        let count = match notice.count {
            NoticeCount::Increment => state.count + 1,
            NoticeCount::Total(count) => count.max(state.count),
        };
        if count > state.count {
            state.count = count;
            state.last_observed = notice.last.max(state.last_observed);
        }
        state.update_if_due(now, &key.uid, &mut self.limits)
    }

    fn begin(&mut self, key: SeriesKey, notice: PodNotice, now: Timestamp) -> Option<EventWrite> {
        self.end(&key);
        if !self.limits.take(&key.uid, now) {
            self.dropped.limited.fetch_add(1, Relaxed);
            return None;
        }
        if self.series.len() >= MAX_SERIES {
            let oldest = self.series.iter().min_by_key(|(_, state)| state.last_notice_at);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.end(&oldest);
            }
        }
        let count = match notice.count {
            NoticeCount::Increment => 1,
            NoticeCount::Total(count) => count.max(1),
        };
        let mut state = SeriesState {
            object: self.object(&notice),
            count,
            last_observed: notice.last,
            sent_count: count,
            sent_at: now,
            is_repetition_sent: count > 1,
            last_notice_at: now,
        };
        let write = EventWrite { object: state.current_object(), is_update: false };
        self.series.insert(key, state);
        Some(write)
    }

    /// The updates that are due now, and the final updates of series that have ended.
    pub fn due(&mut self, now: Timestamp) -> Vec<EventWrite> {
        let mut writes = Vec::new();
        let mut ended = Vec::new();
        for (key, state) in &mut self.series {
            if state.is_over(now) {
                writes.extend(state.update(now, &key.uid, &mut self.limits));
                ended.push(key.clone());
            } else {
                writes.extend(state.update_if_due(now, &key.uid, &mut self.limits));
            }
        }
        ended.iter().for_each(|key| self.end(key));
        self.limits.remove_full(now);
        writes
    }

    /// Ends all series. Returns their final updates.
    pub fn finish(&mut self, now: Timestamp) -> Vec<EventWrite> {
        let limits = &mut self.limits;
        let series = self.series.iter_mut();
        let writes = series.filter_map(|(key, state)| state.update(now, &key.uid, limits)).collect();
        let keys: Vec<SeriesKey> = self.series.keys().cloned().collect();
        keys.iter().for_each(|key| self.end(key));
        writes
    }

    fn end(&mut self, key: &SeriesKey) {
        if let Some(state) = self.series.remove(key) {
            self.dropped.limited.fetch_add(state.count - state.sent_count, Relaxed);
        }
    }

    fn object(&self, notice: &PodNotice) -> EventObject {
        let pod = &notice.pod;
        EventObject {
            api_version: "events.k8s.io/v1",
            kind: "Event",
            metadata: ObjectMeta { name: object_name(notice), namespace: pod.namespace.clone() },
            event_time: micro_time(notice.time),
            series: None,
            reporting_controller: "podopsy",
            reporting_instance: self.node.clone(),
            action: notice.action,
            reason: notice.reason,
            regarding: ObjectReference {
                api_version: "v1",
                kind: "Pod",
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                uid: pod.uid.clone(),
                field_path: notice.container.as_ref().map(|name| format!("spec.containers{{{name}}}")),
            },
            note: truncate(notice.note.clone(), MAX_NOTE_BYTES),
            r#type: "Warning",
        }
    }
}

/// Made of the pod, the time and the reason, so that a notice that is reported again gets the same name.
fn object_name(notice: &PodNotice) -> String {
    let suffix = format!(".{:x}.{}", notice.time.as_nanosecond(), notice.reason.to_ascii_lowercase());
    let pod = &notice.pod.name;
    let prefix = pod.get(..MAX_NAME_BYTES - suffix.len()).unwrap_or(pod).trim_end_matches(['.', '-']);
    format!("{prefix}{suffix}")
}

impl SeriesState {
    fn is_over(&self, now: Timestamp) -> bool {
        now.duration_since(self.last_notice_at) > END_AFTER
    }

    fn current_object(&mut self) -> EventObject {
        let series = || EventSeries { count: self.count, last_observed_time: micro_time(self.last_observed) };
        self.object.series = (self.count > 1).then(series);
        self.object.clone()
    }

    fn update_if_due(&mut self, now: Timestamp, uid: &str, limits: &mut PodRateLimits) -> Option<EventWrite> {
        let is_due = !self.is_repetition_sent || now.duration_since(self.sent_at) >= UPDATE_INTERVAL;
        if is_due { self.update(now, uid, limits) } else { None }
    }

    /// Sends the repetitions that were not sent yet, if the pod has a request left.
    fn update(&mut self, now: Timestamp, uid: &str, limits: &mut PodRateLimits) -> Option<EventWrite> {
        if self.count <= self.sent_count || !limits.take(uid, now) {
            return None;
        }
        self.sent_count = self.count;
        self.sent_at = now;
        self.is_repetition_sent = true;
        Some(EventWrite { object: self.current_object(), is_update: true })
    }
}
