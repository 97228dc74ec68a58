//! Counts what became of the items that were offered to a destination, and why items were lost.
//!
//! One lock guards all counts of items, so that the sums agree at every moment: offered = delivered + lost + waiting.

use std::collections::BTreeMap;
use std::sync::Mutex;

use podopsy_system::sync::lock;

/// The number of items by state, except `waiting_bytes` and `retries`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeliveryCounts {
    pub offered: u64,
    /// Neither delivered nor lost: in the queue, or in the batch that is being sent.
    pub waiting: u64,
    pub waiting_bytes: u64,
    pub delivered: u64,
    /// See [`ExportLossReason`] for this and the next five.
    pub queue_full: u64,
    pub refused: u64,
    pub refused_in_part: u64,
    pub expired: u64,
    pub abandoned: u64,
    pub gone: u64,
    /// Requests that were sent again.
    pub retries: u64,
}

impl DeliveryCounts {
    /// The number of lost items by reason. For batches that were refused in part this is an upper bound.
    pub fn lost(&self) -> [(ExportLossReason, u64); 6] {
        [
            (ExportLossReason::QueueFull, self.queue_full),
            (ExportLossReason::Refused, self.refused),
            (ExportLossReason::RefusedInPart, self.refused_in_part),
            (ExportLossReason::Expired, self.expired),
            (ExportLossReason::Abandoned, self.abandoned),
            (ExportLossReason::Gone, self.gone),
        ]
    }

    pub fn lost_sum(&self) -> u64 {
        self.lost().iter().map(|(_, count)| count).sum()
    }
}

/// Why a destination will not get an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportLossReason {
    /// The queue was full, and newer items took the place of this one.
    QueueFull,
    /// The destination rejected the item permanently.
    Refused,
    /// The destination accepted a part of the batch and did not report which. The lost items are among these.
    RefusedInPart,
    /// The batch was retried for as long as [`crate::DestinationSettings::retry_for`] allows.
    Expired,
    /// The item was not sent when the agent ended. If the store has it, the next run sends it.
    Abandoned,
    /// The item had left the store before the destination caught up with it.
    Gone,
}

impl ExportLossReason {
    /// The value of the label `reason` of `podopsy_export_lost`.
    pub fn as_str(self) -> &'static str {
        match self {
            ExportLossReason::QueueFull => "queue_full",
            ExportLossReason::Refused => "refused",
            ExportLossReason::RefusedInPart => "refused_in_part",
            ExportLossReason::Expired => "expired",
            ExportLossReason::Abandoned => "abandoned",
            ExportLossReason::Gone => "gone",
        }
    }
}

/// What became of an item that waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemOutcome {
    Delivered,
    Lost(ExportLossReason),
}

/// A destination can answer with any status. This many are counted separately; all others are counted together as 0.
const MAX_STATUSES: usize = 16;

#[derive(Debug, Default)]
pub struct DeliveryCounters {
    counts: Mutex<DeliveryCounts>,
    failed_responses: Mutex<BTreeMap<u16, u64>>,
}

impl DeliveryCounters {
    /// All counts at the same moment.
    pub fn counts(&self) -> DeliveryCounts {
        *lock(&self.counts)
    }

    /// Counts one more item that waits.
    pub fn count_offered(&self, bytes: usize) {
        let mut counts = lock(&self.counts);
        counts.offered += 1;
        counts.waiting += 1;
        counts.waiting_bytes += bytes as u64;
    }

    /// Counts the outcome of `items` that waited, with `bytes` in total.
    pub fn settle(&self, outcome: ItemOutcome, items: u64, bytes: u64) {
        let mut counts = lock(&self.counts);
        counts.waiting -= items;
        counts.waiting_bytes -= bytes;
        let count = match outcome {
            ItemOutcome::Delivered => &mut counts.delivered,
            ItemOutcome::Lost(ExportLossReason::QueueFull) => &mut counts.queue_full,
            ItemOutcome::Lost(ExportLossReason::Refused) => &mut counts.refused,
            ItemOutcome::Lost(ExportLossReason::RefusedInPart) => &mut counts.refused_in_part,
            ItemOutcome::Lost(ExportLossReason::Expired) => &mut counts.expired,
            ItemOutcome::Lost(ExportLossReason::Abandoned) => &mut counts.abandoned,
            ItemOutcome::Lost(ExportLossReason::Gone) => &mut counts.gone,
        };
        *count += items;
    }

    /// Counts items that were due from the store but had left it before they could be offered.
    pub fn count_gone(&self, items: u64) {
        let mut counts = lock(&self.counts);
        counts.offered += items;
        counts.gone += items;
    }

    pub fn count_retry(&self) {
        lock(&self.counts).retries += 1;
    }

    pub fn count_failed_response(&self, status: u16) {
        let mut responses = lock(&self.failed_responses);
        let has_entry = responses.len() < MAX_STATUSES || responses.contains_key(&status);
        *responses.entry(if has_entry { status } else { 0 }).or_default() += 1;
    }

    pub fn failed_responses(&self) -> Vec<(u16, u64)> {
        lock(&self.failed_responses).iter().map(|(status, count)| (*status, *count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_responses_are_counted_by_status_and_the_number_of_statuses_is_bounded() {
        let counters = DeliveryCounters::default();
        (400..999).for_each(|status| counters.count_failed_response(status));
        counters.count_failed_response(403);
        let responses = counters.failed_responses();
        assert_eq!((responses.len(), responses[0], responses[4]), (MAX_STATUSES + 1, (0, 583), (403, 2)));
    }
}
