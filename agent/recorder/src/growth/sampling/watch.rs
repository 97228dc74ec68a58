//! The task that chooses candidates twice a second, and passes their cgroups to the kernel side.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use super::SamplerState;
use crate::growth::{ContainerKey, RunningContainer};
use crate::memory::MemoryTrend;
use crate::oom::OomExaminer;
use crate::shed::ShedStep;
use podopsy_model::KnownBy;
use podopsy_pods::{MemoryCgroup, Pods};
use podopsy_probes::{Probes, Targets};
use podopsy_system::sync::lock;

/// How often candidates are chosen: a restarted container is sampled from the next choice on.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Curves have a point a second, and cost more to read.
const TRENDS_EVERY: Duration = Duration::from_secs(2);
/// Names asked for at a time, so that a restarted agent does not flood the runtime.
const NAMES_A_LOOK: usize = 16;
/// Processes of a new candidate whose unwind tables are made before they are sampled.
const PROCESSES: usize = 64;

/// Chooses which containers to sample.
pub(super) struct Watch {
    probes: Weak<Mutex<Probes>>,
    targets: Targets,
    /// The kernel's events are open.
    sampling: bool,
    shared: Arc<SamplerState>,
    pods: Arc<Pods>,
    examiner: Arc<OomExaminer>,
    /// Names of living containers, by cgroup.
    keys: HashMap<u64, Option<ContainerKey>>,
    began: Instant,
    trends: HashMap<u64, MemoryTrend>,
    trends_at: Option<Instant>,
    /// The kernel refused the perf events, which was logged.
    is_refused: bool,
}

impl Watch {
    pub(super) fn new(
        probes: Weak<Mutex<Probes>>,
        targets: Targets,
        shared: Arc<SamplerState>,
        pods: Arc<Pods>,
        examiner: Arc<OomExaminer>,
    ) -> Watch {
        Watch {
            probes,
            targets,
            sampling: false,
            shared,
            pods,
            examiner,
            keys: HashMap::new(),
            began: Instant::now(),
            trends: HashMap::new(),
            trends_at: None,
            is_refused: false,
        }
    }

    pub(super) async fn run(mut self) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !self.is_refused {
            ticks.tick().await;
            self.look().await;
        }
    }

    async fn look(&mut self) {
        let mut levels = self.pods.memory_cgroups();
        levels.retain(|level| level.container);
        self.learn_names(&levels).await;
        if self.trends_at.is_none_or(|at| at.elapsed() >= TRENDS_EVERY) {
            self.trends_at = Some(Instant::now());
            let trend = |level: &MemoryCgroup| Some((level.id, self.examiner.trend(level.id)?));
            self.trends = levels.iter().filter_map(trend).collect();
        }
        let candidate = |level: &MemoryCgroup| RunningContainer {
            id: level.id,
            key: self.keys.get(&level.id).cloned().flatten(),
            trend: self.trends.get(&level.id).copied(),
        };
        let running: Vec<RunningContainer> = levels.iter().map(candidate).collect();
        let (changes, none) = {
            let mut candidates = self.shared.candidates();
            (candidates.choose(&running, self.began.elapsed()), candidates.is_empty())
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
        // Only looks with a candidate are counted.
        let idle = none || self.shared.shed.should_shed(ShedStep::Growth);
        if self.sampling == idle {
            self.switch(!idle).await;
        }
    }

    /// Learns the names of containers. They are needed only after a kill.
    async fn learn_names(&mut self, levels: &[MemoryCgroup]) {
        if !self.shared.candidates().remembers_kills() {
            return;
        }
        let alive: HashSet<u64> = levels.iter().map(|level| level.id).collect();
        self.keys.retain(|id, _| alive.contains(id));
        let unknown = levels.iter().map(|level| level.id).filter(|id| !self.keys.contains_key(id));
        let unknown: Vec<u64> = unknown.take(NAMES_A_LOOK).collect();
        for id in unknown {
            let owner = self.pods.owner_of_cgroup(id).await;
            let key = owner.pod.zip(owner.container).map(|(pod, container)| (pod.uid, container.name));
            // A container that the runtime does not know yet is asked for again.
            if key.is_some() || matches!(owner.known_by, KnownBy::Host | KnownBy::LogDirectory) {
                self.keys.insert(id, key);
            }
        }
    }

    /// Has the unwind tables of new candidates made. Reads cgroupfs on a thread that may block.
    async fn make_tables(&self, levels: Vec<MemoryCgroup>) {
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

    /// Opens the perf events with the first candidate, and closes them with the last.
    async fn switch(&mut self, on: bool) {
        let Some(probes) = self.probes.upgrade() else { return };
        let switch = move || {
            let mut probes = lock(&probes);
            if on { probes.start_sampling() } else { probes.stop_sampling() }
        };
        match tokio::task::spawn_blocking(switch).await {
            Ok(Ok(())) => self.sampling = on,
            Ok(Err(error)) => {
                tracing::warn!("OOM kills lack the growth profile: {error:#}");
                self.is_refused = true;
            }
            // The recorder stops.
            Err(_) => {}
        }
    }
}
