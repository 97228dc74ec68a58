//! The symbolizer on a thread of its own: it blocks on files, the pipeline must not.

use std::sync::mpsc;

use podopsy_wire::BuildIdFrame;
use tokio::sync::oneshot;

use crate::model::profile::Frame;
use crate::symbolize::{Symbolizer, UserAddress};

/// Stacks that wait for their names; past this, stacks go without (and the kill is told all the same).
const QUEUE: usize = 256;

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

/// The thread's door; the thread ends when it is dropped.
pub struct Stacks {
    queue: mpsc::SyncSender<(Unnamed, oneshot::Sender<Named>)>,
}

impl Stacks {
    pub fn start() -> std::io::Result<Stacks> {
        let (queue, requests) = mpsc::sync_channel::<(Unnamed, oneshot::Sender<Named>)>(QUEUE);
        std::thread::Builder::new().name("symbolize".into()).spawn(move || {
            let mut symbolizer = Symbolizer::new();
            for (stack, reply) in requests {
                // Nobody may be waiting any more: that is their choice.
                let _ = reply.send(name(&mut symbolizer, &stack));
            }
        })?;
        Ok(Stacks { queue })
    }

    /// Asks for names; None: the queue is full.
    pub fn ask(&self, stack: Unnamed) -> Option<oneshot::Receiver<Named>> {
        let (reply, answer) = oneshot::channel();
        self.queue.try_send((stack, reply)).ok().map(|()| answer)
    }
}

fn name(symbolizer: &mut Symbolizer, stack: &Unnamed) -> Named {
    symbolizer.see_process(stack.pid);
    let kernel = stack.kernel.iter().enumerate().flat_map(|(i, &address)| symbolizer.kernel(address, i > 0));
    let kernel = kernel.skip_while(is_probe).collect();
    let user = stack
        .user
        .iter()
        .enumerate()
        .flat_map(|(i, frame)| match frame.status {
            1 => symbolizer.build_id(&frame.build_id, frame.offset, i > 0),
            2 => symbolizer.user(UserAddress { pid: stack.pid, address: frame.offset, is_return: i > 0 }),
            _ => Vec::new(),
        })
        .collect();
    Named { kernel, user }
}

/// The frames between the tracepoint and our probe: they are the observer, not the observed.
fn is_probe(frame: &Frame) -> bool {
    const OURS: [&str; 5] = ["bpf_prog_", "bpf_trace_run", "__bpf_trace_", "__traceiter_", "trace_"];
    frame.function.as_deref().is_some_and(|name| OURS.iter().any(|prefix| name.starts_with(prefix)))
}
