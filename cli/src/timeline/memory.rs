//! When the memory of a container came near its limit.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use podopsy_model::Owner;
use podopsy_model::memory::MemorySteps;
use podopsy_store::MemoryRecord;

use super::{EntryKind, TimelineEntry};
use crate::render::units;

/// Shares of the limit in percent. Each is one entry for a container instance, when it is reached for the first time.
const MILESTONES: [u64; 4] = [50, 75, 90, 99];

pub fn entries(records: &[MemoryRecord]) -> Vec<TimelineEntry> {
    let mut entries = Vec::new();
    for records in by_instance(records) {
        let mut next = 0;
        for record in records {
            for (time, bytes) in samples(&record.steps) {
                entries.extend(milestone(&record.owner, time, bytes, record.steps.limit_bytes, &mut next));
            }
        }
    }
    entries
}

/// The records of each container instance, oldest first.
pub fn by_instance(records: &[MemoryRecord]) -> impl Iterator<Item = Vec<&MemoryRecord>> {
    let mut instances: BTreeMap<&str, Vec<&MemoryRecord>> = BTreeMap::new();
    for record in records {
        if let Some(container) = &record.owner.container {
            instances.entry(&container.id).or_default().push(record);
        }
    }
    instances.into_values().map(|mut records| {
        records.sort_by_key(|record| record.steps.from);
        records
    })
}

/// When a step begins.
pub fn begin_of(steps: &MemorySteps, step: u32) -> Timestamp {
    let seconds = i64::from(step) * i64::from(steps.step_seconds);
    steps.from.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(steps.until)
}

/// The largest sample of each step, with the time at which the step began.
pub fn samples(steps: &MemorySteps) -> impl Iterator<Item = (Timestamp, u64)> {
    let times = steps.step.iter().map(|&step| begin_of(steps, step));
    times.zip(steps.current_max_bytes.iter().copied())
}

/// An entry if the highest milestone that `bytes` reaches is `next` or a later one.
fn milestone(
    owner: &Owner,
    time: Timestamp,
    bytes: u64,
    limit: Option<u64>,
    next: &mut usize,
) -> Option<TimelineEntry> {
    let limit = limit.filter(|&limit| limit > 0)?;
    let percent = u64::try_from(u128::from(bytes) * 100 / u128::from(limit)).unwrap_or(u64::MAX);
    let reached = MILESTONES.iter().filter(|&&milestone| percent >= milestone).count();
    if reached <= *next {
        return None;
    }
    *next = reached;
    let text = format!(
        "memory reached {percent} % of the limit: {} of {}",
        units::bytes(bytes),
        units::bytes(limit)
    );
    TimelineEntry::of(time, EntryKind::Memory, owner, text)
}
