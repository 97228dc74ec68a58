//! What the readers of all probes have in common. A new probe has a folder with a `reader.rs` that implements
//! [`ProbeReader`], and a line in `collect.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use podopsy_decode::BadRecord;
use podopsy_model::Losses;
use tokio::sync::mpsc;

use crate::attribute::Record;

/// Reads one probe's rings and maps. Never waits for anything else: what may wait happens after the queue.
pub(crate) trait ProbeReader {
    /// Waits until the probe's rings have records, and decodes them into a buffer of the reader's own. Cancel-safe: a
    /// record is either in the buffer or still in the ring.
    async fn drain(&mut self) -> anyhow::Result<()>;

    /// Decodes what is in the rings now.
    fn drain_now(&mut self);

    /// Judges what was decoded, and passes on what becomes an event.
    fn hand_over(&mut self);

    /// Looks at maps that no ring announces. Called every [`crate::collect::TICK`]; `is_last`: the recorder stops.
    fn tick(&mut self, is_last: bool);

    /// What was lost at this probe in user space, by counter name. Counters of the kernel side are read in one place.
    fn losses(&self) -> Losses;
}

/// The way to the task that attributes records. A full queue loses the record, and counts it.
#[derive(Clone)]
pub(crate) struct Outbox {
    records: mpsc::Sender<Record>,
    counters: Arc<OutboxCounters>,
}

#[derive(Default)]
struct OutboxCounters {
    queue_full: AtomicU64,
    bad_records: AtomicU64,
}

impl Outbox {
    pub fn new(records: mpsc::Sender<Record>) -> Outbox {
        Outbox { records, counters: Arc::default() }
    }

    pub fn pass_on(&self, record: Record) {
        if self.records.try_send(record).is_err() {
            self.counters.queue_full.fetch_add(1, Relaxed);
        }
    }

    /// How many tokens of its container's bucket a record costs: more as the queue fills, so that a flood of many
    /// containers does not displace the records of others.
    pub fn price(&self) -> u64 {
        let (size, free) = (self.records.max_capacity(), self.records.capacity());
        podopsy_wire::token_price((size - free) as u64, size as u64)
    }

    /// Counts a record that could not be decoded.
    pub fn reject(&self, _: &BadRecord) {
        self.counters.bad_records.fetch_add(1, Relaxed);
    }

    pub fn losses(&self) -> [(String, u64); 2] {
        [
            ("recorder_queue".to_owned(), self.counters.queue_full.load(Relaxed)),
            ("bad_records".to_owned(), self.counters.bad_records.load(Relaxed)),
        ]
    }
}
