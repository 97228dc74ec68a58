//! What waits for a destination: bounded by bytes; when it is full, the oldest go, and are counted.
//!
//! The oldest, because the local store has them, and who looks at a destination that was away wants to see now.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Something to deliver.
pub trait Weigh {
    /// About how many bytes of memory it holds.
    fn bytes(&self) -> usize;
}

#[derive(Debug)]
pub struct Queue<T> {
    state: Mutex<State<T>>,
    more: Notify,
    most_bytes: usize,
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<T>,
    bytes: usize,
    dropped: u64,
}

impl<T: Weigh> Queue<T> {
    pub fn new(most_bytes: usize) -> Queue<T> {
        let state = State { items: VecDeque::new(), bytes: 0, dropped: 0 };
        Queue { state: Mutex::new(state), more: Notify::new(), most_bytes }
    }

    /// Never waits. Something that alone is too big is dropped itself.
    pub fn push(&self, item: T) {
        let mut state = self.lock();
        let bytes = item.bytes();
        if bytes > self.most_bytes {
            state.dropped += 1;
            return;
        }
        while state.bytes + bytes > self.most_bytes {
            let Some(oldest) = state.items.pop_front() else { break };
            state.bytes -= oldest.bytes();
            state.dropped += 1;
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

    /// Until so many bytes wait, which is a full batch.
    pub async fn holds(&self, bytes: usize) {
        while self.lock().bytes < bytes {
            self.more.notified().await;
        }
    }

    pub fn is_empty(&self) -> bool {
        self.lock().items.is_empty()
    }

    /// How many were given up for want of room.
    pub fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    pub fn len(&self) -> usize {
        self.lock().items.len()
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
        let queue = Queue::new(10);
        (0..4).for_each(|n| queue.push(Item(n, 4)));
        assert_eq!((queue.len(), queue.dropped()), (2, 2));
        queue.push(Item(9, 11));
        assert_eq!((queue.len(), queue.dropped()), (2, 3), "what never fits costs nobody else");
        assert_eq!(queue.take(8, 100), [Item(2, 4), Item(3, 4)]);
    }

    #[test]
    fn a_batch_is_bounded_by_both() {
        let queue = Queue::new(100);
        (0..6).for_each(|n| queue.push(Item(n, 10)));
        assert_eq!(queue.take(2, 100).len(), 2);
        assert_eq!(queue.take(8, 35).len(), 3);
        assert_eq!(queue.take(8, 1), [Item(5, 10)], "one always goes, or nothing ever would");
        assert!(queue.take(8, 100).is_empty() && queue.is_empty());
    }
}
