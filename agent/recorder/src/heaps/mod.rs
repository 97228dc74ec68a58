//! Samples the heaps of language runtimes once a second, for the autopsy of a kill: how large the heap was, how large it may become,
//! and whether collecting it helped.
//!
//! JVMs by the performance counters that they publish by default: nothing is attached, and no option is needed. Of Node.js and
//! Go, whose runtimes publish nothing, the options that set a maximum. A thread of its own looks through the processes of
//! containers that are large enough to be one. The number of looks a round and of heaps is bounded, fair between containers. This
//! module must not depend on aya, records, the runtime or rendering.

mod looks;
mod perf_data;
mod process;
mod samples;
mod settings;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use looks::Looks;
use perf_data::PerfData;
use podopsy_model::Losses;
use podopsy_model::heap::{HeapFigures, RuntimeHeap};
use podopsy_pods::{MemoryCgroup, Pods};
use podopsy_stacks::Helpers;
use podopsy_system::clock::boot_now_ns;
use podopsy_system::sync::lock;
use process::{CounterMemory, Found};
use samples::HeapSamples;
use settings::HeapSettings;

const EVERY: Duration = Duration::from_secs(1);
/// The ticks between two looks for new processes in a container.
const LOOK_EVERY: u64 = 3;
/// Looks a round of one container.
const LOOKS_PER_CONTAINER: usize = 2;
/// Processes with a heap that are known, and those of each container.
const HEAPS_MAX: usize = 256;
const HEAPS_PER_CONTAINER: usize = 4;
/// How long the last figures of a process that has ended are kept: its kill is examined a moment later.
const KEEP_ENDED_NS: u64 = 60_000_000_000;
const NO_COUNTERS: &str = "it publishes no counters: -XX:-UsePerfData, -XX:+PerfDisableSharedMem, a read-only /tmp, or a user without a name";
const NO_FIGURES: &str = "its runtime publishes no figures of its heap";

/// A handle to the sampler. Its thread ends when the handle is dropped.
pub struct HeapSampler {
    state: Arc<Mutex<SamplerState>>,
    stop: Arc<AtomicBool>,
}

#[derive(Default)]
struct SamplerState {
    /// By cgroup id and pid.
    heaps: HashMap<(u64, u32), Heap>,
    /// Processes with a heap that were left out because there were too many.
    left_out: u64,
}

struct Heap {
    source: HeapSource,
    /// As the virtual machine calls itself, once that is known.
    runtime: String,
    options: Vec<String>,
    samples: HeapSamples,
    /// When it was last read, or seen without counters (CLOCK_BOOTTIME).
    alive_ns: u64,
}

#[derive(Clone)]
enum HeapSource {
    Jvm(Arc<CounterMemory>),
    JvmWithoutCounters,
    Settings(HeapSettings),
}

impl HeapSampler {
    pub fn start(pods: Arc<Pods>, helpers: Helpers) -> std::io::Result<HeapSampler> {
        let sampler = HeapSampler { state: Arc::default(), stop: Arc::default() };
        let (state, stop) = (sampler.state.clone(), sampler.stop.clone());
        // A weak reference, so that the thread does not keep the pods alive.
        let weak_pods = Arc::downgrade(&pods);
        std::thread::Builder::new().name("heaps".into()).spawn(move || {
            let mut looks = Looks::default();
            for tick in 0u64.. {
                let Some(pods) = weak_pods.upgrade().filter(|_| !stop.load(Relaxed)) else { return };
                if tick % LOOK_EVERY == 0 {
                    look_for_new(&mut looks, &state, &pods, &helpers);
                }
                read_all(&state);
                drop(pods);
                std::thread::sleep(EVERY);
            }
        })?;
        Ok(sampler)
    }

    /// The heap of a process of a container, by its memory cgroup; if it has none, the container's largest one.
    pub fn heap(&self, cgroup_id: u64, pid: u32) -> Option<RuntimeHeap> {
        let state = lock(&self.state);
        let of_container = state.heaps.iter().filter(|((cgroup, _), _)| *cgroup == cgroup_id);
        let ((_, pid), heap) =
            of_container.max_by_key(|((_, known), heap)| (*known == pid, heap.committed()))?;
        Some(heap.shown(*pid))
    }

    /// `heaps_left_out`: processes with a heap that were not sampled because there were too many.
    pub fn losses(&self) -> Losses {
        let left_out = lock(&self.state).left_out;
        Losses::from_iter((left_out > 0).then(|| ("heaps_left_out".to_owned(), left_out)))
    }
}

