//! What happened to some pods, in time order: the entries, from the events, the memory and the pods that an agent has.
//!
//! | module | makes entries of |
//! |---|---|
//! | [`kills`] | OOM incidents and SIGKILLs |
//! | [`lookups`] | failed DNS queries, joined to streaks |
//! | [`memory`] | the memory curve: when it came near its limit |
//! | [`throttling`] | CPU time: when its quota throttled a container |
//! | [`containers`] | starts and ends, as the runtime reports them |

mod containers;
mod kills;
mod lookups;
mod memory;
mod throttling;

use jiff::Timestamp;
use podopsy_model::{Event, Owner, PodIncident, PodRef};
use podopsy_pods::PodDetails;
use podopsy_store::MemoryRecord;
use serde::Serialize;

use crate::render::units;
pub use kills::kill;
pub use memory::{begin_of, samples};

/// What the agent has about the pods.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    pub events: Vec<Event>,
    pub memory: Vec<MemoryRecord>,
    pub incidents: Vec<PodIncident>,
    pub pods: Vec<PodDetails>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum EntryKind {
    Start,
    Restart,
    Memory,
    Throttling,
    DnsFailures,
    OomKill,
    Sigkill,
    End,
    Correlation,
}

impl EntryKind {
    /// The value in the JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            EntryKind::Start => "start",
            EntryKind::Restart => "restart",
            EntryKind::Memory => "memory",
            EntryKind::Throttling => "throttling",
            EntryKind::DnsFailures => "dns-failures",
            EntryKind::OomKill => "oom-kill",
            EntryKind::Sigkill => "sigkill",
            EntryKind::End => "end",
            EntryKind::Correlation => "correlation",
        }
    }
}

/// How an entry is known, as the glossary defines it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum EntryEvidence {
    Observed,
    Inferred,
    Correlated,
}

impl EntryEvidence {
    /// The value in the JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            EntryEvidence::Observed => "observed",
            EntryEvidence::Inferred => "inferred",
            EntryEvidence::Correlated => "correlated",
        }
    }
}

/// One line of a timeline.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TimelineEntry {
    pub time: Timestamp,
    /// The end of what took a while.
    pub until: Option<Timestamp>,
    pub kind: EntryKind,
    pub how: EntryEvidence,
    pub namespace: String,
    pub pod: String,
    pub container: Option<String>,
    /// The id for `podopsy oom show`.
    pub id: Option<String>,
    pub text: String,
    /// What lines up with it in time. It is not a claim that one caused the other.
    pub correlated: Option<String>,
}

impl TimelineEntry {
    fn new(time: Timestamp, kind: EntryKind, pod: &PodRef, text: String) -> TimelineEntry {
        TimelineEntry {
            time,
            until: None,
            kind,
            how: EntryEvidence::Observed,
            namespace: pod.namespace.clone(),
            pod: pod.name.clone(),
            container: None,
            id: None,
            text,
            correlated: None,
        }
    }

    fn of(time: Timestamp, kind: EntryKind, owner: &Owner, text: String) -> Option<TimelineEntry> {
        let entry = TimelineEntry::new(time, kind, owner.pod.as_ref()?, text);
        Some(TimelineEntry { container: owner.container.as_ref().map(|one| one.name.clone()), ..entry })
    }

    fn is_kill(&self) -> bool {
        matches!(self.kind, EntryKind::OomKill | EntryKind::Sigkill)
    }

    fn is_of_container(&self, other: &TimelineEntry) -> bool {
        (&self.namespace, &self.pod, &self.container) == (&other.namespace, &other.pod, &other.container)
    }
}

/// A start this many seconds after a kill of the same container is related to it in time. The kubelet waits for five minutes
/// at most before it restarts a container.
const RESTART_SECONDS_MAX: i64 = 330;
/// Memory near its limit this many seconds before a kill is related to it in time.
const MILESTONE_SECONDS_MAX: i64 = 60;

/// The entries since `from`, oldest first.
pub fn build(sources: &Sources, from: Timestamp) -> Vec<TimelineEntry> {
    let mut entries = kills::entries(&sources.events);
    entries.extend(lookups::entries(&sources.events));
    entries.extend(memory::entries(&sources.memory));
    entries.extend(throttling::entries(&sources.memory));
    entries.extend(containers::entries(&sources.pods, &sources.events));
    entries.extend(sources.incidents.iter().filter_map(correlation));
    entries.retain(|entry| entry.until.unwrap_or(entry.time) >= from);
    entries.sort_by_key(|entry| (entry.time, entry.kind));
    relate(&mut entries);
    entries
}

/// What the agent has found to line up in time.
fn correlation(incident: &PodIncident) -> Option<TimelineEntry> {
    let found = incident.correlated.as_ref()?;
    let entry = TimelineEntry::new(found.until, EntryKind::Correlation, &incident.pod, found.sentence());
    let container = Some(found.container.clone());
    Some(TimelineEntry { how: EntryEvidence::Correlated, id: Some(found.oom.clone()), container, ..entry })
}

