//! The autopsy: a kill that the probe saw, with the kernel's log, counters, the curve before it and the
//! runtime's word put to it.
//!
//! Kill → [`OomExaminer::examine`] → [`IncidentBuilder`] (all kills of one visit make one incident) → verdict → event.
//! Must not know: aya, how anything is rendered.

pub(crate) mod attribute;
mod builder;
pub mod checkpoint;
pub(crate) mod instruments;
mod levels;
mod limit;
pub(crate) mod reader;
pub mod reconcile;
pub mod recover;
pub(crate) mod stacks;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::kernel_log::KernelLogFollower;
use crate::kernel_log::visit::{LoggedKill, Visit};
use crate::memory::{CgroupMemoryRecord, MemorySampler, MemoryTrend};
use podopsy_decode::OomDecoded;
use podopsy_model::incident::{How, Level, LevelState, Limit, ProcessTable};
use podopsy_model::memory::Curve;
use podopsy_model::{Losses, Owner};
use podopsy_pods::Pods;
use podopsy_system::clock::boot_now_ns;

pub use builder::{IncidentBuilder, PendingIncident};
use levels::Before;

/// How long after a kill the log's line on it may come. It is written by the killer, right after the probe has seen
/// the victim; but a machine without memory is slow, and so is a serial console that prints the killer's table.
const LOG_WITHIN: Duration = Duration::from_secs(3);
/// The same once a line has not come: a log that lost one must not hold up all kills behind it.
const LOG_WITHIN_AFTER_A_MISS: Duration = Duration::from_millis(300);

/// Everything of one kill but the kill itself.
#[derive(Clone, Debug)]
pub struct OomFacts {
    /// What the log has of it, and of those killed with it.
    pub visit: Option<Arc<Visit>>,
    pub limit: Limit,
    pub levels: Vec<LevelState>,
    pub processes: Option<ProcessTable>,
    pub curve: Option<Curve>,
    pub qos: Option<String>,
    pub already_dying: bool,
}

/// Puts facts to kills.
pub struct OomExaminer {
    pods: Arc<Pods>,
    sampler: Option<MemorySampler>,
    log: Option<KernelLogFollower>,
    dying: AtomicU64,
    log_missed: AtomicBool,
}

impl std::fmt::Debug for OomExaminer {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (sampler, log) = (self.sampler.is_some(), self.log.is_some());
        to.debug_struct("OomExaminer").field("sampler", &sampler).field("log", &log).finish()
    }
}

impl OomExaminer {
    /// `sampler`, `log`: None where this machine (or this command) has none.
    pub fn new(
        pods: Arc<Pods>,
        sampler: Option<MemorySampler>,
        log: Option<KernelLogFollower>,
    ) -> OomExaminer {
        OomExaminer { pods, sampler, log, dying: AtomicU64::new(0), log_missed: AtomicBool::new(false) }
    }

    /// Reads what is still there at once, then waits a moment for the log.
    pub async fn examine(&self, kill: &OomDecoded, owner: &Owner) -> OomFacts {
        let mut levels = self.levels(owner.cgroup.id, kill.time_ns);
        // One that was dying before has no line to wait for.
        let found = match kill.already_dying {
            true => None,
            false => self.in_log(kill.victim.tid, kill.time_ns).await,
        };
        if levels.is_empty()
            && let Some(path) =
                found.as_ref().and_then(|(visit, _)| visit.chosen.as_ref()?.task_memcg.as_ref())
            && let Some(place) = self.pods.place_of(path)
        {
            levels = levels::read(&self.pods, &place, &Before::Kill(self.sampler.as_ref(), kill.time_ns));
        }
        self.dying.fetch_add(u64::from(kill.already_dying), Relaxed);
        let (visit, line) = found.unzip();
        let mut facts = facts(visit, line.as_ref(), levels);
        facts.qos = self.qos(owner.cgroup.id);
        facts.curve = self.curve(owner);
        facts.already_dying = kill.already_dying;
        if facts.processes.is_none()
            && facts.limit.how == How::Observed
            && let Some(step) = self.step_of(&facts.limit, owner)
        {
            facts.processes = levels::survivors(&self.pods, &step, facts.limit.usage_bytes);
        }
        facts
    }

