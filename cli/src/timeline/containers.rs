//! Starts and ends of containers, as the runtime reports them: now, and in the events of kills.

use std::collections::BTreeMap;

use jiff::Timestamp;
use podopsy_model::incident::RuntimeView;
use podopsy_model::{ContainerRef, Event, PodRef, verdict};
use podopsy_pods::PodDetails;

use super::{EntryKind, TimelineEntry};

/// One container instance, from its newest report.
struct Instance {
    pod: PodRef,
    container: ContainerRef,
    view: RuntimeView,
}

pub fn entries(pods: &[PodDetails], events: &[Event]) -> Vec<TimelineEntry> {
    let mut instances: BTreeMap<String, Instance> = BTreeMap::new();
    // Events first: what the runtime says now is newer.
    for event in events {
        let view = match (&event.incident, event.sigkill()) {
            (Some(incident), _) => incident.runtime.clone(),
            (None, Some(sigkill)) => sigkill.runtime.clone(),
            (None, None) => None,
        };
        if let (Some(pod), Some(container), Some(view)) = (&event.pod, &event.container, view) {
            let instance = Instance { pod: pod.clone(), container: container.clone(), view };
            instances.insert(container.id.clone(), instance);
        }
    }
    for pod in pods {
        for details in &pod.containers {
            let (container, view) = (details.container.clone(), details.clone().view());
            let instance = Instance { pod: pod.pod.clone(), container, view };
            instances.insert(details.container.id.clone(), instance);
        }
    }
    instances.values().flat_map(|instance| [start(instance), end(instance)]).flatten().collect()
}

fn start(instance: &Instance) -> Option<TimelineEntry> {
    let attempt = instance.container.attempt;
    match attempt {
        0 => entry(instance, instance.view.started_at?, EntryKind::Start, "started".to_owned()),
        _ => {
            let text = format!("restarted for the {} time", ordinal(attempt));
            entry(instance, instance.view.started_at?, EntryKind::Restart, text)
        }
    }
}

fn end(instance: &Instance) -> Option<TimelineEntry> {
    if instance.view.state != "exited" {
        return None;
    }
    let text = format!("ended: Kubernetes says {}", verdict::container_state(&instance.view));
    entry(instance, instance.view.finished_at?, EntryKind::End, text)
}

fn entry(instance: &Instance, time: Timestamp, kind: EntryKind, text: String) -> Option<TimelineEntry> {
    let container = Some(instance.container.name.clone());
    Some(TimelineEntry { container, ..TimelineEntry::new(time, kind, &instance.pod, text) })
}

/// `1st`, `2nd`, `11th`.
fn ordinal(number: u32) -> String {
    let ending = match (number % 10, number % 100) {
        (1, rest) if rest != 11 => "st",
        (2, rest) if rest != 12 => "nd",
        (3, rest) if rest != 13 => "rd",
        _ => "th",
    };
    format!("{number}{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::pods::tests::{container, pod};

    #[test]
    fn an_instance_has_a_start_and_an_end() {
        let time = |second| Timestamp::from_second(second).ok();
        let mut dead = container("api", 2, "exited");
        (dead.reason, dead.exit_code) = ("OOMKilled".into(), Some(137));
        (dead.started_at, dead.finished_at) = (time(10), time(20));
        let entries = entries(&[pod("cart", vec![dead])], &[]);
        let texts: Vec<&str> = entries.iter().map(|entry| entry.text.as_str()).collect();
        assert_eq!(texts, ["restarted for the 2nd time", "ended: Kubernetes says OOMKilled (137)"]);
        assert_eq!([11, 21, 12, 3].map(ordinal), ["11th", "21st", "12th", "3rd"]);
    }
}
