//! Samples the memory of every container once a second: for the memory curve before a kill, and for the counters that
//! show which limit was hit.
//!
//! A thread of its own reads cgroupfs, because reading may block on the kernel's bookkeeping (`memory.stat` sums up
//! per-CPU counters). The number of samples a second and the number of curves are bounded. The curves of containers
//! that ended are kept for ten minutes. This module must not depend on aya, records, the runtime or rendering.

pub mod files;
mod kills;
mod records;
mod ring;
pub mod statistics;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use files::MemoryFileReader;
use kills::CgroupKillCounts;
use podopsy_model::Losses;
use podopsy_model::memory::{Curve, MemoryCounters, MemoryUsage};
use podopsy_pods::hierarchy::CpuUsage;
use podopsy_pods::{MemoryCgroup, Pods};
use podopsy_system::clock::boot_now_ns;
use podopsy_system::sync::lock;
pub use records::CgroupMemoryRecord;
use records::MemoryRecords;
use ring::SampleRing;
pub use ring::{MemoryTrend, slope};

const EVERY: Duration = Duration::from_secs(1);
/// Samples a second. If there are more containers, each is read less often, in turn. A full Kubernetes node has 110
/// pods with about two containers each.
const SAMPLES_PER_TICK: usize = 256;
/// The counters of the containers and of the levels above them are read in turn, too: all of them within this many
/// ticks. They change only when something is wrong, and only their difference over a kill is needed.
const COUNTERS_WITHIN: usize = 5;
const COUNTERS_PER_TICK: usize = 200;
/// One sample in so many is complete. It reads the limit, which seldom changes, and all parts of the usage even if the
/// sum has not changed, because the parts and the pressure may have; and the CPU time.
const COMPLETE_EVERY: u64 = 10;
/// Containers with a curve, including those that ended: 24 KiB each when full.
const RINGS_MAX: usize = 1024;
const KEEP_ENDED_NS: u64 = ring::REACH.as_nanos() as u64;
/// Readings of the counters that are kept: a kill is examined some time after it happened.
const READINGS: usize = 3;

/// A handle to the sampler. Its thread ends when the handle is dropped.
pub struct MemorySampler {
    state: Arc<Mutex<SamplerState>>,
    stop: Arc<AtomicBool>,
}

#[derive(Default)]
struct SamplerState {
    /// By cgroup id, as all the maps below.
    rings: HashMap<u64, ContainerSamples>,
    /// (CLOCK_BOOTTIME, counters), newest first; 0: no reading yet.
    counters: HashMap<u64, [(u64, MemoryCounters); READINGS]>,
    kills: CgroupKillCounts,
    memory_records: MemoryRecords,
    /// The cgroups that existed at the first tick: their earlier kills were not recorded.
    at_start: Option<HashSet<u64>>,
    /// The index at which the next tick's samples begin, and its counters.
    turn: usize,
    counters_turn: usize,
    throttled: u64,
    evicted: u64,
}

#[derive(Default)]
struct ContainerSamples {
    ring: SampleRing,
    /// When the cgroup last existed (CLOCK_BOOTTIME).
    alive_ns: u64,
    samples: u64,
}

impl MemorySampler {
    pub fn start(pods: Arc<Pods>) -> std::io::Result<MemorySampler> {
        let sampler = MemorySampler { state: Arc::default(), stop: Arc::default() };
        let (state, stop) = (sampler.state.clone(), sampler.stop.clone());
        // A weak reference, so that the thread does not keep the pods alive.
        let weak_pods = Arc::downgrade(&pods);
        std::thread::Builder::new().name("memory".into()).spawn(move || {
            let mut reader = MemoryFileReader::new(pods.hierarchy().version);
            drop(pods);
            while !stop.load(Relaxed) {
                let Some(pods) = weak_pods.upgrade() else { return };
                tick(&state, &mut reader, &pods);
                drop(pods);
                std::thread::sleep(EVERY);
            }
        })?;
        Ok(sampler)
    }

