//! OOM kills: adds the kernel's log, the cgroups' counters, the memory curve and the runtime's report to each kill that
//! the probe recorded.
//!
//! Kill → [`OomExaminer`] → event, and → [`IncidentBuilder`] (all kills of one visit make one incident) → verdict → event.
//! This module must not depend on aya or on rendering.

pub(crate) mod attribute;
mod builder;
mod charged;
pub mod checkpoint;
pub(crate) mod instruments;
mod levels;
mod limit;
pub(crate) mod reader;
pub mod reconcile;
pub mod recover;
pub(crate) mod stack_queue;
pub(crate) mod stacks;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::heaps::HeapSampler;
use crate::kernel_log::KernelLogFollower;
use crate::kernel_log::visit::{LoggedKill, Visit};
use crate::memory::{CgroupMemoryRecord, MemorySampler, MemoryTrend};
use podopsy_decode::OomDecoded;
use podopsy_model::charged::ChargedMemory;
use podopsy_model::heap::RuntimeHeap;
use podopsy_model::incident::{Evidence, Level, LimitHit, ProcessTable};
use podopsy_model::memory::Curve;
use podopsy_model::{Losses, Owner};
use podopsy_pods::Pods;
use podopsy_system::clock::boot_now_ns;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

pub use builder::{IncidentBuilder, PendingIncident};
use levels::Baseline;
pub use limit::LevelReading;

/// How long after a kill its event waits for the kill's line in the kernel's log. The OOM killer writes the line right
/// after the probe has fired, and a reader is woken at the next tick of the clock.
const LOG_WITHIN: Duration = Duration::from_millis(100);
/// The same after a line did not arrive: a log that lost one line must not delay all later kills.
const LOG_WITHIN_AFTER_A_MISS: Duration = Duration::from_millis(40);
/// How long after a kill its incident waits for the line. A machine without free memory is slow, and so is a serial
/// console that prints the task table.
const LATE_LOG_WITHIN: Duration = Duration::from_secs(3);
/// Tables of surviving processes that are read at a time.
const SURVIVOR_READERS: usize = 2;

/// What is known about one kill beside the probe's record of it.
#[derive(Clone, Debug)]
pub struct OomFacts {
    /// The visit as the kernel's log has it, with all kills of that visit; None: the log has nothing about this kill.
    pub visit: Option<Arc<Visit>>,
    pub limit: LimitHit,
    pub levels: Vec<LevelReading>,
    pub processes: Option<ProcessTable>,
    pub charged: Option<ChargedMemory>,
    pub curve: Option<Curve>,
    pub heap: Option<RuntimeHeap>,
    pub qos: Option<String>,
    pub already_dying: bool,
}

impl OomFacts {
    /// The path of the victim's cgroup, as the kernel's log has it.
    fn victim_cgroup(&self) -> Option<&Vec<u8>> {
        self.visit.as_ref()?.chosen.as_ref()?.task_memcg.as_ref()
    }
}

/// Collects the facts about each kill.
pub struct OomExaminer {
    pods: Arc<Pods>,
    sampler: Option<MemorySampler>,
    heaps: Option<HeapSampler>,
    log: Option<KernelLogFollower>,
    /// Victims that were already dying.
    already_dying: AtomicU64,
    /// Whether the log had no line for the last kill that needed one.
    log_missed: AtomicBool,
    survivor_readers: Arc<Semaphore>,
}

/// Why the kernel's count of kills differs from the number of victims that the probe saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct KnownDifferences {
    /// Victims that were already dying: the kernel does not count them.
    pub already_dying: u64,
    /// Victims of group kills that the kernel counts twice.
    pub counted_twice: u64,
}

impl std::fmt::Debug for OomExaminer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OomExaminer")
            .field("sampler", &self.sampler.is_some())
            .field("log", &self.log.is_some())
            .finish()
    }
}

