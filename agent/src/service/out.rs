//! Event → store → stdout, live streams, exports. Without a state folder there is no store, and an event is told at once.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use jiff::Timestamp;
use tokio::sync::{broadcast, oneshot};

use super::catch_up::Cursors;
use super::stdout::Stdout;
use super::{ExportArgs, Exports, ledgers};
use crate::api::{self, Health, Listening, Pages, Sources};
use podopsy_client::{RUN, SOCKET};
use podopsy_deliver::written::{self, Written};
use podopsy_model::{Event, Losses, Owner};
use podopsy_pods::Pods;
use podopsy_recorder::cpu::always;
use podopsy_recorder::incidents::PodIncidents;
use podopsy_recorder::oom::checkpoint::boot_id;
use podopsy_recorder::{Confirmations, Recorder};
use podopsy_store::{Keeper, Limits, Store, Stored, Told};

use super::keep::Keep;
use super::profiles::{NotKept, Profiles, Takers};

/// Events that a live stream may be behind; what it misses is counted in it.
const LIVE: usize = 256;

/// How long exports have at the end: a destination that is down must not hold up each restart.
const EXPORTS_WITHIN: Duration = Duration::from_secs(5);
/// A reader of stdout that has stopped does not hold up the end.
const STDOUT_WITHIN: Duration = Duration::from_secs(2);
/// What of the end is left to those who come after the profiles.
const AFTER_PROFILES: Duration = Duration::from_secs(3);
/// Between two looks at whether all has been written, at the end.
const LEFT: Duration = Duration::from_millis(20);

/// Where things are.
#[derive(Debug)]
pub struct Paths {
    pub state_dir: Option<PathBuf>,
    pub socket: Option<PathBuf>,
    pub listen: Option<SocketAddr>,
    /// How often what is sampled goes into the store.
    pub keep_every: Duration,
    /// How often each CPU is sampled for it, in a second; 0: not at all.
    pub profile_hz: u64,
    pub node: String,
}

/// Everything that follows an event.
pub struct Out {
    store: Option<(Store, Told)>,
    incidents: PodIncidents,
    live: broadcast::Sender<Arc<Stored>>,
    stdout: Option<Stdout>,
    health: Arc<Health>,
    pages: Arc<Pages>,
    exports: Exports,
    /// How far they have come in the store.
    cursors: Option<Cursors>,
    pods: Arc<Pods>,
    keep: Option<Keep>,
    /// Its interval is that of everything which is sampled for the store.
    always: always::AlwaysOptions,
    profiles: Option<Profiles>,
    /// Profiles that nobody has, by counter name.
    not_kept: NotKept,
    /// Whom to tell which kills are kept.
    confirmations: Option<Arc<Confirmations>>,
    /// Of each kill that is on its way into the store, its place in the line.
    kills: VecDeque<u64>,
    _socket: Option<Listening>,
}