    /// The last minutes of a container, by its cgroup id; None: it was never sampled.
    pub fn curve(&self, id: u64) -> Option<Curve> {
        Some(lock(&self.state).rings.get(&id)?.ring.curve()).filter(|curve| !curve.time.is_empty())
    }

    /// How a container's memory has changed in the last minute; None: too few samples.
    pub fn trend(&self, id: u64) -> Option<MemoryTrend> {
        lock(&self.state).rings.get(&id)?.ring.trend()
    }

    /// The last sample and its CLOCK_BOOTTIME.
    pub fn last(&self, id: u64) -> Option<(u64, MemoryUsage)> {
        let state = lock(&self.state);
        let ring = &state.rings.get(&id)?.ring;
        Some((ring.last_ns(), ring.last?))
    }

    /// A cgroup's counters as they were before `boot_ns`; None: not known.
    pub fn before(&self, id: u64, boot_ns: u64) -> Option<MemoryCounters> {
        let state = lock(&self.state);
        let known = state.counters.get(&id)?.iter().filter(|(at, _)| *at > 0 && *at < boot_ns);
        known.max_by_key(|(at, _)| *at).map(|(_, counters)| *counters)
    }

    /// The memory records of all containers that have changed since the last call. Records are made only after the
    /// first call. A record of ten minutes is returned again while it grows, with the same start.
    pub fn memory_records(&self) -> Vec<CgroupMemoryRecord> {
        lock(&self.state).memory_records.take(boot_now_ns())
    }

    /// Records that kills were reported for this cgroup, to compare them with its own counter.
    pub fn record_reported_kills(&self, id: u64, boot_ns: u64, kills: u64) {
        lock(&self.state).kills.record_reported_kills(id, boot_ns, kills);
    }

    /// `memory_throttled`: samples that were not taken because there are too many containers; `memory_evicted`: curves
    /// that were dropped early; `memory_not_kept`: samples and records that the history lacks; and the losses of
    /// [`CgroupKillCounts`].
    pub fn losses(&self) -> Losses {
        let state = lock(&self.state);
        let mut losses = state.kills.losses();
        let own = [
            ("memory_throttled", state.throttled),
            ("memory_evicted", state.evicted),
            ("memory_not_kept", state.memory_records.lost()),
        ];
        losses.extend(own.into_iter().filter(|(_, n)| *n > 0).map(|(name, n)| (name.to_owned(), n)));
        losses
    }
}

impl Drop for MemorySampler {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

/// One round. The state is locked for each entry only, so that no caller waits for cgroupfs.
fn tick(state: &Mutex<SamplerState>, reader: &mut MemoryFileReader, pods: &Pods) {
    let levels = pods.memory_cgroups();
    let hierarchy = pods.hierarchy();
    lock(state).at_start.get_or_insert_with(|| levels.iter().map(|level| level.id).collect());
    let (begin, count) = lock(state).take_counters_turn(levels.len());
    for offset in 0..count {
        let level = &levels[(begin + offset) % levels.len()];
        if let Some(counters) = reader.counters(&hierarchy.join(&level.path)) {
            lock(state).add_counters(level.id, boot_now_ns(), counters);
        }
    }
    let containers: Vec<&MemoryCgroup> = levels.iter().filter(|level| level.container).collect();
    let (begin, count) = lock(state).take_turn(containers.len());
    for offset in 0..count {
        let level = containers[(begin + offset) % containers.len()];
        let dir = hierarchy.join(&level.path);
        let last = lock(state).last_if_partial(level.id);
        let usage = match last {
            Some(last) => reader.usage_since(&dir, last),
            None => reader.usage(&dir).map(|usage| MemoryUsage { limit_bytes: reader.limit(&dir), ..usage }),
        };
        let Some(mut usage) = usage else { continue };
        let cpu = if last.is_none() { hierarchy.cpu_usage(&level.path) } else { None };
        if let Some(last) = last {
            usage.limit_bytes = last.limit_bytes;
        }
        lock(state).add_sample(level.id, boot_now_ns(), usage, cpu);
    }
    lock(state).clean(boot_now_ns(), &levels);
}

impl SamplerState {
    fn add_counters(&mut self, id: u64, now_ns: u64, counters: MemoryCounters) {
        let is_new = self.at_start.as_ref().is_some_and(|old| !old.contains(&id));
        self.kills.update(id, now_ns, counters.oom_kills, is_new);
        let readings = self.counters.entry(id).or_default();
        readings.rotate_right(1);
        readings[0] = (now_ns, counters);
    }

