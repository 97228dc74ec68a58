//! The always-on profile, from its probe to the store and the exports: one pprof per container and minute.
//!
//! It starts in the background, because loading the unwind tables takes seconds. If it cannot start, only the profile is
//! missing, and `/readyz` reports it as degraded. This module must not depend on how stacks are sampled or stored.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::api::{Health, MetricsPage};
use podopsy_deliver::QueueSender;
use podopsy_deliver::otlp_profiles::OtlpProfile;
use podopsy_deliver::pyroscope::PyroscopeProfile;
use podopsy_model::Losses;
use podopsy_model::profile::{Profile, Sampling};
use podopsy_pods::Pods;
use podopsy_profiles::export;
use podopsy_recorder::cpu::always::{AlwaysOn, AlwaysOptions, MINUTES_NOT_NAMED, PROFILES_NOT_KEPT};
use podopsy_recorder::shed::Shed;
use podopsy_store::{ProfileFacts, ProfileRecord, StoreSender};
use podopsy_system::heap;
use podopsy_system::sync::lock;

/// Loss counters by name, shared by the tasks that count.
#[derive(Clone, Debug, Default)]
pub struct LossCounters(Arc<Mutex<BTreeMap<&'static str, u64>>>);

impl LossCounters {
    pub fn add(&self, name: &'static str) {
        *lock(&self.0).entry(name).or_default() += 1;
    }

    pub fn snapshot(&self) -> Losses {
        lock(&self.0).iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }
}

/// The receivers of profiles.
pub struct ProfileSinks {
    pub store: Option<StoreSender>,
    pub pyroscope: Option<QueueSender<PyroscopeProfile>>,
    pub otlp: Option<QueueSender<OtlpProfile>>,
    /// The node's name, for a label.
    pub node: String,
    pub losses: LossCounters,
}

impl ProfileSinks {
    pub fn is_empty(&self) -> bool {
        self.store.is_none() && self.pyroscope.is_none() && self.otlp.is_none()
    }

    fn offer(&self, record: ProfileRecord) {
        if let Some(sender) = &self.pyroscope {
            sender.offer(PyroscopeProfile::cpu(&self.node, &record.owner, record.pprof.clone()));
        }
        if let Some(sender) = &self.otlp {
            sender.offer(OtlpProfile::new(&self.node, &record.owner, record.pprof.clone()));
        }
        if let Some(keeper) = &self.store {
            keeper.put_profile(record);
        }
    }
}

/// What the profiler needs to start.
pub struct ProfilerInputs {
    pub options: AlwaysOptions,
    pub shed: Arc<Shed>,
    pub pods: Arc<Pods>,
}

/// Where the task reports whether it works.
pub struct AlwaysOnStatus {
    pub health: Arc<Health>,
    pub pages: Arc<MetricsPage>,
}

impl AlwaysOnStatus {
    fn set_attached(&self, is_attached: bool) {
        self.pages.metrics().set_probe_attached("oncpu", is_attached);
    }
}

/// The running task.
pub struct AlwaysOnTask {
    stop: Option<oneshot::Sender<()>>,
    losses: LossCounters,
    task: JoinHandle<()>,
    loaded: Option<oneshot::Receiver<()>>,
}

impl AlwaysOnTask {
    pub fn start(inputs: ProfilerInputs, sinks: ProfileSinks, status: AlwaysOnStatus) -> AlwaysOnTask {
        let (stop, stopped) = oneshot::channel();
        let (report_loaded, loaded) = oneshot::channel();
        let losses = sinks.losses.clone();
        let task = tokio::spawn(async move {
            let losses = sinks.losses.clone();
            let ProfilerInputs { options, shed, pods } = inputs;
            // Before tables are built for the programs that run: that takes as long as they make it take.
            let loaded = move || {
                // The receiver may be gone: restraint is off.
                let _ = report_loaded.send(());
            };
            let started = AlwaysOn::start(options, pods, shed, loaded, move |name| losses.add(name)).await;
            match started {
                Ok((always, profiles)) => keep_until_stopped(always, profiles, sinks, status, stopped).await,
                Err(error) => {
                    tracing::warn!("cannot profile containers: {error:#}");
                    status.set_attached(false);
                    status.health.degrade(format!("no profile is kept: {error:#}"));
                }
            }
        });
        AlwaysOnTask { stop: Some(stop), losses, task, loaded: Some(loaded) }
    }

    /// Completes when the probes are loaded, or cannot be. Only the first call returns it.
    pub fn probes_loaded(&mut self) -> Option<oneshot::Receiver<()>> {
        self.loaded.take()
    }

    /// Begins to end the task and to keep the current minute. Finding names takes seconds on a busy node, so this can run
    /// while other tasks end.
    pub fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }

    /// Waits for the end of the task. After `timeout`, the last minute is lost, and counted.
    pub async fn end(mut self, timeout: Duration) {
        self.stop();
        if tokio::time::timeout(timeout, &mut self.task).await.is_err() {
            self.task.abort();
            self.losses.add(MINUTES_NOT_NAMED);
            tracing::warn!("dropped the last minute's profiles: finding names took longer than {timeout:?}");
        }
    }
}

