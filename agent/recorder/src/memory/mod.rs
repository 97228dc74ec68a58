//! The memory of every container, once a second: the curve before a kill, and the counters that say whose
//! limit was met.
//!
//! A thread of its own reads cgroupfs, which may block on the kernel's own bookkeeping (`memory.stat` sums up
//! per-CPU counters). Bounded: so many full samples a second, in turn; so many rings; the dead stay for ten
//! minutes. Must not know: aya, records, the runtime, how anything is rendered.

pub mod files;
mod kills;
mod records;
mod ring;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use files::MemoryFileReader;
use kills::CgroupKillCounts;
use podopsy_model::Losses;
use podopsy_model::memory::{Counters, Curve, Usage};
use podopsy_pods::{Level, Pods};
use podopsy_system::clock::boot_now_ns;
pub use records::CgroupMemoryRecord;
use records::MemoryRecords;
pub use ring::MemoryTrend;
use ring::SampleRing;

const EVERY: Duration = Duration::from_secs(1);
/// Samples a second; with more containers than that each is read less often, in turn. A full node of Kubernetes has 110
/// pods, and some two containers in each.
const SAMPLES_PER_TICK: usize = 256;
/// The counters of containers, and of what lies above them, are read in turn too: all within so many ticks,
/// since they move only when something is wrong, and only their difference over a kill is asked for.
const COUNTERS_WITHIN: usize = 5;
const COUNTERS_PER_TICK: usize = 200;
/// Every so many samples the limit is read, too, which changes seldom, and all of a usage whose sum has not moved: its
/// parts and its pressure may have.
const WHOLE_EVERY: u64 = 10;
/// Containers remembered, the dead included: 24 KiB each when full.
const RINGS_MAX: usize = 1024;
const REMEMBER_DEAD_NS: u64 = ring::REACH.as_nanos() as u64;
/// Counters kept: a kill is told of some time after it happened.
const COUNTS: usize = 3;

/// The sampler's door; its thread ends when the last one is dropped.
pub struct MemorySampler {
    book: Arc<Mutex<Book>>,
    stop: Arc<AtomicBool>,
}

#[derive(Default)]
struct Book {
    rings: HashMap<u64, Kept>,
    counters: HashMap<u64, [(u64, Counters); COUNTS]>,
    kills: CgroupKillCounts,
    memory_records: MemoryRecords,
    /// The cgroups that were there at the first tick: what they counted before is not ours to tell.
    at_start: Option<HashSet<u64>>,
    /// Where the next tick's samples begin, and its counters.
    turn: usize,
    counters_turn: usize,
    throttled: u64,
    evicted: u64,
}

#[derive(Default)]
struct Kept {
    ring: SampleRing,
    /// When it was last seen alive.
    alive_ns: u64,
    samples: u64,
}

impl MemorySampler {
    pub fn start(pods: Arc<Pods>) -> std::io::Result<MemorySampler> {
        let sampler = MemorySampler { book: Arc::default(), stop: Arc::default() };
        let (book, stop) = (sampler.book.clone(), sampler.stop.clone());
        // Weak, so that the thread does not keep the room of pods open.
        let room = Arc::downgrade(&pods);
        std::thread::Builder::new().name("memory".into()).spawn(move || {
            let mut reader = MemoryFileReader::new(pods.hierarchy().version);
            drop(pods);
            while !stop.load(Relaxed) {
                let Some(pods) = room.upgrade() else { return };
                tick(&book, &mut reader, &pods);
                drop(pods);
                std::thread::sleep(EVERY);
            }
        })?;
        Ok(sampler)
    }

    /// The last minutes of a container, by its cgroup's id; None: it was never seen.
    pub fn curve(&self, id: u64) -> Option<Curve> {
        Some(self.lock().rings.get(&id)?.ring.curve()).filter(|curve| !curve.time.is_empty())
    }

    /// Where a container's memory has been going in the last minute; None: too few samples.
    pub fn trend(&self, id: u64) -> Option<MemoryTrend> {
        self.lock().rings.get(&id)?.ring.trend()
    }

    /// The last sample and its CLOCK_BOOTTIME.
    pub fn last(&self, id: u64) -> Option<(u64, Usage)> {
        let book = self.lock();
        let ring = &book.rings.get(&id)?.ring;
        Some((ring.last_ns(), ring.last?))
    }

    /// A cgroup's counters as they were before `boot_ns`; None: not known.
    pub fn before(&self, id: u64, boot_ns: u64) -> Option<Counters> {
        let book = self.lock();
        let known = book.counters.get(&id)?.iter().filter(|(at, _)| *at > 0 && *at < boot_ns);
        known.max_by_key(|(at, _)| *at).map(|(_, counters)| *counters)
    }

    /// What is to be kept of every container's memory: all that has changed since the last call, and the first call says
    /// that there is someone who keeps it. A stretch of ten minutes comes again as it grows, under the same beginning.
    pub fn memory_records(&self) -> Vec<CgroupMemoryRecord> {
        self.lock().memory_records.take(boot_now_ns())
    }

