//! Samples page faults of suspects all the time: probes → ring → decode → window, and a report when a kill asks.
//!
//! A task looks twice a second who is a suspect, and tells the kernel side; while there is none, no event is
//! open, and nothing is sampled. A thread counts the samples, because it reads /proc and opens files. Neither is waited for
//! by the collector of events.

mod counter;
mod watch;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
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
use podopsy_probes::{KernelTables, OncpuWanted, Probes, Scope, Targets, Wanted};
use podopsy_stacks::unwind::{Builder, Of};
use watch::Watch;

/// Samples between the ring and the thread that counts them.
const QUEUE: usize = 4096;
/// Samples are taken from the ring together: most of what one costs is the wake-up. Longer, and short processes would be
/// gone before their mappings are read.
const TOGETHER: Duration = Duration::from_millis(50);
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
            samples: probes.samples()?,
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
    candidates: Mutex<GrowthCandidates>,
    builder: Builder,
    bad_records: AtomicU64,
    queue_full: AtomicU64,
    evicted: AtomicU64,
    unanswered: AtomicU64,
    /// Whether to sample at all, at the moment.
    shed: Arc<Shed>,
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
        examiner: &Arc<OomExaminer>,
        shed: &Arc<Shed>,
    ) -> anyhow::Result<Growth> {
        let Instruments { samples, requests, targets, tables } = self;
        // Reads the vDSO: on a thread that may wait.
        let start = move || Builder::start(tables, growth::TABLES_BYTES, &Of::Cgroups(Vec::new()));
        let builder = tokio::task::spawn_blocking(start).await??;
        let shared = Arc::new(Shared {
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
            .spawn(move || counter::run(&received, &counted))
            .context("start the thread that counts page faults")?;
        let watch = Watch::new(probes, targets, shared.clone(), pods.clone(), examiner.clone());
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
            self.0.shared.candidates().killed((pod.uid.clone(), container.name.clone()));
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
            ("growth_suspects_left_out", shared.candidates().left_out()),
        ];
        let mut losses = Losses::from_iter(shared.builder.losses());
        losses.extend(own.map(|(name, count)| (name.to_owned(), count)));
        losses.retain(|_, count| *count > 0);
        losses
    }
}

impl Shared {
    fn candidates(&self) -> MutexGuard<'_, GrowthCandidates> {
        self.candidates.lock().unwrap_or_else(PoisonError::into_inner)
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