    /// The last usage, if only a part is to be read now; None: this sample is to be complete. This counts the
    /// container's own samples, not the ticks: a container that is read every second tick would never hit an odd tick.
    fn last_if_partial(&mut self, id: u64) -> Option<MemoryUsage> {
        let container = self.rings.get_mut(&id)?;
        container.samples += 1;
        container.ring.last.filter(|_| container.samples % COMPLETE_EVERY != id % COMPLETE_EVERY)
    }

    fn take_counters_turn(&mut self, all: usize) -> (usize, usize) {
        let begin = if all == 0 { 0 } else { self.counters_turn % all };
        let count = all.div_ceil(COUNTERS_WITHIN).min(COUNTERS_PER_TICK);
        self.counters_turn = begin + count;
        (begin, count)
    }

    /// The index of the first container to read among `all`, and how many to read.
    fn take_turn(&mut self, all: usize) -> (usize, usize) {
        let begin = if all == 0 { 0 } else { self.turn % all };
        let count = all.min(SAMPLES_PER_TICK);
        self.throttled += (all - count) as u64;
        self.turn = begin + count;
        (begin, count)
    }

    fn add_sample(&mut self, id: u64, now_ns: u64, usage: MemoryUsage, cpu: Option<CpuUsage>) {
        self.memory_records.push(id, now_ns, &usage, cpu);
        let container = self.rings.entry(id).or_default();
        container.ring.push(now_ns, usage);
        container.alive_ns = now_ns;
    }