    fn levels(&self, id: u64, kill_ns: u64) -> Vec<limit::Reading> {
        let Some(place) = self.pods.place(id) else { return Vec::new() };
        levels::read(&self.pods, &place, &Before::Kill(self.sampler.as_ref(), kill_ns))
    }

    async fn in_log(&self, tid: u32, kill_ns: u64) -> Option<(Visit, LoggedKill)> {
        let within = if self.log_missed.load(Relaxed) { LOG_WITHIN_AFTER_A_MISS } else { LOG_WITHIN };
        // We may be late ourselves, and then whoever reads the log is, too.
        let late = Duration::from_nanos(boot_now_ns().saturating_sub(kill_ns));
        let patience = within.saturating_sub(late).max(within / 3);
        let found = self.log.as_ref()?.kill_of(tid, patience).await;
        self.log_missed.store(found.is_none(), Relaxed);
        found
    }

    fn qos(&self, id: u64) -> Option<String> {
        self.pods.place(id)?.qos.map(str::to_owned)
    }

    /// Of the container, also where the victim sat in a cgroup inside of it.
    fn curve(&self, owner: &Owner) -> Option<Curve> {
        let place = self.pods.place(owner.cgroup.id)?;
        let container = place.steps.iter().find(|step| step.level == Level::Container)?;
        self.sampler.as_ref()?.curve(container.id.unwrap_or(owner.cgroup.id))
    }

    /// Where the memory of a container goes; None: nobody looks, or too short a time.
    pub fn trend(&self, id: u64) -> Option<MemoryTrend> {
        self.sampler.as_ref()?.trend(id)
    }

    /// What is to be kept of every container's memory; nothing where nobody samples it.
    pub fn memory_records(&self) -> Vec<CgroupMemoryRecord> {
        self.sampler.as_ref().map(MemorySampler::memory_records).unwrap_or_default()
    }

    fn step_of(&self, limit: &Limit, owner: &Owner) -> Option<std::path::PathBuf> {
        let place = self.pods.place(owner.cgroup.id)?;
        place.steps.into_iter().find(|step| Some(&step.shown) == limit.path.as_ref()).map(|step| step.path)
    }

    /// What a visit has come to: see [`KernelLogFollower::visit_outcome`].
    pub fn visit_outcome(&self, sequence: u64) -> Option<(bool, u64)> {
        self.log.as_ref()?.visit_outcome(sequence)
    }

    /// By how many the kernel's count differs from the victims seen, for known reasons: (victims that were dying
    /// before, which it does not count; victims of groups that it counts twice).
    pub fn known_differences(&self) -> (u64, u64) {
        (self.dying.load(Relaxed), self.log.as_ref().map_or(0, KernelLogFollower::repeats))
    }

    /// Enters what was told of an incident, to be compared with the cgroups' own counters.
    pub fn record_reported_kills(&self, incident: &PendingIncident) {
        let (boot_ns, kills) = incident.counted_kills();
        let Some(sampler) = &self.sampler else { return };
        kills.into_iter().for_each(|(id, kills)| sampler.record_reported_kills(id, boot_ns, kills));
    }

    /// The last record of the kernel's log that was read.
    pub fn log_sequence(&self) -> Option<u64> {
        self.log.as_ref()?.last_sequence()
    }

    pub fn losses(&self) -> Losses {
        let mut losses = self.log.as_ref().map(KernelLogFollower::losses).unwrap_or_default();
        losses.extend(self.sampler.as_ref().map(MemorySampler::losses).unwrap_or_default());
        losses
    }
}

/// What log and levels say together.
fn facts(visit: Option<Visit>, line: Option<&LoggedKill>, levels: Vec<limit::Reading>) -> OomFacts {
    let in_cgroup = line.and_then(|line| line.killed.as_ref()).map(|killed| killed.in_cgroup);
    let limit = limit::decide(visit.as_ref(), in_cgroup, &levels);
    let processes = visit.as_ref().and_then(|visit| levels::table(visit, limit.usage_bytes));
    OomFacts {
        processes,
        limit,
        levels: levels.into_iter().map(|level| level.state).collect(),
        visit: visit.map(Arc::new),
        curve: None,
        qos: None,
        already_dying: false,
    }
}