impl Out {
    /// Opens the store, and listens. A socket that cannot be had is said, and costs the API alone; an address that was
    /// asked for and cannot be had is an error.
    pub async fn start(
        paths: Paths,
        limits: Limits,
        mut exports: Exports,
        pods: Arc<Pods>,
    ) -> anyhow::Result<Out> {
        let stdout = Stdout::start().context("start the thread that writes to stdout")?;
        let boot = boot_id();
        let store = paths.state_dir.as_deref().map(|dir| Store::start(dir, &boot, limits)).transpose()?;
        let cursors = paths.state_dir.as_deref().map(|dir| Cursors::open(dir, exports.progress()));
        if let (Some((store, _)), Some(cursors)) = (&store, &cursors) {
            exports.resume(cursors, &store.reader());
        }
        let (live, _) = broadcast::channel(LIVE);
        let health = Arc::new(Health::default());
        let pages = Arc::new(Pages::default());
        let (exported, dropped) = (exports.ledgers(), exports.dropped());
        pages.metrics().also(move || ledgers::families(&exported, dropped.as_deref()));
        paths.state_dir.iter().for_each(|dir| pages.metrics().keeps_in(dir));
        let sources = Sources {
            pods: pods.clone(),
            store: store.as_ref().map(|(store, _)| store.reader()),
            live: live.clone(),
            health: health.clone(),
            pages: pages.clone(),
        };
        let dir = paths.state_dir.as_deref().unwrap_or(Path::new(RUN));
        let socket = paths.socket.clone().unwrap_or_else(|| dir.join(SOCKET));
        let listening = match api::listen(&socket, sources.clone()) {
            Ok(listening) => Some(listening),
            Err(error) if paths.socket.is_some() => return Err(error),
            Err(error) => {
                tracing::warn!("there is no API: {error:#}");
                None
            }
        };
        if let Some(address) = paths.listen {
            let (address, _) = api::listen_health(address, sources).await?;
            tracing::info!(%address, "answers /metrics, /healthz and /readyz");
        }
        let incidents = PodIncidents::new(&boot);
        let Paths { keep_every: every, profile_hz: frequency_hz, node, .. } = paths;
        let always = always::AlwaysOptions { frequency_hz, every, node };
        let trouble = store.as_ref().map(|(store, _)| store.keeper());
        let of_health = health.clone();
        pages.metrics().degraded(move || {
            let not_written = trouble.as_ref().and_then(Keeper::trouble);
            of_health.ready(None, not_written).degraded.len()
        });
        let not_kept = NotKept::default();
        let (of_profiles, of_stdout) = (not_kept.clone(), stdout.lost());
        let (of_store, of_incidents) = (store.as_ref().map(|(store, _)| store.keeper()), incidents.evicted());
        pages.metrics().lost_beside(move || {
            let mut losses = of_profiles.losses();
            losses.extend(of_stdout.losses());
            losses.extend(of_incidents.losses());
            losses.extend(of_store.iter().flat_map(Keeper::losses));
            losses
        });
        let (keep, profiles, _socket) = (None, None, listening);
        let (confirmations, kills) = (None, VecDeque::new());
        Ok(Out {
            store,
            incidents,
            live,
            stdout: Some(stdout),
            health,
            pages,
            exports,
            cursors,
            pods,
            keep,
            always,
            profiles,
            not_kept,
            confirmations,
            kills,
            _socket,
        })
    }

    /// From here on the agent is ready, but for what this recorder had to leave out.
    pub fn attached(&mut self, recorder: &Recorder) {
        if let Some((store, _)) = &self.store {
            let (scraper, pods) = (recorder.scraper(), self.pods.clone());
            let confirmations = recorder.confirmations();
            confirmations.await_store();
            self.confirmations = Some(confirmations);
            self.keep = Some(Keep::start(self.always.every, scraper, pods, store.keeper()));
        }
        self.pages.attached(recorder.scraper());
        self.exports.measure(self.pages.clone());
        let (pyroscope, otlp) = self.exports.profiles();
        let takers = Takers {
            store: self.store.as_ref().map(|(store, _)| store.keeper()),
            pyroscope,
            otlp,
            node: self.always.node.clone(),
            not_kept: self.not_kept.clone(),
        };
        if self.always.frequency_hz > 0 && !takers.is_empty() {
            let (told, pods) = ((self.health.clone(), self.pages.clone()), self.pods.clone());
            let options = (self.always.clone(), recorder.shed());
            self.profiles = Some(Profiles::start(options, pods, takers, told));
        }
        recorder.attached().iter().for_each(|&(name, is)| self.pages.metrics().probe(name, is));
        self.health.attached(recorder.degraded().to_vec());
    }

    /// Done when nothing is loaded into the kernel any more; None: that is now.
    pub fn settling(&mut self) -> Option<oneshot::Receiver<()>> {
        self.profiles.as_mut().and_then(Profiles::settling)
    }

    /// The pipeline has come round: incidents that have changed are kept as they are now.
    pub fn round(&mut self) {
        self.health.alive();
        self.acknowledge();
        let changed = self.incidents.changed(Timestamp::now());
        self.exports.round(&changed);
        self.cursors.iter_mut().for_each(Cursors::round);
        let Some((store, _)) = &self.store else { return };
        for incident in changed {
            let owner = Owner { pod: Some(incident.pod.clone()), ..Owner::default() };
            store.put_incident(&incident.incident, (incident.from, incident.until), &owner, &incident);
        }
    }

