//! What is said → requests: a new Event, or one more of a series. Pure; bounded in series and in requests for each pod.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use jiff::{SignedDuration, Timestamp};

use super::bucket::Buckets;
use super::object::{Metadata, Object, Regarding, Series, bounded};
use super::{Call, Count, Saying, is_label, is_subdomain, micro};

/// A series goes on until nothing has been said of it for so long (client-go's).
const OVER_AFTER: SignedDuration = SignedDuration::from_secs(360);
/// After its first repetition, which is told at once, a series is told no more often than this.
const AGAIN: SignedDuration = super::bucket::REFILL;
/// Series that go on; beyond that, the one that was silent the longest is over.
const SERIES_MAX: usize = 1024;
/// What validation takes of the instance, and of a note.
const INSTANCE_BYTES: usize = 128;
const NOTE_BYTES: usize = 1024;
const NAME_BYTES: usize = 253;

/// What will never be an Event, by reason.
#[derive(Debug, Default)]
pub struct Dropped {
    /// A pod's requests were used up: Events, and repetitions that nobody will hear of.
    pub limited: AtomicU64,
    /// The pod's name is not known, or is none that the API server would take.
    pub unnamed: AtomicU64,
}

/// What is one Event.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    uid: String,
    container: Option<String>,
    reason: &'static str,
    incident: Option<String>,
}

#[derive(Debug)]
struct State {
    object: Object,
    count: u64,
    last: Timestamp,
    /// What the API server was sent.
    told: u64,
    told_at: Timestamp,
    repeated: bool,
    /// When it was spoken of.
    seen: Timestamp,
}

#[derive(Debug)]
pub struct Recorder {
    node: String,
    series: HashMap<Key, State>,
    buckets: Buckets,
    dropped: Arc<Dropped>,
}

impl Recorder {
    pub fn new(node: &str) -> Recorder {
        let node = bounded(node.to_owned(), INSTANCE_BYTES);
        Recorder { node, series: HashMap::new(), buckets: Buckets::default(), dropped: Arc::default() }
    }

    pub fn dropped(&self) -> Arc<Dropped> {
        self.dropped.clone()
    }

    /// What to send now, if anything.
    pub fn see(&mut self, saying: Saying, now: Timestamp) -> Option<Call> {
        let pod = &saying.pod;
        if !is_label(&pod.namespace) || !is_subdomain(&pod.name) || pod.uid.is_empty() {
            self.dropped.unnamed.fetch_add(1, Relaxed);
            return None;
        }
        let (uid, container) = (pod.uid.clone(), saying.container.clone());
        let key = Key { uid, container, reason: saying.reason, incident: saying.incident.clone() };
        let Some(state) = self.series.get_mut(&key).filter(|state| !state.is_over(now)) else {
            return self.begin(key, saying, now);
        };
        state.seen = now;
        let count = match saying.count {
            Count::OneMore => state.count + 1,
            Count::SoFar(count) => count.max(state.count),
        };
        if count > state.count {
            (state.count, state.last) = (count, saying.last.max(state.last));
        }
        state.repeat(now, &key.uid, &mut self.buckets)
    }

    fn begin(&mut self, key: Key, saying: Saying, now: Timestamp) -> Option<Call> {
        self.end(&key);
        if !self.buckets.take(&key.uid, now) {
            self.dropped.limited.fetch_add(1, Relaxed);
            return None;
        }
        if self.series.len() >= SERIES_MAX {
            let oldest = self.series.iter().min_by_key(|(_, state)| state.seen).map(|(key, _)| key.clone());
            oldest.iter().for_each(|oldest| self.end(oldest));
        }
        let count = match saying.count {
            Count::OneMore => 1,
            Count::SoFar(count) => count.max(1),
        };
        let (object, last) = (self.object(&saying), saying.last);
        let mut state =
            State { object, count, last, told: count, told_at: now, repeated: count > 1, seen: now };
        let call = Call { object: state.as_of_now(), again: false };
        self.series.insert(key, state);
        Some(call)
    }

    /// Repetitions that waited for their time, and the last word of what is over.
    pub fn due(&mut self, now: Timestamp) -> Vec<Call> {
        let (mut calls, mut over) = (Vec::new(), Vec::new());
        for (key, state) in &mut self.series {
            if state.is_over(now) {
                calls.extend(state.last_word(now, &key.uid, &mut self.buckets));
                over.push(key.clone());
            } else {
                calls.extend(state.repeat(now, &key.uid, &mut self.buckets));
            }
        }
        over.iter().for_each(|key| self.end(key));
        self.buckets.forget(now);
        calls
    }

    /// The last word of all.
    pub fn finish(&mut self, now: Timestamp) -> Vec<Call> {
        let buckets = &mut self.buckets;
        let calls = self.series.iter_mut();
        let calls = calls.filter_map(|(key, state)| state.last_word(now, &key.uid, buckets)).collect();
        let keys: Vec<Key> = self.series.keys().cloned().collect();
        keys.iter().for_each(|key| self.end(key));
        calls
    }

    fn end(&mut self, key: &Key) {
        if let Some(state) = self.series.remove(key) {
            self.dropped.limited.fetch_add(state.count - state.told, Relaxed);
        }
    }

    fn object(&self, saying: &Saying) -> Object {
        let pod = &saying.pod;
        // The pod, when, and what: the same thing told twice has one name.
        let tail = format!(".{:x}.{}", saying.time.as_nanosecond(), saying.reason.to_ascii_lowercase());
        let head = pod.name.get(..NAME_BYTES - tail.len()).unwrap_or(&pod.name).trim_end_matches(['.', '-']);
        Object {
            api_version: "events.k8s.io/v1",
            kind: "Event",
            metadata: Metadata { name: format!("{head}{tail}"), namespace: pod.namespace.clone() },
            event_time: micro(saying.time),
            series: None,
            reporting_controller: "podopsy",
            reporting_instance: self.node.clone(),
            action: saying.action,
            reason: saying.reason,
            regarding: Regarding {
                api_version: "v1",
                kind: "Pod",
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                uid: pod.uid.clone(),
                field_path: saying.container.as_ref().map(|name| format!("spec.containers{{{name}}}")),
            },
            note: bounded(saying.note.clone(), NOTE_BYTES),
            r#type: "Warning",
        }
    }
}

impl State {
    fn is_over(&self, now: Timestamp) -> bool {
        now.duration_since(self.seen) > OVER_AFTER
    }

    fn as_of_now(&mut self) -> Object {
        let series = || Series { count: self.count, last_observed_time: micro(self.last) };
        self.object.series = (self.count > 1).then(series);
        self.object.clone()
    }

    /// The first repetition at once, the others now and then.
    fn repeat(&mut self, now: Timestamp, uid: &str, buckets: &mut Buckets) -> Option<Call> {
        let due = !self.repeated || now.duration_since(self.told_at) >= AGAIN;
        if due { self.last_word(now, uid, buckets) } else { None }
    }

    /// What was not told yet, if the pod has a request left.
    fn last_word(&mut self, now: Timestamp, uid: &str, buckets: &mut Buckets) -> Option<Call> {
        if self.count <= self.told || !buckets.take(uid, now) {
            return None;
        }
        (self.told, self.told_at, self.repeated) = (self.count, now, true);
        Some(Call { object: self.as_of_now(), again: true })
    }
}
