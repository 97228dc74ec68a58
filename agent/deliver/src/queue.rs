//! What waits for a destination: bounded by bytes; when it is full, the oldest go, and are counted.
//!
//! The oldest, because the local store has them, and who looks at a destination that was away wants to see now.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::progress::Progress;
use super::tally::{Fate, Tally};

/// Something to deliver.
pub trait Weigh {
    /// About how many bytes of memory it holds.
    fn bytes(&self) -> usize;

    /// Its number in the store, from which it can be sent after a restart; None: it is in none.
    fn id(&self) -> Option<i64> {
        None
    }
}

#[derive(Debug)]
pub struct Queue<T> {
    state: Mutex<State<T>>,
    more: Notify,
    most_bytes: usize,
    tally: Arc<Tally>,
    progress: Arc<Progress>,
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<T>,
    bytes: usize,
}

impl<T: Weigh> Queue<T> {
    pub fn new(most_bytes: usize, tally: Arc<Tally>, progress: Arc<Progress>) -> Queue<T> {
        let state = State { items: VecDeque::new(), bytes: 0 };
        Queue { state: Mutex::new(state), more: Notify::new(), most_bytes, tally, progress }
    }

    /// Never waits. Something that alone is too big is dropped itself.
    pub fn push(&self, item: T) {
        let mut state = self.lock();
        let bytes = item.bytes();
        self.tally.offered(bytes);
        item.id().into_iter().for_each(|id| self.progress.offered(id));
        if bytes > self.most_bytes {
            self.tally.settled(Fate::QueueFull, 1, bytes as u64);
            self.progress.settled(item.id());
            return;
        }
        while state.bytes + bytes > self.most_bytes {
            let Some(oldest) = state.items.pop_front() else { break };
            state.bytes -= oldest.bytes();
            self.tally.settled(Fate::QueueFull, 1, oldest.bytes() as u64);
            self.progress.settled(oldest.id());
        }
        state.bytes += bytes;
        state.items.push_back(item);
        drop(state);
        self.more.notify_one();
    }

    /// The oldest, as many as fit (one at least); empty: nothing waits.
    pub fn take(&self, most_items: usize, most_bytes: usize) -> Vec<T> {
        let mut state = self.lock();
        let mut batch = Vec::new();
        let mut taken = 0;
        while let Some(next) = state.items.front().map(Weigh::bytes) {
            let fits = batch.is_empty() || (batch.len() < most_items && taken + next <= most_bytes);
            let Some(item) = fits.then(|| state.items.pop_front()).flatten() else { break };
            taken += next;
            batch.push(item);
        }
        state.bytes -= taken;
        batch
    }

    /// Until something waits.
    pub async fn filled(&self) {
        while self.is_empty() {
            self.more.notified().await;
        }
    }

    /// Until so many wait, or so many bytes, which is a full batch.
    pub async fn holds(&self, items: usize, bytes: usize) {
        let full = || {
            let state = self.lock();
            state.items.len() >= items || state.bytes >= bytes
        };
        while !full() {
            self.more.notified().await;
        }
    }

    /// Half of it is left free: for what cannot wait elsewhere.
    pub fn has_room(&self) -> bool {
        self.lock().bytes <= self.most_bytes / 2
    }

    pub fn is_empty(&self) -> bool {
        self.lock().items.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Item(u32, usize);

    impl Weigh for Item {
        fn bytes(&self) -> usize {
            self.1
        }
    }

    #[test]
    fn the_oldest_go_first_and_are_counted() {
        let tally = Arc::new(Tally::default());
        let queue = Queue::new(10, tally.clone(), Arc::default());
        (0..4).for_each(|n| queue.push(Item(n, 4)));
        let of = |tally: &Tally| {
            let counts = tally.counts();
            (counts.offered, counts.waiting, counts.waiting_bytes, counts.queue_full)
        };
        assert_eq!(of(&tally), (4, 2, 8, 2));
        queue.push(Item(9, 11));
        assert_eq!(of(&tally), (5, 2, 8, 3), "what never fits costs nobody else");
        assert_eq!(queue.take(8, 100), [Item(2, 4), Item(3, 4)]);
    }

    #[test]
    fn a_batch_is_bounded_by_both() {
        let queue = Queue::new(100, Arc::default(), Arc::default());
        (0..6).for_each(|n| queue.push(Item(n, 10)));
        assert_eq!(queue.take(2, 100).len(), 2);
        assert_eq!(queue.take(8, 35).len(), 3);
        assert_eq!(queue.take(8, 1), [Item(5, 10)], "one always goes, or nothing ever would");
        assert!(queue.take(8, 100).is_empty() && queue.is_empty());
    }
}