async fn keep_until_stopped(
    always: AlwaysOn,
    profiles: mpsc::Receiver<Profile>,
    sinks: ProfileSinks,
    status: AlwaysOnStatus,
    stopped: oneshot::Receiver<()>,
) {
    for reason in &always.degraded {
        status.health.degrade(format!("always-on profile: {reason}"));
    }
    status.set_attached(true);
    tracing::info!("keeps a profile of each container");
    heap::give_back();
    let losses = sinks.losses.clone();
    let distribute = distribute(profiles, sinks);
    tokio::pin!(distribute);
    tokio::select! {
        () = &mut distribute => {
            tracing::warn!("stopped profiling containers: the profiler ended unexpectedly");
            status.set_attached(false);
            status.health.degrade("no profile is kept any more".to_owned());
        }
        _ = stopped => {
            let (ended, ()) = tokio::join!(always.end(), distribute);
            if let Err(error) = ended {
                losses.add(MINUTES_NOT_NAMED);
                tracing::warn!("dropped the last minute's profiles: {error:#}");
            }
        }
    }
}

/// Passes profiles to the sinks until the profiler ends.
async fn distribute(mut profiles: mpsc::Receiver<Profile>, sinks: ProfileSinks) {
    while let Some(profile) = profiles.recv().await {
        // Compressing takes milliseconds, which must not block the runtime's threads.
        let record = tokio::task::spawn_blocking(move || record(&profile)).await;
        match record {
            Ok(Some(record)) => sinks.offer(record),
            _ => sinks.losses.add(PROFILES_NOT_KEPT),
        }
        // After a minute's last profile, the memory of its stacks and names is returned.
        if profiles.is_empty() {
            let _ = tokio::task::spawn_blocking(heap::give_back).await;
        }
    }
}

fn record(profile: &Profile) -> Option<ProfileRecord> {
    let mut pprof = Vec::new();
    export::pprof::write(profile, &mut pprof).ok()?;
    let (user_stacks, complete) = profile.complete();
    let mut incomplete = BTreeMap::new();
    for (reason, count) in profile.quality.iter().flat_map(|quality| &quality.incomplete) {
        *incomplete.entry(reason.clone()).or_default() += count;
    }
    let Sampling::Cpu { frequency_hz } = profile.sampling else { return None };
    let facts = ProfileFacts {
        frequency_hz,
        samples: profile.total(),
        user_stacks,
        complete,
        incomplete,
        lost: profile.losses.clone(),
    };
    let mut owner = (*profile.samples.first()?.owner).clone();
    if owner.pod.is_none() {
        // One profile for all host processes, which are in many cgroups.
        owner.cgroup = Default::default();
    }
    let duration = jiff::SignedDuration::try_from(profile.duration).ok()?;
    let end = profile.start.checked_add(duration).ok()?;
    Some(ProfileRecord { owner, begin: profile.start, end, pprof, facts })
}
