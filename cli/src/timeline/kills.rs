//! Kills: by the OOM killer, and by a SIGKILL that it did not send.

use podopsy_model::incident::Evidence;
use podopsy_model::{Event, OomIncident, sigkill_verdict};

use super::{EntryEvidence, EntryKind, TimelineEntry};
use crate::render::oom;

pub fn entries(events: &[Event]) -> Vec<TimelineEntry> {
    events.iter().filter_map(entry).collect()
}

fn entry(event: &Event) -> Option<TimelineEntry> {
    let (kind, how, text) = kill(event)?;
    let entry = TimelineEntry::of(event.time, kind, &event.owner(), text)?;
    Some(TimelineEntry { id: event.kept_id().map(str::to_owned), how, ..entry })
}

/// What a kill was, and how that is known. None: the event is no kill.
pub fn kill(event: &Event) -> Option<(EntryKind, EntryEvidence, String)> {
    if let Some(incident) = &event.incident {
        return Some(of_incident(incident));
    }
    let text = sigkill_verdict::explain(event.sigkill()?);
    Some((EntryKind::Sigkill, EntryEvidence::Observed, text))
}

fn of_incident(incident: &OomIncident) -> (EntryKind, EntryEvidence, String) {
    let summary = oom::summary(incident);
    // The id has a field of its own.
    let text = summary.strip_prefix(&format!("{}: ", incident.id)).unwrap_or(&summary).to_owned();
    let how = match incident.limit.how {
        Evidence::Observed => EntryEvidence::Observed,
        Evidence::Inferred => EntryEvidence::Inferred,
    };
    (EntryKind::OomKill, how, text)
}
