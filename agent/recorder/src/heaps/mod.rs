//! Samples the heaps of language runtimes once a second, for the autopsy of a kill: how large the heap was, how large it may become,
//! and whether collecting it helped.
//!
//! Only JVMs so far, by the performance counters that they publish by default; nothing is attached, and no option is needed. A thread
//! of its own looks through the processes of containers that are large enough to be one. The number of looks and of reads a second is
//! bounded, fair between containers. This module must not depend on aya, records, the runtime or rendering.

mod perf_data;
mod process;
mod samples;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use podopsy_model::Losses;
use podopsy_model::heap::RuntimeHeap;
use podopsy_pods::{MemoryCgroup, Pods};
use podopsy_stacks::Helpers;
use podopsy_system::clock::boot_now_ns;
use podopsy_system::sync::lock;
use process::{CounterMemory, Found};
use samples::HeapSamples;

const EVERY: Duration = Duration::from_secs(1);
/// The ticks between two looks for new processes in a container.
const LOOK_EVERY: u64 = 3;
/// A smaller process is no JVM that has started.
const RESIDENT_MIN: u64 = 16 << 20;
/// How often a process is looked at: a JVM makes its counters within its first second, but a program may become one later.
const LOOKS: u8 = 3;
/// Looks a tick, of all containers and of each one.
const LOOKS_PER_TICK: usize = 16;
const LOOKS_PER_CONTAINER: usize = 2;
/// JVMs that are sampled, and those of each container.
const JVMS_MAX: usize = 256;
const JVMS_PER_CONTAINER: usize = 4;
/// How long the last figures of a process that has ended are kept: its kill is examined a moment later.
const KEEP_ENDED_NS: u64 = 60_000_000_000;

/// A handle to the sampler. Its thread ends when the handle is dropped.
pub struct HeapSampler {
    state: Arc<Mutex<SamplerState>>,
    stop: Arc<AtomicBool>,
}

#[derive(Default)]
struct SamplerState {
    /// By cgroup id and pid.
    jvms: HashMap<(u64, u32), Jvm>,
    /// JVMs that were not sampled because there were too many.
    left_out: u64,
}

struct Jvm {
    samples: HeapSamples,
    /// None: it publishes no counters.
    memory: Option<Arc<CounterMemory>>,
    /// When it was last read, or seen without counters (CLOCK_BOOTTIME).
    alive_ns: u64,
}

/// What the thread knows of processes: how often each was looked at, by pid and start time.
#[derive(Default)]
struct Looks(HashMap<(u32, Option<Timestamp>), u8>);

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
                    looks.look_for_new(&state, &pods, &helpers);
                }
                read_all(&state);
                drop(pods);
                std::thread::sleep(EVERY);
            }
        })?;
        Ok(sampler)
    }

    /// The heap of a process of a container, by its memory cgroup; if it is no JVM, of the container's largest one.
    pub fn heap(&self, cgroup_id: u64, pid: u32) -> Option<RuntimeHeap> {
        let state = lock(&self.state);
        let of_container = state.jvms.iter().filter(|((cgroup, _), _)| *cgroup == cgroup_id);
        let largest = |jvm: &Jvm| jvm.samples.figures().map_or(0, |figures| figures.committed_bytes);
        let ((_, pid), jvm) = of_container.max_by_key(|((_, known), jvm)| (*known == pid, largest(jvm)))?;
        Some(jvm.heap(*pid))
    }

    /// `jvms_left_out`: JVMs that were not sampled because there were too many.
    pub fn losses(&self) -> Losses {
        let left_out = lock(&self.state).left_out;
        Losses::from_iter((left_out > 0).then(|| ("jvms_left_out".to_owned(), left_out)))
    }
}

impl Drop for HeapSampler {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

impl Jvm {
    fn heap(&self, pid: u32) -> RuntimeHeap {
        let figures = self.samples.figures();
        let why_not = figures.is_none().then(|| {
            "it publishes no counters: -XX:-UsePerfData, -XX:+PerfDisableSharedMem, a read-only /tmp, or a user without a name".to_owned()
        });
        let runtime = match self.samples.runtime() {
            unknown if unknown.is_empty() => "JVM".to_owned(),
            known => known,
        };
        RuntimeHeap { runtime, pid, source: "hsperfdata".to_owned(), figures, why_not, verdict: None }
    }
}

impl Looks {
    /// Looks through processes that may be JVMs and are not known to be.
    fn look_for_new(&mut self, state: &Mutex<SamplerState>, pods: &Pods, helpers: &Helpers) {
        let (mut left, mut living) = (LOOKS_PER_TICK, HashSet::new());
        for container in pods.memory_cgroups().iter().filter(|level| level.container) {
            let mut of_container = LOOKS_PER_CONTAINER;
            for pid in pods.hierarchy().procs(&container.path) {
                let Some(key) = large_process(pods, pid) else { continue };
                living.insert(key);
                let looked = self.0.entry(key).or_default();
                let is_known =
                    lock(state).jvms.get(&(container.id, pid)).is_some_and(|jvm| jvm.memory.is_some());
                if left == 0 || of_container == 0 || *looked >= LOOKS || is_known {
                    continue;
                }
                (*looked, left, of_container) = (*looked + 1, left - 1, of_container - 1);
                let is_last = *looked == LOOKS;
                look(state, helpers, container, pid, is_last);
            }
        }
        self.0.retain(|key, _| living.contains(key));
    }
}

/// Pid and start time of a process that is large enough for a JVM.
fn large_process(pods: &Pods, pid: u32) -> Option<(u32, Option<Timestamp>)> {
    let is_large = process::resident(pid).is_some_and(|bytes| bytes >= RESIDENT_MIN);
    is_large.then(|| (pid, pods.start_time(pid)))
}

/// `is_last`: a JVM that still has no counters will have none.
fn look(state: &Mutex<SamplerState>, helpers: &Helpers, container: &MemoryCgroup, pid: u32, is_last: bool) {
    let memory = match process::find(helpers, pid) {
        Some(Found::Counters(memory)) => Some(Arc::new(memory)),
        Some(Found::WithoutCounters) if is_last => None,
        _ => return,
    };
    let mut state = lock(state);
    let of_container = state.jvms.keys().filter(|(cgroup, _)| *cgroup == container.id).count();
    if state.jvms.len() >= JVMS_MAX || of_container >= JVMS_PER_CONTAINER {
        state.left_out += 1;
        return;
    }
    let jvm = Jvm { samples: HeapSamples::default(), memory, alive_ns: boot_now_ns() };
    state.jvms.insert((container.id, pid), jvm);
}

/// Reads each JVM's counters. The state is locked for each entry only, so that no caller waits for a process.
fn read_all(state: &Mutex<SamplerState>) {
    let known: Vec<_> = lock(state).jvms.iter().map(|(key, jvm)| (*key, jvm.memory.clone())).collect();
    for (key, memory) in known {
        let read = memory.map(|memory| memory.read());
        let mut state = lock(state);
        let Some(jvm) = state.jvms.get_mut(&key) else { continue };
        let now_ns = boot_now_ns();
        match read {
            Some(Ok(data)) => {
                jvm.alive_ns = now_ns;
                if let Some(data) = data {
                    jvm.samples.push(now_ns, Timestamp::now(), data);
                }
            }
            None if process::resident(key.1).is_some() => jvm.alive_ns = now_ns,
            Some(Err(_)) | None => {}
        }
        if now_ns.saturating_sub(jvm.alive_ns) > KEEP_ENDED_NS {
            state.jvms.remove(&key);
        }
    }
}
