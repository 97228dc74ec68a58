//! Counts raw samples by their stacks, and makes [`Sample`]s of them.
//!
//! Samples are counted as numbers while they arrive, and addresses are symbolized once, at the end. Only what would be
//! too late then is done at once: the process is added to the symbolizer while it lives, and its name is read.
//!
//! Memory is bounded by the number of distinct stacks. A sample over the bound keeps its process and owner, and has the
//! frame `[too many stacks]` instead of its stack, so that totals stay true.
//!
//! Must not depend on: aya, ELF, CRI, where samples come from, how a cgroup gets its owner.

mod incomplete;
mod names;
mod stack;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use podopsy_wire::{End, FileKey, PythonEnd};

pub use incomplete::{incomplete_reason, missing_part};
use names::FrameNames;
use stack::{head, kernel_addresses, user_addresses};

use crate::StackLossReason;
use crate::python::{PackedFrame, PythonFunctions};
use crate::symbolize::{ProgramImage, Symbolizer, lookup_address};
use podopsy_model::owner::Owner;
use podopsy_model::profile::{Completeness, Frame, Mapping, Sample};

/// Distinct (thread, owner, stack) that are counted. At 127 frames per stack, the worst case is about 40 MB.
const MAX_STACKS: usize = 32_768;
/// How often a process that keeps changing its name is added to the symbolizer.
const MAX_NAMES: u32 = 8;

/// `task_struct.comm`, NUL-padded.
type Comm = [u8; 16];

/// One sample as the kernel took it.
#[derive(Clone, Copy, Debug)]
pub struct RawSample<'a> {
    /// Thread group id and thread id, in the host's pid namespace.
    pub pid: u32,
    pub tid: u32,
    /// The thread's `task_struct.comm`, NUL-padded.
    pub thread_comm: Comm,
    /// The memory cgroup's kernfs id; 0 if unknown.
    pub cgroup_id: u64,
    /// Kernel addresses, innermost first; empty if user space was interrupted.
    pub kernel: &'a [u64],
    /// User frames ([`podopsy_wire::FrameWord`]), innermost first; empty for a kernel thread, or if unwinding failed.
    pub user: &'a [u64],
    /// The file of the user frame that has no number.
    pub file: FileKey,
    /// Which of the process's programs was sampled.
    pub image: ProgramImage,
    /// Why the user stack ended, and the index of the frame where it ended.
    pub end: End,
    pub end_frame: u32,
    /// Python's frames, innermost first, and how reading them ended.
    pub python: &'a [PackedFrame],
    pub python_end: PythonEnd,
}

/// The key that samples are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct SampleKey {
    pid: u32,
    image: ProgramImage,
    tid: u32,
    thread: Comm,
    /// The leader's name at the time of the sample: the process may exec later.
    leader: Comm,
    cgroup: u64,
    stack: u32,
}

#[derive(Clone, Copy, Debug)]
struct SampledProcess {
    image: ProgramImage,
    leader: Comm,
    names: u32,
}

/// Counts samples by thread, owner and stack.
#[derive(Debug)]
pub struct Aggregator {
    counts: HashMap<SampleKey, u64>,
    /// Stack → its number. A stack is one slice, `[head, kernel…, user…, python…]`; see [`head`].
    stacks: HashMap<Box<[u64]>, u32>,
    /// Samples over the bound by process and cgroup, with the leader's name.
    over_limit: HashMap<(u32, u64), (Comm, u64)>,
    /// Samples by cgroup and by how their user stacks ended.
    ends: HashMap<(u64, End), u64>,
    processes: HashMap<u32, SampledProcess>,
    scratch: Vec<u64>,
    max_stacks: usize,
}

impl Default for Aggregator {
    fn default() -> Self {
        Self::with_limit(MAX_STACKS)
    }
}

impl Aggregator {
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts at most `max_stacks` distinct (thread, owner, stack).
    pub fn with_limit(max_stacks: usize) -> Self {
        Self {
            counts: HashMap::new(),
            stacks: HashMap::new(),
            over_limit: HashMap::new(),
            ends: HashMap::new(),
            processes: HashMap::new(),
            scratch: Vec::new(),
            max_stacks,
        }
    }

