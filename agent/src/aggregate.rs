//! Raw samples → counted stacks → [`Sample`]s.
//!
//! Must not know: aya, ELF, CRI; where samples come from, and how a cgroup gets its owner.
//!
//! Samples are counted as numbers while they come; names are looked up once, at the end. Only what would be too late
//! then is done at once: a process is shown to the symbolizer while it lives, and its name is read.
//!
//! Memory is bounded by the number of distinct stacks. A sample over the bound keeps its process and owner, and has
//! the frame `[too many stacks]` in place of its stack: totals stay true.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use podopsy_wire::{End, PythonEnd};

use crate::model::owner::Owner;
use crate::model::profile::{Frame, Mapping, Quality, Sample};
use crate::model::text;
use crate::python::{self, Codes, Merge};
use crate::symbolize::{Located, Symbolizer, UserAddress};

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
    pub python: &'a [python::Word],
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
        codes: &mut Codes,
        owners: impl Fn(u64) -> Arc<Owner>,
    ) -> (Vec<Sample>, Vec<Mapping>) {
        let mut stacks: Vec<&[u64]> = vec![&[]; self.stacks.len()];
        for (stack, &number) in &self.stacks {
            stacks[number as usize] = stack;
        }
        let cgroups: HashMap<u64, Arc<Owner>> =
            self.cgroups().into_iter().map(|id| (id, owners(id))).collect();
        let mut names = Names { symbolizer, codes, user: HashMap::new(), texts: HashMap::new() };
        names.file_by_file(self.counts.keys().map(|key| (key.pid, stacks[key.stack as usize])));
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

/// A stack's first word: how many of its addresses are the kernel's and the user's, at most 127 each, and how both the
/// user part and Python's ended.
fn head(sample: &RawSample<'_>) -> u64 {
    sample.kernel.len() as u64
        | (sample.user.len() as u64) << 8
        | (sample.end as u64) << 16
        | (sample.python_end as u64) << 24
        | u64::from(sample.end_frame) << 32
}

/// What a head says.
struct Parts {
    kernel: usize,
    user: usize,
    end: End,
    python_end: PythonEnd,
    end_frame: usize,
}

fn parts(head: u64) -> Parts {
    let byte = |shift: u32| (head >> shift) as usize & 0xff;
    Parts {
        kernel: byte(0),
        user: byte(8),
        end: End::ALL.get(byte(16)).copied().unwrap_or(End::Complete),
        python_end: PythonEnd::ALL.get(byte(24)).copied().unwrap_or_default(),
        end_frame: (head >> 32) as usize,
    }
}

/// The counter's name for an incomplete stack; none for a complete one.
pub(crate) fn reason(end: End) -> Option<&'static str> {
    Some(match end {
        End::Complete | End::NoUser => return None,
        End::FramePointers => "frame_pointers_only",
        End::Compat => "32_bit",
        End::NoMapping => "no_mapping",
        End::TableAsked => "no_table_yet",
        End::TableNone => "no_unwind_information",
        End::Anonymous => "run_time_code",
        End::NoRule => "no_rule",
        End::Unsupported => "rule_not_followed",
        End::Unreadable => "stack_unreadable",
        End::NoProgress => "stack_not_ascending",
        End::Truncated => "too_deep",
    })
}

/// The frame that stands for the part of the stack that is not there.
pub(crate) fn why(end: End, module: Option<&str>) -> Option<String> {
    let module = module.map_or("an unknown file", |module| module.rsplit('/').next().unwrap_or(module));
    let text = match end {
        End::Complete | End::NoUser | End::FramePointers => return None,
        End::Compat => "32-bit process".to_owned(),
        End::NoMapping => "address in no mapping".to_owned(),
        End::TableAsked => format!("no table yet for {module}"),
        End::TableNone => format!("no unwind information in {module}"),
        End::Anonymous => "no frame pointer in code made at run time".to_owned(),
        End::NoRule => format!("no rule in {module}"),
        End::Unsupported => format!("rule not followed in {module}"),
        End::Unreadable => format!("stack memory not readable below {module}"),
        End::NoProgress => format!("stack does not ascend below {module}"),
        End::Truncated => "deeper than 127 frames".to_owned(),
    };
    Some(format!("[unwind: {text}]"))
}

/// A stack that is no stack, and says why.
fn says(what: &str) -> Frame {
    Frame { function: Some(what.to_string()), ..Frame::default() }
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

/// Addresses to frames and comms to text, each looked up once.
struct Names<'a> {
    symbolizer: &'a mut Symbolizer,
    codes: &'a mut Codes,
    user: HashMap<UserAddress, Arc<[Frame]>>,
    texts: HashMap<Comm, Arc<str>>,
}

