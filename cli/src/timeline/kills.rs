//! Kills: by the OOM killer, and by a SIGKILL that it did not send.

use podopsy_model::incident::Evidence;
use podopsy_model::{Event, OomIncident, sigkill_verdict};

use super::{EntryEvidence, EntryKind, TimelineEntry};
use crate::render::oom;

pub fn entries(events: &[Event]) -> Vec<TimelineEntry> {
    events.iter().filter_map(entry).collect()
}

fn entry(event: &Event) -> Option<TimelineEntry> {
    if let Some(incident) = &event.incident {
        return of_incident(event, incident);
    }
    let sigkill = event.sigkill()?;
    let text = sigkill_verdict::explain(sigkill);
    let entry = TimelineEntry::of(event.time, EntryKind::Sigkill, &event.owner(), text)?;
    Some(TimelineEntry { id: Some(sigkill.id.clone()), ..entry })
}

fn of_incident(event: &Event, incident: &OomIncident) -> Option<TimelineEntry> {
    let summary = oom::summary(incident);
    // The id has a field of its own.
    let text = summary.strip_prefix(&format!("{}: ", incident.id)).unwrap_or(&summary).to_owned();
    let entry = TimelineEntry::of(event.time, EntryKind::OomKill, &event.owner(), text)?;
    let how = match incident.limit.how {
        Evidence::Observed => EntryEvidence::Observed,
        Evidence::Inferred => EntryEvidence::Inferred,
    };
    Some(TimelineEntry { id: Some(incident.id.clone()), how, ..entry })
}
