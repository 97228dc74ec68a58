//! The growth window: counted stacks of the last five minutes, by container.
//!
//! A stack consists of offsets in files, which stay valid when its process is gone. The number of containers, the
//! stacks of each and the bytes of all are bounded; a sample beyond a bound is counted without its stack. This module
//! must not depend on names or pods.

use std::collections::HashMap;

use podopsy_wire::End;

use podopsy_stacks::symbolize::CodeLocation;

/// The window consists of this many buckets of this length. The oldest bucket is dropped as a whole.
const BUCKETS: usize = 10;
const BUCKET_NS: u64 = 30_000_000_000;
/// Containers whose samples are kept, including those that ended: more than are ever sampled at a time.
const CONTAINERS_MAX: usize = 64;
const STACKS_MAX: usize = 1024;
const BYTES_MAX: usize = 8 << 20;

/// A user stack, innermost first, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GrowthStack {
    pub places: Box<[CodeLocation]>,
    pub end: End,
    /// The index of the frame at which the stack ended.
    pub end_frame: u32,
}

impl GrowthStack {
    fn bytes(&self) -> usize {
        size_of_val(&*self.places) + size_of::<(GrowthStack, Counts)>()
    }
}

/// Counts by bucket: the bucket of time `t` has the index `t / BUCKET_NS % BUCKETS`.
type Counts = [u32; BUCKETS];

#[derive(Debug, Default)]
struct ContainerWindow {
    stacks: HashMap<GrowthStack, Counts>,
    /// The ends of all samples, including those without a stack.
    ends: HashMap<End, Counts>,
    /// Samples that were counted without their stack.
    without_stack: Counts,
    /// When the first sample was taken (boot clock).
    since_ns: u64,
    /// The number of the last sample's bucket.
    bucket: u64,
    bytes: usize,
}

/// The samples of one container in the window.
#[derive(Debug, Default, PartialEq)]
pub struct GrowthSlice {
    pub seconds: f64,
    pub stacks: Vec<(GrowthStack, u64)>,
    pub ends: Vec<(End, u64)>,
    pub not_kept: u64,
}

#[derive(Debug)]
pub struct GrowthWindow {
    containers: HashMap<u64, ContainerWindow>,
    bytes: usize,
    evicted: u64,
    max_containers: usize,
    max_stacks: usize,
    max_bytes: usize,
}

impl Default for GrowthWindow {
    fn default() -> Self {
        Self::bounded(CONTAINERS_MAX, STACKS_MAX, BYTES_MAX)
    }
}

impl GrowthWindow {
    fn bounded(max_containers: usize, max_stacks: usize, max_bytes: usize) -> Self {
        Self { containers: HashMap::new(), bytes: 0, evicted: 0, max_containers, max_stacks, max_bytes }
    }

    /// Counts a sample of a container. `id`: its cgroup id.
    pub fn add(&mut self, id: u64, stack: GrowthStack, now_ns: u64) {
        let bucket = now_ns / BUCKET_NS;
        if !self.containers.contains_key(&id) {
            self.evict_if_full(bucket);
        }
        let container = self.containers.entry(id).or_insert_with(|| ContainerWindow {
            since_ns: now_ns,
            bucket,
            ..ContainerWindow::default()
        });
        let before = container.bytes;
        container.advance(bucket);
        self.bytes -= before - container.bytes;
        let slot = bucket as usize % BUCKETS;
        container.ends.entry(stack.end).or_default()[slot] += 1;
        if let Some(counts) = container.stacks.get_mut(&stack) {
            counts[slot] = counts[slot].saturating_add(1);
            return;
        }
        let bytes = stack.bytes();
        if container.stacks.len() >= self.max_stacks || self.bytes + bytes > self.max_bytes {
            container.without_stack[slot] += 1;
            self.evicted += 1;
            return;
        }
        let mut counts = Counts::default();
        counts[slot] = 1;
        container.stacks.insert(stack, counts);
        container.bytes += bytes;
        self.bytes += bytes;
    }

    /// The samples of a container at `now_ns`; None: there are none in the window.
    pub fn slice(&mut self, id: u64, now_ns: u64) -> Option<GrowthSlice> {
        let bucket = now_ns / BUCKET_NS;
        let container = self.containers.get_mut(&id)?;
        let before = container.bytes;
        container.advance(bucket);
        self.bytes -= before - container.bytes;
        let sum = |counts: &Counts| counts.iter().map(|&count| u64::from(count)).sum::<u64>();
        let oldest_ns = (bucket + 1).saturating_sub(BUCKETS as u64) * BUCKET_NS;
        let slice = GrowthSlice {
            seconds: now_ns.saturating_sub(container.since_ns.max(oldest_ns)) as f64 / 1e9,
            stacks: container.stacks.iter().map(|(stack, counts)| (stack.clone(), sum(counts))).collect(),
            ends: container.ends.iter().map(|(end, counts)| (*end, sum(counts))).collect(),
            not_kept: sum(&container.without_stack),
        };
        (!slice.ends.is_empty()).then_some(slice)
    }

