//! Memory records: the memory of containers in steps of ten seconds, for a history of hours. One sample a second would
//! be 50 MB a day for each container.
//!
//! A record covers ten minutes. It is returned again and again while it grows, so that an agent that is killed loses
//! only the samples since the last call.

use std::collections::HashMap;
use std::time::Duration;

use podopsy_model::memory::{CpuSteps, MemorySteps, MemoryUsage};
use podopsy_pods::hierarchy::CpuUsage;
use podopsy_system::clock;

pub const STEP: Duration = Duration::from_secs(10);
/// Steps of a record.
const STEPS: u64 = 60;
/// Open records: as many as there are curves.
const OPEN_MAX: usize = super::RINGS_MAX;
/// Complete records that have not been taken yet: half an hour at 1024 containers.
const COMPLETE_MAX: usize = 3 * OPEN_MAX;
/// A record ends after this time without a sample. A thousand containers are read once in ten seconds each.
const ENDS_AFTER: Duration = Duration::from_secs(60);

/// A container's cgroup id and memory record.
pub type CgroupMemoryRecord = (u64, MemorySteps);

#[derive(Default)]
pub struct MemoryRecords {
    /// Whether [`Self::take`] was ever called; without it, no records are made.
    wanted: bool,
    open: HashMap<u64, OpenRecord>,
    complete: Vec<CgroupMemoryRecord>,
    /// Samples that are in no record, and records that were not taken in time.
    lost: u64,
}

struct OpenRecord {
    begin_ns: u64,
    last_ns: u64,
    /// PSI `some` in µs at the end of the previous step.
    waited_us: Option<u64>,
    /// The last reading that is in a step.
    cpu: Option<CpuUsage>,
    steps: MemorySteps,
    /// Whether it has changed since it was last returned.
    changed: bool,
}

impl MemoryRecords {
    /// Adds a sample that was taken at `boot_ns` (CLOCK_BOOTTIME), and the CPU time if it was read with it.
    pub fn push(&mut self, id: u64, boot_ns: u64, usage: &MemoryUsage, cpu: Option<CpuUsage>) {
        if !self.wanted {
            return;
        }
        let mut before = None;
        if self.open.get(&id).is_some_and(|open| open.step_at(boot_ns) >= STEPS)
            && let Some(open) = self.open.remove(&id)
        {
            before = open.cpu;
            if open.changed {
                self.add_complete(id, open.steps);
            }
        }
        if !self.open.contains_key(&id) && self.open.len() >= OPEN_MAX {
            self.lost += 1;
            return;
        }
        let open = self.open.entry(id).or_insert_with(|| OpenRecord::new(boot_ns, usage, before));
        open.push(boot_ns, usage);
        if let Some(cpu) = cpu {
            open.push_cpu(cpu);
        }
    }

    /// Returns the records that have changed since the last call. The first call starts the recording.
    pub fn take(&mut self, now_ns: u64) -> Vec<CgroupMemoryRecord> {
        self.wanted = true;
        let mut out = std::mem::take(&mut self.complete);
        for (id, open) in self.open.iter_mut().filter(|(_, open)| open.changed) {
            open.changed = false;
            out.push((*id, open.steps.clone()));
        }
        let has_ended =
            |open: &OpenRecord| now_ns.saturating_sub(open.last_ns) > ENDS_AFTER.as_nanos() as u64;
        self.open.retain(|_, open| !has_ended(open));
        out
    }

    /// Samples that are in no record, and records that were not taken in time.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    fn add_complete(&mut self, id: u64, steps: MemorySteps) {
        if self.complete.len() < COMPLETE_MAX {
            self.complete.push((id, steps));
        } else {
            self.lost += 1;
        }
    }
}

impl OpenRecord {
    fn new(boot_ns: u64, usage: &MemoryUsage, cpu: Option<CpuUsage>) -> OpenRecord {
        let from = clock::wall(boot_ns);
        let steps =
            MemorySteps { from, until: from, step_seconds: STEP.as_secs() as u32, ..MemorySteps::default() };
        let waited_us = usage.pressure.map(|psi| psi.some_us);
        OpenRecord { begin_ns: boot_ns, last_ns: boot_ns, waited_us, cpu, steps, changed: true }
    }

    /// The number of the step that contains a time.
    fn step_at(&self, boot_ns: u64) -> u64 {
        boot_ns.saturating_sub(self.begin_ns) / STEP.as_nanos() as u64
    }

