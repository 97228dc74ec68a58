//! Samples page faults of suspects all the time: probes → ring → decode → window, and a report when a kill asks.
//!
//! A task looks every other second who is a suspect, and tells the kernel side; while there is none, no event is
//! open, and nothing is sampled. A thread counts the samples, because it reads /proc and opens files. Neither is waited for
//! by the collector of events.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::time::{Duration, Instant};

use anyhow::Context;
use podopsy_wire::Task;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::attach::{KernelTables, OncpuWanted, Probes, Scope, Targets, Wanted};
use crate::clock::boot_now_ns;
use crate::decode;
use crate::growth::{self, Candidate, Key, Suspects, Window};
use crate::memory::Trend;
use crate::model::growth::GrowthProfile;
use crate::model::profile::Sampling;
use crate::model::{Event, KnownBy, Losses};
use crate::oom::Examiner;
use crate::pods::{Level, Pods};
use crate::ring::Ring;
use crate::symbolize::{Symbolizer, UserAddress};
use crate::unwind::{Builder, Of};

/// Samples between the ring and the thread that counts them.
const QUEUE: usize = 4096;
/// Samples are taken from the ring together: most of what one costs is the wake-up. Longer, and short processes would be
/// gone before their mappings are read.
const TOGETHER: Duration = Duration::from_millis(50);
/// How often suspects are chosen: a restarted container is sampled from then on.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Curves have a point a second, and are dearer to look at.
const TRENDS_EVERY: Duration = Duration::from_secs(2);
/// Names asked for in one look: the runtime is not to be flooded after a restart of the agent.
const NAMES_A_LOOK: usize = 16;
/// Processes of a new suspect whose tables are made before they are sampled.
const PROCESSES: usize = 64;
/// Processes that were seen; past that all are seen anew.
const SEEN_MAX: usize = 4096;
/// An exec shows by its name; one that changes its name without end is not looked at each time.
const LOOKS_MAX: u32 = 8;
/// How long an incident waits for its report: symbols of large programs take seconds.
const REPORT_WITHIN: Duration = Duration::from_secs(20);

/// Whether to sample which code memory grows by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GrowthMode {
    Off,
    /// Of containers that were OOM-killed, or whose memory grows towards their limit.
    #[default]
    Auto,
}

/// What was loaded for it.
pub struct Instruments {
    samples: Ring,
    requests: Ring,
    targets: Targets,
    tables: KernelTables,
}

/// Loads the probes, with the sampler if it is wanted; a kernel that refuses the sampler has the others.
pub fn load(wanted: &Wanted, mode: GrowthMode) -> anyhow::Result<(Probes, Option<Instruments>)> {
    if mode == GrowthMode::Off || !wanted.oom {
        return Ok((Probes::load(wanted)?, None));
    }
    let sampler = OncpuWanted {
        scope: Scope::Cgroups(Vec::new()),
        sampling: Sampling::Growth { every: growth::PERIOD },
        unwind: true,
        budget: growth::BUDGET,
    };
    let load = || {
        let mut probes = Probes::load(&Wanted { oncpu: Some(sampler), ..wanted.clone() })?;
        let instruments = Instruments {
            samples: probes.ring("SAMPLES")?,
            requests: probes.ring("TABLE_REQUESTS")?,
            targets: probes.targets()?,
            tables: probes.unwind_tables()?,
        };
        anyhow::Ok((probes, Some(instruments)))
    };
    load().or_else(|error| {
        tracing::warn!("OOM kills will lack the growth profile: {error:#}");
        Ok((Probes::load(wanted)?, None))
    })
}

/// The door; everything behind it ends when the last one is dropped.
#[derive(Clone)]
pub struct Growth(Arc<Inner>);

struct Inner {
    queue: mpsc::SyncSender<Message>,
    shared: Arc<Shared>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// What all parts see.
struct Shared {
    suspects: Mutex<Suspects>,
    builder: Builder,
    bad_records: AtomicU64,
    queue_full: AtomicU64,
    evicted: AtomicU64,
    unanswered: AtomicU64,
}

enum Message {
    Sample(decode::Stack),
    /// Of a cgroup, up to this CLOCK_BOOTTIME.
    Report(u64, u64, oneshot::Sender<Option<GrowthProfile>>),
}

impl Instruments {
    pub async fn start(
        self,
        probes: Weak<Mutex<Probes>>,
        pods: &Arc<Pods>,
        examiner: &Arc<Examiner>,
    ) -> anyhow::Result<Growth> {
        let Instruments { samples, requests, targets, tables } = self;
        // Reads the vDSO: on a thread that may wait.
        let start = move || Builder::start(tables, growth::TABLES_BYTES, &Of::Cgroups(Vec::new()));
        let builder = tokio::task::spawn_blocking(start).await??;
        let shared = Arc::new(Shared {
            suspects: Mutex::default(),
            builder,
            bad_records: AtomicU64::new(0),
            queue_full: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            unanswered: AtomicU64::new(0),
        });
        let (queue, received) = mpsc::sync_channel(QUEUE);
        let counted = shared.clone();
        std::thread::Builder::new()
            .name("growth".into())
            .spawn(move || count(&received, &counted))
            .context("start the thread that counts page faults")?;
        let watch = Watch {
            probes,
            targets,
            sampling: false,
            shared: shared.clone(),
            pods: pods.clone(),
            examiner: examiner.clone(),
            keys: HashMap::new(),
            began: Instant::now(),
            trends: HashMap::new(),
            trends_at: None,
            broken: false,
        };
        let tasks = [
            tokio::spawn(pass_on(samples, requests, queue.clone(), shared.clone())),
            tokio::spawn(watch.run()),
        ];
        Ok(Growth(Arc::new(Inner { queue, shared, tasks })))
    }
}

impl Growth {
    /// A container was killed: its next life is sampled from the start.
    pub fn killed(&self, event: &Event) {
        if let (Some(pod), Some(container)) = (&event.pod, &event.container) {
            self.0.shared.suspects().killed((pod.uid.clone(), container.name.clone()));
        }
    }