    /// Samples that were counted without their stack, or dropped early.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Drops containers without a sample in the window. If there are still too many, evicts those whose last sample is
    /// the oldest.
    fn evict_if_full(&mut self, bucket: u64) {
        if self.containers.len() < self.max_containers {
            return;
        }
        self.containers.retain(|_, container| container.bucket + BUCKETS as u64 > bucket);
        while self.containers.len() >= self.max_containers {
            let Some((&id, _)) = self.containers.iter().min_by_key(|(_, container)| container.bucket) else {
                break;
            };
            if let Some(container) = self.containers.remove(&id) {
                self.evicted += container.ends.values().flatten().map(|&count| u64::from(count)).sum::<u64>();
            }
        }
        self.bytes = self.containers.values().map(|container| container.bytes).sum();
    }
}

impl ContainerWindow {
    /// Clears the buckets between the last sample and now.
    fn advance(&mut self, bucket: u64) {
        let passed = bucket.saturating_sub(self.bucket).min(BUCKETS as u64);
        if passed == 0 {
            return;
        }
        // Returns whether a count is left.
        let clear = |counts: &mut Counts| {
            for back in 0..passed {
                counts[(bucket - back) as usize % BUCKETS] = 0;
            }
            counts.iter().any(|&count| count > 0)
        };
        self.stacks.retain(|_, counts| clear(counts));
        self.ends.retain(|_, counts| clear(counts));
        clear(&mut self.without_stack);
        self.bytes = self.stacks.keys().map(GrowthStack::bytes).sum();
        self.bucket = bucket;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn stack(offset: u64) -> GrowthStack {
        let places = [CodeLocation::File { id: 1, offset }, CodeLocation::File { id: 1, offset: 7 }];
        GrowthStack { places: places.into(), end: End::Complete, end_frame: 1 }
    }

    fn total(window: &mut GrowthWindow, id: u64, now: u64) -> u64 {
        let slice = window.slice(id, now).unwrap_or_default();
        slice.stacks.iter().map(|(_, count)| count).sum::<u64>() + slice.not_kept
    }

    #[test]
    fn the_window_rolls_and_drops_older_samples() {
        let mut window = GrowthWindow::default();
        // One sample a second for ten minutes, of two stacks: in the first half, and in the second.
        for second in 0..600 {
            window.add(7, stack(second / 300), (1000 + second) * S);
        }
        let now = 1599 * S;
        let slice = window.slice(7, now).unwrap();
        assert!((270.0..=300.0).contains(&slice.seconds), "{}", slice.seconds);
        let new: u64 = slice.stacks.iter().filter(|(one, _)| *one == stack(1)).map(|(_, count)| count).sum();
        assert!((270..=300).contains(&new) && slice.stacks.len() == 1, "{:?}", slice.stacks.len());
        assert_eq!(slice.ends, [(End::Complete, new)]);
        // After five minutes without a sample the window is empty, and samples that left it in time are no loss.
        assert_eq!(window.slice(7, now + 301 * S), None);
        assert_eq!((window.bytes, window.evicted()), (0, 0));
    }

    #[test]
    fn a_new_containers_window_is_as_long_as_it_was_sampled() {
        let mut window = GrowthWindow::default();
        window.add(7, stack(1), 1000 * S);
        window.add(7, stack(1), 1010 * S);
        let slice = window.slice(7, 1012 * S).unwrap();
        assert_eq!((slice.seconds, &slice.stacks[..]), (12.0, &[(stack(1), 2)][..]));
        assert_eq!(window.slice(8, 1012 * S), None);
    }

    #[test]
    fn a_sample_beyond_the_bounds_is_counted_without_its_stack() {
        let mut window = GrowthWindow::bounded(4, 10, usize::MAX);
        for offset in 0..25 {
            window.add(7, stack(offset), S);
        }
        let slice = window.slice(7, S).unwrap();
        assert_eq!((slice.stacks.len(), slice.not_kept, window.evicted()), (10, 15, 15));
        assert_eq!(slice.ends, [(End::Complete, 25)]);

        let mut window = GrowthWindow::bounded(8, 1000, stack(0).bytes() * 3);
        (0..5).for_each(|offset| window.add(offset, stack(offset), S));
        assert_eq!((window.evicted(), window.bytes), (2, stack(0).bytes() * 3));
        // A known stack needs no more memory.
        window.add(0, stack(0), S);
        assert_eq!(window.evicted(), 2);
    }

    #[test]
    fn the_container_with_the_oldest_last_sample_is_evicted_and_counted() {
        let mut window = GrowthWindow::bounded(3, 10, usize::MAX);
        for id in 0..3 {
            window.add(id, stack(id), (40 * id + 1) * S);
        }
        window.add(9, stack(9), 130 * S);
        assert_eq!((total(&mut window, 0, 130 * S), window.evicted()), (0, 1));
        assert_eq!([1, 2, 9].map(|id| total(&mut window, id, 130 * S)), [1, 1, 1]);
        // Containers without a sample in the window are dropped first, which is no loss.
        window.add(10, stack(10), 500 * S);
        assert_eq!((window.evicted(), window.containers.len()), (1, 1));
        assert_eq!(window.bytes, stack(10).bytes());
    }
}
