//! Event → store → stdout, live streams, exports. Without a state folder there is no store, and an event is reported at
//! once.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use jiff::Timestamp;
use tokio::sync::{broadcast, oneshot};

use super::always_on::{AlwaysOnStatus, AlwaysOnTask, LossCounters, ProfileSinks, ProfilerInputs};
use super::catch_up::ExportCheckpoints;
use super::memory_records::MemoryRecordTask;
use super::stdout::StdoutWriter;
use super::{ExportArgs, Exports, delivery_metrics};
use crate::api::{self, ApiListener, Health, MetricsPage, MetricsToken, Sources};
use podopsy_client::{RUN_DIR, SOCKET_NAME};
use podopsy_deliver::{EncodedEvent, to_json_line};
use podopsy_model::{Event, Losses, Owner};
use podopsy_pods::Pods;
use podopsy_recorder::cpu::always;
use podopsy_recorder::incidents::PodIncidents;
use podopsy_recorder::oom::checkpoint::boot_id;
use podopsy_recorder::{Confirmations, Recorder};
use podopsy_stacks::Helpers;
use podopsy_store::{Store, StoreLimits, StoreReceiver, StoreSender, StoredEvent};

/// The number of events that a live stream may lag behind. The stream counts the events that it misses.
const LIVE_CAPACITY: usize = 256;

/// How long exports may take at the end: a destination that is down must not delay each restart.
const EXPORTS_CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long stdout may take at the end: its reader may have stopped reading.
const STDOUT_CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// The part of the time at the end that is reserved for the steps after the profiles.
const RESERVED_AFTER_PROFILES: Duration = Duration::from_secs(3);
/// Between two checks whether the store has written everything, at the end.
const STORED_CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// Where the outputs are, and what is sampled for the store.
#[derive(Debug)]
pub struct OutputOptions {
    pub state_dir: Option<PathBuf>,
    pub socket: Option<PathBuf>,
    pub listen: Option<SocketAddr>,
    /// The file with the token that `/metrics` needs by TCP.
    pub metrics_token_file: Option<PathBuf>,
    /// The interval at which samples are written to the store.
    pub keep_every: Duration,
    /// The always-on profile's samples per second on each CPU. 0: no profile.
    pub profile_hz: u64,
    pub node: String,
    /// Open and parse the files of containers.
    pub helpers: Helpers,
}

/// Everything that an event passes through after the recorder.
pub struct Outputs {
    store: Option<(Store, StoreReceiver)>,
    incidents: PodIncidents,
    live: broadcast::Sender<Arc<StoredEvent>>,
    stdout: Option<StdoutWriter>,
    health: Arc<Health>,
    pages: Arc<MetricsPage>,
    exports: Exports,
    /// How much of the store each destination has finished.
    export_checkpoints: Option<ExportCheckpoints>,
    pods: Arc<Pods>,
    memory_records: Option<MemoryRecordTask>,
    /// Its interval is also that of the memory records.
    always_on_options: always::AlwaysOptions,
    always_on: Option<AlwaysOnTask>,
    /// Profiles that were lost.
    profile_losses: LossCounters,
    /// The recorder's checkpoint, which must know which kills are stored.
    recovery: Option<Arc<Confirmations>>,
    /// The sequence numbers of the kills that the store has not written yet.
    unstored_kills: VecDeque<u64>,
    _socket: Option<ApiListener>,
}