    /// What the minutes before `boot_ns` have of a cgroup; None: nothing was sampled.
    pub async fn profile(&self, cgroup: u64, boot_ns: u64) -> Option<GrowthProfile> {
        let (reply, answer) = oneshot::channel();
        let asked = self.0.queue.try_send(Message::Report(cgroup, boot_ns, reply)).is_ok();
        match tokio::time::timeout(REPORT_WITHIN, answer).await {
            Ok(Ok(profile)) if asked => profile,
            _ => {
                self.0.shared.unanswered.fetch_add(1, Relaxed);
                None
            }
        }
    }

    pub fn losses(&self) -> Losses {
        let shared = &self.0.shared;
        let own = [
            ("growth_bad_records", shared.bad_records.load(Relaxed)),
            ("growth_queue", shared.queue_full.load(Relaxed)),
            ("growth_evicted", shared.evicted.load(Relaxed)),
            ("growth_unanswered", shared.unanswered.load(Relaxed)),
            ("growth_suspects_left_out", shared.suspects().left_out()),
        ];
        let mut losses = Losses::from_iter(shared.builder.losses());
        losses.extend(own.map(|(name, count)| (name.to_owned(), count)));
        losses.retain(|_, count| *count > 0);
        losses
    }
}

impl Shared {
    fn suspects(&self) -> MutexGuard<'_, Suspects> {
        self.suspects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Rings to queue and builder. A request for a table is answered at once; samples can wait a moment for each other.
async fn pass_on(
    mut samples: Ring,
    mut requests: Ring,
    queue: mpsc::SyncSender<Message>,
    shared: Arc<Shared>,
) {
    let mut next = Instant::now();
    let bad = || _ = shared.bad_records.fetch_add(1, Relaxed);
    loop {
        let drained = tokio::select! {
            drained = async {
                tokio::time::sleep_until(next.into()).await;
                samples.drain(|bytes| match decode::sample(bytes) {
                    Ok(stack) => if queue.try_send(Message::Sample(stack)).is_err() {
                        shared.queue_full.fetch_add(1, Relaxed);
                    },
                    Err(_) => bad(),
                }).await
            } => {
                next = Instant::now() + TOGETHER;
                drained
            }
            asked = requests.drain(|bytes| match decode::table_request(bytes) {
                Ok(request) => shared.builder.request(request),
                Err(_) => bad(),
            }) => asked,
        };
        if let Err(error) = drained {
            tracing::warn!("OOM kills will lack the growth profile from now on: {error:#}");
            return;
        }
    }
}

/// Chooses whom to sample.
struct Watch {
    probes: Weak<Mutex<Probes>>,
    targets: Targets,
    /// The kernel's events are open.
    sampling: bool,
    shared: Arc<Shared>,
    pods: Arc<Pods>,
    examiner: Arc<Examiner>,
    /// Names of living containers, by cgroup.
    keys: HashMap<u64, Option<Key>>,
    began: Instant,
    trends: HashMap<u64, Trend>,
    trends_at: Option<Instant>,
    /// The kernel refused the events: it has been said.
    broken: bool,
}

impl Watch {
    async fn run(mut self) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !self.broken {
            ticks.tick().await;
            self.look().await;
        }
    }

    async fn look(&mut self) {
        let mut levels = self.pods.memory_levels();
        levels.retain(|level| level.container);
        self.learn_names(&levels).await;
        if self.trends_at.is_none_or(|at| at.elapsed() >= TRENDS_EVERY) {
            self.trends_at = Some(Instant::now());
            let trend = |level: &Level| Some((level.id, self.examiner.trend(level.id)?));
            self.trends = levels.iter().filter_map(trend).collect();
        }
        let candidate = |level: &Level| Candidate {
            id: level.id,
            key: self.keys.get(&level.id).cloned().flatten(),
            trend: self.trends.get(&level.id).copied(),
        };
        let running: Vec<Candidate> = levels.iter().map(candidate).collect();
        let (changes, none) = {
            let mut suspects = self.shared.suspects();
            (suspects.choose(&running, self.began.elapsed()), suspects.is_empty())
        };
        for id in &changes.removed {
            self.targets.remove(*id);
        }
        for id in &changes.added {
            if let Err(error) = self.targets.add(*id) {
                tracing::warn!("a container's growth is not sampled: {error:#}");
            }
        }
        self.make_tables(levels.into_iter().filter(|level| changes.added.contains(&level.id)).collect())
            .await;
        if self.sampling == none {
            self.switch(!none).await;
        }
    }