    fn push(&mut self, boot_ns: u64, usage: &MemoryUsage) {
        let number = self.step_at(boot_ns) as u32;
        if self.steps.step.last() != Some(&number) {
            self.begin_step(number, usage.current_bytes);
        }
        let steps = &mut self.steps;
        let current = usage.current_bytes;
        if let Some(count) = steps.samples.last_mut() {
            *count += 1;
        }
        if let Some(min) = steps.current_min_bytes.last_mut() {
            *min = current.min(*min);
        }
        if let Some(max) = steps.current_max_bytes.last_mut() {
            *max = current.max(*max);
        }
        let set = |column: &mut Vec<u64>, value: u64| {
            if let Some(last) = column.last_mut() {
                *last = value;
            }
        };
        set(&mut steps.current_bytes, current);
        set(&mut steps.anon_bytes, usage.anon_bytes);
        set(&mut steps.file_bytes, usage.file_bytes);
        set(&mut steps.shmem_bytes, usage.shmem_bytes);
        set(&mut steps.kernel_bytes, usage.kernel_bytes);
        if let (Some(before), Some(psi)) = (self.waited_us, usage.pressure) {
            set(&mut steps.waited_ms, psi.some_us.saturating_sub(before) / 1000);
        }
        steps.limit_bytes = usage.limit_bytes;
        // Computed from `from`, so that a record cannot end before it begins if the clock is set in between.
        let since = i64::try_from(boot_ns.saturating_sub(self.begin_ns)).unwrap_or(i64::MAX);
        steps.until = steps.from.checked_add(jiff::SignedDuration::from_nanos(since)).unwrap_or(steps.from);
        self.last_ns = boot_ns;
        self.changed = true;
    }

    /// Adds what was used since the last reading to the last step.
    fn push_cpu(&mut self, now: CpuUsage) {
        let Some(before) = self.cpu.replace(now) else { return };
        let steps = self.steps.step.len();
        let columns = self.steps.cpu.get_or_insert_with(CpuSteps::default);
        let used = now.used.saturating_sub(before.used).as_millis();
        for (column, more) in [
            (&mut columns.used_ms, u64::try_from(used).unwrap_or(u64::MAX)),
            (&mut columns.periods, now.periods.saturating_sub(before.periods)),
            (&mut columns.throttled_periods, now.throttled_periods.saturating_sub(before.throttled_periods)),
        ] {
            column.resize(steps, 0);
            if let Some(last) = column.last_mut() {
                *last = last.saturating_add(more);
            }
        }
    }

