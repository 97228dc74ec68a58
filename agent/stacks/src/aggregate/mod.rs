//! Raw samples → counted stacks → [`Sample`]s.
//!
//! Must not know: aya, ELF, CRI; where samples come from, and how a cgroup gets its owner.
//!
//! Samples are counted as numbers while they come; names are looked up once, at the end. Only what would be too late
//! then is done at once: a process is shown to the symbolizer while it lives, and its name is read.
//!
//! Memory is bounded by the number of distinct stacks. A sample over the bound keeps its process and owner, and has
//! the frame `[too many stacks]` in place of its stack: totals stay true.

mod incomplete;
mod names;
mod stack;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use podopsy_wire::{End, PythonEnd};

pub use incomplete::{reason, why};
use names::Names;
use stack::{head, kernel_addresses, user_addresses};

use crate::python::{PackedFrame, PythonFunctions};
use crate::symbolize::{Symbolizer, looked_up_at};
use podopsy_model::owner::Owner;
use podopsy_model::profile::{Frame, Mapping, Quality, Sample};

/// Distinct (thread, owner, stack) counted one by one. At 127 frames a stack, the worst case is about 40 MB.
const MAX_STACKS: usize = 32_768;
/// A process that changes its name without end is shown to the symbolizer this often, and no more.
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
    /// Memory cgroup's kernfs id; 0: unknown.
    pub cgroup_id: u64,
    /// Kernel addresses, innermost first; empty when user space was interrupted.
    pub kernel: &'a [u64],
    /// User addresses, innermost first; empty for a kernel thread, or when unwinding failed.
    pub user: &'a [u64],
    /// Why the user stack ended, and the frame of it that this is about.
    pub end: End,
    pub end_frame: u32,
    /// Python's frames, innermost first, and how the walk over them ended.
    pub python: &'a [PackedFrame],
    pub python_end: PythonEnd,
}

/// What samples are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    pid: u32,
    tid: u32,
    thread: Comm,
    /// The leader's name at that time: a process may exec.
    leader: Comm,
    cgroup: u64,
    stack: u32,
}

#[derive(Clone, Copy, Debug)]
struct Process {
    leader: Comm,
    names: u32,
}

/// Counts samples by thread, owner and stack.
#[derive(Debug)]
pub struct Aggregator {
    counts: HashMap<Key, u64>,
    /// Stack → its number: `[head, kernel…, user…, python…]`, so that one slice is the key; see [`head`].
    stacks: HashMap<Box<[u64]>, u32>,
    /// Samples over the bound, by process and cgroup, with the name.
    over: HashMap<(u32, u64), (Comm, u64)>,
    /// Samples by cgroup and by how their user stacks ended.
    ends: HashMap<(u64, End), u64>,
    processes: HashMap<u32, Process>,
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

    /// Counts at most `max_stacks` distinct (thread, owner, stack) one by one.
    pub fn with_limit(max_stacks: usize) -> Self {
        Self {
            counts: HashMap::new(),
            stacks: HashMap::new(),
            over: HashMap::new(),
            ends: HashMap::new(),
            processes: HashMap::new(),
            scratch: Vec::new(),
            max_stacks,
        }
    }

    /// Counts a sample. Shows its process to the symbolizer at first sight and after exec, which reads /proc.
    pub fn add(&mut self, sample: &RawSample<'_>, symbolizer: &mut Symbolizer) {
        let leader = self.see(sample, symbolizer);
        *self.ends.entry((sample.cgroup_id, sample.end)).or_default() += 1;
        self.scratch.clear();
        self.scratch.push(head(sample));
        self.scratch.extend_from_slice(sample.kernel);
        self.scratch.extend_from_slice(sample.user);
        self.scratch.extend_from_slice(sample.python);
        let room = self.counts.len() < self.max_stacks;
        let stack = match self.stacks.get(self.scratch.as_slice()) {
            Some(&stack) => Some(stack),
            None if room => {
                let stack = u32::try_from(self.stacks.len()).unwrap_or(u32::MAX);
                self.stacks.insert(self.scratch.as_slice().into(), stack);
                symbolizer.notice(sample.pid, sample.user);
                Some(stack)
            }
            None => None,
        };
        let RawSample { pid, tid, thread_comm: thread, cgroup_id: cgroup, .. } = *sample;
        let key = stack.map(|stack| Key { pid, tid, thread, leader, cgroup, stack });
        if let Some(count) = key.and_then(|key| self.counts.get_mut(&key)) {
            *count += 1;
        } else if let Some(key) = key.filter(|_| room) {
            self.counts.insert(key, 1);
        } else {
            // A fork bomb has more processes than we have room for: beyond the bound only the cgroup is kept.
            let known = self.over.contains_key(&(pid, cgroup));
            let pid = if known || self.over.len() < self.max_stacks { pid } else { 0 };
            self.over.entry((pid, cgroup)).or_insert((leader, 0)).1 += 1;
        }
    }

    /// Cgroups to attribute.
    pub fn cgroups(&self) -> BTreeSet<u64> {
        self.counts.keys().map(|key| key.cgroup).chain(self.over.keys().map(|&(_, cgroup)| cgroup)).collect()
    }

    /// The kernel's addresses, as names are asked for: of a call, not of where it returns to.
    pub fn kernel_addresses(&self) -> BTreeSet<u64> {
        let all = self.stacks.keys().flat_map(|stack| kernel_addresses(stack));
        all.map(|(address, is_return)| looked_up_at(address, is_return)).collect()
    }

    /// Samples counted since the start, or since the last [`Aggregator::finish`].
    pub fn total(&self) -> u64 {
        self.counts.values().sum::<u64>() + self.over.values().map(|&(_, count)| count).sum::<u64>()
    }

