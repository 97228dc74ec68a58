//! The always-on profile, from its probe to whoever takes it: a pprof of each container and minute.
//!
//! It starts beside everything else, since the tables that stacks are unwound by take seconds; and where it cannot be had
//! it costs itself alone, and `/readyz` says so. Must not know: how stacks are taken, what the store does.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::api::{Health, Pages};
use crate::deliver::Inlet;
use crate::deliver::otlp_profiles::Minute;
use crate::deliver::pyroscope::Pprof;
use crate::export;
use crate::model::profile::{Profile, Sampling};
use crate::pods::Pods;
use crate::profiler::always::{Always, Options};
use crate::store::{Keeper, ProfileFacts, ProfileRecord};

/// How long the end may take: what is not kept then is a minute at most.
const END_WITHIN: Duration = Duration::from_secs(4);

/// Who gets the profiles.
pub struct Takers {
    pub store: Option<Keeper>,
    pub pyroscope: Option<Inlet<Pprof>>,
    pub otlp: Option<Inlet<Minute>>,
    /// Its name, for a label.
    pub node: String,
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
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
    settled: Option<oneshot::Receiver<()>>,
}

impl Profiles {
    /// `told`: who is told how it goes.
    pub fn start(
        options: Options,
        pods: Arc<Pods>,
        takers: Takers,
        (health, pages): (Arc<Health>, Arc<Pages>),
    ) -> Profiles {
        let (stop, stopped) = oneshot::channel();
        let (settle, settled) = oneshot::channel();
        let task = tokio::spawn(async move {
            let started = Always::start(options, pods).await;
            let _ = settle.send(());
            match started {
                Ok((always, profiles)) => {
                    always
                        .degraded
                        .iter()
                        .for_each(|why| health.degrade(format!("always-on profile: {why}")));
                    pages.metrics().probe("oncpu", true);
                    tracing::info!("keeps a profile of each container");
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
        Profiles { stop, task, settled: Some(settled) }
    }

    /// Done when its probes are loaded, or cannot be; to be asked for once.
    pub fn settling(&mut self) -> Option<oneshot::Receiver<()>> {
        self.settled.take()
    }

    /// Keeps the minute that has begun, and ends.
    pub async fn end(mut self) {
        let _ = self.stop.send(());
        if tokio::time::timeout(END_WITHIN, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

/// Hands profiles out as they come, until no more can.
async fn keep(mut profiles: mpsc::Receiver<Profile>, takers: Takers) {
    while let Some(profile) = profiles.recv().await {
        // Compressing takes milliseconds: not among those who must not wait.
        let record = tokio::task::spawn_blocking(move || record(&profile)).await;
        if let Ok(Some(record)) = record {
            takers.take(record);
        }
    }
}

fn record(profile: &Profile) -> Option<ProfileRecord> {
    let mut pprof = Vec::new();
    export::pprof::write(profile, &mut pprof).ok()?;
    let (user_stacks, complete) = profile.complete();
    let mut incomplete = std::collections::BTreeMap::new();
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
