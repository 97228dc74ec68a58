//! How much of the store's content a destination has finished, so that a restart continues there.
//!
//! While a destination catches up, the store is its queue: new items are deferred and read from the store after the older
//! ones. This module must not depend on the store; the caller passes in a function that reads pages of it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use podopsy_system::sync::lock;
use tokio::time::sleep;

use super::counters::DeliveryCounters;
use super::queue::{Queue, QueueItem};

/// Between two checks whether the queue has free capacity.
const CAPACITY_CHECK_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub struct DeliveryCheckpoint(Mutex<CheckpointState>);

/// All ids are ids of the store.
#[derive(Debug, Default)]
struct CheckpointState {
    /// Offered, and neither delivered nor dropped.
    open: BTreeSet<i64>,
    /// The highest id that was offered.
    offered: i64,
    /// The highest id up to which everything was finished. It never decreases: an item that is reported again, because
    /// more is known about it, keeps its old id.
    done: i64,
    /// Some: the destination catches up.
    deferred: Option<DeferredIds>,
}

/// The items that were new while the destination caught up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct DeferredIds {
    /// The store was read up to this id.
    read: i64,
    oldest: i64,
    newest: i64,
    /// How many from `oldest` to `newest` were not offered yet.
    left: u64,
}

impl DeliveryCheckpoint {
    /// The id up to which everything is delivered, or dropped and counted. None: nothing was ever offered.
    pub fn done(&self) -> Option<i64> {
        let mut state = lock(&self.0);
        let done_now = state.open.first().map_or(state.offered, |first| first - 1);
        state.done = state.done.max(done_now);
        (state.done > 0).then_some(state.done)
    }

    pub(super) fn offered(&self, id: i64) {
        let mut state = lock(&self.0);
        state.open.insert(id);
        state.offered = state.offered.max(id);
        if let Some(deferred) = &mut state.deferred
            && (deferred.oldest..=deferred.newest).contains(&id)
        {
            deferred.left = deferred.left.saturating_sub(1);
        }
    }

    pub(super) fn settled(&self, ids: impl IntoIterator<Item = i64>) {
        let mut state = lock(&self.0);
        for id in ids {
            state.open.remove(&id);
        }
    }

    /// True: do not queue this item now; it will be read from the store. An item that was read already and is reported
    /// again is not deferred.
    pub(super) fn defers(&self, id: i64) -> bool {
        let mut state = lock(&self.0);
        let Some(deferred) = state.deferred.as_mut().filter(|deferred| id > deferred.read) else {
            return false;
        };
        if deferred.left == 0 {
            deferred.oldest = id;
        }
        // An item that is reported again is still one record.
        if id > deferred.newest {
            deferred.newest = id;
            deferred.left += 1;
        }
        true
    }

    fn begin_catching_up(&self, done: i64) {
        let mut state = lock(&self.0);
        state.offered = done;
        state.done = done;
        state.deferred = Some(DeferredIds { read: done, ..DeferredIds::default() });
    }

    fn read_up_to(&self, id: i64) {
        if let Some(deferred) = &mut lock(&self.0).deferred {
            deferred.read = id;
        }
    }

    fn deferred(&self) -> Option<DeferredIds> {
        lock(&self.0).deferred
    }

    /// Call this when the store had no more items; `deferred` is the value from before that read. Returns how many of the
    /// deferred items the store no longer has. None: more were deferred meanwhile, so the store must be read again.
    fn end_catching_up(&self, deferred: Option<DeferredIds>) -> Option<u64> {
        let mut state = lock(&self.0);
        if state.deferred != deferred {
            return None;
        }
        Some(state.deferred.take().map_or(0, |deferred| deferred.left))
    }
}

/// Sends a destination the items that it had not been sent when the agent ended.
pub struct CatchUp<T> {
    done: i64,
    queue: Arc<Queue<T>>,
    checkpoint: Arc<DeliveryCheckpoint>,
    counters: Arc<DeliveryCounters>,
}

impl<T: QueueItem> CatchUp<T> {
    /// From now on, offered items that are in the store are deferred.
    pub(super) fn begin(
        done: i64,
        queue: Arc<Queue<T>>,
        checkpoint: Arc<DeliveryCheckpoint>,
        counters: Arc<DeliveryCounters>,
    ) -> CatchUp<T> {
        checkpoint.begin_catching_up(done);
        CatchUp { done, queue, checkpoint, counters }
    }

    /// Offers everything that the store has after the id `done`, as fast as the destination takes it.
    ///
    /// `read_page` reads some items after an id, oldest first, with their ids; an empty page is the end. An item is None if
    /// the store cannot read it.
    pub async fn run<F: Future<Output = Vec<(i64, Option<T>)>>>(self, mut read_page: impl FnMut(i64) -> F) {
        let mut last = self.done;
        loop {
            let deferred = self.checkpoint.deferred();
            let page = read_page(last).await;
            if page.is_empty() {
                if let Some(gone) = self.checkpoint.end_catching_up(deferred) {
                    self.counters.count_gone(gone);
                    return;
                }
                continue;
            }
            last = page.last().map_or(last, |(id, _)| *id);
            self.checkpoint.read_up_to(last);
            for (id, item) in page {
                while !self.queue.is_half_free() {
                    sleep(CAPACITY_CHECK_INTERVAL).await;
                }
                match item {
                    Some(item) => self.queue.push(item),
                    // The store counts what it cannot read.
                    None => {
                        self.checkpoint.offered(id);
                        self.checkpoint.settled([id]);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn done_is_the_id_before_the_first_open_one() {
        let checkpoint = DeliveryCheckpoint::default();
        assert_eq!(checkpoint.done(), None);
        (5..9).for_each(|id| checkpoint.offered(id));
        assert_eq!(checkpoint.done(), Some(4));
        checkpoint.settled([5, 7]);
        assert_eq!(checkpoint.done(), Some(5));
        checkpoint.settled([6, 8]);
        assert_eq!(checkpoint.done(), Some(8));
        assert!(!checkpoint.defers(9), "the destination does not catch up");
    }

    #[test]
    fn items_that_are_new_while_catching_up_are_deferred_and_those_that_left_the_store_are_counted() {
        let checkpoint = DeliveryCheckpoint::default();
        checkpoint.begin_catching_up(10);
        assert_eq!(checkpoint.done(), Some(10));
        let before = checkpoint.deferred();
        assert!([14, 15, 16].map(|id| checkpoint.defers(id)).iter().all(|defers| *defers));
        assert_eq!(checkpoint.end_catching_up(before), None, "more were deferred meanwhile");
        assert!(checkpoint.defers(15), "an item that is reported again is still one record");
        checkpoint.read_up_to(14);
        [11, 14].into_iter().for_each(|id| checkpoint.offered(id));
        assert!(!checkpoint.defers(11), "it was read, and is reported again with more details");
        let all = checkpoint.deferred();
        assert_eq!(checkpoint.end_catching_up(all), Some(2), "15 and 16 have left the store");
        assert!(!checkpoint.defers(17));
        checkpoint.settled([11, 14]);
        assert_eq!(checkpoint.done(), Some(14));
        checkpoint.offered(12);
        assert_eq!(checkpoint.done(), Some(14), "an item that is reported again does not lead back");
    }
}
