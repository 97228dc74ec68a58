//! What containers used at a time of an agent's history.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use podopsy_client::AgentClient;
use podopsy_model::memory::MemorySteps;
use podopsy_recorder::memory::slope;
use podopsy_store::MemoryRecord;
use podopsy_top::{ContainerRow, Snapshot};

use super::{EventCounts, KILLS_WITHIN, Names, names};
use crate::context::Context;
use crate::evidence::gather;
use crate::past::EVENTS_READ_MAX;
use crate::selection::Selection;
use crate::timeline::{Sources, begin_of};

/// A container whose last sample is older than this did not run.
const STALE: SignedDuration = SignedDuration::from_secs(30);
const TREND: SignedDuration = SignedDuration::from_secs(60);
const SAMPLES_WITHIN: SignedDuration = SignedDuration::from_mins(10);

/// A part of the history, from which any time in it can be shown.
pub struct PastSource {
    agent: AgentClient,
    selection: Selection,
    from: Timestamp,
    until: Timestamp,
    sources: Sources,
    is_cut: bool,
}

impl PastSource {
    pub fn new(agent: AgentClient, selection: Selection) -> PastSource {
        PastSource {
            agent,
            selection,
            from: Timestamp::MAX,
            until: Timestamp::MIN,
            sources: Sources::default(),
            is_cut: false,
        }
    }

    /// The rows at a time. Reads the history if that time has not been read yet.
    pub async fn snapshot(&mut self, context: &Context, time: Timestamp) -> anyhow::Result<Snapshot> {
        let from = time - KILLS_WITHIN;
        if from < self.from || time > self.until {
            let read = gather::records(context, &self.agent, &self.selection, from).await?;
            (self.from, self.until) = (from, Timestamp::now());
            (self.sources, self.is_cut) = (read.sources, read.more);
        }
        let mut notes = vec!["restarts are not in the history".to_owned()];
        if self.is_cut {
            notes.push(format!("only the newest {EVENTS_READ_MAX} events were read: counts may be too low"));
        }
        Ok(Snapshot { time, is_live: false, rows: rows(&self.sources, time), notes })
    }
}

fn rows(sources: &Sources, time: Timestamp) -> Vec<ContainerRow> {
    let counts = EventCounts::at(&sources.events, time);
    let mut containers: BTreeMap<Names, Vec<&MemoryRecord>> = BTreeMap::new();
    for record in &sources.memory {
        if let Some(names) = names(&record.owner) {
            containers.entry(names).or_default().push(record);
        }
    }
    let row = |(names, records): (Names, Vec<&MemoryRecord>)| row(names, &records, &counts, time);
    containers.into_iter().filter_map(row).collect()
}

/// None: the container did not run then.
fn row(
    names: Names,
    records: &[&MemoryRecord],
    counts: &EventCounts,
    time: Timestamp,
) -> Option<ContainerRow> {
    let mut samples: Vec<(Timestamp, u64, Option<u64>)> = records
        .iter()
        .flat_map(|record| held(&record.steps).map(|(at, bytes)| (at, bytes, record.steps.limit_bytes)))
        .filter(|(at, ..)| *at <= time && time.duration_since(*at) <= SAMPLES_WITHIN)
        .collect();
    samples.sort_by_key(|(at, ..)| *at);
    let &(last, memory, limit) = samples.last()?;
    if time.duration_since(last) > STALE {
        return None;
    }
    let cpu = records.iter().find_map(|record| cpu(&record.steps, time));
    let recent: Vec<(f64, f64)> = samples
        .iter()
        .filter(|(at, ..)| last.duration_since(*at) <= TREND)
        .map(|(at, bytes, _)| (at.duration_since(last).as_secs_f64(), *bytes as f64))
        .collect();
    Some(ContainerRow {
        cpu_millis: cpu.map(|(millis, _)| millis),
        throttled_percent: cpu.and_then(|(_, throttled)| throttled),
        memory_bytes: Some(memory),
        limit_bytes: limit,
        growth_bytes_per_second: slope(&recent),
        dns_failures_per_second: Some(counts.failures_per_second(&names)),
        oom_kills: Some(counts.kills(&names)),
        memory_samples: samples.iter().map(|(_, bytes, _)| *bytes).collect(),
        namespace: names.0,
        pod: names.1,
        container: names.2,
        ..ContainerRow::default()
    })
}

