//! Names of the stacks of kills, looked up by a thread of its own: the symbolizer blocks on files, the pipeline must not.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use podopsy_wire::{BuildIdFrame, FrameWord};

use super::stack_queue::{NamesReceiver, NoRequest, Request, StackQueue};
use podopsy_model::profile::Frame;
use podopsy_stacks::Helpers;
use podopsy_stacks::symbolize::{CodeLocation, ProgramImage, Symbolizer, UserAddress};
use podopsy_system::heap;

/// Files held open: kills are few, and seldom of many programs at once.
const FILES: usize = 512;
/// Symbols are dropped when no stack was asked for in this time.
const IDLE: Duration = Duration::from_secs(5);
/// Time between two scans of all processes. A file that no process had mapped in one scan, nor since, is closed at the next.
const SCAN_INTERVAL: Duration = Duration::from_secs(300);
/// At exec only the program and its loader are mapped; after this time its libraries are, too.
const SECOND_VISIT: Duration = Duration::from_secs(1);
/// Processes that wait for their second visit.
const YOUNG_MAX: usize = 256;
/// The same stack of the same process within this time is one visit of the OOM killer, which kills a group.
const SAME_VISIT: Duration = Duration::from_secs(1);

/// A stack as the kernel took it, innermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UnnamedStack {
    pub pid: u32,
    /// When the process started: the pid alone may be used again.
    pub start_ns: u64,
    /// Which of the process's programs it is of.
    pub image: ProgramImage,
    pub kernel: Vec<u64>,
    pub user: Vec<BuildIdFrame>,
}

/// Kernel stack and user stack, innermost first.
#[derive(Debug, Default)]
pub(crate) struct NamedStacks {
    pub kernel: Vec<Frame>,
    pub user: Vec<Frame>,
}

/// Sends requests to the thread, which ends when this is dropped.
pub(crate) struct KillStacks {
    queue: Arc<StackQueue>,
    last: Option<(Instant, UnnamedStack, NamesReceiver)>,
}

impl KillStacks {
    /// Starts the thread, which opens the files of running processes first.
    pub fn start(helpers: &Helpers) -> std::io::Result<KillStacks> {
        let queue = Arc::<StackQueue>::default();
        let (requests, symbolizer) = (queue.clone(), Symbolizer::with_limit(helpers, FILES));
        std::thread::Builder::new().name("symbolize".into()).spawn(move || run(&requests, symbolizer))?;
        Ok(KillStacks { queue, last: None })
    }

    /// Asks for names; None: the queue is full. Kills of one visit share the answer. `container`: whose turn it is.
    pub fn ask(&mut self, container: Arc<str>, stack: UnnamedStack) -> Option<NamesReceiver> {
        if let Some((when, last, names)) = &self.last
            && when.elapsed() < SAME_VISIT
            && *last == stack
        {
            return Some(names.clone());
        }
        let names = self.queue.push_stack(container, stack.clone())?;
        self.last = Some((Instant::now(), stack, names.clone()));
        Some(names)
    }

    /// Has the files of a new process opened; false: the queue is full.
    pub fn hold(&self, pid: u32) -> bool {
        self.queue.push_program(pid)
    }
}

impl Drop for KillStacks {
    fn drop(&mut self) {
        self.queue.close();
    }
}

