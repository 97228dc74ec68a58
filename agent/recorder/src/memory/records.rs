//! The memory of containers in coarse steps, for whoever keeps hours of it: a sample a second is 50 MB a day and container.
//!
//! A stretch of ten minutes is one record. It is handed out again and again while it grows, so that an agent that is
//! killed has lost one round of it, and no more.

use std::collections::HashMap;
use std::time::Duration;

use podopsy_model::memory::{Steps, Usage};
use podopsy_system::clock;

pub const STEP: Duration = Duration::from_secs(10);
/// Steps of a stretch.
const STEPS: u64 = 60;
/// Containers at a time, as many as have a curve.
const STRETCHES_MAX: usize = super::RINGS_MAX;
/// MemoryRecords that are complete and were not fetched; at 1024 containers that is half an hour.
const COMPLETE_MAX: usize = 3 * STRETCHES_MAX;
/// Without a sample for so long it has ended: a thousand containers are read once in ten seconds.
const SILENT: Duration = Duration::from_secs(60);

/// A part of a container's history, by the id of its cgroup.
pub type CgroupMemoryRecord = (u64, Steps);

#[derive(Default)]
pub struct MemoryRecords {
    /// False: nobody fetches them.
    wanted: bool,
    open: HashMap<u64, Open>,
    complete: Vec<CgroupMemoryRecord>,
    /// Samples that are in no stretch, and memory_records that nobody fetched in time.
    lost: u64,
}

struct Open {
    begin_ns: u64,
    last_ns: u64,
    /// PSI at the end of the step before.
    waited_us: Option<u64>,
    steps: Steps,
    /// Since it was handed out.
    changed: bool,
}

impl MemoryRecords {
    /// Takes a sample of `boot_ns` (CLOCK_BOOTTIME).
    pub fn push(&mut self, id: u64, boot_ns: u64, usage: &Usage) {
        if !self.wanted {
            return;
        }
        if self.open.get(&id).is_some_and(|open| open.number(boot_ns) >= STEPS)
            && let Some(open) = self.open.remove(&id)
            && open.changed
        {
            self.complete(id, open.steps);
        }
        if !self.open.contains_key(&id) && self.open.len() >= STRETCHES_MAX {
            self.lost += 1;
            return;
        }
        self.open.entry(id).or_insert_with(|| Open::new(boot_ns, usage)).push(boot_ns, usage);
    }

    /// What has changed since the last call; the first call says that someone wants them.
    pub fn take(&mut self, now_ns: u64) -> Vec<CgroupMemoryRecord> {
        self.wanted = true;
        let mut out = std::mem::take(&mut self.complete);
        for (id, open) in self.open.iter_mut().filter(|(_, open)| open.changed) {
            open.changed = false;
            out.push((*id, open.steps.clone()));
        }
        let silent = |open: &Open| now_ns.saturating_sub(open.last_ns) > SILENT.as_nanos() as u64;
        self.open.retain(|_, open| !silent(open));
        out
    }

    pub fn lost(&self) -> u64 {
        self.lost
    }

    fn complete(&mut self, id: u64, steps: Steps) {
        if self.complete.len() < COMPLETE_MAX {
            self.complete.push((id, steps));
        } else {
            self.lost += 1;
        }
    }
}

impl Open {
    fn new(boot_ns: u64, usage: &Usage) -> Open {
        let from = clock::wall(boot_ns);
        let steps = Steps { from, until: from, step_seconds: STEP.as_secs() as u32, ..Steps::default() };
        let waited_us = usage.pressure.map(|psi| psi.some_us);
        Open { begin_ns: boot_ns, last_ns: boot_ns, waited_us, steps, changed: true }
    }

    /// Of the step that a time lies in.
    fn number(&self, boot_ns: u64) -> u64 {
        boot_ns.saturating_sub(self.begin_ns) / STEP.as_nanos() as u64
    }