/// Thousandths of a core and percent of throttled periods, in the last complete step before a time.
fn cpu(steps: &MemorySteps, time: Timestamp) -> Option<(u64, Option<f64>)> {
    let columns = steps.cpu.as_ref()?;
    let (at, end) = held(steps).map(|(end, _)| end).enumerate().take_while(|(_, end)| *end <= time).last()?;
    if time.duration_since(end) > STALE {
        return None;
    }
    let used = columns.used_ms.get(at)?.checked_div(u64::from(steps.step_seconds))?;
    let (periods, throttled) = (*columns.periods.get(at)?, *columns.throttled_periods.get(at)?);
    let percent = (periods > 0).then(|| throttled as f64 * 100.0 / periods as f64);
    Some((used, percent))
}

/// The memory that cannot be reclaimed, at the end of each step.
fn held(steps: &MemorySteps) -> impl Iterator<Item = (Timestamp, u64)> {
    let bytes = steps.current_bytes.iter().zip(&steps.file_bytes);
    let end = |&step: &u32| begin_of(steps, step.saturating_add(1)).min(steps.until);
    let times = steps.step.iter().map(end);
    times.zip(bytes.map(|(current, file)| current.saturating_sub(*file)))
}

#[cfg(test)]
mod tests {
    use podopsy_model::memory::CpuSteps;
    use podopsy_model::testing::{dns, owner};

    use super::*;

    const MIB: u64 = 1 << 20;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    /// Grows by 1 MiB every ten seconds for ten minutes, with 5 MiB of page cache.
    fn sources() -> Sources {
        let mut owner = owner("shop", "orders", &[]);
        owner.container.as_mut().unwrap().name = "api".into();
        let steps = MemorySteps {
            from: at(0),
            until: at(600),
            step_seconds: 10,
            step: (0..60).collect(),
            current_bytes: (1..=60).map(|n| (n + 5) * MIB).collect(),
            file_bytes: vec![5 * MIB; 60],
            limit_bytes: Some(64 * MIB),
            cpu: Some(CpuSteps {
                used_ms: (0..60).map(|step| step * 100).collect(),
                periods: vec![100; 60],
                throttled_periods: (0..60).collect(),
            }),
            ..MemorySteps::default()
        };
        let events = (0..20).map(|n| dns(at(295 + n / 4), owner.clone(), "db.test")).collect();
        Sources { events, memory: vec![MemoryRecord { owner, steps }], ..Sources::default() }
    }

    #[test]
    fn a_time_of_the_history_has_the_memory_and_the_slope_of_that_time() {
        let sources = sources();
        let shown = &rows(&sources, at(300))[0];
        assert_eq!((shown.memory_bytes, shown.limit_bytes), (Some(30 * MIB), Some(64 * MIB)));
        assert_eq!((shown.seconds_to_limit(), shown.memory_samples.len()), (Some(340), 30));
        assert_eq!((shown.dns_failures_per_second, shown.restarts), (Some(2.0), None));
        assert_eq!((shown.cpu_millis, shown.throttled_percent), (Some(290), Some(29.0)));
        let later = &rows(&sources, at(320))[0];
        assert_eq!((later.memory_bytes, later.dns_failures_per_second), (Some(32 * MIB), Some(0.0)));
    }

    #[test]
    fn a_container_that_did_not_run_then_has_no_row() {
        for second in [-1, 5, 640] {
            assert!(rows(&sources(), at(second)).is_empty(), "{second}");
        }
        assert_eq!(rows(&sources(), at(625)).len(), 1, "a sample may be half a minute old");
    }
}