    /// CgroupKillCounts that were told as this cgroup's, to be compared with its own counter.
    pub fn record_reported_kills(&self, id: u64, boot_ns: u64, kills: u64) {
        self.lock().kills.record_reported_kills(id, boot_ns, kills);
    }

    /// `memory_throttled`: samples not taken because there are too many containers; `memory_evicted`:
    /// curves given up before their time; `memory_not_kept`: of the history; and what [`CgroupKillCounts`] finds.
    pub fn losses(&self) -> Losses {
        let book = self.lock();
        let mut losses = book.kills.losses();
        let own = [
            ("memory_throttled", book.throttled),
            ("memory_evicted", book.evicted),
            ("memory_not_kept", book.memory_records.lost()),
        ];
        losses.extend(own.into_iter().filter(|(_, n)| *n > 0).map(|(name, n)| (name.to_owned(), n)));
        losses
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        lock(&self.book)
    }
}

impl Drop for MemorySampler {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One round. The book is locked for each entry only: whoever asks never waits for cgroupfs.
fn tick(book: &Mutex<Book>, reader: &mut MemoryFileReader, pods: &Pods) {
    let levels = pods.memory_levels();
    let hierarchy = pods.hierarchy();
    lock(book).at_start.get_or_insert_with(|| levels.iter().map(|level| level.id).collect());
    let (begin, count) = lock(book).take_counters_turn(levels.len());
    for at in 0..count {
        let level = &levels[(begin + at) % levels.len()];
        if let Some(counters) = reader.counters(&hierarchy.join(&level.path)) {
            lock(book).count(level.id, boot_now_ns(), counters);
        }
    }
    let containers: Vec<&Level> = levels.iter().filter(|level| level.container).collect();
    let (begin, count) = lock(book).take_turn(containers.len());
    for at in 0..count {
        let level = containers[(begin + at) % containers.len()];
        let dir = hierarchy.join(&level.path);
        let last = lock(book).last(level.id);
        let usage = match last {
            Some(last) => reader.usage_since(&dir, last),
            None => reader.usage(&dir).map(|usage| Usage { limit_bytes: reader.limit(&dir), ..usage }),
        };
        let Some(mut usage) = usage else { continue };
        if let Some(last) = last {
            usage.limit_bytes = last.limit_bytes;
        }
        lock(book).sample(level.id, boot_now_ns(), usage);
    }
    lock(book).clean(boot_now_ns(), &levels);
}

impl Book {
    fn count(&mut self, id: u64, now_ns: u64, counters: Counters) {
        let born = self.at_start.as_ref().is_some_and(|old| !old.contains(&id));
        self.kills.look(id, now_ns, counters.oom_kills, born);
        let ticks = self.counters.entry(id).or_default();
        ticks.rotate_right(1);
        ticks[0] = (now_ns, counters);
    }

    /// What was read not long ago; None: read it whole. By the container's own samples, not by the clock: a turn that
    /// comes every second tick would never meet an odd one.
    fn last(&mut self, id: u64) -> Option<Usage> {
        let kept = self.rings.get_mut(&id)?;
        kept.samples += 1;
        kept.ring.last.filter(|_| kept.samples % WHOLE_EVERY != id % WHOLE_EVERY)
    }

    fn take_counters_turn(&mut self, all: usize) -> (usize, usize) {
        let begin = if all == 0 { 0 } else { self.counters_turn % all };
        let count = all.div_ceil(COUNTERS_WITHIN).min(COUNTERS_PER_TICK);
        self.counters_turn = begin + count;
        (begin, count)
    }

    /// Where to begin among `all`, and how many to read.
    fn take_turn(&mut self, all: usize) -> (usize, usize) {
        let begin = if all == 0 { 0 } else { self.turn % all };
        let count = all.min(SAMPLES_PER_TICK);
        self.throttled += (all - count) as u64;
        self.turn = begin + count;
        (begin, count)
    }

    fn sample(&mut self, id: u64, now_ns: u64, usage: Usage) {
        self.memory_records.push(id, now_ns, &usage);
        let kept = self.rings.entry(id).or_default();
        kept.ring.push(now_ns, usage);
        kept.alive_ns = now_ns;
    }