    /// Stores an event; it is told by [`Out::tell`] once it may be, or at once where nothing is kept.
    pub fn take(&mut self, event: Event) -> anyhow::Result<()> {
        match &self.store {
            None => self.tell(Stored { id: None, event }),
            Some((store, _)) => {
                let is_recoverable = Confirmations::is_recoverable(&event);
                let put = store.put(event);
                if is_recoverable {
                    self.kills.push_back(store.passed().0);
                }
                match put {
                    Ok(()) => Ok(()),
                    Err(event) => self.tell(Stored { id: None, event: *event }),
                }
            }
        }
    }

    /// Says which kills a restart need not tell again.
    fn acknowledge(&mut self) {
        let (Some((store, _)), Some(confirmations)) = (&self.store, &self.confirmations) else { return };
        let (_, done) = store.passed();
        let kept = self.kills.iter().take_while(|place| **place <= done).count();
        self.kills.drain(..kept);
        confirmations.kept(kept as u64);
    }

    /// The next event that may be told; waits for good where nothing is kept.
    pub async fn stored(&mut self) -> Stored {
        if let Some((_, told)) = &mut self.store
            && let Some(stored) = told.recv().await
        {
            return stored;
        }
        std::future::pending().await
    }

    /// Prints it, exports it, and hands it to whoever listens.
    pub fn tell(&mut self, mut stored: Stored) -> anyhow::Result<()> {
        if let Some((store, _)) = &self.store {
            stored.event.losses.extend(store.losses());
        }
        if self.store.is_some() || self.exports.takes_incidents() {
            stored.event.losses.extend(self.incidents.evicted().losses());
            self.incidents.add(&stored.event, stored.id);
        }
        stored.event.losses.extend(self.exports.losses());
        stored.event.losses.extend(self.stdout.iter().flat_map(|stdout| stdout.lost().losses()));
        let line = if self.exports.is_empty() {
            written::line(&stored.event)?
        } else {
            let written = Written::new(stored.event.clone(), stored.id)?;
            self.exports.offer(&written);
            written.line.clone()
        };
        if let Some(stdout) = &self.stdout {
            stdout.line(line);
        }
        self.exports.told(&stored.event);
        self.pages.metrics().observe(&stored.event);
        // Nobody listens: that is their choice.
        let _ = self.live.send(Arc::new(stored));
        Ok(())
    }

    /// As [`Exports::reroute`].
    pub fn reroute(&self, args: &ExportArgs) -> anyhow::Result<Vec<&'static str>> {
        self.exports.reroute(args)
    }

    pub fn set_limits(&self, limits: Limits) {
        if let Some((store, _)) = &self.store {
            store.set_limits(limits);
        }
    }

    /// Whoever needs time to come to its end begins now.
    pub fn stopping(&mut self) {
        self.health.stopping();
        self.profiles.iter_mut().for_each(Profiles::stop);
    }

    /// What was lost here, by counter name.
    pub fn losses(&self) -> Losses {
        self.not_kept.losses()
    }

    /// Tells what is left, keeps what became of it, closes the store, and then delivers what waits until `deadline`.
    pub async fn close(&mut self, deadline: Instant) -> anyhow::Result<()> {
        if let Some(profiles) = self.profiles.take() {
            // What they leave behind has to be written, and sent.
            let left = deadline.saturating_duration_since(Instant::now());
            profiles.end(left.saturating_sub(AFTER_PROFILES)).await;
        }
        if let Some(keep) = self.keep.take() {
            keep.end().await;
        }
        while self.store.as_ref().is_some_and(|(store, _)| store.waiting() > 0) {
            if let Ok(stored) = tokio::time::timeout(LEFT, self.stored()).await {
                self.tell(stored)?;
            }
        }
        self.round();
        if let Some(Err(error)) = self.confirmations.take().map(|confirmations| confirmations.save_last()) {
            tracing::warn!("a restart will tell kills again that it need not: {error:#}");
        }
        if let Some((store, mut told)) = self.store.take() {
            store.close();
            while told.recv().await.is_some() {}
        }
        if let Some(stdout) = self.stdout.take() {
            stdout.close(deadline.min(Instant::now() + STDOUT_WITHIN)).await;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let last = self.pages.metrics().families();
        std::mem::take(&mut self.exports).close(left.min(EXPORTS_WITHIN), &last).await;
        if let Some(cursors) = self.cursors.take() {
            cursors.close().await;
        }
        Ok(())
    }
}