impl Drop for HeapSampler {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

impl Heap {
    fn new(source: HeapSource) -> Heap {
        let (runtime, options) = match &source {
            HeapSource::Settings(settings) => (settings.runtime, settings.options.clone()),
            HeapSource::Jvm(_) | HeapSource::JvmWithoutCounters => ("JVM", Vec::new()),
        };
        let samples = HeapSamples::default();
        Heap { source, runtime: runtime.to_owned(), options, samples, alive_ns: boot_now_ns() }
    }

    fn add(&mut self, now_ns: u64, PerfData { runtime, figures, options }: PerfData) {
        self.samples.push(now_ns, HeapFigures { time: Timestamp::now(), ..figures });
        self.options = options;
        if !runtime.is_empty() {
            self.runtime = runtime;
        }
    }

    fn committed(&self) -> u64 {
        self.samples.figures().map_or(0, |figures| figures.committed_bytes)
    }

    fn shown(&self, pid: u32) -> RuntimeHeap {
        let (source, configured_max_bytes, why_not) = match &self.source {
            HeapSource::Settings(settings) => {
                ("command line and environment", settings.max_bytes, NO_FIGURES)
            }
            HeapSource::Jvm(_) | HeapSource::JvmWithoutCounters => ("hsperfdata", None, NO_COUNTERS),
        };
        let figures = self.samples.figures();
        RuntimeHeap {
            runtime: self.runtime.clone(),
            pid,
            source: source.to_owned(),
            options: self.options.clone(),
            configured_max_bytes,
            why_not: figures.is_none().then(|| why_not.to_owned()),
            figures,
            verdict: None,
        }
    }
}

/// Looks through processes that may have a heap and are not known.
fn look_for_new(looks: &mut Looks, state: &Mutex<SamplerState>, pods: &Pods, helpers: &Helpers) {
    let round = looks.begin_round();
    let mut containers = pods.memory_cgroups();
    containers.retain(|level| level.container);
    // Each is the first one in its turn, so that a few that start processes without end leave looks for the others.
    let first = round as usize % containers.len().max(1);
    containers.rotate_left(first);
    for container in &containers {
        let mut left = LOOKS_PER_CONTAINER;
        for pid in pods.hierarchy().procs(&container.path) {
            let may_look = left > 0;
            let Some(is_last) = looks.is_due(container.id, pid, may_look, process::resident) else {
                continue;
            };
            left -= 1;
            if look(state, helpers, container, pid, is_last) {
                looks.end(container.id, pid);
            }
        }
    }
    lock(state).left_out += looks.end_round();
}

/// False: it may still become one. `is_last`: a JVM that still has no counters will have none.
fn look(
    state: &Mutex<SamplerState>,
    helpers: &Helpers,
    container: &MemoryCgroup,
    pid: u32,
    is_last: bool,
) -> bool {
    let source = match process::find(helpers, pid) {
        Some(Found::Counters(memory)) => HeapSource::Jvm(Arc::new(memory)),
        Some(Found::WithoutCounters) if is_last => HeapSource::JvmWithoutCounters,
        Some(Found::Settings(settings)) => HeapSource::Settings(settings),
        _ => return false,
    };
    let mut state = lock(state);
    let of_container = state.heaps.keys().filter(|(cgroup, _)| *cgroup == container.id).count();
    if state.heaps.len() >= HEAPS_MAX || of_container >= HEAPS_PER_CONTAINER {
        state.left_out += 1;
        return true;
    }
    state.heaps.insert((container.id, pid), Heap::new(source));
    true
}

/// Reads each JVM's counters. The state is locked for each entry only, so that no caller waits for a process.
fn read_all(state: &Mutex<SamplerState>) {
    let known: Vec<_> = lock(state).heaps.iter().map(|(key, heap)| (*key, heap.source.clone())).collect();
    for (key, source) in known {
        let (is_alive, data) = match source {
            HeapSource::Jvm(memory) => memory.read().map_or((false, None), |data| (true, data)),
            HeapSource::JvmWithoutCounters | HeapSource::Settings(_) => {
                (process::resident(key.1).is_some(), None)
            }
        };
        let mut state = lock(state);
        let Some(heap) = state.heaps.get_mut(&key) else { continue };
        let now_ns = boot_now_ns();
        if is_alive {
            heap.alive_ns = now_ns;
        }
        if let Some(data) = data {
            heap.add(now_ns, data);
        }
        if now_ns.saturating_sub(heap.alive_ns) > KEEP_ENDED_NS {
            state.heaps.remove(&key);
        }
    }
}