    /// Counts a sample. Adds its process to the symbolizer at first sight and after exec, which reads /proc.
    pub fn add(&mut self, sample: &RawSample<'_>, symbolizer: &mut Symbolizer) {
        let leader = self.observe_process(sample, symbolizer);
        *self.ends.entry((sample.cgroup_id, sample.end)).or_default() += 1;
        self.scratch.clear();
        self.scratch.push(head(sample));
        self.scratch.extend_from_slice(sample.kernel);
        self.scratch.extend(sample.user.iter().map(|&word| symbolizer.with_number(word, &sample.file)));
        self.scratch.extend_from_slice(sample.python);
        let has_capacity = self.counts.len() < self.max_stacks;
        let stack = match self.stacks.get(self.scratch.as_slice()) {
            Some(&stack) => Some(stack),
            None if has_capacity => {
                let stack = u32::try_from(self.stacks.len()).unwrap_or(u32::MAX);
                self.stacks.insert(self.scratch.as_slice().into(), stack);
                let user = &self.scratch[1 + sample.kernel.len()..][..sample.user.len()];
                symbolizer.hold_files_of(user);
                symbolizer.refresh_mappings(sample.pid, sample.image, sample.user);
                Some(stack)
            }
            None => None,
        };
        let RawSample { pid, image, tid, thread_comm: thread, cgroup_id: cgroup, .. } = *sample;
        let key = stack.map(|stack| SampleKey { pid, image, tid, thread, leader, cgroup, stack });
        if let Some(count) = key.and_then(|key| self.counts.get_mut(&key)) {
            *count += 1;
        } else if let Some(key) = key.filter(|_| has_capacity) {
            self.counts.insert(key, 1);
        } else {
            // A fork bomb has more processes than fit: beyond the bound only the cgroup is kept.
            let known = self.over_limit.contains_key(&(pid, cgroup));
            let pid = if known || self.over_limit.len() < self.max_stacks { pid } else { 0 };
            self.over_limit.entry((pid, cgroup)).or_insert((leader, 0)).1 += 1;
        }
    }

    /// The processes that were sampled in each cgroup.
    pub fn processes(&self) -> BTreeMap<u64, BTreeSet<u32>> {
        let counted = self.counts.keys().map(|key| (key.cgroup, key.pid));
        let over_limit = self.over_limit.keys().map(|&(pid, cgroup)| (cgroup, pid));
        let mut all: BTreeMap<u64, BTreeSet<u32>> = BTreeMap::new();
        for (cgroup, pid) in counted.chain(over_limit) {
            all.entry(cgroup).or_default().insert(pid);
        }
        all
    }

    /// The ids of all cgroups with samples.
    pub fn cgroups(&self) -> BTreeSet<u64> {
        self.processes().into_keys().collect()
    }

    /// The kernel addresses to look up: a return address is replaced by that of its call.
    pub fn kernel_addresses(&self) -> BTreeSet<u64> {
        let all = self.stacks.keys().flat_map(|stack| kernel_addresses(stack));
        all.map(|(address, is_return)| lookup_address(address, is_return)).collect()
    }

    /// Samples counted since the start, or since the last [`Aggregator::finish`].
    pub fn total(&self) -> u64 {
        self.counts.values().sum::<u64>() + self.over_limit.values().map(|&(_, count)| count).sum::<u64>()
    }

    /// The loss counters by name. Call before [`Aggregator::finish`].
    pub fn losses(&self) -> BTreeMap<String, u64> {
        let evicted: u64 = self.over_limit.values().map(|&(_, count)| count).sum();
        if evicted == 0 {
            BTreeMap::new()
        } else {
            BTreeMap::from([(StackLossReason::StacksEvicted.as_str().to_owned(), evicted)])
        }
    }

    /// The completeness of the user stacks by owner. Call before [`Aggregator::finish`].
    pub fn completeness(&self, owners: impl Fn(u64) -> Arc<Owner>) -> Vec<Completeness> {
        let mut all: BTreeMap<u64, Completeness> = BTreeMap::new();
        for (&(cgroup, end), &count) in &self.ends {
            // A kernel thread has no user stack that could be incomplete.
            if end == End::NoUser {
                continue;
            }
            let quality = all.entry(cgroup).or_insert_with(|| Completeness::new(owners(cgroup)));
            quality.samples += count;
            match incomplete_reason(end) {
                None => quality.complete += count,
                Some(reason) => *quality.incomplete.entry(reason.to_owned()).or_default() += count,
            }
        }
        all.into_values().collect()
    }

    /// Returns the samples, most frequent first, and the mappings that their frames lie in, and empties the aggregator.
    /// Each address is looked up once. Blocks like the symbolizer.
    pub fn finish(
        &mut self,
        symbolizer: &mut Symbolizer,
        functions: &mut PythonFunctions,
        owners: impl Fn(u64) -> Arc<Owner>,
    ) -> (Vec<Sample>, Vec<Mapping>) {
        let counted = std::mem::replace(self, Self::with_limit(self.max_stacks));
        counted.look_up_addresses(symbolizer);
        let samples = counted.name_samples(symbolizer, functions, owners);
        let mappings = used_mappings(symbolizer, &samples);
        (samples, mappings)
    }

    /// The stacks by their numbers.
    fn stacks_by_number(&self) -> Vec<&[u64]> {
        let mut stacks: Vec<&[u64]> = vec![&[]; self.stacks.len()];
        for (stack, &number) in &self.stacks {
            stacks[number as usize] = stack;
        }
        stacks
    }

