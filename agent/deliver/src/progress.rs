//! How far a destination has come in what the store holds, so that a restart goes on there.
//!
//! While it catches up, the store is the queue: what is new is passed over, and read from there behind what is older.
//! Must not know: the store.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::sleep;

use super::queue::{Queue, Weigh};
use super::tally::Tally;

/// Between two looks at whether the queue has room.
const ROOM: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub struct Progress(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Offered, and neither delivered nor given up.
    open: BTreeSet<i64>,
    /// The highest number that was offered.
    offered: i64,
    /// The highest that all was done up to. What is told again, because more is known of it, has its old number.
    done: i64,
    /// Some: it catches up.
    passed: Option<Passed>,
}

/// What was new while it caught up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Passed {
    /// Up to this number the store was read.
    read: i64,
    oldest: i64,
    newest: i64,
    /// Those between them that were not offered yet.
    left: u64,
}

impl Progress {
    /// Up to this number all is delivered, or given up and counted; None: it never was offered anything.
    pub fn done(&self) -> Option<i64> {
        let mut state = self.lock();
        let now = state.open.first().map_or(state.offered, |first| first - 1);
        state.done = state.done.max(now);
        (state.done > 0).then_some(state.done)
    }

    pub(super) fn offered(&self, id: i64) {
        let mut state = self.lock();
        state.open.insert(id);
        state.offered = state.offered.max(id);
        if let Some(passed) = &mut state.passed
            && (passed.oldest..=passed.newest).contains(&id)
        {
            passed.left = passed.left.saturating_sub(1);
        }
    }

    pub(super) fn settled(&self, ids: impl IntoIterator<Item = i64>) {
        let mut state = self.lock();
        for id in ids {
            state.open.remove(&id);
        }
    }

    /// True: it will be read from the store. What was read already, and is told again, will not.
    pub(super) fn passes_over(&self, id: i64) -> bool {
        let mut state = self.lock();
        let Some(passed) = state.passed.as_mut().filter(|passed| id > passed.read) else { return false };
        if passed.left == 0 {
            passed.oldest = id;
        }
        // Told again, it is still one record.
        if id > passed.newest {
            passed.newest = id;
            passed.left += 1;
        }
        true
    }

    fn begin(&self, done: i64) {
        let mut state = self.lock();
        (state.offered, state.done) = (done, done);
        state.passed = Some(Passed { read: done, ..Passed::default() });
    }

    fn read(&self, id: i64) {
        if let Some(passed) = &mut self.lock().passed {
            passed.read = id;
        }
    }

    fn passed(&self) -> Option<Passed> {
        self.lock().passed
    }

    /// The store had no more, when this was all that had been passed over; how many of that it has no longer. None: there
    /// is more by now.
    fn end(&self, passed: Option<Passed>) -> Option<u64> {
        let mut state = self.lock();
        if state.passed != passed {
            return None;
        }
        Some(state.passed.take().map_or(0, |passed| passed.left))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A destination's way to what it had not been sent when the agent ended.
pub struct Resume<T> {
    done: i64,
    queue: Arc<Queue<T>>,
    progress: Arc<Progress>,
    tally: Arc<Tally>,
}

impl<T: Weigh> Resume<T> {
    /// From now on what is offered, and is in the store, is passed over.
    pub(super) fn begin(
        done: i64,
        queue: Arc<Queue<T>>,
        progress: Arc<Progress>,
        tally: Arc<Tally>,
    ) -> Resume<T> {
        progress.begin(done);
        Resume { done, queue, progress, tally }
    }

    /// Offers what the store has behind `done`: `next` reads some of it behind a number, oldest first, with theirs; empty:
    /// there is no more. Takes as long as the destination does.
    pub async fn run<F: Future<Output = Vec<(i64, Option<T>)>>>(self, mut next: impl FnMut(i64) -> F) {
        let mut last = self.done;
        loop {
            let passed = self.progress.passed();
            let page = next(last).await;
            if page.is_empty() {
                if let Some(gone) = self.progress.end(passed) {
                    self.tally.gone(gone);
                    return;
                }
                continue;
            }
            last = page.last().map_or(last, |(id, _)| *id);
            self.progress.read(last);
            for (id, item) in page {
                while !self.queue.has_room() {
                    sleep(ROOM).await;
                }
                match item {
                    Some(item) => self.queue.push(item),
                    // The store counts what it cannot read.
                    None => {
                        self.progress.offered(id);
                        self.progress.settled([id]);
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
    fn done_is_what_comes_before_all_that_is_open() {
        let progress = Progress::default();
        assert_eq!(progress.done(), None);
        (5..9).for_each(|id| progress.offered(id));
        assert_eq!(progress.done(), Some(4));
        progress.settled([5, 7]);
        assert_eq!(progress.done(), Some(5));
        progress.settled([6, 8]);
        assert_eq!(progress.done(), Some(8));
        assert!(!progress.passes_over(9), "nothing is read from the store");
    }

    #[test]
    fn what_is_new_meanwhile_is_read_from_the_store_and_what_is_gone_from_there_is_counted() {
        let progress = Progress::default();
        progress.begin(10);
        assert_eq!(progress.done(), Some(10));
        let before = progress.passed();
        assert!([14, 15, 16].map(|id| progress.passes_over(id)).iter().all(|over| *over));
        assert_eq!(progress.end(before), None, "there is more by now");
        assert!(progress.passes_over(15), "told again, it is one record still");
        progress.read(14);
        [11, 14].into_iter().for_each(|id| progress.offered(id));
        assert!(!progress.passes_over(11), "it was read, and is told again with more");
        let all = progress.passed();
        assert_eq!(progress.end(all), Some(2), "15 and 16 have left the store");
        assert!(!progress.passes_over(17));
        progress.settled([11, 14]);
        assert_eq!(progress.done(), Some(14));
        progress.offered(12);
        assert_eq!(progress.done(), Some(14), "told again, it does not lead back");
    }
}
