//! The always-on profile, from its probe to whoever takes it: a pprof of each container and minute.
//!
//! It starts beside everything else, since the tables that stacks are unwound by take seconds; and where it cannot be had
//! it costs itself alone, and `/readyz` says so. Must not know: how stacks are taken, what the store does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::api::{Health, Pages};
use podopsy_deliver::Inlet;
use podopsy_deliver::otlp_profiles::Minute;
use podopsy_deliver::pyroscope::Pprof;
use podopsy_model::Losses;
use podopsy_model::profile::{Profile, Sampling};
use podopsy_pods::Pods;
use podopsy_profiles::export;
use podopsy_recorder::cpu::always::{AlwaysOn, AlwaysOptions, MINUTES_NOT_NAMED, PROFILES_NOT_KEPT};
use podopsy_recorder::shed::Shed;
use podopsy_store::{Keeper, ProfileFacts, ProfileRecord};
use podopsy_system::heap;

/// What nobody has, by counter name: counted where each is lost.
#[derive(Clone, Debug, Default)]
pub struct NotKept(Arc<Mutex<BTreeMap<&'static str, u64>>>);

impl NotKept {
    pub fn add(&self, name: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
    }

    pub fn losses(&self) -> Losses {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }
}

/// Who gets the profiles.
pub struct Takers {
    pub store: Option<Keeper>,
    pub pyroscope: Option<Inlet<Pprof>>,
    pub otlp: Option<Inlet<Minute>>,
    /// Its name, for a label.
    pub node: String,
    pub not_kept: NotKept,
}

impl Takers {
    /// Nobody takes any.
    pub fn is_empty(&self) -> bool {
        self.store.is_none() && self.pyroscope.is_none() && self.otlp.is_none()
    }

    fn take(&self, record: ProfileRecord) {
        if let Some(inlet) = &self.pyroscope {
            inlet.offer(Pprof::cpu(&self.node, &record.owner, record.pprof.clone()));
        }
        if let Some(inlet) = &self.otlp {
            inlet.offer(Minute::new(&self.node, &record.owner, record.pprof.clone()));
        }
        if let Some(keeper) = &self.store {
            keeper.put_profile(record);
        }
    }
}

/// The running task.
pub struct Profiles {
    stop: Option<oneshot::Sender<()>>,
    not_kept: NotKept,
    task: JoinHandle<()>,
    settled: Option<oneshot::Receiver<()>>,
}

impl Profiles {
    /// `told`: who is told how it goes.
    pub fn start(
        (options, shed): (AlwaysOptions, Arc<Shed>),
        pods: Arc<Pods>,
        takers: Takers,
        (health, pages): (Arc<Health>, Arc<Pages>),
    ) -> Profiles {
        let (stop, stopped) = oneshot::channel();
        let (settle, settled) = oneshot::channel();
        let not_kept = takers.not_kept.clone();
        let task = tokio::spawn(async move {
            let (lost, not_kept_at_end) = (takers.not_kept.clone(), takers.not_kept.clone());
            let started = AlwaysOn::start(options, pods, shed, move |name| lost.add(name)).await;
            let _ = settle.send(());
            match started {
                Ok((always, profiles)) => {
                    always
                        .degraded
                        .iter()
                        .for_each(|why| health.degrade(format!("always-on profile: {why}")));
                    pages.metrics().probe("oncpu", true);
                    tracing::info!("keeps a profile of each container");
                    heap::give_back();
                    let keep = keep(profiles, takers);
                    tokio::pin!(keep);
                    tokio::select! {
                        () = &mut keep => {
                            tracing::warn!("no profile is kept any more: the profiler ended by itself");
                            pages.metrics().probe("oncpu", false);
                            health.degrade("no profile is kept any more".to_owned());
                        }
                        _ = stopped => {
                            let (ended, ()) = tokio::join!(always.end(), keep);
                            if let Err(error) = ended {
                                not_kept_at_end.add(MINUTES_NOT_NAMED);
                                tracing::warn!("the last minute's profiles are not kept: {error:#}");
                            }
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!("no profile is kept: {error:#}");
                    pages.metrics().probe("oncpu", false);
                    health.degrade(format!("no profile is kept: {error:#}"));
                }
            }
        });
        Profiles { stop: Some(stop), not_kept, task, settled: Some(settled) }
    }

    /// Done when its probes are loaded, or cannot be; to be asked for once.
    pub fn settling(&mut self) -> Option<oneshot::Receiver<()>> {
        self.settled.take()
    }

    /// Keeps the minute that has begun: names take seconds where much has run, while others come to their end, too.
    pub fn stop(&mut self) {
        let _ = self.stop.take().map(|stop| stop.send(()));
    }

    /// Waits for it so long; what is not kept then is a minute at most, and counted.
    pub async fn end(mut self, within: Duration) {
        self.stop();
        if tokio::time::timeout(within, &mut self.task).await.is_err() {
            self.task.abort();
            self.not_kept.add(MINUTES_NOT_NAMED);
            tracing::warn!("the last minute's profiles are not kept: its names took longer than {within:?}");
        }
    }
}

/// Hands profiles out as they come, until no more can.
async fn keep(mut profiles: mpsc::Receiver<Profile>, takers: Takers) {
    while let Some(profile) = profiles.recv().await {
        // Compressing takes milliseconds: not among those who must not wait.
        let record = tokio::task::spawn_blocking(move || record(&profile)).await;
        match record {
            Ok(Some(record)) => takers.take(record),
            _ => takers.not_kept.add(PROFILES_NOT_KEPT),
        }
        // A minute's last: its stacks and names are not needed any more.
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
    let (samples, lost) = (profile.total(), profile.losses.clone());
    let facts = ProfileFacts { frequency_hz, samples, user_stacks, complete, incomplete, lost };
    let mut owner = (*profile.samples.first()?.owner).clone();
    if owner.pod.is_none() {
        // All of the host's in one: no one cgroup is its owner.
        owner.cgroup = Default::default();
    }
    let lasted = jiff::SignedDuration::try_from(profile.duration).ok()?;
    let end = profile.start.checked_add(lasted).ok()?;
    Some(ProfileRecord { owner, begin: profile.start, end, pprof, facts })
}
