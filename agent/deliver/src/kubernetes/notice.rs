//! Decides which events and incidents become an Event on their pod, and with which text. No I/O.
//!
//! Alerts and `kubectl get events --field-selector reason=…` select by the reason, so reasons are few and stable.

use std::borrow::Cow;

use jiff::Timestamp;

use podopsy_model::incident::{Level, LimitHit, Verdict};
use podopsy_model::verdict::explain;
use podopsy_model::{Event, EventKind, OomIncident, PodIncident, PodRef};

/// What an Event on a pod reports.
#[derive(Clone, Debug)]
pub struct PodNotice {
    pub pod: PodRef,
    pub container: Option<String>,
    pub reason: &'static str,
    pub action: &'static str,
    pub note: String,
    /// When it began.
    pub time: Timestamp,
    /// When it was last observed.
    pub last: Timestamp,
    pub count: NoticeCount,
    /// Some: notices of this incident are an Event of their own. None: the notice may join earlier ones.
    pub incident: Option<String>,
}

/// How often the reported thing happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoticeCount {
    /// Once more than in earlier notices.
    Increment,
    /// This often in total.
    Total(u64),
}

/// The number of failed lookups that make a streak, as in pod incidents.
const STREAK: u64 = 3;

/// The notice for one visit of the OOM killer. The event of the incident gets one, the events of its victims do not.
pub fn notice_from_event(event: &Event) -> Option<PodNotice> {
    let pod = event.pod.as_ref()?;
    let incident = event.incident.as_ref()?;
    let has_killed = incident.victims.iter().any(|victim| !victim.already_dying);
    (event.kind == EventKind::OomIncident && has_killed).then(|| PodNotice {
        pod: pod.clone(),
        container: event.container.as_ref().map(|container| container.name.clone()),
        reason: oom_reason(incident),
        action: "OOMKill",
        note: oom_note(incident),
        time: event.time,
        last: event.time,
        count: NoticeCount::Increment,
        incident: None,
    })
}

/// The notices for events that belong together in time: one for a streak of failed lookups, one for a correlation.
pub fn notices_from_incident(incident: &PodIncident) -> Vec<PodNotice> {
    let notice = |reason, action, note| PodNotice {
        pod: incident.pod.clone(),
        container: None,
        reason,
        action,
        note,
        time: incident.from,
        last: incident.until,
        count: NoticeCount::Total(1),
        incident: Some(incident.incident.clone()),
    };
    let lookups = (incident.failed_lookups >= STREAK).then(|| PodNotice {
        count: NoticeCount::Total(incident.failed_lookups),
        ..notice("PodopsyDNSLookupsFailing", "LookUp", lookups_note(incident))
    });
    let correlated = incident.correlated.as_ref().map(|correlation| PodNotice {
        container: Some(correlation.container.clone()).filter(|name| !name.is_empty()),
        time: correlation.until,
        last: correlation.until,
        ..notice(
            "PodopsyCorrelated",
            "Correlate",
            format!(
                "{}. Correlated, which names no cause. podopsy oom show {}",
                correlation.sentence(),
                correlation.oom
            ),
        )
    });
    lookups.into_iter().chain(correlated).collect()
}

fn oom_reason(incident: &OomIncident) -> &'static str {
    if incident.verdicts.contains(&Verdict::NodeOom) {
        "PodopsyNodeOOMKilled"
    } else if incident.verdicts.contains(&Verdict::SilentChildKill) {
        "PodopsyOOMKilledWhileRunning"
    } else {
        "PodopsyOOMKilled"
    }
}

fn oom_note(incident: &OomIncident) -> String {
    let killed: Vec<_> = incident.victims.iter().filter(|victim| !victim.already_dying).collect();
    let mut note = match killed.first() {
        Some(first) => format!("The kernel's OOM killer killed {}[{}]", first.task.comm, first.task.pid),
        None => "The kernel's OOM killer killed no process".to_owned(),
    };
    match killed.len() {
        0 | 1 => {}
        2 => note += " and another process",
        many => note += &format!(" and {} other processes", many - 1),
    }
    if incident.recovered {
        note += " while podopsy was not running";
    }
    note += &format!(": {}.", limit_sentence(&incident.limit));
    for verdict in &incident.verdicts {
        note += &format!(" {}.", explain(*verdict, incident));
    }
    if let Some(advice) = &incident.advice {
        note += &format!(" {advice}.");
    }
    note + &format!(" podopsy oom show {}", incident.id)
}

fn limit_sentence(limit: &LimitHit) -> Cow<'static, str> {
    let level = match limit.of {
        Level::InsideContainer => "the limit of a cgroup inside the container",
        Level::Container => "the container's limit",
        Level::Pod => "the pod's limit",
        Level::Slice => "the limit of a cgroup above the pod",
        Level::Node | Level::Cpuset | Level::MemoryPolicy => return "the node's memory was short".into(),
        Level::Unknown => return "it is not known whose limit was met".into(),
    };
    match limit.limit_bytes {
        Some(bytes) => format!("{level} of {} MiB was met", bytes >> 20).into(),
        None => format!("{level} was met").into(),
    }
}

fn lookups_note(incident: &PodIncident) -> String {
    let names = incident.failed_names.iter().map(|(name, count)| format!("{name} ({count})"));
    let names: Vec<_> = names.collect();
    let most_often =
        if names.is_empty() { String::new() } else { format!(", most often {}", names.join(", ")) };
    format!(
        "DNS lookups of this pod fail: {} so far{most_often} (incident {}).",
        incident.failed_lookups, incident.incident
    )
}
