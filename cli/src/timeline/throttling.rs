//! When the CPU quota of a container throttled it.

use jiff::{SignedDuration, Timestamp};
use podopsy_model::Owner;
use podopsy_store::MemoryRecord;

use super::memory::{begin_of, by_instance};
use super::{EntryKind, TimelineEntry};
use crate::render::units;

/// A step counts if the quota was used up in at least this share of its periods, percent.
const PERCENT_MIN: u64 = 25;
/// An entry ends when this long no step counts.
const PAUSE: SignedDuration = SignedDuration::from_secs(60);

/// Steps with short pauses between them.
struct Stretch<'a> {
    owner: &'a Owner,
    from: Timestamp,
    until: Timestamp,
    periods: u64,
    throttled: u64,
}

pub fn entries(records: &[MemoryRecord]) -> Vec<TimelineEntry> {
    let mut entries = Vec::new();
    for records in by_instance(records) {
        let steps = records.iter().flat_map(|record| throttled_steps(record));
        let mut open: Option<Stretch<'_>> = None;
        for step in steps {
            match &mut open {
                Some(stretch) if step.from.duration_since(stretch.until) <= PAUSE => stretch.extend(&step),
                _ => entries.extend(open.replace(step).and_then(Stretch::into_entry)),
            }
        }
        entries.extend(open.and_then(Stretch::into_entry));
    }
    entries
}

/// The steps of a record that count.
fn throttled_steps(record: &MemoryRecord) -> impl Iterator<Item = Stretch<'_>> {
    let steps = &record.steps;
    let cpu = steps.cpu.iter().flat_map(|cpu| cpu.periods.iter().zip(&cpu.throttled_periods));
    steps
        .step
        .iter()
        .zip(cpu)
        .filter(|(_, (periods, throttled))| {
            **periods > 0 && throttled.saturating_mul(100) >= periods.saturating_mul(PERCENT_MIN)
        })
        .map(move |(&step, (&periods, &throttled))| Stretch {
            owner: &record.owner,
            from: begin_of(steps, step),
            until: begin_of(steps, step.saturating_add(1)).min(steps.until),
            periods,
            throttled,
        })
}

impl Stretch<'_> {
    fn extend(&mut self, step: &Stretch<'_>) {
        self.until = step.until;
        self.periods = self.periods.saturating_add(step.periods);
        self.throttled = self.throttled.saturating_add(step.throttled);
    }

    fn into_entry(self) -> Option<TimelineEntry> {
        let percent = self.throttled.saturating_mul(100) / self.periods.max(1);
        let span = self.until.duration_since(self.from).try_into().unwrap_or_default();
        let text = format!(
            "throttled by its CPU quota in {percent} % of the periods ({} of {}) of {}",
            self.throttled,
            self.periods,
            units::duration(span)
        );
        let entry = TimelineEntry::of(self.from, EntryKind::Throttling, self.owner, text)?;
        Some(TimelineEntry { until: Some(self.until), ..entry })
    }
}

#[cfg(test)]
mod tests {
    use podopsy_model::memory::{CpuSteps, MemorySteps};
    use podopsy_model::testing::owner;

    use super::*;

    fn time(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn record(from: i64, throttled: &[u64]) -> MemoryRecord {
        let count = throttled.len();
        let cpu = CpuSteps {
            used_ms: vec![1; count],
            periods: vec![100; count],
            throttled_periods: throttled.to_vec(),
        };
        let steps = MemorySteps {
            from: time(from),
            until: time(from + 10 * count as i64),
            step_seconds: 10,
            step: (0..count as u32).collect(),
            cpu: Some(cpu),
            ..MemorySteps::default()
        };
        MemoryRecord { owner: owner("shop", "orders", &[]), steps }
    }

    #[test]
    fn throttled_steps_with_short_pauses_are_one_entry_also_across_records() {
        let mut none = record(900, &[90]);
        none.steps.cpu = None;
        let records = [record(40, &[30]), record(0, &[0, 50, 24, 70]), record(300, &[25, 0, 0]), none];
        let found: Vec<(Timestamp, Option<Timestamp>, String)> =
            entries(&records).into_iter().map(|entry| (entry.time, entry.until, entry.text)).collect();
        let text = |percent, throttled, periods, span| {
            format!(
                "throttled by its CPU quota in {percent} % of the periods ({throttled} of {periods}) of {span}"
            )
        };
        assert_eq!(
            found,
            [
                (time(10), Some(time(50)), text(50, 150, 300, "40 s")),
                (time(300), Some(time(310)), text(25, 25, 100, "10 s")),
            ]
        );
    }
}