    /// Drops containers that ended ten minutes ago. If there are still too many, evicts those that ended first and
    /// counts them.
    fn clean(&mut self, now_ns: u64, levels: &[MemoryCgroup]) {
        let alive: HashSet<u64> = levels.iter().map(|level| level.id).collect();
        for (_, container) in self.rings.iter_mut().filter(|(id, _)| alive.contains(id)) {
            container.alive_ns = now_ns;
        }
        let is_recent = |time_ns: u64| now_ns.saturating_sub(time_ns) <= KEEP_ENDED_NS;
        self.rings.retain(|_, container| is_recent(container.alive_ns));
        self.counters.retain(|id, readings| alive.contains(id) || is_recent(readings[0].0));
        self.kills.clean(|id| alive.contains(&id));
        while self.rings.len() > RINGS_MAX {
            let Some((&id, _)) = self.rings.iter().min_by_key(|(_, container)| container.alive_ns) else {
                break;
            };
            self.rings.remove(&id);
            self.evicted += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn level(id: u64) -> MemoryCgroup {
        MemoryCgroup { id, path: format!("c{id}").into(), container: true }
    }

    #[test]
    fn with_too_many_containers_each_has_its_turn_and_the_others_are_counted() {
        let mut state = SamplerState::default();
        let mut seen = HashSet::new();
        for _ in 0..3 {
            let (begin, count) = state.take_turn(600);
            assert_eq!(count, 256);
            seen.extend((0..count).map(|at| (begin + at) % 600));
        }
        assert_eq!((seen.len(), state.throttled), (600, 3 * 344));
        // On a full node, each container is read each second.
        assert_eq!(SamplerState::default().take_turn(250), (0, 250));
        assert_eq!(state.take_turn(0), (0, 0));
    }

    #[test]
    fn an_idle_container_is_read_completely_at_intervals_whenever_its_turn_is() {
        let mut state = SamplerState::default();
        assert_eq!(state.last_if_partial(1), None, "never sampled");
        for id in 0..20 {
            state.add_sample(id, S, MemoryUsage { current_bytes: id, ..MemoryUsage::default() }, None);
        }
        let complete =
            |state: &mut SamplerState, id| (0..30).filter(|_| state.last_if_partial(id).is_none()).count();
        assert!((0..20).all(|id| complete(&mut state, id) == 3));
        assert_eq!(state.last_if_partial(8).map(|usage| usage.current_bytes), Some(8));
    }

    #[test]
    fn the_newest_counters_before_the_given_time_are_returned() {
        let sampler = MemorySampler { state: Arc::default(), stop: Arc::default() };
        for at in 1..=6 {
            lock(&sampler.state).add_counters(
                7,
                at * S,
                MemoryCounters { oom_kills: at, ..MemoryCounters::default() },
            );
        }
        let before = |ns| sampler.before(7, ns).map(|counters| counters.oom_kills);
        assert_eq!((before(6 * S + 1), before(6 * S), before(5 * S)), (Some(6), Some(5), Some(4)));
        // Older than the readings that are kept; a cgroup that was never read.
        assert_eq!((before(3 * S), sampler.before(8, 9 * S)), (None, None));
    }

    #[test]
    fn containers_that_ended_are_kept_for_ten_minutes_and_their_number_is_bounded() {
        let mut state = SamplerState::default();
        state.add_sample(1, S, MemoryUsage::default(), None);
        state.add_sample(2, S, MemoryUsage::default(), None);
        state.clean(600 * S, &[level(2)]);
        assert_eq!(state.rings.len(), 2);
        state.clean(602 * S, &[level(2)]);
        assert!(state.rings.contains_key(&2) && !state.rings.contains_key(&1));
        for id in 0..RINGS_MAX as u64 + 5 {
            state.add_sample(100 + id, 700 * S + id, MemoryUsage::default(), None);
        }
        state.clean(701 * S, &[level(2)]);
        assert_eq!((state.rings.len(), state.evicted), (RINGS_MAX, 6));
        assert!(state.rings.contains_key(&2) && !state.rings.contains_key(&105));
    }

    /// A cgroup tree with containers that is removed at the end.
    struct Tree(Vec<std::path::PathBuf>);

    impl Drop for Tree {
        fn drop(&mut self) {
            self.0.iter().rev().for_each(|dir| drop(std::fs::remove_dir(dir)));
        }
    }

    /// Measures the sampler's cost: `cargo test --release -p podopsy-recorder --lib -- --ignored --nocapture
    /// sampler_costs_by_hand`.
    #[tokio::test]
    #[ignore = "a measurement, as root"]
    async fn sampler_costs_by_hand() {
        use nix::sys::resource::{UsageWho, getrusage};
        let options =
            || podopsy_pods::PodsOptions { cri_socket: Some("/nonexistent".into()), ..Default::default() };
        let root = Pods::start(options()).await.unwrap().hierarchy().dir.join("podopsy-sampler");
        for count in [10, 100, 200] {
            let mut tree = Tree(vec![root.clone()]);
            tree.0.extend((0..count).map(|n| root.join(format!("pod{n:032}"))));
            tree.0.extend((0..count).map(|n| root.join(format!("pod{n:032}/{n:064x}"))));
            tree.0.iter().for_each(|dir| std::fs::create_dir(dir).unwrap());
            let pods = Pods::start(options()).await.unwrap();
            let (state, mut reader) = (Mutex::default(), MemoryFileReader::new(pods.hierarchy().version));
            tick(&state, &mut reader, &pods);
            let cpu = || getrusage(UsageWho::RUSAGE_THREAD).unwrap();
            let ms = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 * 1e3 + time.tv_usec() as f64 / 1e3;
            let (before, began) = (cpu(), std::time::Instant::now());
            const TICKS: u32 = 200;
            (0..TICKS).for_each(|_| tick(&state, &mut reader, &pods));
            let (after, wall) = (cpu(), began.elapsed() / TICKS);
            let user = (ms(after.user_time()) - ms(before.user_time())) / f64::from(TICKS);
            let system = (ms(after.system_time()) - ms(before.system_time())) / f64::from(TICKS);
            println!("{count:3} containers: {user:.2} ms user + {system:.2} ms sys, {wall:?} wall a tick");
        }
    }
}