    /// Names are of use only once somebody was killed.
    async fn learn_names(&mut self, levels: &[Level]) {
        if !self.shared.suspects().remembers_kills() {
            return;
        }
        let alive: HashMap<u64, ()> = levels.iter().map(|level| (level.id, ())).collect();
        self.keys.retain(|id, _| alive.contains_key(id));
        let unknown = levels.iter().map(|level| level.id).filter(|id| !self.keys.contains_key(id));
        let unknown: Vec<u64> = unknown.take(NAMES_A_LOOK).collect();
        for id in unknown {
            let owner = self.pods.owner_of_cgroup(id).await;
            let key = owner.pod.zip(owner.container).map(|(pod, container)| (pod.uid, container.name));
            // What the runtime does not know yet is asked for again.
            if key.is_some() || matches!(owner.known_by, KnownBy::Host | KnownBy::LogDirectory) {
                self.keys.insert(id, key);
            }
        }
    }

    /// Has the tables of new suspects made; reads cgroupfs where it may wait.
    async fn make_tables(&self, levels: Vec<Level>) {
        if levels.is_empty() {
            return;
        }
        let (shared, pods) = (self.shared.clone(), self.pods.clone());
        let look = move || {
            for level in levels {
                let file = pods.hierarchy().join(&level.path).join("cgroup.procs");
                let pids = std::fs::read_to_string(file).unwrap_or_default();
                let pids = pids.lines().filter_map(|pid| pid.parse().ok());
                pids.take(PROCESSES).for_each(|pid| shared.builder.look_at(pid));
            }
        };
        let _ = tokio::task::spawn_blocking(look).await;
    }

    /// Opens the kernel's events with the first suspect, and closes them with the last.
    async fn switch(&mut self, on: bool) {
        let Some(probes) = self.probes.upgrade() else { return };
        let switch = move || {
            let mut probes = probes.lock().unwrap_or_else(PoisonError::into_inner);
            if on { probes.sample() } else { probes.stop_sampling() }
        };
        match tokio::task::spawn_blocking(switch).await {
            Ok(Ok(())) => self.sampling = on,
            Ok(Err(error)) => {
                tracing::warn!("OOM kills will lack the growth profile: {error:#}");
                self.broken = true;
            }
            // The recorder is being stopped.
            Err(_) => {}
        }
    }
}

/// Counts samples until the last sender is gone.
fn count(received: &mpsc::Receiver<Message>, shared: &Shared) {
    let mut counter = Counter {
        window: Window::default(),
        symbolizer: Symbolizer::holding(growth::FILES),
        seen: HashMap::new(),
    };
    for message in received {
        match message {
            Message::Sample(stack) => counter.add(&stack),
            Message::Report(cgroup, boot_ns, reply) => {
                // Nobody may be waiting for it any more: that is their choice.
                let _ = reply.send(counter.report(cgroup, boot_ns));
            }
        }
        shared.evicted.store(counter.window.evicted(), Relaxed);
    }
}

struct Counter {
    window: Window,
    symbolizer: Symbolizer,
    /// Process by pid and start → its name at that time, and how often its mappings were looked at.
    seen: HashMap<(u32, u64), ([u8; 16], u32)>,
}

impl Counter {
    fn add(&mut self, stack: &decode::Stack) {
        self.see(&stack.task);
        let pid = stack.task.pid;
        self.symbolizer.notice(pid, &stack.user);
        let place = |(depth, &address): (usize, &u64)| {
            self.symbolizer.locate(UserAddress { pid, address, is_return: depth > 0 })
        };
        let places = stack.user.iter().enumerate().map(place).collect();
        let counted = growth::Stack { places, end: stack.end, end_frame: stack.end_frame };
        self.window.add(stack.task.cgroup_id, counted, boot_now_ns());
    }

    /// Shows a process to the symbolizer while it lives: at first sight, and with a new name (exec).
    fn see(&mut self, task: &Task) {
        if self.seen.len() >= SEEN_MAX {
            self.seen.clear();
        }
        let (name, looks) = self.seen.entry((task.pid, task.start_ns)).or_insert((task.comm, 0));
        if *looks == 0 || (task.pid == task.tid && *name != task.comm && *looks < LOOKS_MAX) {
            (*name, *looks) = (task.comm, *looks + 1);
            self.symbolizer.see_process(task.pid);
        }
    }

    fn report(&mut self, cgroup: u64, boot_ns: u64) -> Option<GrowthProfile> {
        let slice = self.window.slice(cgroup, boot_ns)?;
        let profile = growth::report(slice, growth::PERIOD, &mut self.symbolizer);
        // Tables of symbols are megabytes, and the next kill may be days away.
        self.symbolizer.trim();
        Some(profile)
    }
}
