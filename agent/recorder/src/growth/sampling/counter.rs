//! The thread that counts samples, and reports when a kill asks.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use podopsy_wire::Task;

use super::{Message, SamplerState};
use crate::growth::{self, GrowthWindow};
use podopsy_decode as decode;
use podopsy_model::growth::GrowthProfile;
use podopsy_stacks::symbolize::{ProgramImage, Symbolizer, UserAddress};
use podopsy_system::clock::boot_now_ns;
use podopsy_system::heap;

/// Processes that are remembered. Beyond that all are forgotten and looked at again.
const SEEN_MAX: usize = 4096;
/// Looks at one process: an exec is seen by its new name, and a process may change its name without end.
const LOOKS_MAX: u32 = 8;

/// Symbols are dropped when no report was asked for in this time.
const IDLE: Duration = Duration::from_secs(5);

/// Counts samples until the last sender is gone.
pub(super) fn run(received: &mpsc::Receiver<Message>, shared: &SamplerState, symbolizer: Symbolizer) {
    let mut counter = Counter { window: GrowthWindow::default(), symbolizer, seen: HashMap::new() };
    let mut reported: Option<Instant> = None;
    loop {
        // Tables of symbols are megabytes, and the next kill may be days away; in a storm it is not.
        if reported.is_some_and(|when| when.elapsed() >= IDLE) {
            counter.symbolizer.trim();
            heap::give_back();
            reported = None;
        }
        match received.recv_timeout(IDLE) {
            Ok(Message::Sample(stack)) => counter.add(&stack),
            Ok(Message::Report(cgroup, boot_ns, reply)) => {
                // The receiver may be gone; dropping the report is correct.
                let _ = reply.send(counter.report(cgroup, boot_ns));
                reported = Some(Instant::now());
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        shared.evicted.store(counter.window.evicted(), Relaxed);
    }
}

struct Counter {
    window: GrowthWindow,
    symbolizer: Symbolizer,
    /// By pid and start.
    seen: HashMap<(u32, u64), SeenProcess>,
}

/// A process when its mappings were last looked at.
#[derive(Default)]
struct SeenProcess {
    image: ProgramImage,
    name: [u8; 16],
    /// How often they were.
    looks: u32,
}

impl Counter {
    fn add(&mut self, stack: &decode::Stack) {
        let (pid, image) = (stack.task.pid, ProgramImage(stack.image));
        self.see(&stack.task, image);
        self.symbolizer.refresh_mappings(pid, image, &stack.user);
        let place = |(depth, &word): (usize, &u64)| {
            let address = self.symbolizer.with_number(word, &stack.file);
            self.symbolizer.locate(UserAddress { pid, image, address, is_return: depth > 0 })
        };
        let places = stack.user.iter().enumerate().map(place).collect();
        let counted = growth::GrowthStack { places, end: stack.end, end_frame: stack.end_frame };
        self.window.add(stack.task.cgroup_id, counted, boot_now_ns());
    }

    /// Shows a process to the symbolizer while it lives: at first sight, and with a new program or name (exec).
    fn see(&mut self, task: &Task, image: ProgramImage) {
        if self.seen.len() >= SEEN_MAX {
            self.seen.clear();
        }
        let seen = self.seen.entry((task.pid, task.start_ns)).or_default();
        let is_new = seen.image != image || (task.pid == task.tid && seen.name != task.comm);
        if seen.looks == 0 || (is_new && seen.looks < LOOKS_MAX) {
            *seen = SeenProcess { image, name: task.comm, looks: seen.looks + 1 };
            self.symbolizer.add_process(task.pid);
        }
    }

    fn report(&mut self, cgroup: u64, boot_ns: u64) -> Option<GrowthProfile> {
        let slice = self.window.slice(cgroup, boot_ns)?;
        Some(growth::report(slice, growth::PERIOD, &mut self.symbolizer))
    }
}
