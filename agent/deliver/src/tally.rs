//! What became of what was offered to a destination.
//!
//! One lock for all of it, so that the sums agree at every moment: offered = delivered + lost + waiting.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Items, but for `waiting_bytes` and `retries`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub offered: u64,
    /// Neither delivered nor lost: in the queue, or in the batch that is under way.
    pub waiting: u64,
    pub waiting_bytes: u64,
    pub delivered: u64,
    /// Had to make room for newer ones.
    pub queue_full: u64,
    /// The destination said that it never will take them.
    pub refused: u64,
    /// Of batches of which it took some, and did not say which: those that are lost are among them.
    pub refused_in_part: u64,
    /// Tried for as long as `patience` allows.
    pub expired: u64,
    /// Not sent when the agent ended; what the store has is sent by its next run.
    pub abandoned: u64,
    /// Had left the store when the destination had come so far.
    pub gone: u64,
    /// Requests that were made again.
    pub retries: u64,
}

impl Counts {
    /// What was given up, by reason: at most, where it was refused in part.
    pub fn lost(&self) -> [(&'static str, u64); 6] {
        [
            ("queue_full", self.queue_full),
            ("refused", self.refused),
            ("refused_in_part", self.refused_in_part),
            ("expired", self.expired),
            ("abandoned", self.abandoned),
            ("gone", self.gone),
        ]
    }

    pub fn lost_sum(&self) -> u64 {
        self.lost().iter().map(|(_, count)| count).sum()
    }
}

/// How an item's wait ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Delivered,
    QueueFull,
    Refused,
    RefusedInPart,
    Expired,
    Abandoned,
}

/// A destination may answer with whatever it likes: of so many statuses each is counted, the others together as 0.
const STATUSES: usize = 16;

#[derive(Debug, Default)]
pub struct Tally {
    counts: Mutex<Counts>,
    answers: Mutex<BTreeMap<u16, u64>>,
}

impl Tally {
    /// As they stand, all at the same moment.
    pub fn counts(&self) -> Counts {
        *self.lock()
    }

    /// One more waits.
    pub fn offered(&self, bytes: usize) {
        let mut counts = self.lock();
        counts.offered += 1;
        counts.waiting += 1;
        counts.waiting_bytes += bytes as u64;
    }

    /// So many, of so many bytes together, wait no longer.
    pub fn settled(&self, fate: Fate, items: u64, bytes: u64) {
        let mut counts = self.lock();
        counts.waiting -= items;
        counts.waiting_bytes -= bytes;
        let count = match fate {
            Fate::Delivered => &mut counts.delivered,
            Fate::QueueFull => &mut counts.queue_full,
            Fate::Refused => &mut counts.refused,
            Fate::RefusedInPart => &mut counts.refused_in_part,
            Fate::Expired => &mut counts.expired,
            Fate::Abandoned => &mut counts.abandoned,
        };
        *count += items;
    }

    /// So many that were to be offered, and are nowhere any more.
    pub fn gone(&self, items: u64) {
        let mut counts = self.lock();
        counts.offered += items;
        counts.gone += items;
    }

    pub fn retried(&self) {
        self.lock().retries += 1;
    }

    /// An answer was no success.
    pub fn answered(&self, status: u16) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let known = answers.len() < STATUSES || answers.contains_key(&status);
        *answers.entry(if known { status } else { 0 }).or_default() += 1;
    }

    pub fn answers(&self) -> Vec<(u16, u64)> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.iter().map(|(status, count)| (*status, *count)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_status_and_bounded() {
        let tally = Tally::default();
        (400..999).for_each(|status| tally.answered(status));
        tally.answered(403);
        let answers = tally.answers();
        assert_eq!((answers.len(), answers[0], answers[4]), (STATUSES + 1, (0, 583), (403, 2)));
    }
}