impl Outputs {
    /// Opens the store, and listens.
    ///
    /// Without an explicit path, a socket that cannot be used only disables the API, and a warning is logged. An explicit
    /// path or address that cannot be used is an error.
    pub async fn start(
        options: OutputOptions,
        limits: StoreLimits,
        mut exports: Exports,
        pods: Arc<Pods>,
    ) -> anyhow::Result<Outputs> {
        let stdout = StdoutWriter::start().context("start the thread that writes to stdout")?;
        let boot = boot_id();
        let state_dir = options.state_dir.as_deref();
        let store = state_dir.map(|dir| Store::start(dir, &boot, limits)).transpose()?;
        let export_checkpoints = state_dir.map(|dir| ExportCheckpoints::open(dir, exports.checkpoints()));
        if let (Some((store, _)), Some(checkpoints)) = (&store, &export_checkpoints) {
            exports.catch_up(checkpoints, &store.reader());
        }
        let (live, _) = broadcast::channel(LIVE_CAPACITY);
        let health = Arc::new(Health::default());
        let pages = Arc::new(MetricsPage::default());
        let sources = Sources {
            pods: pods.clone(),
            store: store.as_ref().map(|(store, _)| store.reader()),
            live: live.clone(),
            health: health.clone(),
            metrics_page: pages.clone(),
        };
        let mut outputs = Outputs {
            store,
            incidents: PodIncidents::new(&boot),
            live,
            stdout: Some(stdout),
            health,
            pages,
            exports,
            export_checkpoints,
            pods,
            memory_records: None,
            always_on_options: always::AlwaysOptions {
                frequency_hz: options.profile_hz,
                every: options.keep_every,
                node: options.node.clone(),
                helpers: options.helpers.clone(),
            },
            always_on: None,
            profile_losses: LossCounters::default(),
            recovery: None,
            unstored_kills: VecDeque::new(),
            _socket: None,
        };
        outputs.register_metrics(options.state_dir.as_deref());
        outputs._socket = listen(&options, sources).await?;
        Ok(outputs)
    }

    /// Adds the counters of the outputs to `/metrics`.
    fn register_metrics(&self, state_dir: Option<&Path>) {
        let metrics = self.pages.metrics();
        let (destinations, dropped) = (self.exports.stats(), self.exports.dropped());
        metrics.set_family_source(move || delivery_metrics::families(&destinations, dropped.as_deref()));
        if let Some(dir) = state_dir {
            metrics.set_state_dir(dir);
        }
        let keeper = self.store.as_ref().map(|(store, _)| store.sender());
        let health = self.health.clone();
        metrics.set_degraded_count(move || {
            let store_trouble = keeper.as_ref().and_then(StoreSender::trouble);
            health.readiness(None, store_trouble).degraded.len()
        });
        let keeper = self.store.as_ref().map(|(store, _)| store.sender());
        let profiles = self.profile_losses.clone();
        let stdout = self.stdout.as_ref().map(StdoutWriter::losses);
        let incidents = self.incidents.evicted();
        let helpers = self.always_on_options.helpers.clone();
        metrics.set_loss_source(move || {
            let mut losses = profiles.snapshot();
            let ((_, workers_lost), (openers_late, _)) = (helpers.parsers.workers(), helpers.openers.hangs());
            let of_helpers = [("workers_lost", workers_lost), ("openers_late", openers_late)];
            losses
                .extend(of_helpers.into_iter().filter(|(_, n)| *n > 0).map(|(name, n)| (name.to_owned(), n)));
            losses.extend(stdout.iter().flat_map(LossCounters::snapshot));
            losses.extend(incidents.losses());
            losses.extend(keeper.iter().flat_map(StoreSender::losses));
            losses
        });
    }

    /// Call this when the recorder runs. The agent is ready from now on, except for what the recorder reports as degraded.
    pub fn attached(&mut self, recorder: &Recorder) {
        if let Some((store, _)) = &self.store {
            let recovery = recorder.confirmations();
            recovery.await_store();
            self.recovery = Some(recovery);
            self.memory_records = Some(MemoryRecordTask::start(
                self.always_on_options.every,
                recorder.scraper(),
                self.pods.clone(),
                store.sender(),
            ));
        }
        self.pages.attached(recorder.scraper());
        self.exports.begin_metrics(self.pages.clone());
        self.start_always_on(recorder);
        for &(name, is_attached) in recorder.attached() {
            self.pages.metrics().set_probe_attached(name, is_attached);
        }
        self.health.attached(recorder.degraded().to_vec());
    }