    fn push(&mut self, boot_ns: u64, usage: &Usage) {
        let number = self.number(boot_ns) as u32;
        let steps = &mut self.steps;
        let current = usage.current_bytes;
        if steps.step.last() != Some(&number) {
            if !steps.waited_ms.is_empty()
                && let (Some(before), Some(waited)) = (&mut self.waited_us, steps.waited_ms.last())
            {
                *before += waited * 1000;
            }
            steps.step.push(number);
            steps.samples.push(0);
            steps.current_min_bytes.push(current);
            steps.current_max_bytes.push(current);
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
        let set =
            |column: &mut Vec<u64>, value: u64| column.last_mut().into_iter().for_each(|last| *last = value);
        steps.samples.last_mut().into_iter().for_each(|count| *count += 1);
        steps.current_min_bytes.last_mut().into_iter().for_each(|min| *min = current.min(*min));
        steps.current_max_bytes.last_mut().into_iter().for_each(|max| *max = current.max(*max));
        set(&mut steps.current_bytes, current);
        set(&mut steps.anon_bytes, usage.anon_bytes);
        set(&mut steps.file_bytes, usage.file_bytes);
        set(&mut steps.shmem_bytes, usage.shmem_bytes);
        set(&mut steps.kernel_bytes, usage.kernel_bytes);
        if let (Some(before), Some(psi)) = (self.waited_us, usage.pressure) {
            set(&mut steps.waited_ms, psi.some_us.saturating_sub(before) / 1000);
        }
        steps.limit_bytes = usage.limit_bytes;
        // By the same clock as `from`, so that a clock that is set meanwhile makes no stretch that ends before it begins.
        let since = i64::try_from(boot_ns.saturating_sub(self.begin_ns)).unwrap_or(i64::MAX);
        steps.until = steps.from.checked_add(jiff::SignedDuration::from_nanos(since)).unwrap_or(steps.from);
        self.last_ns = boot_ns;
        self.changed = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podopsy_model::memory::Pressure;

    const S: u64 = 1_000_000_000;

    fn usage(bytes: u64) -> Usage {
        Usage { current_bytes: bytes, anon_bytes: bytes / 2, limit_bytes: Some(100), ..Usage::default() }
    }

    fn wanted() -> MemoryRecords {
        let mut memory_records = MemoryRecords::default();
        assert!(memory_records.take(0).is_empty());
        memory_records
    }

    #[test]
    fn a_step_keeps_its_smallest_its_largest_and_its_last_sample() {
        let mut memory_records = wanted();
        for (second, bytes) in [(0, 10), (3, 90), (9, 20), (10, 30), (45, 40)] {
            memory_records.push(7, 100 * S + second * S, &usage(bytes));
        }
        let (id, steps) = memory_records.take(146 * S).remove(0);
        assert_eq!((id, steps.step_seconds, steps.limit_bytes), (7, 10, Some(100)));
        // Nothing is made up for the steps without a sample.
        assert_eq!((steps.step, steps.samples), (vec![0, 1, 4], vec![3, 1, 1]));
        assert_eq!(steps.current_min_bytes, [10, 30, 40]);
        assert_eq!(steps.current_max_bytes, [90, 30, 40]);
        assert_eq!((steps.current_bytes, steps.anon_bytes), (vec![20, 30, 40], vec![10, 15, 20]));
        assert_eq!(steps.until.duration_since(steps.from).as_secs(), 45);
        assert!(steps.waited_ms.is_empty());
    }

    #[test]
    fn a_stretch_is_told_as_it_grows_and_ends_after_ten_minutes() {
        let mut memory_records = wanted();
        memory_records.push(7, S, &usage(1));
        let first = memory_records.take(2 * S).remove(0).1;
        assert!(memory_records.take(3 * S).is_empty(), "nothing has changed");
        memory_records.push(7, 21 * S, &usage(2));
        let second = memory_records.take(22 * S).remove(0).1;
        assert_eq!((first.from, first.step.len(), second.step.len()), (second.from, 1, 2));
        memory_records.push(7, 590 * S, &usage(3));
        memory_records.push(7, 601 * S, &usage(4));
        let both = memory_records.take(602 * S);
        assert_eq!(both.len(), 2);
        assert_eq!((both[0].1.from, both[0].1.step.len()), (first.from, 3));
        assert!(both[1].1.from > both[0].1.until && both[1].1.step == [0]);
    }

    #[test]
    fn pressure_is_of_each_step() {
        let mut memory_records = wanted();
        for (second, some_us) in
            [(0, 5_000_000), (5, 5_200_000), (10, 5_300_000), (20, 5_300_000), (21, 5_301_500)]
        {
            let pressure = Some(Pressure { some_us, full_us: 0 });
            memory_records.push(7, S + second * S, &Usage { pressure, ..usage(1) });
        }
        assert_eq!(memory_records.take(30 * S)[0].1.waited_ms, [200, 100, 1]);
    }

    #[test]
    fn the_dead_leave_and_what_has_no_room_is_counted() {
        let mut memory_records = wanted();
        for id in 0..STRETCHES_MAX as u64 + 3 {
            memory_records.push(id, S, &usage(1));
        }
        assert_eq!((memory_records.take(2 * S).len(), memory_records.lost()), (STRETCHES_MAX, 3));
        assert!(memory_records.take(70 * S).is_empty() && memory_records.open.is_empty());
        // Whoever asks once and never again costs no more than this.
        for round in 0..5 {
            (0..STRETCHES_MAX as u64)
                .for_each(|id| memory_records.push(id, (100 + round * 600) * S, &usage(1)));
        }
        assert_eq!(
            (memory_records.complete.len(), memory_records.lost()),
            (COMPLETE_MAX, 3 + STRETCHES_MAX as u64)
        );
    }

    #[test]
    fn without_someone_who_wants_them_there_are_none() {
        let mut memory_records = MemoryRecords::default();
        memory_records.push(7, S, &usage(1));
        assert!(memory_records.open.is_empty());
    }
}