impl OomExaminer {
    /// `sampler`, `log`: None if this machine or this command has none.
    pub fn new(
        pods: Arc<Pods>,
        sampler: Option<MemorySampler>,
        log: Option<KernelLogFollower>,
    ) -> OomExaminer {
        OomExaminer {
            pods,
            sampler,
            heaps: None,
            log,
            already_dying: AtomicU64::new(0),
            log_missed: AtomicBool::new(false),
            survivor_readers: Arc::new(Semaphore::new(SURVIVOR_READERS)),
        }
    }

    /// Adds what language runtimes know of their heaps.
    pub fn with_heaps(self, heaps: HeapSampler) -> OomExaminer {
        OomExaminer { heaps: Some(heaps), ..self }
    }

    /// Reads each level as it is now, if the cgroup is known.
    fn levels(&self, id: u64, kill_ns: u64) -> Vec<LevelReading> {
        let Some(place) = self.pods.lineage(id) else { return Vec::new() };
        levels::read(&self.pods, &place, &Baseline::BeforeKill(self.sampler.as_ref(), kill_ns))
    }

    /// Waits a moment for the kill's line in the kernel's log.
    async fn find_in_log(&self, kill: &OomDecoded) -> Option<(Visit, LoggedKill)> {
        // The kernel writes no "Killed process" line for a victim that was already dying.
        if kill.already_dying {
            return None;
        }
        let within = if self.log_missed.load(Relaxed) { LOG_WITHIN_AFTER_A_MISS } else { LOG_WITHIN };
        // If this task is late, the task that reads the log may be late, too: it gets at least a third of the time.
        let late = Duration::from_nanos(boot_now_ns().saturating_sub(kill.time_ns));
        let patience = within.saturating_sub(late).max(within / 3);
        let found = self.log.as_ref()?.kill_of(kill.victim.tid, patience).await;
        self.log_missed.store(found.is_none(), Relaxed);
        found
    }

    /// Combines what is known of a kill. `levels`: read right after it; empty if its cgroup was not known then.
    fn facts(
        &self,
        kill: &OomDecoded,
        owner: &Owner,
        mut levels: Vec<LevelReading>,
        found: Option<(Visit, LoggedKill)>,
    ) -> OomFacts {
        if levels.is_empty() {
            levels = self.levels(owner.cgroup.id, kill.time_ns);
        }
        if levels.is_empty()
            && let Some(path) =
                found.as_ref().and_then(|(visit, _)| visit.chosen.as_ref()?.task_memcg.as_ref())
            && let Some(place) = self.pods.lineage_of_path(path)
        {
            levels =
                levels::read(&self.pods, &place, &Baseline::BeforeKill(self.sampler.as_ref(), kill.time_ns));
        }
        self.already_dying.fetch_add(u64::from(kill.already_dying), Relaxed);
        let (visit, line) = found.unzip();
        let mut facts = combine(visit, line.as_ref(), levels);
        facts.qos = self.qos(owner.cgroup.id);
        facts.curve = self.curve(owner);
        facts.heap = self.heap(owner, kill.victim.pid);
        facts.already_dying = kill.already_dying;
        facts
    }

    /// Adds what the kernel's log has by now: lines that came after their kills were reported, and the line about the
    /// group, which follows the first kill.
    async fn add_late_lines(&self, incident: &mut PendingIncident) {
        let Some(log) = &self.log else { return };
        for (tid, kill_ns) in incident.take_unlogged() {
            let late = Duration::from_nanos(boot_now_ns().saturating_sub(kill_ns));
            if let Some((visit, line)) = log.kill_of(tid, LATE_LOG_WITHIN.saturating_sub(late)).await {
                self.log_missed.store(false, Relaxed);
                incident.add_late_line(visit, &line);
            }
        }
        if let Some((group, kills)) = incident.sequence().and_then(|first| log.visit_outcome(first)) {
            incident.update_from_log(group, kills);
        }
    }

