//! Stacks of kills that wait for their names, and new programs whose files are to be opened: what the thread of
//! [`super::stacks`] does next.
//!
//! Each container has a queue of its own, and the queues take turns. A container whose files are slow to read delays its
//! own names: another container's stack waits for one of its stacks, not for all of them. Pure: it reads no files.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use podopsy_system::sync::lock;
use tokio::sync::watch;

use super::stacks::{NamedStacks, UnnamedStack};

/// Stacks that wait, in total. When there are more, the container with the most loses its newest.
const STACKS_MAX: usize = 256;
/// Stacks of one container that wait.
const CONTAINER_STACKS_MAX: usize = 32;
/// New programs that wait.
const PROGRAMS_MAX: usize = 256;

/// The names of a stack, once they are known. The sender is gone if they never will be.
pub(crate) type NamesReceiver = watch::Receiver<Option<Arc<NamedStacks>>>;
pub(crate) type NamesSender = watch::Sender<Option<Arc<NamedStacks>>>;

/// What to do next.
pub(crate) enum Request {
    Name(Box<UnnamedStack>, NamesSender),
    /// A new program: its files will be needed when it is dead.
    Hold(u32),
}

/// Why there is no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRequest {
    TimedOut,
    Closed,
}

#[derive(Default)]
pub(crate) struct StackQueue {
    state: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Default)]
struct QueueState {
    /// Never an empty one. The first is served next.
    containers: VecDeque<ContainerStacks>,
    programs: VecDeque<u32>,
    /// Whether the last request was a stack: the two kinds take turns, too.
    named_last: bool,
    closed: bool,
}

struct ContainerStacks {
    container: Arc<str>,
    stacks: VecDeque<(Box<UnnamedStack>, NamesSender)>,
}

impl StackQueue {
    /// Adds a stack. None: the container has too many.
    pub fn push_stack(&self, container: Arc<str>, stack: UnnamedStack) -> Option<NamesReceiver> {
        let (sender, names) = watch::channel(None);
        lock(&self.state).push_stack(container, stack, sender)?;
        self.changed.notify_one();
        Some(names)
    }

    /// Adds a new program; false: there are too many.
    pub fn push_program(&self, pid: u32) -> bool {
        let mut state = lock(&self.state);
        if state.programs.len() >= PROGRAMS_MAX {
            return false;
        }
        state.programs.push_back(pid);
        self.changed.notify_one();
        true
    }

    /// What is left is still served; then [`StackQueue::next`] returns [`NoRequest::Closed`].
    pub fn close(&self) {
        lock(&self.state).closed = true;
        self.changed.notify_one();
    }