    fn start_always_on(&mut self, recorder: &Recorder) {
        let (pyroscope, otlp) = self.exports.profile_senders();
        let sinks = ProfileSinks {
            store: self.store.as_ref().map(|(store, _)| store.sender()),
            pyroscope,
            otlp,
            node: self.always_on_options.node.clone(),
            losses: self.profile_losses.clone(),
        };
        if self.always_on_options.frequency_hz > 0 && !sinks.is_empty() {
            let status = AlwaysOnStatus { health: self.health.clone(), pages: self.pages.clone() };
            let inputs = ProfilerInputs {
                options: self.always_on_options.clone(),
                shed: recorder.shed(),
                pods: self.pods.clone(),
            };
            self.always_on = Some(AlwaysOnTask::start(inputs, sinks, status));
        }
    }

    /// Completes when nothing more will be loaded into the kernel. None: nothing is being loaded.
    pub fn probes_loaded(&mut self) -> Option<oneshot::Receiver<()>> {
        self.always_on.as_mut().and_then(AlwaysOnTask::probes_loaded)
    }

    /// Where `/readyz` reads whether the agent is ready.
    pub fn health(&self) -> Arc<Health> {
        self.health.clone()
    }

    /// Call this once a second. Writes changed incidents to the store and to the exports.
    pub fn tick(&mut self) {
        self.health.alive();
        self.acknowledge_kills();
        let changed = self.incidents.changed(Timestamp::now());
        self.exports.tick(&changed);
        if let Some(checkpoints) = &mut self.export_checkpoints {
            checkpoints.tick();
        }
        let Some((store, _)) = &self.store else { return };
        for incident in changed {
            let owner = Owner { pod: Some(incident.pod.clone()), ..Owner::default() };
            store.put_incident(&incident.incident, (incident.from, incident.until), &owner, &incident);
        }
    }

    /// Passes an event to the store, which returns it by [`Outputs::next_stored`] for [`Outputs::report`]. Without a store,
    /// or if the store cannot take it, the event is reported at once.
    pub fn record(&mut self, event: Event) -> anyhow::Result<()> {
        let Some((store, _)) = &self.store else {
            return self.report(StoredEvent { id: None, event });
        };
        let is_recoverable = Confirmations::is_recoverable(&event);
        let put = store.put(event);
        if is_recoverable {
            self.unstored_kills.push_back(store.event_counts().0);
        }
        match put {
            Ok(()) => Ok(()),
            Err(event) => self.report(StoredEvent { id: None, event: *event }),
        }
    }

    /// Tells the recorder's checkpoint which kills are stored, so that a restart does not report them again.
    fn acknowledge_kills(&mut self) {
        let (Some((store, _)), Some(recovery)) = (&self.store, &self.recovery) else { return };
        let (_, done) = store.event_counts();
        let stored = self.unstored_kills.iter().take_while(|sequence| **sequence <= done).count();
        self.unstored_kills.drain(..stored);
        recovery.kept(stored as u64);
    }

    /// The next event that the store has written. Never completes if there is no store.
    pub async fn next_stored(&mut self) -> StoredEvent {
        if let Some((_, stored_events)) = &mut self.store
            && let Some(stored) = stored_events.recv().await
        {
            return stored;
        }
        std::future::pending().await
    }

    /// Prints an event, exports it, and sends it to the live streams.
    pub fn report(&mut self, mut stored: StoredEvent) -> anyhow::Result<()> {
        self.add_losses(&mut stored.event.losses);
        if self.store.is_some() || self.exports.takes_incidents() {
            self.incidents.add(&stored.event, stored.id);
        }
        let line = if self.exports.has_event_destinations() {
            let encoded = EncodedEvent::new(stored.event.clone(), stored.id)?;
            self.exports.offer(&encoded);
            encoded.line.clone()
        } else {
            to_json_line(&stored.event)?
        };
        if let Some(stdout) = &self.stdout {
            stdout.write_line(line);
        }
        self.exports.notify_pod(&stored.event);
        self.pages.metrics().observe(&stored.event);
        // An error means that there is no live stream now.
        let _ = self.live.send(Arc::new(stored));
        Ok(())
    }