impl Names<'_> {
    /// Looks all user addresses up, those of one file after the other: a symbolizer that may hold few symbols at a time
    /// would read the same files again and again.
    fn file_by_file<'a>(&mut self, stacks: impl Iterator<Item = (u32, &'a [u64])>) {
        let mut all = HashSet::new();
        for (pid, stack) in stacks {
            let Some((&head, addresses)) = stack.split_first() else { continue };
            let Parts { kernel, user, .. } = parts(head);
            let user = addresses.iter().skip(kernel).take(user).enumerate();
            all.extend(user.map(|(depth, &address)| UserAddress { pid, address, is_return: depth > 0 }));
        }
        let mut placed: Vec<_> = all
            .into_iter()
            .map(|address| match self.symbolizer.locate(address) {
                Located::File { id, offset } => (id, offset, address),
                _ => (u32::MAX, address.address, address),
            })
            .collect();
        placed.sort_unstable_by_key(|&(file, offset, address)| (file, offset, address.pid));
        for (_, _, address) in placed {
            let named = self.symbolizer.user(address).into();
            self.user.insert(address, named);
        }
    }

    /// `stack` is `[head, kernel…, user…, python…]`, and was sampled `count` times.
    fn frames(&mut self, pid: u32, stack: &[u64], count: u64) -> Vec<Frame> {
        let Some((&head, addresses)) = stack.split_first() else { return vec![says("[no stack]")] };
        let Parts { kernel, user, end, python_end, end_frame } = parts(head);
        let (kernel, rest) = addresses.split_at(kernel.min(addresses.len()));
        let (user, python) = rest.split_at(user.min(rest.len()));
        let mut frames = Vec::with_capacity(addresses.len());
        // The innermost address of each half is where it stood; all others are where a call will return to.
        for (depth, &address) in kernel.iter().enumerate() {
            frames.extend(self.symbolizer.kernel(address, depth > 0));
        }
        let native: Vec<Arc<[Frame]>> = user
            .iter()
            .enumerate()
            .map(|(depth, &address)| {
                let address = UserAddress { pid, address, is_return: depth > 0 };
                let named = self.user.entry(address).or_insert_with(|| self.symbolizer.user(address).into());
                Arc::clone(named)
            })
            .collect();
        let ended_in =
            native.get(end_frame).and_then(|named| named.last()).and_then(|frame| frame.module.clone());
        let is_interpreter = |named: &Arc<[Frame]>| named.last().is_some_and(python::is_interpreter);
        let calls = native.iter().filter(|named| is_interpreter(named)).count();
        let (mut merge, lost) = Merge::new(self.codes, python, python_end, calls, end == End::Complete);
        if let Some(reason) = lost {
            self.codes.lose(reason, count);
        }
        for named in &native {
            match named.split_last() {
                // What was inlined into the interpreter is called from the Python function that it runs.
                Some((interpreter, inlined)) if is_interpreter(named) => {
                    let from = frames.len();
                    frames.extend_from_slice(inlined);
                    let python = merge.next();
                    if !python.is_empty()
                        && let Some(last) = frames[from..].last_mut()
                    {
                        last.inlined = false;
                    }
                    frames.extend(python);
                    frames.push(interpreter.clone());
                }
                _ => frames.extend_from_slice(named),
            }
        }
        frames.extend(why(end, ended_in.as_deref()).map(|why| says(&why)));
        if frames.is_empty() {
            frames.push(says("[no stack]"));
        }
        frames
    }

    fn text(&mut self, comm: &Comm) -> Arc<str> {
        Arc::clone(self.texts.entry(*comm).or_insert_with(|| text::from_kernel(comm).into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn comm(name: &str) -> Comm {
        let mut comm = Comm::default();
        comm[..name.len()].copy_from_slice(name.as_bytes());
        comm
    }

    fn sample<'a>(tid: u32, user: &'a [u64]) -> RawSample<'a> {
        let pid = std::process::id();
        RawSample {
            pid,
            tid,
            thread_comm: comm("worker\x1b"),
            cgroup_id: 7,
            kernel: &[],
            user,
            end: End::Complete,
            end_frame: 0,
            python: &[],
            python_end: PythonEnd::None,
        }
    }

    fn nobody(id: u64) -> Arc<Owner> {
        let cgroup = crate::model::owner::CgroupRef { id, path: None };
        Arc::new(Owner { cgroup, ..Owner::default() })
    }

    #[test]
    fn equal_stacks_are_counted_together_and_named() {
        let function = equal_stacks_are_counted_together_and_named as fn() as usize as u64;
        let (mut symbolizer, mut aggregator) = (Symbolizer::new(), Aggregator::new());
        for _ in 0..3 {
            aggregator.add(&sample(1, &[function, function + 1]), &mut symbolizer);
        }
        aggregator.add(&sample(2, &[]), &mut symbolizer);
        assert_eq!((aggregator.total(), aggregator.cgroups()), (4, BTreeSet::from([7])));
        let (samples, mappings) = aggregator.finish(&mut symbolizer, &mut Codes::default(), nobody);
        let counts: Vec<_> = samples.iter().map(|sample| (sample.count, sample.tid)).collect();
        assert_eq!(counts, [(3, 1), (1, 2)]);
        for frame in &samples[0].stack {
            assert!(frame.function.as_ref().unwrap().contains("equal_stacks_are_counted"), "{frame:?}");
        }
        assert_eq!(samples[1].stack[0].function.as_deref(), Some("[no stack]"));
        assert_eq!((&*samples[0].thread, samples[0].owner.cgroup.id), ("worker\\x1b", 7));
        // Not the leader's thread: the process has its own name.
        assert_ne!(samples[0].comm, samples[0].thread);
        assert_eq!(mappings.len(), 1);
        assert_eq!(aggregator.total(), 0);
    }

    #[test]
    fn stacks_over_the_bound_are_counted_all_the_same() {
        let (mut symbolizer, mut aggregator) = (Symbolizer::new(), Aggregator::with_limit(2));
        for address in 0..10 {
            aggregator.add(&sample(1, &[address]), &mut symbolizer);
        }
        aggregator.add(&sample(1, &[0]), &mut symbolizer);
        assert_eq!(aggregator.losses(), BTreeMap::from([("stacks_evicted".to_string(), 8)]));
        assert_eq!(aggregator.total(), 11);
        let (samples, _) = aggregator.finish(&mut symbolizer, &mut Codes::default(), nobody);
        let over =
            samples.iter().find(|sample| sample.stack[0].function.as_deref() == Some("[too many stacks]"));
        assert_eq!(over.map(|sample| (sample.count, sample.pid)), Some((8, std::process::id())));
        assert_eq!(samples.iter().map(|sample| sample.count).sum::<u64>(), 11);
    }

    #[test]
    fn an_incomplete_stack_says_why_and_is_counted() {
        let function = an_incomplete_stack_says_why_and_is_counted as fn() as usize as u64;
        let (mut symbolizer, mut aggregator) = (Symbolizer::new(), Aggregator::new());
        aggregator.add(&sample(1, &[function]), &mut symbolizer);
        let stack = [function];
        let cut = RawSample { end: End::TableAsked, ..sample(1, &stack) };
        aggregator.add(&cut, &mut symbolizer);
        aggregator.add(&RawSample { end: End::NoUser, ..sample(1, &[]) }, &mut symbolizer);
        let quality = aggregator.quality(nobody);
        assert_eq!((quality.len(), quality[0].samples, quality[0].complete), (1, 2, 1));
        assert_eq!(quality[0].incomplete, BTreeMap::from([("no_table_yet".to_string(), 1)]));
        let (samples, _) = aggregator.finish(&mut symbolizer, &mut Codes::default(), nobody);
        let ends = |sample: &&Sample| {
            let last = sample.stack.last().and_then(|frame| frame.function.as_deref());
            last.is_some_and(|name| name.starts_with("[unwind: no table yet for podopsy_agent"))
        };
        assert_eq!(samples.iter().filter(ends).count(), 1, "{samples:?}");
        assert!(End::ALL.iter().zip(0..).all(|(end, index)| *end as u32 == index));
    }

    #[test]
    fn a_kernel_thread_lacks_no_user_stack() {
        // kthreadd, where the pid namespace shows it; else this is the same as a process that is gone.
        let kthread = RawSample { pid: 2, tid: 2, user: &[], ..sample(2, &[]) };
        let (mut symbolizer, mut aggregator) = (Symbolizer::new(), Aggregator::new());
        aggregator.add(&kthread, &mut symbolizer);
        if read_comm(2) == Some(comm("kthreadd")) {
            assert_eq!(symbolizer.losses(), BTreeMap::new());
        }
    }
}
