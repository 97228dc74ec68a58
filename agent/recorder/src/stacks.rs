//! The symbolizer on a thread of its own: it blocks on files, the pipeline must not.

use std::collections::VecDeque;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use podopsy_wire::BuildIdFrame;
use tokio::sync::oneshot;

use podopsy_model::profile::Frame;
use podopsy_stacks::symbolize::{Symbolizer, UserAddress};
use podopsy_system::heap;

/// Stacks that wait for their names; past this, stacks go without (and the kill is told all the same).
const QUEUE: usize = 256;
/// Files held open, and bytes of their symbols: kills are few, and seldom of many programs at once.
const FILES: usize = 512;
const SYMBOLS_BYTES: u64 = 32 << 20;
/// Symbols are let go of when nobody has asked for so long.
const IDLE: Duration = Duration::from_secs(5);
/// Between two looks at who runs: a file that nobody had mapped at one of them, nor since, is let go of at the next.
const LOOK_AROUND: Duration = Duration::from_secs(300);
/// At exec only the program and its loader are mapped; its libraries are by then.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// A stack as the kernel took it, innermost first.
pub struct Unnamed {
    pub pid: u32,
    pub kernel: Vec<u64>,
    pub user: Vec<BuildIdFrame>,
}

/// Kernel stack and user stack, innermost first.
#[derive(Debug, Default)]
pub struct Named {
    pub kernel: Vec<Frame>,
    pub user: Vec<Frame>,
}

enum Request {
    Name(Unnamed, oneshot::Sender<Named>),
    /// A program that is new: its files are wanted when it is dead.
    Hold(u32),
}

/// The thread's door; the thread ends when it is dropped.
pub struct Stacks {
    queue: mpsc::SyncSender<Request>,
}

impl Stacks {
    /// Starts with the files of what runs already.
    pub fn start() -> std::io::Result<Stacks> {
        let (queue, requests) = mpsc::sync_channel(QUEUE);
        std::thread::Builder::new().name("symbolize".into()).spawn(move || run(&requests))?;
        Ok(Stacks { queue })
    }

    /// Asks for names; None: the queue is full.
    pub fn ask(&self, stack: Unnamed) -> Option<oneshot::Receiver<Named>> {
        let (reply, answer) = oneshot::channel();
        self.queue.try_send(Request::Name(stack, reply)).ok().map(|()| answer)
    }

    /// Has a new process's files opened; false: the queue is full.
    pub fn hold(&self, pid: u32) -> bool {
        self.queue.try_send(Request::Hold(pid)).is_ok()
    }
}

fn run(requests: &mpsc::Receiver<Request>) {
    let mut symbolizer = Symbolizer::holding(FILES, SYMBOLS_BYTES);
    let mut named: Option<Instant> = None;
    // What runs already is looked at when nobody waits.
    let mut running: VecDeque<u32> = pids().collect();
    let began = Instant::now();
    let mut looked = began;
    let mut young: VecDeque<(Instant, u32)> = VecDeque::new();
    loop {
        if named.is_some_and(|when| when.elapsed() >= IDLE) {
            symbolizer.trim();
            heap::give_back();
            named = None;
        }
        if running.is_empty() && looked.elapsed() >= LOOK_AROUND {
            // The look has come to its end: what runs was seen in it.
            symbolizer.let_go(looked);
            looked = Instant::now();
            running.extend(pids());
        }
        let wait = match young.front() {
            _ if !running.is_empty() => Duration::ZERO,
            Some((when, _)) => when.saturating_duration_since(Instant::now()),
            None => IDLE,
        };
        match requests.recv_timeout(wait) {
            // Nobody may be waiting for it any more: that is their choice.
            Ok(Request::Name(stack, reply)) => {
                let _ = reply.send(name(&mut symbolizer, &stack));
                named = Some(Instant::now());
            }
            Ok(Request::Hold(pid)) => {
                symbolizer.hold_files(pid);
                if young.len() < QUEUE {
                    young.push_back((Instant::now() + SECOND_LOOK, pid));
                }
            }
            Err(RecvTimeoutError::Timeout) => match running.pop_front() {
                Some(pid) if looked == began => symbolizer.hold_files(pid),
                Some(pid) => symbolizer.revisit_files(pid),
                None => young.pop_front().into_iter().for_each(|(_, pid)| symbolizer.hold_files(pid)),
            },
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Every process; the newest last.
fn pids() -> impl Iterator<Item = u32> {
    let names = std::fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter_map(|name| name.to_str()?.parse().ok())
}

fn name(symbolizer: &mut Symbolizer, stack: &Unnamed) -> Named {
    // Reading a dying process's mappings holds its memory back for that moment, and the limit is hit already: only for
    // what was not opened when it started.
    let is_new = |frame: &BuildIdFrame| match frame.status {
        1 => !symbolizer.holds(&frame.build_id),
        status => status == 2,
    };
    if stack.user.iter().any(is_new) {
        symbolizer.see_process(stack.pid);
    }
    symbolizer.look_up_kernel(stack.kernel.iter().enumerate().map(|(i, &address)| (address, i > 0)));
    let (mut kernel, mut user) = (Vec::new(), Vec::new());
    for (i, &address) in stack.kernel.iter().enumerate() {
        kernel.extend_from_slice(&symbolizer.kernel(address, i > 0));
    }
    kernel.drain(..kernel.iter().take_while(|frame| is_probe(frame)).count());
    for (i, frame) in stack.user.iter().enumerate() {
        let (address, is_return) = (frame.offset, i > 0);
        match frame.status {
            1 => user.extend_from_slice(&symbolizer.build_id(&frame.build_id, address, is_return)),
            2 => user.extend_from_slice(&symbolizer.user(UserAddress { pid: stack.pid, address, is_return })),
            _ => {}
        }
    }
    Named { kernel, user }
}

/// The frames between the tracepoint and our probe: they are the observer, not the observed.
fn is_probe(frame: &Frame) -> bool {
    const OURS: [&str; 5] = ["bpf_prog_", "bpf_trace_run", "__bpf_trace_", "__traceiter_", "trace_"];
    frame.function.as_deref().is_some_and(|name| OURS.iter().any(|prefix| name.starts_with(prefix)))
}
