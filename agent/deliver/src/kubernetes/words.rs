//! Which events and incidents are worth an Event on the pod, and what it says. Pure.
//!
//! A reason is what alerts and `kubectl get events --field-selector reason=…` go by: few, and stable.

use jiff::Timestamp;

use podopsy_model::incident::{Level, Limit, Verdict};
use podopsy_model::verdict::explain;
use podopsy_model::{Event, Incident, Kind, PodIncident, PodRef};

/// Something to be said of a pod.
#[derive(Clone, Debug)]
pub struct Saying {
    pub pod: PodRef,
    pub container: Option<String>,
    pub reason: &'static str,
    pub action: &'static str,
    pub note: String,
    /// When it began.
    pub time: Timestamp,
    pub last: Timestamp,
    pub count: Count,
    /// What is said of one incident is an Event of its own; None: it joins those before it.
    pub incident: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    OneMore,
    /// All in all.
    SoFar(u64),
}

/// Failed lookups from which they are a streak, as incidents have it.
const STREAK: u64 = 3;

/// Of one visit of the OOM killer: its incident, not each victim.
pub fn of_event(event: &Event) -> Option<Saying> {
    let (pod, incident) = (event.pod.as_ref()?, event.incident.as_ref()?);
    let killed = incident.victims.iter().any(|victim| !victim.already_dying);
    (event.kind == Kind::OomIncident && killed).then(|| Saying {
        pod: pod.clone(),
        container: event.container.as_ref().map(|container| container.name.clone()),
        reason: reason(incident),
        action: "OOMKill",
        note: oom(incident),
        time: event.time,
        last: event.time,
        count: Count::OneMore,
        incident: None,
    })
}

/// Of what belongs together in time: a streak of failed lookups, and what lines up.
pub fn of_incident(incident: &PodIncident) -> Vec<Saying> {
    let saying = |reason, action, note| Saying {
        pod: incident.pod.clone(),
        container: None,
        reason,
        action,
        note,
        time: incident.from,
        last: incident.until,
        count: Count::SoFar(1),
        incident: Some(incident.incident.clone()),
    };
    let lookups = (incident.failed_lookups >= STREAK).then(|| Saying {
        count: Count::SoFar(incident.failed_lookups),
        ..saying("PodopsyDNSLookupsFailing", "LookUp", lookups(incident))
    });
    let correlated = incident.correlated.as_ref().map(|found| Saying {
        container: Some(found.container.clone()).filter(|name| !name.is_empty()),
        time: found.until,
        last: found.until,
        ..saying(
            "PodopsyCorrelated",
            "Correlate",
            format!("{}. Correlated, which names no cause. podopsy oom show {}", found.sentence(), found.oom),
        )
    });
    lookups.into_iter().chain(correlated).collect()
}

fn reason(incident: &Incident) -> &'static str {
    let has = |verdict| incident.verdicts.contains(&verdict);
    match () {
        () if has(Verdict::NodeOom) => "PodopsyNodeOOMKilled",
        () if has(Verdict::SilentChildKill) => "PodopsyOOMKilledWhileRunning",
        () => "PodopsyOOMKilled",
    }
}

fn oom(incident: &Incident) -> String {
    let killed: Vec<_> = incident.victims.iter().filter(|victim| !victim.already_dying).collect();
    let mut text = match killed.first() {
        Some(first) => format!("The kernel's OOM killer killed {}[{}]", first.task.comm, first.task.pid),
        None => "The kernel's OOM killer came".to_owned(),
    };
    match killed.len() {
        0 | 1 => {}
        2 => text += " and another process",
        many => text += &format!(" and {} other processes", many - 1),
    }
    if incident.recovered {
        text += " while podopsy was not running";
    }
    text += &format!(": {}.", limit(&incident.limit));
    for verdict in &incident.verdicts {
        text += &format!(" {}.", explain(*verdict, incident));
    }
    if let Some(advice) = &incident.advice {
        text += &format!(" {advice}.");
    }
    text + &format!(" podopsy oom show {}", incident.id)
}

fn limit(limit: &Limit) -> String {
    let whose = match limit.of {
        Level::InsideContainer => "the limit of a cgroup inside the container",
        Level::Container => "the container's limit",
        Level::Pod => "the pod's limit",
        Level::Slice => "the limit of a cgroup above the pod",
        Level::Node | Level::Cpuset | Level::MemoryPolicy => return "the node's memory was short".to_owned(),
        Level::Unknown => return "whose limit was met is not known".to_owned(),
    };
    match limit.limit_bytes {
        Some(bytes) => format!("{whose} of {} MiB was met", bytes >> 20),
        None => format!("{whose} was met"),
    }
}

fn lookups(incident: &PodIncident) -> String {
    let names = incident.failed_names.iter().map(|(name, count)| format!("{name} ({count})"));
    let names: Vec<_> = names.collect();
    let most = if names.is_empty() { String::new() } else { format!(", most often {}", names.join(", ")) };
    format!(
        "DNS lookups of this pod fail: {} so far{most} (incident {}).",
        incident.failed_lookups, incident.incident
    )
}