fn run(requests: &StackQueue, mut symbolizer: Symbolizer) {
    let mut named: Option<Instant> = None;
    // Running processes are scanned when no request waits.
    let mut running: VecDeque<u32> = pids().collect();
    let started = Instant::now();
    let mut scanned = started;
    let mut young: VecDeque<(Instant, u32)> = VecDeque::new();
    loop {
        if named.is_some_and(|when| when.elapsed() >= IDLE) {
            symbolizer.trim();
            heap::give_back();
            named = None;
        }
        if running.is_empty() && scanned.elapsed() >= SCAN_INTERVAL {
            // The scan is complete: each running process was seen in it.
            symbolizer.close_unused_since(scanned);
            scanned = Instant::now();
            running.extend(pids());
        }
        let timeout = match young.front() {
            _ if !running.is_empty() => Duration::ZERO,
            Some((when, _)) => when.saturating_duration_since(Instant::now()),
            None => IDLE,
        };
        match requests.next(timeout) {
            // The receiver may be gone; dropping the names is correct.
            Ok(Request::Name(stack, names)) => {
                let _ = names.send(Some(Arc::new(name(&mut symbolizer, &stack))));
                named = Some(Instant::now());
            }
            Ok(Request::Hold(pid)) => {
                symbolizer.hold_files(pid);
                if young.len() < YOUNG_MAX {
                    young.push_back((Instant::now() + SECOND_VISIT, pid));
                }
            }
            Err(NoRequest::TimedOut) => match running.pop_front() {
                Some(pid) if scanned == started => symbolizer.hold_files(pid),
                Some(pid) => symbolizer.refresh_files(pid),
                None => {
                    if let Some((_, pid)) = young.pop_front() {
                        symbolizer.hold_files(pid);
                    }
                }
            },
            Err(NoRequest::Closed) => return,
        }
    }
}

/// Every process; the newest last.
fn pids() -> impl Iterator<Item = u32> {
    let names = std::fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter_map(|name| name.to_str()?.parse().ok())
}

fn name(symbolizer: &mut Symbolizer, stack: &UnnamedStack) -> NamedStacks {
    // Reading a dying process's mappings delays the release of its memory while its cgroup is at the limit. So it is done
    // only for files that were not opened when the process started.
    let is_new = |frame: &BuildIdFrame| match frame.status {
        1 => !symbolizer.holds_build_id(stack.pid, &frame.build_id),
        status => status == 2,
    };
    if stack.user.iter().any(is_new) {
        symbolizer.add_process(stack.pid);
    }
    symbolizer.look_up_kernel(stack.kernel.iter().enumerate().map(|(i, &address)| (address, i > 0)));
    let locations = user_locations(symbolizer, stack);
    symbolizer.look_up_locations(locations);
    let (mut kernel, mut user) = (Vec::new(), Vec::new());
    for (i, &address) in stack.kernel.iter().enumerate() {
        kernel.extend_from_slice(&symbolizer.kernel_frames(address, i > 0));
    }
    kernel.drain(..kernel.iter().take_while(|frame| is_probe(frame)).count());
    for (i, frame) in stack.user.iter().enumerate() {
        let (address, is_return) = (frame.offset, i > 0);
        match frame.status {
            1 => user.extend_from_slice(&symbolizer.build_id_frames(
                stack.pid,
                &frame.build_id,
                address,
                is_return,
            )),
            2 => {
                let address = FrameWord::address(address);
                let address = UserAddress { pid: stack.pid, image: stack.image, address, is_return };
                user.extend_from_slice(&symbolizer.user_frames(address));
                if symbolizer.locate(address).ends_stack() {
                    break;
                }
            }
            _ => {}
        }
    }
    NamedStacks { kernel, user }
}

/// Where the user frames are, to look them up together.
fn user_locations(symbolizer: &mut Symbolizer, stack: &UnnamedStack) -> Vec<CodeLocation> {
    let frames = stack.user.iter().enumerate();
    let locate = |(i, frame): (usize, &BuildIdFrame)| match frame.status {
        1 => symbolizer
            .locate_build_id(stack.pid, &frame.build_id, frame.offset, i > 0)
            .map(|(location, _)| location),
        2 => Some(symbolizer.locate(UserAddress {
            pid: stack.pid,
            image: stack.image,
            address: FrameWord::address(frame.offset),
            is_return: i > 0,
        })),
        _ => None,
    };
    frames.filter_map(locate).collect()
}

/// Frames between the tracepoint and our probe: they belong to the observer.
fn is_probe(frame: &Frame) -> bool {
    const OURS: [&str; 5] = ["bpf_prog_", "bpf_trace_run", "__bpf_trace_", "__traceiter_", "trace_"];
    frame.function.as_deref().is_some_and(|name| OURS.iter().any(|prefix| name.starts_with(prefix)))
}