    /// Looks up all addresses together, so that each file's symbols are read once.
    fn look_up_addresses(&self, symbolizer: &mut Symbolizer) {
        let stacks = self.stacks_by_number();
        let process_stack = |key: &SampleKey| ((key.pid, key.image), stacks[key.stack as usize]);
        let distinct: HashSet<((u32, ProgramImage), &[u64])> =
            self.counts.keys().map(process_stack).collect();
        let kernel = distinct.iter().flat_map(|(_, stack)| kernel_addresses(stack));
        symbolizer.look_up_all(
            kernel,
            distinct.iter().flat_map(|&(program, stack)| user_addresses(program, stack)),
        );
    }

    fn name_samples(
        &self,
        symbolizer: &mut Symbolizer,
        functions: &mut PythonFunctions,
        owners: impl Fn(u64) -> Arc<Owner>,
    ) -> Vec<Sample> {
        let stacks = self.stacks_by_number();
        let owners: HashMap<u64, Arc<Owner>> =
            self.cgroups().into_iter().map(|id| (id, owners(id))).collect();
        let mut names = FrameNames { symbolizer, functions, user: HashMap::new(), texts: HashMap::new() };
        let mut samples: Vec<Sample> = self
            .counts
            .iter()
            .map(|(key, &count)| Sample {
                stack: names.frames((key.pid, key.image), stacks[key.stack as usize], count),
                count,
                pid: key.pid,
                tid: key.tid,
                thread: names.text(&key.thread),
                comm: names.text(&key.leader),
                owner: Arc::clone(&owners[&key.cgroup]),
            })
            .collect();
        for (&(pid, cgroup), (leader, count)) in &self.over_limit {
            let comm = names.text(leader);
            let (thread, owner) = (Arc::clone(&comm), Arc::clone(&owners[&cgroup]));
            let stack = vec![marker_frame("[too many stacks]")];
            samples.push(Sample { stack, count: *count, pid, tid: pid, thread, comm, owner });
        }
        samples.sort_by(|a, b| (b.count, a.pid, a.tid).cmp(&(a.count, b.pid, b.tid)));
        samples
    }

    /// Adds the sample's process to the symbolizer while it lives. Returns its leader's name.
    fn observe_process(&mut self, sample: &RawSample<'_>, symbolizer: &mut Symbolizer) -> Comm {
        // The idle task is not a process.
        if sample.pid == 0 {
            return sample.thread_comm;
        }
        // The map is emptied at each `finish`. If more processes come before that, it starts over_limit.
        if self.processes.len() >= self.max_stacks.max(1024) {
            self.processes.clear();
        }
        let is_leader = sample.pid == sample.tid;
        match self.processes.get_mut(&sample.pid) {
            None => {
                symbolizer.add_process(sample.pid);
                let leader =
                    if is_leader { None } else { read_comm(sample.pid) }.unwrap_or(sample.thread_comm);
                let image = sample.image;
                self.processes.insert(sample.pid, SampledProcess { image, leader, names: 1 });
                leader
            }
            // After an exec other files are mapped at other addresses. A new name indicates it where the program is not known.
            Some(process)
                if process.image != sample.image || (is_leader && process.leader != sample.thread_comm) =>
            {
                if is_leader {
                    process.leader = sample.thread_comm;
                }
                process.image = sample.image;
                process.names += 1;
                if process.names <= MAX_NAMES {
                    symbolizer.add_process(sample.pid);
                }
                process.leader
            }
            Some(process) => process.leader,
        }
    }
}

/// The symbolizer's mappings that at least one frame lies in.
fn used_mappings(symbolizer: &Symbolizer, samples: &[Sample]) -> Vec<Mapping> {
    let frames = samples.iter().flat_map(|sample| &sample.stack);
    let used: HashSet<_> =
        frames.filter_map(|frame| Some((frame.module.as_ref()?, &frame.build_id))).collect();
    let mut mappings = symbolizer.mappings();
    mappings.retain(|mapping| used.contains(&(&mapping.name, &mapping.build_id)));
    mappings
}

/// A frame that is not a function, with a text in its place.
fn marker_frame(text: &str) -> Frame {
    Frame { function: Some(text.into()), ..Frame::default() }
}

/// The leader's comm; none if the process has ended.
fn read_comm(pid: u32) -> Option<Comm> {
    let mut raw = Vec::new();
    File::open(format!("/proc/{pid}/comm")).ok()?.take(64).read_to_end(&mut raw).ok()?;
    let raw = raw.strip_suffix(b"\n").unwrap_or(&raw);
    let mut comm = Comm::default();
    let len = raw.len().min(comm.len());
    comm[..len].copy_from_slice(&raw[..len]);
    Some(comm)
}
