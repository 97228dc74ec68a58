//! The profile that is always on: every minute, what each container's CPUs did in it.
//!
//! ```text
//! ring ─ queue ─→ aggregate ─ once a minute: whose? ─→ names ─→ a profile a container
//! ```
//!
//! Names are looked up at the minute's end, while most of what ran still runs; the files of the others were opened when
//! they were first seen. Then the symbols are dropped: between two minutes only numbers are held.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::{QUEUE, Scope, raw_sample};
use crate::shed::{Shed, ShedStep};
use podopsy_decode::{self as decode, Stack};
use podopsy_model::profile::{Completeness, Mapping, Profile, Sample, Sampling};
use podopsy_model::{Losses, Owner};
use podopsy_pods::Pods;
use podopsy_probes::{CpuMaps, CpuProbeOptions, ProbeOptions, Probes};
use podopsy_stacks::Helpers;
use podopsy_stacks::aggregate::Aggregator;
use podopsy_stacks::python::PythonFunctions;
use podopsy_stacks::symbolize::Symbolizer;
use podopsy_stacks::unwind::{self, PrebuildScope, TableBuilder};
use podopsy_system::heap;

/// Distinct stacks in a minute: 30 CPUs at 19 Hz take no more samples. Samples beyond it are counted, and keep their owner.
const STACKS: usize = 32_768;
/// Files held open for processes that die before their minute ends. A process is looked at again in each minute in which it
/// has samples; files of other processes are closed after this many minutes.
const FILES: usize = 1024;
const FILES_FOR: u32 = 3;
/// Loss counters: minutes of the node that got no names, and profiles of a container that the receiver did not take.
pub const MINUTES_NOT_NAMED: &str = "profile_minutes_not_named";
pub const PROFILES_NOT_KEPT: &str = "profiles_not_kept";
/// Profiles of a container's minute that wait to be stored; more than a node has containers.
const MINUTES: usize = 1024;
/// How often the budget is checked.
const BUDGET_CHECK: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub struct AlwaysOptions {
    pub frequency_hz: u64,
    /// A minute.
    pub every: Duration,
    pub node: String,
    /// Open and parse the files of containers.
    pub helpers: Helpers,
}

/// The running profiler.
pub struct AlwaysOn {
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<anyhow::Result<()>>,
    /// What this kernel does not allow, in words.
    pub degraded: Vec<String>,
}

enum Message {
    Sample(Box<Stack>),
    /// Sampling was shed: free what can be had again.
    Free,
    /// A minute is over: which cgroups have samples?
    Cut(oneshot::Sender<BTreeSet<u64>>),
    /// Name the samples of the minute.
    Name(HashMap<u64, Arc<Owner>>, oneshot::Sender<Named>),
}

/// A minute of the whole node.
struct Named {
    samples: Vec<Sample>,
    mappings: Vec<Mapping>,
    quality: Vec<Completeness>,
    losses: Losses,
}