    /// Lets go of the dead in their time, and beyond the bound of the longest dead (those are counted).
    fn clean(&mut self, now_ns: u64, levels: &[Level]) {
        let alive: HashSet<u64> = levels.iter().map(|level| level.id).collect();
        for (_, kept) in self.rings.iter_mut().filter(|(id, _)| alive.contains(id)) {
            kept.alive_ns = now_ns;
        }
        self.rings.retain(|_, kept| now_ns.saturating_sub(kept.alive_ns) <= REMEMBER_DEAD_NS);
        let recent =
            |ticks: &[(u64, Counters); COUNTS]| now_ns.saturating_sub(ticks[0].0) <= REMEMBER_DEAD_NS;
        self.counters.retain(|id, ticks| alive.contains(id) || recent(ticks));
        self.kills.clean(|id| alive.contains(&id));
        while self.rings.len() > RINGS_MAX {
            let Some((&id, _)) = self.rings.iter().min_by_key(|(_, kept)| kept.alive_ns) else { break };
            self.rings.remove(&id);
            self.evicted += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn level(id: u64) -> Level {
        Level { id, path: format!("c{id}").into(), container: true }
    }

    #[test]
    fn with_many_containers_each_has_its_turn_and_the_rest_is_counted() {
        let mut book = Book::default();
        let mut seen = HashSet::new();
        for _ in 0..3 {
            let (begin, count) = book.take_turn(600);
            assert_eq!(count, 256);
            seen.extend((0..count).map(|at| (begin + at) % 600));
        }
        assert_eq!((seen.len(), book.throttled), (600, 3 * 344));
        // A full node: each of them, each second.
        assert_eq!(Book::default().take_turn(250), (0, 250));
        assert_eq!(book.take_turn(0), (0, 0));
    }

    #[test]
    fn whoever_sleeps_is_read_whole_now_and_then_whenever_its_turn_is() {
        let mut book = Book::default();
        assert_eq!(book.last(1), None, "never seen");
        for id in 0..20 {
            book.sample(id, S, Usage { current_bytes: id, ..Usage::default() });
        }
        let whole = |book: &mut Book, id| (0..30).filter(|_| book.last(id).is_none()).count();
        assert!((0..20).all(|id| whole(&mut book, id) == 3));
        assert_eq!(book.last(8).map(|usage| usage.current_bytes), Some(8));
    }

    #[test]
    fn the_counters_of_before_are_those_of_before() {
        let sampler = MemorySampler { book: Arc::default(), stop: Arc::default() };
        for at in 1..=6 {
            sampler.lock().count(7, at * S, Counters { oom_kills: at, ..Counters::default() });
        }
        let before = |ns| sampler.before(7, ns).map(|counters| counters.oom_kills);
        assert_eq!((before(6 * S + 1), before(6 * S), before(5 * S)), (Some(6), Some(5), Some(4)));
        // Older than what is kept, and of nobody.
        assert_eq!((before(3 * S), sampler.before(8, 9 * S)), (None, None));
    }

    #[test]
    fn the_dead_stay_ten_minutes_and_no_more_than_there_is_room_for() {
        let mut book = Book::default();
        book.sample(1, S, Usage::default());
        book.sample(2, S, Usage::default());
        book.clean(600 * S, &[level(2)]);
        assert_eq!(book.rings.len(), 2);
        book.clean(602 * S, &[level(2)]);
        assert!(book.rings.contains_key(&2) && !book.rings.contains_key(&1));
        for id in 0..RINGS_MAX as u64 + 5 {
            book.sample(100 + id, 700 * S + id, Usage::default());
        }
        book.clean(701 * S, &[level(2)]);
        assert_eq!((book.rings.len(), book.evicted), (RINGS_MAX, 6));
        assert!(book.rings.contains_key(&2) && !book.rings.contains_key(&105));
    }

    /// Containers of a cgroup tree of our own, removed at the end.
    struct Tree(Vec<std::path::PathBuf>);

    impl Drop for Tree {
        fn drop(&mut self) {
            self.0.iter().rev().for_each(|dir| drop(std::fs::remove_dir(dir)));
        }
    }

    /// The sampler's cost: `cargo test --release -p podopsy-agent --lib -- --ignored --nocapture sampler_costs_by_hand`.
    #[tokio::test]
    #[ignore = "a measurement, as root"]
    async fn sampler_costs_by_hand() {
        use nix::sys::resource::{UsageWho, getrusage};
        let options =
            || podopsy_pods::Options { cri_socket: Some("/nonexistent".into()), ..Default::default() };
        let root = Pods::start(options()).await.unwrap().hierarchy().dir.join("podopsy-sampler");
        for count in [10, 100, 200] {
            let mut tree = Tree(vec![root.clone()]);
            tree.0.extend((0..count).map(|n| root.join(format!("pod{n:032}"))));
            tree.0.extend((0..count).map(|n| root.join(format!("pod{n:032}/{n:064x}"))));
            tree.0.iter().for_each(|dir| std::fs::create_dir(dir).unwrap());
            let pods = Pods::start(options()).await.unwrap();
            let (book, mut reader) = (Mutex::default(), MemoryFileReader::new(pods.hierarchy().version));
            tick(&book, &mut reader, &pods);
            let cpu = || getrusage(UsageWho::RUSAGE_THREAD).unwrap();
            let ms = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 * 1e3 + time.tv_usec() as f64 / 1e3;
            let (before, began) = (cpu(), std::time::Instant::now());
            const TICKS: u32 = 200;
            (0..TICKS).for_each(|_| tick(&book, &mut reader, &pods));
            let (after, wall) = (cpu(), began.elapsed() / TICKS);
            let user = (ms(after.user_time()) - ms(before.user_time())) / f64::from(TICKS);
            let system = (ms(after.system_time()) - ms(before.system_time())) / f64::from(TICKS);
            println!("{count:3} containers: {user:.2} ms user + {system:.2} ms sys, {wall:?} wall a tick");
        }
    }
}
