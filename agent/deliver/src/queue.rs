//! The bounded queue of items that wait for one destination.
//!
//! When the queue is full, the oldest items are dropped and counted. The oldest, because the local store still has them,
//! and a user who looks at a destination after an outage wants to see the present.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use podopsy_system::sync::lock;
use tokio::sync::Notify;

use super::checkpoint::DeliveryCheckpoint;
use super::counters::{DeliveryCounters, ExportLossReason, ItemOutcome};

/// Something that can be delivered.
pub trait QueueItem {
    /// The approximate number of bytes of memory that it uses.
    fn bytes(&self) -> usize;

    /// Its id in the store, from which it can be sent again after a restart. None: it is not in the store.
    fn store_id(&self) -> Option<i64> {
        None
    }
}

#[derive(Debug)]
pub struct Queue<T> {
    state: Mutex<QueueState<T>>,
    pushed: Notify,
    max_bytes: usize,
    counters: Arc<DeliveryCounters>,
    checkpoint: Arc<DeliveryCheckpoint>,
}

#[derive(Debug)]
struct QueueState<T> {
    items: VecDeque<T>,
    bytes: usize,
}

impl<T: QueueItem> Queue<T> {
    pub fn new(
        max_bytes: usize,
        counters: Arc<DeliveryCounters>,
        checkpoint: Arc<DeliveryCheckpoint>,
    ) -> Queue<T> {
        let state = QueueState { items: VecDeque::new(), bytes: 0 };
        Queue { state: Mutex::new(state), pushed: Notify::new(), max_bytes, counters, checkpoint }
    }

    /// Never waits. Drops the oldest items until `item` fits; an item larger than the whole queue is itself dropped.
    pub fn push(&self, item: T) {
        let mut state = lock(&self.state);
        let bytes = item.bytes();
        self.counters.count_offered(bytes);
        if let Some(id) = item.store_id() {
            self.checkpoint.offered(id);
        }
        if bytes > self.max_bytes {
            self.drop_item(&item);
            return;
        }
        while state.bytes + bytes > self.max_bytes {
            let Some(oldest) = state.items.pop_front() else { break };
            state.bytes -= oldest.bytes();
            self.drop_item(&oldest);
        }
        state.bytes += bytes;
        state.items.push_back(item);
        drop(state);
        self.pushed.notify_one();
    }

    fn drop_item(&self, item: &T) {
        let outcome = ItemOutcome::Lost(ExportLossReason::QueueFull);
        self.counters.settle(outcome, 1, item.bytes() as u64);
        self.checkpoint.settled(item.store_id());
    }

    /// Takes the oldest items within both bounds, but at least one. Empty: nothing waits.
    pub fn take(&self, max_items: usize, max_bytes: usize) -> Vec<T> {
        let mut state = lock(&self.state);
        let mut batch = Vec::new();
        let mut taken = 0;
        while let Some(next) = state.items.front().map(QueueItem::bytes) {
            let fits = batch.is_empty() || (batch.len() < max_items && taken + next <= max_bytes);
            let Some(item) = fits.then(|| state.items.pop_front()).flatten() else { break };
            taken += next;
            batch.push(item);
        }
        state.bytes -= taken;
        batch
    }

    /// Waits until the queue has an item.
    pub async fn wait_for_item(&self) {
        while self.is_empty() {
            self.pushed.notified().await;
        }
    }

    /// Waits until the queue has `items` items or `bytes` bytes, which is a full batch.
    pub async fn wait_for_batch(&self, items: usize, bytes: usize) {
        let is_full = || {
            let state = lock(&self.state);
            state.items.len() >= items || state.bytes >= bytes
        };
        while !is_full() {
            self.pushed.notified().await;
        }
    }

    /// Whether at least half of the capacity is free. Items from the store wait for this; the free half is for items that
    /// cannot wait elsewhere.
    pub fn is_half_free(&self) -> bool {
        lock(&self.state).bytes <= self.max_bytes / 2
    }

    pub fn is_empty(&self) -> bool {
        lock(&self.state).items.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct TestItem(u32, usize);

    impl QueueItem for TestItem {
        fn bytes(&self) -> usize {
            self.1
        }
    }

    #[test]
    fn the_oldest_items_are_dropped_first_and_counted() {
        let counters = Arc::new(DeliveryCounters::default());
        let queue = Queue::new(10, counters.clone(), Arc::default());
        (0..4).for_each(|n| queue.push(TestItem(n, 4)));
        let of = |counters: &DeliveryCounters| {
            let counts = counters.counts();
            (counts.offered, counts.waiting, counts.waiting_bytes, counts.queue_full)
        };
        assert_eq!(of(&counters), (4, 2, 8, 2));
        queue.push(TestItem(9, 11));
        assert_eq!(of(&counters), (5, 2, 8, 3), "an item that never fits displaces no other");
        assert_eq!(queue.take(8, 100), [TestItem(2, 4), TestItem(3, 4)]);
    }

    #[test]
    fn a_batch_is_bounded_by_items_and_by_bytes() {
        let queue = Queue::new(100, Arc::default(), Arc::default());
        (0..6).for_each(|n| queue.push(TestItem(n, 10)));
        assert_eq!(queue.take(2, 100).len(), 2);
        assert_eq!(queue.take(8, 35).len(), 3);
        assert_eq!(queue.take(8, 1), [TestItem(5, 10)], "a batch has at least one item");
        assert!(queue.take(8, 100).is_empty() && queue.is_empty());
    }
}
