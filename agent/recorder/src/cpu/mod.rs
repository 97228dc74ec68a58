//! On-CPU profiles: samples → ring → decode → aggregate → symbolize → attribute → profile.
//!
//! [`profile`] takes one on demand; [`always`] cuts an endless one into minutes.

pub mod always;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use podopsy_decode::{self as decode, Stack};
use podopsy_model::Owner;
use podopsy_model::profile::{Profile, Sampling};
use podopsy_pods::Pods;
use podopsy_probes::{CpuMaps, CpuProbeOptions, ProbeOptions, Probes};
use podopsy_stacks::Helpers;
use podopsy_stacks::aggregate::{Aggregator, RawSample};
use podopsy_stacks::python::PythonFunctions;
use podopsy_stacks::symbolize::{ProgramImage, Symbolizer};
use podopsy_stacks::unwind::{self, PrebuildScope, TableBuilder};

pub use podopsy_probes::Scope;

/// Samples between the ring and the aggregator: more than a second of a 64-CPU node at 99 Hz.
const QUEUE: usize = 8192;
const PROGRESS: Duration = Duration::from_millis(200);
/// Tables are made ahead for this much of a profile. Files that are met later are requested by the kernel side.
const PREPARED_FOR: Duration = Duration::from_secs(60);

/// What to profile.
#[derive(Clone, Debug)]
pub struct ProfileOptions {
    pub scope: Scope,
    pub duration: Duration,
    pub sampling: Sampling,
    /// Unwind user stacks by tables; without them, stacks are what frame pointers give.
    pub unwind: bool,
    pub node: String,
    /// Open and parse the files of containers.
    pub helpers: Helpers,
}

/// Samples for `options.duration` (or until `stop` resolves), calling `progress(samples so far)` a few times a second.
pub async fn profile(
    options: ProfileOptions,
    pods: Arc<Pods>,
    stop: impl Future<Output = ()>,
    mut progress: impl FnMut(u64),
) -> anyhow::Result<Profile> {
    let scope = without_own(&options.scope, &pods);
    let cpu = CpuProbeOptions {
        scope: scope.clone(),
        sampling: options.sampling,
        unwind: options.unwind,
        budget: 0,
        in_pod: pods.inside().is_some(),
    };
    let mut probes = Probes::load(&ProbeOptions { cpu: Some(cpu), ..ProbeOptions::default() })?;
    let CpuMaps { samples: mut ring, table_requests: mut requests, tables: kernel, .. } =
        probes.cpu_maps()?;
    let kernel_losses = probes.losses()?;
    if let Some(log) = probes.log()? {
        tokio::spawn(log.forward());
    }
    // Tables are made first, so that the first sample finds them. That reads files, so it runs on a thread that may block.
    let builder = if probes.by_tables {
        let of = table_scope(&scope, &options, &pods).await;
        let helpers = options.helpers.clone();
        let start = move || TableBuilder::start(kernel, unwind::MAX_BYTES, &of, &helpers);
        Some(tokio::task::spawn_blocking(start).await??)
    } else {
        None
    };
    probes.start_sampling()?;
    let (start, started) = (Timestamp::now(), Instant::now());

    // The aggregator reads /proc and opens files when it first meets a process, so it has a thread of its own.
    // tokio's channel grows as it fills; that of std takes 1.4 MiB at once.
    let (samples, received) = mpsc::channel::<Stack>(QUEUE);
    let counted = Arc::new(AtomicU64::new(0));
    let interpreters = builder.as_ref().map(TableBuilder::interpreters).unwrap_or_default();
    let codes = PythonFunctions::new(interpreters, &options.helpers.openers);
    let numbers = builder.as_ref().map(TableBuilder::numbers).unwrap_or_default();
    let symbolizer = Symbolizer::new(&options.helpers).with_numbers(numbers);
    let aggregation = aggregate(received, counted.clone(), codes, symbolizer)?;
    let (mut bad_records, mut queue_full, mut bad_requests) = (0u64, 0u64, 0u64);
    let mut take = |bytes: &[u8]| match decode::sample(bytes) {
        Ok(stack) => queue_full += u64::from(samples.try_send(stack).is_err()),
        Err(_) => bad_records += 1,
    };
    let mut ask = |bytes: &[u8]| match decode::table_request(bytes) {
        Ok(request) => builder.iter().for_each(|builder| builder.request(request)),
        Err(_) => bad_requests += 1,
    };
    let mut ticks = interval(PROGRESS);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let end = sleep_until(started + options.duration);
    tokio::pin!(stop, end);
    loop {
        tokio::select! {
            drained = ring.drain(&mut take) => drained?,
            asked = requests.drain(&mut ask) => asked?,
            _ = ticks.tick() => progress(counted.load(Ordering::Relaxed)),
            _ = &mut stop => break,
            _ = &mut end => break,
        }
    }
    let duration = started.elapsed();
    probes.stop_sampling()?;
    ring.drain_now(&mut take);
    drop(samples);
    let (mut aggregator, mut symbolizer, mut codes) =
        tokio::task::spawn_blocking(move || aggregation.join()).await?.map_err(|_| {
            anyhow::anyhow!("the aggregator's thread panicked, which is a bug in podopsy: please report it")
        })?;
    symbolizer.add_kernel_names(probes.kernel_names(&aggregator.kernel_addresses()));
    drop(probes);
    let stop = move || builder.map(TableBuilder::stop).unwrap_or_default();
    let built = tokio::task::spawn_blocking(stop).await?;

    let mut owners: HashMap<u64, Arc<Owner>> = HashMap::new();
    for (id, processes) in aggregator.processes() {
        let living = processes.into_iter().find(|&pid| pods.start_time(pid).is_some());
        owners.insert(id, Arc::new(pods.owner_of_task(id, living.unwrap_or(0)).await));
    }
    let mut losses = kernel_losses.read();
    losses.extend(aggregator.losses());
    losses.extend(built.losses);
    losses.extend(pods.status().losses);
    let (samples, mappings, quality, named) = tokio::task::spawn_blocking(move || {
        let unknown = Arc::new(Owner::default());
        let owner = |id: u64| owners.get(&id).unwrap_or(&unknown).clone();
        let quality = aggregator.completeness(owner);
        let (samples, mappings) = aggregator.finish(&mut symbolizer, &mut codes, owner);
        let mut losses = symbolizer.losses();
        losses.extend(codes.losses());
        (samples, mappings, quality, losses)
    })
    .await?;
    losses.extend(named);
    losses.extend(
        [("bad_records", bad_records + bad_requests), ("profiler_queue", queue_full)]
            .map(|(name, count)| (name.to_owned(), count)),
    );
    losses.retain(|_, count| *count > 0);
    Ok(Profile {
        start,
        duration,
        sampling: options.sampling,
        node: options.node,
        samples,
        mappings,
        losses: BTreeMap::from_iter(losses),
        quality,
        unwind: built.cost,
    })
}