impl AlwaysOn {
    /// Attaches. The receiver gets a profile for each container and minute, and one for the host. `shed` says whether to
    /// sample; `loaded` is called when nothing more will be loaded into the kernel, or nothing could be; `lost` with the
    /// counter name of each profile that is lost.
    pub async fn start(
        options: AlwaysOptions,
        pods: Arc<Pods>,
        shed: Arc<Shed>,
        loaded: impl FnOnce() + Send,
        lost: impl Fn(&'static str) + Send + Sync + 'static,
    ) -> anyhow::Result<(AlwaysOn, mpsc::Receiver<Profile>)> {
        let sampling = Sampling::Cpu { frequency_hz: options.frequency_hz };
        let cpu = CpuProbeOptions { scope: Scope::Node, sampling, unwind: true, budget: 0, in_pod: false };
        let probe_options = ProbeOptions { cpu: Some(cpu), ..ProbeOptions::default() };
        let probes = tokio::task::spawn_blocking(move || Probes::load(&probe_options)).await;
        loaded();
        let mut probes = probes??;
        let degraded = probes.degraded.clone();
        let CpuMaps { samples: ring, table_requests: requests, tables: kernel, .. } = probes.cpu_maps()?;
        let kernel_losses = probes.losses()?;
        let builder = match probes.by_tables {
            true => {
                let (scope, helpers) =
                    (PrebuildScope::Node { samples: 0, leave_out_own: false }, options.helpers.clone());
                let start = move || TableBuilder::start(kernel, unwind::MAX_BYTES, &scope, &helpers);
                Some(tokio::task::spawn_blocking(start).await??)
            }
            false => None,
        };
        probes.start_sampling()?;
        let interpreters = builder.as_ref().map(TableBuilder::interpreters).unwrap_or_default();
        let codes = PythonFunctions::new(interpreters, &options.helpers.openers);
        let (queue, messages) = std::sync::mpsc::sync_channel(QUEUE);
        let files_for = FILES_FOR * options.every;
        let numbers = builder.as_ref().map(TableBuilder::numbers).unwrap_or_default();
        let symbolizer = Symbolizer::with_limit(&options.helpers, FILES).with_numbers(numbers);
        std::thread::Builder::new()
            .name("profile".into())
            .spawn(move || count(&messages, symbolizer, codes, files_for))
            .context("start the profiler's thread")?;
        let (stop, stopped) = oneshot::channel();
        let (minutes, received) = mpsc::channel(MINUTES);
        let running = Running {
            options,
            pods,
            shed,
            not_kept: Box::new(lost),
            is_sampling: true,
            probes,
            ring,
            requests,
            kernel_losses,
            builder,
            queue,
            minutes,
            lost: BTreeMap::new(),
            before: BTreeMap::new(),
        };
        let task = tokio::spawn(running.run(stopped));
        Ok((AlwaysOn { stop: Some(stop), task, degraded }, received))
    }

    /// Emits the current minute and stops, which takes as long as looking up names. Without this, a drop loses the minute.
    pub async fn end(mut self) -> anyhow::Result<()> {
        let _ = self.stop.take().map(|stop| stop.send(()));
        (&mut self.task).await?
    }
}

impl Drop for AlwaysOn {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Running {
    options: AlwaysOptions,
    pods: Arc<Pods>,
    shed: Arc<Shed>,
    /// Samples are being taken.
    is_sampling: bool,
    not_kept: Box<dyn Fn(&'static str) + Send + Sync>,
    probes: Probes,
    ring: podopsy_probes::ring::Ring,
    requests: podopsy_probes::ring::Ring,
    kernel_losses: podopsy_probes::ring::LossCounters,
    builder: Option<TableBuilder>,
    queue: std::sync::mpsc::SyncSender<Message>,
    minutes: mpsc::Sender<Profile>,
    /// Losses that were counted here since the start.
    lost: Losses,
    /// All losses up to the previous minute.
    before: Losses,
}

/// A minute whose names are being looked up.
type Naming = (JoinHandle<Option<Named>>, (Timestamp, Duration));

impl Running {
    async fn run(mut self, mut stopped: oneshot::Receiver<()>) -> anyhow::Result<()> {
        let (mut start, mut began) = (Timestamp::now(), Instant::now());
        let mut minutes = interval_at(began + self.options.every, self.options.every);
        minutes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looks = tokio::time::interval(BUDGET_CHECK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut naming: Option<Naming> = None;
        // How long this minute was sampled before sampling was left out.
        let mut sampled: Option<Duration> = None;
        loop {
            let (queue, builder) = (&self.queue, &self.builder);
            let (mut full, mut bad) = (0u64, 0u64);
            let (mut bad_requests, mut named, mut cut, mut look) = (0u64, None, None, false);
            let mut take = |bytes: &[u8]| match decode::sample(bytes) {
                Ok(stack) => full += u64::from(queue.try_send(Message::Sample(Box::new(stack))).is_err()),
                Err(_) => bad += 1,
            };
            let is_sampling = self.is_sampling;
            let mut ask = |bytes: &[u8]| match decode::table_request(bytes) {
                // A program has started, but it will not be sampled.
                Ok(_) if !is_sampling => {}
                Ok(request) => builder.iter().for_each(|builder| builder.request(request)),
                Err(_) => bad_requests += 1,
            };
            tokio::select! {
                drained = self.ring.drain(&mut take) => drained?,
                asked = self.requests.drain(&mut ask) => asked?,
                done = done(&mut naming) => named = Some(done),
                // If names take longer than a minute, this minute becomes longer.
                _ = minutes.tick(), if naming.is_none() => cut = Some(false),
                _ = looks.tick() => look = true,
                _ = &mut stopped => cut = Some(true),
            }
            let is_shed = look && self.shed.is_shedding(ShedStep::Profile);
            if self.is_sampling && (cut == Some(true) || is_shed) {
                self.probes.stop_sampling()?;
                self.ring.drain_now(&mut take);
                self.is_sampling = false;
                sampled = Some(began.elapsed());
                if is_shed {
                    // A queue that is full is emptied by the thread anyway.
                    let _ = self.queue.try_send(Message::Free);
                    self.builder.iter().for_each(TableBuilder::free);
                }
            }
            self.count_loss("profiler_queue", full);
            self.count_loss("bad_records", bad + bad_requests);
            if let Some((named, span)) = named {
                self.emit(named, span);
            }
            if look && !is_shed && !self.is_sampling {
                // The minute goes on, or a new one starts if all of it was left out.
                self.probes.start_sampling()?;
                self.is_sampling = true;
                match sampled.take() {
                    Some(_) => {}
                    None => (start, began) = (Timestamp::now(), Instant::now()),
                }
            }
            let Some(last) = cut else { continue };
            if !self.is_sampling && !last {
                self.shed.should_shed(ShedStep::Profile);
            }
            let duration =
                if self.is_sampling { began.elapsed() } else { sampled.take().unwrap_or_default() };
            if duration.is_zero() && !last {
                continue;
            }
            if last && naming.is_some() {
                let (named, span) = done(&mut naming).await;
                self.emit(named, span);
            }
            naming = Some((tokio::spawn(names(self.queue.clone(), self.pods.clone())), (start, duration)));
            (start, began) = (Timestamp::now(), Instant::now());
            if last {
                let (named, span) = done(&mut naming).await;
                self.emit(named, span);
                return Ok(());
            }
        }
    }

    fn count_loss(&mut self, name: &str, count: u64) {
        if count > 0 {
            *self.lost.entry(name.to_owned()).or_default() += count;
        }
    }

    /// Losses since the previous minute.
    fn losses(&mut self, named: Option<&Named>) -> Losses {
        let mut all = self.kernel_losses.read();
        all.extend(self.builder.as_ref().map(TableBuilder::losses).unwrap_or_default());
        all.extend(self.lost.clone());
        all.extend(named.map(|named| named.losses.clone()).unwrap_or_default());
        let since = |(name, count): (&String, &u64)| {
            let count = count.saturating_sub(self.before.get(name).copied().unwrap_or(0));
            (count > 0).then(|| (name.clone(), count))
        };
        let new = all.iter().filter_map(since).collect();
        self.before = all;
        new
    }

    fn emit(&mut self, named: Option<Named>, (start, duration): (Timestamp, Duration)) {
        if named.is_none() {
            (self.not_kept)(MINUTES_NOT_NAMED);
        }
        let losses = self.losses(named.as_ref());
        let sampling = Sampling::Cpu { frequency_hz: self.options.frequency_hz };
        for (samples, mappings, quality) in named.map(by_container).unwrap_or_default() {
            let (node, losses, unwind) = (self.options.node.clone(), losses.clone(), Default::default());
            let profile =
                Profile { start, duration, sampling, node, samples, mappings, losses, quality, unwind };
            if self.minutes.try_send(profile).is_err() {
                (self.not_kept)(PROFILES_NOT_KEPT);
            }
        }
    }
}

/// The named minute, once names are known; pending while no names are being looked up.
async fn done(naming: &mut Option<Naming>) -> (Option<Named>, (Timestamp, Duration)) {
    let Some((task, span)) = naming else { return std::future::pending().await };
    let (named, span) = (task.await.ok().flatten(), *span);
    *naming = None;
    (named, span)
}

/// The samples of the minute with owners and names; None: the thread is gone.
async fn names(queue: std::sync::mpsc::SyncSender<Message>, pods: Arc<Pods>) -> Option<Named> {
    let (reply, cgroups) = oneshot::channel();
    send(&queue, Message::Cut(reply)).await;
    let mut owners = HashMap::new();
    for id in cgroups.await.ok()? {
        owners.insert(id, Arc::new(pods.owner_of_cgroup(id).await));
    }
    let (reply, named) = oneshot::channel();
    send(&queue, Message::Name(owners, reply)).await;
    named.await.ok()
}

/// Sends after the samples that are queued; a full queue empties as fast as samples are counted.
async fn send(queue: &std::sync::mpsc::SyncSender<Message>, mut message: Message) {
    while let Err(std::sync::mpsc::TrySendError::Full(back)) = queue.try_send(message) {
        message = back;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Samples, mappings and completeness of each container, and of all host processes together.
fn by_container(named: Named) -> Vec<(Vec<Sample>, Vec<Mapping>, Vec<Completeness>)> {
    let key = |owner: &Owner| match &owner.container {
        Some(container) => container.id.clone(),
        None => owner.pod.as_ref().map(|pod| pod.uid.clone()).unwrap_or_default(),
    };
    let mut all: BTreeMap<String, (Vec<Sample>, Vec<Completeness>)> = BTreeMap::new();
    for sample in named.samples {
        all.entry(key(&sample.owner)).or_default().0.push(sample);
    }
    for quality in named.quality {
        if let Some((_, own)) = all.get_mut(&key(&quality.owner)) {
            own.push(quality);
        }
    }
    let split = |(samples, quality): (Vec<Sample>, Vec<Completeness>)| {
        let frames = samples.iter().flat_map(|sample| &sample.stack);
        let used: BTreeSet<_> =
            frames.filter_map(|frame| Some((frame.module.as_ref()?, &frame.build_id))).collect();
        let used = |mapping: &&Mapping| used.contains(&(&mapping.name, &mapping.build_id));
        let mappings = named.mappings.iter().filter(used).cloned().collect();
        (samples, mappings, quality)
    };
    all.into_values().map(split).collect()
}

/// Until the other end is gone.
fn count(
    messages: &std::sync::mpsc::Receiver<Message>,
    mut symbolizer: Symbolizer,
    mut codes: PythonFunctions,
    files_for: Duration,
) {
    let mut aggregator = Aggregator::with_limit(STACKS);
    let mut over = Aggregator::with_limit(STACKS);
    for message in messages {
        match message {
            Message::Sample(stack) => {
                let sample = raw_sample(&stack, &mut codes);
                aggregator.add(&sample, &mut symbolizer);
            }
            Message::Free => {
                symbolizer.free();
                heap::give_back();
            }
            Message::Cut(reply) => {
                over = std::mem::replace(&mut aggregator, Aggregator::with_limit(STACKS));
                let _ = reply.send(over.cgroups());
            }
            Message::Name(owners, reply) => {
                let began = Instant::now();
                let owner = |id: u64| owners.get(&id).cloned().unwrap_or_default();
                let (quality, mut losses) = (over.completeness(owner), over.losses());
                let (samples, mappings) = over.finish(&mut symbolizer, &mut codes, owner);
                losses.extend(symbolizer.losses());
                losses.extend(codes.losses());
                symbolizer.trim();
                // None: the machine has not been up for so long.
                let since = std::time::Instant::now().checked_sub(files_for);
                since.into_iter().for_each(|since| symbolizer.close_unused_since(since));
                tracing::debug!(samples = samples.len(), took = ?began.elapsed(), "named a minute");
                let _ = reply.send(Named { samples, mappings, quality, losses });
            }
        }
    }
}