    /// What was not kept whole, by counter name; ask before [`Aggregator::finish`].
    pub fn losses(&self) -> BTreeMap<String, u64> {
        let over: u64 = self.over.values().map(|&(_, count)| count).sum();
        if over == 0 { BTreeMap::new() } else { BTreeMap::from([("stacks_evicted".to_string(), over)]) }
    }

    /// How whole the user stacks are, by owner; ask before [`Aggregator::finish`].
    pub fn quality(&self, owners: impl Fn(u64) -> Arc<Owner>) -> Vec<Quality> {
        let mut all: BTreeMap<u64, Quality> = BTreeMap::new();
        for (&(cgroup, end), &count) in &self.ends {
            // A kernel thread has no user stack to lack.
            if end == End::NoUser {
                continue;
            }
            let quality = all.entry(cgroup).or_insert_with(|| Quality::of(owners(cgroup)));
            quality.samples += count;
            match reason(end) {
                None => quality.complete += count,
                Some(reason) => *quality.incomplete.entry(reason.to_owned()).or_default() += count,
            }
        }
        all.into_values().collect()
    }

    /// Names every address once, and empties the aggregator. Gives the samples, most frequent first, and the mappings
    /// that their frames lie in. Blocks as the symbolizer does.
    pub fn finish(
        &mut self,
        symbolizer: &mut Symbolizer,
        functions: &mut PythonFunctions,
        owners: impl Fn(u64) -> Arc<Owner>,
    ) -> (Vec<Sample>, Vec<Mapping>) {
        let mut stacks: Vec<&[u64]> = vec![&[]; self.stacks.len()];
        for (stack, &number) in &self.stacks {
            stacks[number as usize] = stack;
        }
        let cgroups: HashMap<u64, Arc<Owner>> =
            self.cgroups().into_iter().map(|id| (id, owners(id))).collect();
        let of_process = |key: &Key| (key.pid, stacks[key.stack as usize]);
        let whole: HashSet<(u32, &[u64])> = self.counts.keys().map(of_process).collect();
        let kernel = whole.iter().flat_map(|(_, stack)| kernel_addresses(stack));
        symbolizer.look_up(kernel, whole.iter().flat_map(|&(pid, stack)| user_addresses(pid, stack)));
        drop(whole);
        let mut names = Names { symbolizer, functions, user: HashMap::new(), texts: HashMap::new() };
        let mut samples: Vec<Sample> = self
            .counts
            .iter()
            .map(|(key, &count)| Sample {
                stack: names.frames(key.pid, stacks[key.stack as usize], count),
                count,
                pid: key.pid,
                tid: key.tid,
                thread: names.text(&key.thread),
                comm: names.text(&key.leader),
                owner: Arc::clone(&cgroups[&key.cgroup]),
            })
            .collect();
        for (&(pid, cgroup), (leader, count)) in &self.over {
            let comm = names.text(leader);
            let (thread, owner) = (Arc::clone(&comm), Arc::clone(&cgroups[&cgroup]));
            let stack = vec![says("[too many stacks]")];
            samples.push(Sample { stack, count: *count, pid, tid: pid, thread, comm, owner });
        }
        samples.sort_by(|a, b| (b.count, a.pid, a.tid).cmp(&(a.count, b.pid, b.tid)));

        let frames = samples.iter().flat_map(|sample| &sample.stack);
        let used: HashSet<_> =
            frames.filter_map(|frame| Some((frame.module.as_ref()?, &frame.build_id))).collect();
        let mut mappings = symbolizer.mappings();
        mappings.retain(|mapping| used.contains(&(&mapping.name, &mapping.build_id)));
        drop(used);
        *self = Self::with_limit(self.max_stacks);
        (samples, mappings)
    }

    /// Looks at the sample's process while it lives; gives its leader's name.
    fn see(&mut self, sample: &RawSample<'_>, symbolizer: &mut Symbolizer) -> Comm {
        // The idle task is no process.
        if sample.pid == 0 {
            return sample.thread_comm;
        }
        // The map is emptied with the rest at every finish; a node that forks faster than that starts over.
        if self.processes.len() >= self.max_stacks.max(1024) {
            self.processes.clear();
        }
        let is_leader = sample.pid == sample.tid;
        match self.processes.get_mut(&sample.pid) {
            None => {
                symbolizer.see_process(sample.pid);
                let leader =
                    if is_leader { None } else { read_comm(sample.pid) }.unwrap_or(sample.thread_comm);
                self.processes.insert(sample.pid, Process { leader, names: 1 });
                leader
            }
            // A new name is how an exec shows: other mappings at other addresses.
            Some(process) if is_leader && process.leader != sample.thread_comm => {
                process.leader = sample.thread_comm;
                process.names += 1;
                if process.names <= MAX_NAMES {
                    symbolizer.see_process(sample.pid);
                }
                process.leader
            }
            Some(process) => process.leader,
        }
    }
}

/// A stack that is no stack, and says why.
fn says(what: &str) -> Frame {
    Frame { function: Some(what.into()), ..Frame::default() }
}

/// The leader's comm; none when it is gone.
fn read_comm(pid: u32) -> Option<Comm> {
    let mut raw = Vec::new();
    File::open(format!("/proc/{pid}/comm")).ok()?.take(64).read_to_end(&mut raw).ok()?;
    let raw = raw.strip_suffix(b"\n").unwrap_or(&raw);
    let mut comm = Comm::default();
    let len = raw.len().min(comm.len());
    comm[..len].copy_from_slice(&raw[..len]);
    Some(comm)
}