    /// Takes the next request, and waits for it at most `timeout`.
    pub fn next(&self, timeout: Duration) -> Result<Request, NoRequest> {
        let end = Instant::now() + timeout;
        let mut state = lock(&self.state);
        loop {
            if let Some(request) = state.take() {
                return Ok(request);
            }
            let remaining = end.saturating_duration_since(Instant::now());
            match (state.closed, remaining.is_zero()) {
                (true, _) => return Err(NoRequest::Closed),
                (false, true) => return Err(NoRequest::TimedOut),
                (false, false) => {}
            }
            let waited = self.changed.wait_timeout(state, remaining);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl QueueState {
    fn push_stack(&mut self, container: Arc<str>, stack: UnnamedStack, names: NamesSender) -> Option<()> {
        let position = self.containers.iter().position(|one| one.container == container);
        let own = position.map_or(0, |at| self.containers[at].stacks.len());
        if own >= CONTAINER_STACKS_MAX {
            return None;
        }
        let all: usize = self.containers.iter().map(|one| one.stacks.len()).sum();
        if all >= STACKS_MAX {
            let largest = self.containers.iter_mut().max_by_key(|one| one.stacks.len())?;
            if largest.stacks.len() <= own + 1 {
                return None;
            }
            // Its sender is dropped, so the kill that waits for these names goes on without them.
            largest.stacks.pop_back();
        }
        let waiting = (Box::new(stack), names);
        match position {
            Some(at) => self.containers[at].stacks.push_back(waiting),
            None => self.containers.push_back(ContainerStacks { container, stacks: [waiting].into() }),
        }
        Some(())
    }

    fn take(&mut self) -> Option<Request> {
        if self.named_last
            && let Some(pid) = self.programs.pop_front()
        {
            self.named_last = false;
            return Some(Request::Hold(pid));
        }
        if let Some((stack, names)) = self.take_stack() {
            self.named_last = true;
            return Some(Request::Name(stack, names));
        }
        self.programs.pop_front().map(Request::Hold)
    }

    fn take_stack(&mut self) -> Option<(Box<UnnamedStack>, NamesSender)> {
        while let Some(mut first) = self.containers.pop_front() {
            let taken = first.stacks.pop_front();
            if !first.stacks.is_empty() {
                self.containers.push_back(first);
            }
            // Nothing waits for names whose kill gave up.
            if let Some((stack, names)) = taken.filter(|(_, names)| !names.is_closed()) {
                return Some((stack, names));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use podopsy_stacks::symbolize::ProgramImage;

    use super::*;

    fn stack(pid: u32) -> UnnamedStack {
        UnnamedStack { pid, start_ns: 0, image: ProgramImage::UNKNOWN, kernel: Vec::new(), user: Vec::new() }
    }

    /// Adds `count` stacks of a container, and returns those that were accepted.
    fn push(queue: &StackQueue, container: &str, count: u32) -> Vec<NamesReceiver> {
        (0..count).filter_map(|pid| queue.push_stack(container.into(), stack(pid))).collect()
    }

    fn next_pid(queue: &StackQueue) -> Option<u32> {
        match queue.next(Duration::ZERO) {
            Ok(Request::Name(stack, _)) => Some(stack.pid),
            _ => None,
        }
    }

    #[test]
    fn a_container_with_many_stacks_delays_another_by_one_stack() {
        let queue = StackQueue::default();
        let _slow = push(&queue, "slow", 20);
        let _neighbour = queue.push_stack("neighbour".into(), stack(77)).unwrap();
        assert_eq!([next_pid(&queue), next_pid(&queue), next_pid(&queue)], [Some(0), Some(77), Some(1)]);
    }

    #[test]
    fn one_container_has_a_share_and_the_largest_loses_first() {
        let queue = StackQueue::default();
        let held: Vec<_> = (0..8).map(|n| push(&queue, &format!("c{n}"), 40)).collect();
        assert!(held.iter().all(|names| names.len() == CONTAINER_STACKS_MAX));
        // The queue is full: a container without a stack gets one, at the cost of one that has many.
        let own = queue.push_stack("new".into(), stack(1)).unwrap();
        let lost = held.iter().flatten().filter(|names| names.has_changed().is_err()).count();
        assert_eq!((lost, own.has_changed().is_ok()), (1, true));
    }

    #[test]
    fn stacks_that_no_kill_waits_for_are_skipped() {
        let queue = StackQueue::default();
        drop(push(&queue, "a", 3));
        let _kept = queue.push_stack("b".into(), stack(9)).unwrap();
        assert_eq!([next_pid(&queue), next_pid(&queue)], [Some(9), None]);
    }

    #[test]
    fn new_programs_and_stacks_take_turns_and_the_rest_is_served_after_the_end() {
        let queue = StackQueue::default();
        let _names = push(&queue, "a", 2);
        assert!(queue.push_program(100) && queue.push_program(101));
        queue.close();
        let order: Vec<_> = std::iter::from_fn(|| queue.next(Duration::ZERO).ok())
            .map(|request| match request {
                Request::Name(stack, _) => stack.pid,
                Request::Hold(pid) => pid,
            })
            .collect();
        assert_eq!(order, [0, 100, 1, 101]);
        assert_eq!(queue.next(Duration::from_secs(60)).err(), Some(NoRequest::Closed));
    }

    #[test]
    fn the_number_of_new_programs_is_bounded() {
        let queue = StackQueue::default();
        assert!((0..PROGRAMS_MAX as u32).all(|pid| queue.push_program(pid)));
        assert!(!queue.push_program(1));
    }
}