/// Notes which kill stands shortly before a start, and shortly after memory came near its limit.
fn relate(entries: &mut [TimelineEntry]) {
    let kills: Vec<TimelineEntry> = entries.iter().filter(|entry| entry.is_kill()).cloned().collect();
    for entry in entries.iter_mut() {
        let since = |kill: &TimelineEntry| entry.time.duration_since(kill.time).as_secs();
        let name = |kill: &TimelineEntry| format!("the {} {}", kill.kind.as_str(), kill.label());
        let mut own = kills.iter().filter(|kill| kill.is_of_container(entry));
        entry.correlated = match entry.kind {
            EntryKind::Start | EntryKind::Restart => {
                let before = own.rfind(|kill| (0..=RESTART_SECONDS_MAX).contains(&since(kill)));
                before.map(|kill| format!("{} s after {}", since(kill), name(kill)))
            }
            EntryKind::Memory => {
                let after = own.find(|kill| (-MILESTONE_SECONDS_MAX..=0).contains(&since(kill)));
                after.map(|kill| format!("{} s before {}", -since(kill), name(kill)))
            }
            _ => None,
        };
    }
}

impl TimelineEntry {
    fn label(&self) -> String {
        self.id.clone().unwrap_or_else(|| format!("of {}", units::date(self.time)))
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use podopsy_model::memory::MemorySteps;
    use podopsy_model::testing::{dns, owner};

    use super::*;
    use crate::render::oom::tests::event;
    use crate::render::pods::tests::{container, pod};

    const MIB: u64 = 1 << 20;

    fn time(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    /// A kill at second 100 after failed lookups and growth, and a restart at second 112.
    fn sources() -> Sources {
        let mut kill = event("3f2a-7", 0);
        kill.time = time(100);
        kill.incident.as_mut().unwrap().runtime = None;
        let mut owner = owner("shop", "orders", &[]);
        owner.container.as_mut().unwrap().name = "api".into();
        let mut events: Vec<Event> = (40..46).map(|at| dns(time(at), owner.clone(), "db.test")).collect();
        events.push(dns(time(47), owner.clone(), "cache.test"));
        events.push(kill);
        let steps = MemorySteps {
            from: time(0),
            until: time(90),
            step_seconds: 10,
            step: (0..10).collect(),
            current_max_bytes: (0..10).map(|at| (10 + 6 * at) * MIB).collect(),
            limit_bytes: Some(64 * MIB),
            ..MemorySteps::default()
        };
        let mut restarted = container("api", 1, "running");
        restarted.started_at = Some(time(112));
        let mut pod = pod("orders", vec![restarted]);
        pod.pod.namespace = "shop".into();
        Sources {
            events,
            memory: vec![MemoryRecord { owner, steps }],
            incidents: Vec::new(),
            pods: vec![pod],
        }
    }

    #[test]
    fn a_timeline_is_in_order_and_states_correlations_as_such() {
        let entries = build(&sources(), time(0));
        let lines: Vec<(i64, &str, &str)> = entries
            .iter()
            .map(|entry| {
                let second = entry.time.duration_since(time(0)).as_secs();
                (second, entry.kind.as_str(), entry.correlated.as_deref().unwrap_or(""))
            })
            .collect();
        assert_eq!(
            lines,
            [
                (40, "memory", "60 s before the oom-kill 3f2a-7"),
                (40, "dns-failures", ""),
                (70, "memory", "30 s before the oom-kill 3f2a-7"),
                (80, "memory", "20 s before the oom-kill 3f2a-7"),
                (90, "memory", "10 s before the oom-kill 3f2a-7"),
                (100, "oom-kill", ""),
                (112, "restart", "12 s after the oom-kill 3f2a-7"),
            ]
        );
        let texts: Vec<&str> = entries.iter().map(|entry| entry.text.as_str()).collect();
        assert_eq!(texts[1], "7 queries failed within 7 s: db.test (6), cache.test (1); servfail 7");
        assert_eq!(texts[0], "memory reached 53 % of the limit: 34.0 MiB of 64.0 MiB");
        assert!(texts[6].contains("restarted for the 1st time"), "{texts:?}");
        assert_eq!(entries[1].until, Some(time(47)));
    }

    #[test]
    fn what_ended_before_the_time_asked_for_is_left_out() {
        let entries = build(&sources(), time(99));
        let kinds: Vec<&str> = entries.iter().map(|entry| entry.kind.as_str()).collect();
        assert_eq!(kinds, ["oom-kill", "restart"]);
        assert!(build(&sources(), time(112) + SignedDuration::from_secs(1)).is_empty());
    }
}