    fn begin_step(&mut self, number: u32, current_bytes: u64) {
        let steps = &mut self.steps;
        if let (Some(before), Some(waited)) = (&mut self.waited_us, steps.waited_ms.last()) {
            *before += waited * 1000;
        }
        steps.step.push(number);
        if let Some(cpu) = &mut steps.cpu {
            for column in [&mut cpu.used_ms, &mut cpu.periods, &mut cpu.throttled_periods] {
                column.push(0);
            }
        }
        steps.samples.push(0);
        steps.current_min_bytes.push(current_bytes);
        steps.current_max_bytes.push(current_bytes);
        for column in [
            &mut steps.current_bytes,
            &mut steps.anon_bytes,
            &mut steps.file_bytes,
            &mut steps.shmem_bytes,
            &mut steps.kernel_bytes,
        ] {
            column.push(0);
        }
        if self.waited_us.is_some() {
            steps.waited_ms.push(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podopsy_model::memory::Pressure;

    const S: u64 = 1_000_000_000;

    fn usage(bytes: u64) -> MemoryUsage {
        MemoryUsage {
            current_bytes: bytes,
            anon_bytes: bytes / 2,
            limit_bytes: Some(100),
            ..MemoryUsage::default()
        }
    }

    fn wanted() -> MemoryRecords {
        let mut records = MemoryRecords::default();
        assert!(records.take(0).is_empty());
        records
    }

    #[test]
    fn a_step_keeps_its_smallest_its_largest_and_its_last_sample() {
        let mut records = wanted();
        for (second, bytes) in [(0, 10), (3, 90), (9, 20), (10, 30), (45, 40)] {
            records.push(7, 100 * S + second * S, &usage(bytes), None);
        }
        let (id, steps) = records.take(146 * S).remove(0);
        assert_eq!((id, steps.step_seconds, steps.limit_bytes), (7, 10, Some(100)));
        // Steps without a sample are left out.
        assert_eq!((steps.step, steps.samples), (vec![0, 1, 4], vec![3, 1, 1]));
        assert_eq!(steps.current_min_bytes, [10, 30, 40]);
        assert_eq!(steps.current_max_bytes, [90, 30, 40]);
        assert_eq!((steps.current_bytes, steps.anon_bytes), (vec![20, 30, 40], vec![10, 15, 20]));
        assert_eq!(steps.until.duration_since(steps.from).as_secs(), 45);
        assert!(steps.waited_ms.is_empty());
    }

    #[test]
    fn a_record_is_returned_as_it_grows_and_ends_after_ten_minutes() {
        let mut records = wanted();
        records.push(7, S, &usage(1), None);
        let first = records.take(2 * S).remove(0).1;
        assert!(records.take(3 * S).is_empty(), "nothing has changed");
        records.push(7, 21 * S, &usage(2), None);
        let second = records.take(22 * S).remove(0).1;
        assert_eq!((first.from, first.step.len(), second.step.len()), (second.from, 1, 2));
        records.push(7, 590 * S, &usage(3), None);
        records.push(7, 601 * S, &usage(4), None);
        let both = records.take(602 * S);
        assert_eq!(both.len(), 2);
        assert_eq!((both[0].1.from, both[0].1.step.len()), (first.from, 3));
        assert!(both[1].1.from > both[0].1.until && both[1].1.step == [0]);
    }

    #[test]
    fn pressure_is_recorded_for_each_step() {
        let mut records = wanted();
        for (second, some_us) in
            [(0, 5_000_000), (5, 5_200_000), (10, 5_300_000), (20, 5_300_000), (21, 5_301_500)]
        {
            let pressure = Some(Pressure { some_us, full_us: 0 });
            records.push(7, S + second * S, &MemoryUsage { pressure, ..usage(1) }, None);
        }
        assert_eq!(records.take(30 * S)[0].1.waited_ms, [200, 100, 1]);
    }

    #[test]
    fn records_of_ended_containers_are_dropped_and_samples_beyond_the_bound_are_counted() {
        let mut records = wanted();
        for id in 0..OPEN_MAX as u64 + 3 {
            records.push(id, S, &usage(1), None);
        }
        assert_eq!((records.take(2 * S).len(), records.lost()), (OPEN_MAX, 3));
        assert!(records.take(70 * S).is_empty() && records.open.is_empty());
        // If records are taken once and never again, the memory stays bounded.
        for round in 0..5 {
            (0..OPEN_MAX as u64).for_each(|id| records.push(id, (100 + round * 600) * S, &usage(1), None));
        }
        assert_eq!((records.complete.len(), records.lost()), (COMPLETE_MAX, 3 + OPEN_MAX as u64));
    }

    #[test]
    fn a_step_has_the_cpu_time_since_the_one_before_also_across_records() {
        let mut records = wanted();
        let cpu = |ms, periods, throttled_periods| {
            Some(CpuUsage { used: Duration::from_millis(ms), periods, throttled_periods })
        };
        records.push(7, S, &usage(1), None);
        records.push(7, 2 * S, &usage(1), cpu(5000, 10, 4));
        records.push(7, 12 * S, &usage(1), cpu(5100, 110, 54));
        records.push(7, 22 * S, &usage(1), None);
        records.push(7, 32 * S, &usage(1), cpu(5400, 310, 54));
        let steps = records.take(33 * S).remove(0).1.cpu.unwrap();
        assert_eq!(steps.used_ms, [0, 100, 0, 300], "the first reading has none before it");
        assert_eq!((steps.periods, steps.throttled_periods), (vec![0, 100, 0, 200], vec![0, 50, 0, 0]));
        records.push(7, 602 * S, &usage(1), cpu(5450, 320, 54));
        let next = records.take(603 * S);
        assert_eq!(next.last().unwrap().1.cpu.as_ref().unwrap().used_ms, [50]);
    }

    #[test]
    fn without_a_call_of_take_no_records_are_made() {
        let mut records = MemoryRecords::default();
        records.push(7, S, &usage(1), None);
        assert!(records.open.is_empty());
    }
}