    /// Reads the processes that are left in the cgroup whose limit was hit; None: that is not known for sure.
    fn survivors(&self, limit: &LimitHit, victim_cgroup: u64) -> Option<JoinHandle<Option<ProcessTable>>> {
        if limit.how != Evidence::Observed {
            return None;
        }
        let place = self.pods.lineage(victim_cgroup)?;
        let step = place.levels.into_iter().find(|step| Some(&step.shown) == limit.path.as_ref())?;
        let (pods, readers, usage) = (self.pods.clone(), self.survivor_readers.clone(), limit.usage_bytes);
        Some(tokio::spawn(async move {
            let _permit = readers.acquire_owned().await.ok()?;
            let read = move || levels::survivors(&pods, &step.path, usage);
            tokio::task::spawn_blocking(read).await.ok().flatten()
        }))
    }

    fn qos(&self, id: u64) -> Option<String> {
        self.pods.lineage(id)?.qos.map(str::to_owned)
    }

    /// The container's curve, also if the victim was in a cgroup inside the container.
    fn curve(&self, owner: &Owner) -> Option<Curve> {
        self.sampler.as_ref()?.curve(self.container_cgroup(owner)?)
    }

    /// The victim's heap before the kill, or that of the largest process of its container that has one.
    fn heap(&self, owner: &Owner, pid: u32) -> Option<RuntimeHeap> {
        self.heaps.as_ref()?.heap(self.container_cgroup(owner)?, pid)
    }

    /// The id of the container's own cgroup.
    fn container_cgroup(&self, owner: &Owner) -> Option<u64> {
        let place = self.pods.lineage(owner.cgroup.id)?;
        let container = place.levels.iter().find(|step| step.level == Level::Container)?;
        Some(container.id.unwrap_or(owner.cgroup.id))
    }

    /// How a container's memory has changed in the last minute; None: it is not sampled, or has too few samples.
    pub fn trend(&self, id: u64) -> Option<MemoryTrend> {
        self.sampler.as_ref()?.trend(id)
    }

    /// The memory records that have changed since the last call, of all containers; empty if memory is not sampled.
    pub fn memory_records(&self) -> Vec<CgroupMemoryRecord> {
        self.sampler.as_ref().map(MemorySampler::memory_records).unwrap_or_default()
    }

    /// The known reasons for a difference between the kernel's count and the victims that the probe saw.
    pub fn known_differences(&self) -> KnownDifferences {
        KnownDifferences {
            already_dying: self.already_dying.load(Relaxed),
            counted_twice: self.log.as_ref().map_or(0, KernelLogFollower::repeats),
        }
    }

    /// Records an incident's kills, so that they are compared with the cgroups' own counters.
    pub fn record_reported_kills(&self, incident: &PendingIncident) {
        let (boot_ns, kills) = incident.counted_kills();
        let Some(sampler) = &self.sampler else { return };
        for (id, kills) in kills {
            sampler.record_reported_kills(id, boot_ns, kills);
        }
    }

    /// The sequence number of the last record of the kernel's log that was read.
    pub fn log_sequence(&self) -> Option<u64> {
        self.log.as_ref()?.last_sequence()
    }

    pub fn losses(&self) -> Losses {
        let mut losses = self.log.as_ref().map(KernelLogFollower::losses).unwrap_or_default();
        losses.extend(self.sampler.as_ref().map(MemorySampler::losses).unwrap_or_default());
        losses.extend(self.heaps.as_ref().map(HeapSampler::losses).unwrap_or_default());
        losses
    }
}

/// Combines the kernel's log with the levels: which limit was hit, and the task table.
fn combine(visit: Option<Visit>, line: Option<&LoggedKill>, levels: Vec<limit::LevelReading>) -> OomFacts {
    let in_cgroup = line.and_then(|line| line.killed.as_ref()).map(|killed| killed.in_cgroup);
    let limit = limit::decide(visit.as_ref(), in_cgroup, &levels);
    let processes = visit.as_ref().and_then(|visit| levels::table(visit, limit.usage_bytes));
    let charged = charged::of(visit.as_ref(), &limit, &levels);
    OomFacts {
        processes,
        charged,
        limit,
        levels,
        visit: visit.map(Arc::new),
        curve: None,
        heap: None,
        qos: None,
        already_dying: false,
    }
}