    /// Adds the loss counters of the outputs to those of an event.
    fn add_losses(&self, losses: &mut Losses) {
        if let Some((store, _)) = &self.store {
            losses.extend(store.losses());
        }
        if self.store.is_some() || self.exports.takes_incidents() {
            losses.extend(self.incidents.evicted().losses());
        }
        losses.extend(self.exports.losses());
        losses.extend(self.stdout.iter().flat_map(|stdout| stdout.losses().snapshot()));
    }

    /// See [`Exports::reconfigure`].
    pub fn reconfigure_exports(&self, args: &ExportArgs) -> anyhow::Result<Vec<&'static str>> {
        self.exports.reconfigure(args)
    }

    pub fn set_limits(&self, limits: StoreLimits) {
        if let Some((store, _)) = &self.store {
            store.set_limits(limits);
        }
    }

    /// Reports that the agent stops, and begins to end the task that needs the most time for it.
    pub fn begin_stopping(&mut self) {
        self.health.stopping();
        if let Some(always_on) = &mut self.always_on {
            always_on.stop();
        }
    }

    /// The losses of profiles.
    pub fn losses(&self) -> Losses {
        self.profile_losses.snapshot()
    }

    /// Reports the events that are left, closes the store, and delivers waiting items until `deadline`.
    pub async fn close(&mut self, deadline: Instant) -> anyhow::Result<()> {
        if let Some(always_on) = self.always_on.take() {
            // The last profiles must still be stored and sent.
            let left = deadline.saturating_duration_since(Instant::now());
            always_on.end(left.saturating_sub(RESERVED_AFTER_PROFILES)).await;
        }
        if let Some(memory_records) = self.memory_records.take() {
            memory_records.end().await;
        }
        self.close_store().await?;
        if let Some(stdout) = self.stdout.take() {
            stdout.close(deadline.min(Instant::now() + STDOUT_CLOSE_TIMEOUT)).await;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let final_families = self.pages.metrics().families();
        std::mem::take(&mut self.exports).close(left.min(EXPORTS_CLOSE_TIMEOUT), &final_families).await;
        if let Some(checkpoints) = self.export_checkpoints.take() {
            checkpoints.close().await;
        }
        Ok(())
    }

    /// Reports what the store still writes, and saves the recorder's checkpoint.
    async fn close_store(&mut self) -> anyhow::Result<()> {
        while self.store.as_ref().is_some_and(|(store, _)| store.waiting() > 0) {
            if let Ok(stored) = tokio::time::timeout(STORED_CHECK_INTERVAL, self.next_stored()).await {
                self.report(stored)?;
            }
        }
        self.tick();
        if let Some(Err(error)) = self.recovery.take().map(|recovery| recovery.save_last()) {
            tracing::warn!("cannot save which kills were reported, a restart will repeat them: {error:#}");
        }
        if let Some((store, mut stored_events)) = self.store.take() {
            store.close();
            while stored_events.recv().await.is_some() {}
        }
        Ok(())
    }
}

/// Where the API's socket is: at an explicit path, in the state folder, or in `/run/podopsy`.
pub fn socket_path(explicit: Option<&Path>, state_dir: Option<&Path>) -> PathBuf {
    let usual = || state_dir.unwrap_or(Path::new(RUN_DIR)).join(SOCKET_NAME);
    explicit.map_or_else(usual, Path::to_owned)
}

/// Starts the API on its socket, and `/metrics` and the like on the TCP address, if there is one.
async fn listen(options: &OutputOptions, sources: Sources) -> anyhow::Result<Option<ApiListener>> {
    let socket = socket_path(options.socket.as_deref(), options.state_dir.as_deref());
    let listening = match api::listen_when_free(&socket, sources.clone()).await {
        Ok(listening) => Some(listening),
        Err(error) if options.socket.is_some() => return Err(error),
        Err(error) => {
            tracing::warn!("cannot serve the API: {error:#}");
            None
        }
    };
    if let Some(address) = options.listen {
        let token = options.metrics_token_file.as_deref().map(MetricsToken::load).transpose()?;
        let (address, _) = api::listen_health(address, sources, token).await?;
        tracing::info!(%address, "answers /metrics, /healthz and /readyz");
    }
    Ok(listening)
}
