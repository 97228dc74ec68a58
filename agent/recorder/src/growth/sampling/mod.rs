//! Samples page faults of growth candidates: probes → ring → decode → window, and a report when a kill asks.
//!
//! A task chooses the candidates twice a second and passes their cgroups to the kernel side. Without a candidate no perf
//! event is open, and nothing is sampled. A thread counts the samples, because it reads /proc and opens files. The collector
//! of events waits for neither.

mod counter;
mod watch;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, Weak, mpsc};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::growth::{self, GrowthCandidates};
use crate::oom::OomExaminer;
use crate::shed::Shed;
use podopsy_decode as decode;
use podopsy_model::growth::GrowthProfile;
use podopsy_model::profile::Sampling;
use podopsy_model::{Event, Losses};
use podopsy_pods::Pods;
use podopsy_probes::ring::Ring;
use podopsy_probes::{CpuMaps, CpuProbeOptions, ProbeOptions, Probes, Scope};
use podopsy_stacks::Helpers;
use podopsy_stacks::symbolize::Symbolizer;
use podopsy_stacks::unwind::{PrebuildScope, TableBuilder};
use podopsy_system::sync::lock;
use watch::Watch;

/// Samples between the ring and the thread that counts them.
const QUEUE: usize = 4096;
/// Samples are drained in rounds: most of the cost of one is the wake-up. With a longer interval, short processes would be
/// gone before their mappings are read.
const DRAIN_INTERVAL: Duration = Duration::from_millis(50);
/// How long an incident waits for its report: symbols of large programs take seconds.
const REPORT_TIMEOUT: Duration = Duration::from_secs(20);

/// Whether to sample which code makes memory grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GrowthMode {
    Off,
    /// Of containers that were OOM-killed, or whose memory grows towards their limit.
    #[default]
    Auto,
}

/// The maps of the sampler, until [`GrowthMaps::start`].
pub(crate) struct GrowthMaps(CpuMaps);

/// Loads the probes, with the sampler if it is wanted. On a kernel that refuses the sampler, the other probes work.
pub(crate) fn load(options: &ProbeOptions, mode: GrowthMode) -> anyhow::Result<(Probes, Option<GrowthMaps>)> {
    if mode == GrowthMode::Off || !options.oom {
        return Ok((Probes::load(options)?, None));
    }
    let sampler = CpuProbeOptions {
        scope: Scope::Cgroups(Vec::new()),
        sampling: Sampling::Growth { every: growth::PERIOD },
        unwind: true,
        budget: growth::BUDGET,
        in_pod: false,
    };
    let load = || {
        let mut probes = Probes::load(&ProbeOptions { cpu: Some(sampler), ..options.clone() })?;
        let maps = GrowthMaps(probes.cpu_maps()?);
        anyhow::Ok((probes, Some(maps)))
    };
    load().or_else(|error| {
        tracing::warn!("OOM kills lack the growth profile: {error:#}");
        Ok((Probes::load(options)?, None))
    })
}

/// The running sampler. Its task and its thread end when the last clone is dropped.
#[derive(Clone)]
pub(crate) struct Growth(Arc<Inner>);

struct Inner {
    queue: mpsc::SyncSender<Message>,
    shared: Arc<SamplerState>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// What the task, the thread and callers share.
struct SamplerState {
    candidates: Mutex<GrowthCandidates>,
    builder: TableBuilder,
    bad_records: AtomicU64,
    queue_full: AtomicU64,
    evicted: AtomicU64,
    unanswered: AtomicU64,
    /// Whether sampling is left out at the moment.
    shed: Arc<Shed>,
}

enum Message {
    Sample(decode::Stack),
    /// Report on a cgroup, up to this time (CLOCK_BOOTTIME, ns).
    Report(u64, u64, oneshot::Sender<Option<GrowthProfile>>),
}

impl GrowthMaps {
    pub async fn start(
        self,
        probes: Weak<Mutex<Probes>>,
        pods: &Arc<Pods>,
        examiner: &Arc<OomExaminer>,
        shed: &Arc<Shed>,
        helpers: &Helpers,
    ) -> anyhow::Result<Growth> {
        let CpuMaps { samples, table_requests, tables, targets } = self.0;
        // Reads the vDSO, so it runs on a thread that may block.
        let (scope, pool) = (PrebuildScope::Cgroups(Vec::new()), helpers.clone());
        let start = move || TableBuilder::start(tables, growth::TABLES_BYTES, &scope, &pool);
        let builder = tokio::task::spawn_blocking(start).await??;
        let symbolizer = Symbolizer::with_limit(helpers, growth::FILES).with_numbers(builder.numbers());
        let shared = Arc::new(SamplerState {
            candidates: Mutex::default(),
            builder,
            bad_records: AtomicU64::new(0),
            queue_full: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            unanswered: AtomicU64::new(0),
            shed: shed.clone(),
        });
        let (queue, received) = mpsc::sync_channel(QUEUE);
        let counted = shared.clone();
        std::thread::Builder::new()
            .name("growth".into())
            .spawn(move || counter::run(&received, &counted, symbolizer))
            .context("start the thread that counts page faults")?;
        let watch = Watch::new(probes, targets, shared.clone(), pods.clone(), examiner.clone());
        let tasks = [
            tokio::spawn(pass_on(samples, table_requests, queue.clone(), shared.clone())),
            tokio::spawn(watch.run()),
        ];
        Ok(Growth(Arc::new(Inner { queue, shared, tasks })))
    }
}

impl Growth {
    /// A container was killed: its next attempt is sampled from its start.
    pub fn killed(&self, event: &Event) {
        if let (Some(pod), Some(container)) = (&event.pod, &event.container) {
            self.0.shared.candidates().killed((pod.uid.clone(), container.name.clone()));
        }
    }

    /// The growth profile of a cgroup in the minutes before `boot_ns`; None: nothing was sampled.
    pub async fn profile(&self, cgroup: u64, boot_ns: u64) -> Option<GrowthProfile> {
        let (reply, answer) = oneshot::channel();
        let asked = self.0.queue.try_send(Message::Report(cgroup, boot_ns, reply)).is_ok();
        match tokio::time::timeout(REPORT_TIMEOUT, answer).await {
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
            ("growth_suspects_left_out", shared.candidates().left_out()),
        ];
        let mut losses = Losses::from_iter(shared.builder.losses());
        losses.extend(own.map(|(name, count)| (name.to_owned(), count)));
        losses.retain(|_, count| *count > 0);
        losses
    }
}

impl SamplerState {
    fn candidates(&self) -> MutexGuard<'_, GrowthCandidates> {
        lock(&self.candidates)
    }
}

/// Passes samples to the thread in rounds, and requests for tables to the builder at once.
async fn pass_on(
    mut samples: Ring,
    mut requests: Ring,
    queue: mpsc::SyncSender<Message>,
    shared: Arc<SamplerState>,
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
                next = Instant::now() + DRAIN_INTERVAL;
                drained
            }
            asked = requests.drain(|bytes| match decode::table_request(bytes) {
                Ok(request) => shared.builder.request(request),
                Err(_) => bad(),
            }) => asked,
        };
        if let Err(error) = drained {
            tracing::warn!("OOM kills lack the growth profile from now on: {error:#}");
            return;
        }
    }
}