/// A profile from inside a pod is about the pod, and not about podopsy.
fn without_own(scope: &Scope, pods: &Pods) -> Scope {
    match (scope, pods.inside().and_then(|inside| inside.own_cgroup())) {
        (Scope::Node, Some(own)) => Scope::AllBut(own),
        (Scope::Cgroups(ids), Some(own)) => {
            Scope::Cgroups(ids.iter().copied().filter(|&id| id != own).collect())
        }
        _ => scope.clone(),
    }
}

/// The files whose tables are made before the first sample.
async fn table_scope(scope: &Scope, options: &ProfileOptions, pods: &Pods) -> PrebuildScope {
    match scope {
        Scope::Node | Scope::AllBut(_) => {
            let seconds = options.duration.min(PREPARED_FOR).as_secs();
            let samples = match options.sampling {
                Sampling::Cpu { frequency_hz } => frequency_hz.saturating_mul(seconds),
                Sampling::Growth { .. } => 0,
            };
            PrebuildScope::Node { samples, leave_out_own: matches!(scope, Scope::AllBut(_)) }
        }
        Scope::Process(pid) => PrebuildScope::Process(*pid),
        Scope::Cgroups(ids) => {
            let mut paths = Vec::new();
            for id in ids {
                paths.extend(pods.owner_of_cgroup(*id).await.cgroup.path);
            }
            PrebuildScope::Cgroups(paths)
        }
    }
}

type Aggregation = std::thread::JoinHandle<(Aggregator, Symbolizer, PythonFunctions)>;

fn aggregate(
    mut samples: mpsc::Receiver<Stack>,
    counted: Arc<AtomicU64>,
    mut codes: PythonFunctions,
    mut symbolizer: Symbolizer,
) -> anyhow::Result<Aggregation> {
    std::thread::Builder::new()
        .name("aggregate".into())
        .spawn(move || {
            let mut aggregator = Aggregator::new();
            while let Some(stack) = samples.blocking_recv() {
                aggregator.add(&raw_sample(&stack, &mut codes), &mut symbolizer);
                counted.fetch_add(1, Ordering::Relaxed);
            }
            (aggregator, symbolizer, codes)
        })
        .context("start the aggregator's thread")
}

/// A sample as the aggregator takes it, with the names of Python's frames.
fn raw_sample<'a>(stack: &'a Stack, codes: &'a mut PythonFunctions) -> RawSample<'a> {
    let Stack { task, kernel, user, file, image, end, end_frame, python } = stack;
    RawSample {
        pid: task.pid,
        tid: task.tid,
        thread_comm: task.comm,
        cgroup_id: task.cgroup_id,
        kernel,
        user,
        file: *file,
        image: ProgramImage(*image),
        end: *end,
        end_frame: *end_frame,
        python: codes.pack_frames(task, python),
        python_end: python.end,
    }
}
