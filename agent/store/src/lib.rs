//! The history on the node: one SQLite file of events, incidents, memory and profiles, bounded by size and age.
//!
//! ```text
//! put ─ bounded queue ─ writer: one thread, many records a commit ─→ StoreReceiver: events to print and to stream
//!                                                                └─→ Reader: queries, each on its own connection
//! ```
//!
//! **Guarantee.** An event that comes out of [`StoreReceiver`] with an id is in the file, and stays there through
//! `kill -9`, a kernel panic and a loss of power: SQLite's write-ahead log with `synchronous=FULL` is on the disk when a
//! commit returns, and only then is the event passed on. If it cannot be stored (full disk, read-only disk, full queue),
//! it is passed on without an id and counted in the losses, and the time without a store is recorded as a gap. Nothing is
//! stored twice: an event that a restart reads again has the same key as before.
//!
//! This crate must not depend on the source of events, the API or Kubernetes.

mod file;
mod quarantine;
mod read;
mod row;
mod schema;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
pub(crate) mod tests;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::mpsc as async_mpsc;

use file::AgentRun;
use podopsy_model::{Event, Losses, Owner};
use podopsy_system::state_thread::{self, StateThread};
use podopsy_system::sync::lock;
pub use read::{Cursor, Filter, ITEMS_MAX, ReadError, Reader, StoreItem, StorePage, StoreSummary};
use row::StoreRow;
pub use row::{Collection, MemoryRecord, ProfileFacts, ProfileRecord};

/// The default state folder, for the agent and for the CLI.
pub const DIR: &str = "/var/lib/podopsy";
/// The file's name in the state folder.
pub const FILE: &str = "store.db";
/// The largest number of records in the queue, and their largest total size.
const QUEUE: usize = 4096;
const QUEUE_BYTES: usize = 32 << 20;

/// How long dropping the store waits for the writer.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// How much the store may keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreLimits {
    /// The size of all its files together.
    pub bytes: u64,
    /// The age of records that are measured all the time. Kills are few, and stay as long as there is space.
    pub age: Duration,
}

/// The largest write-ahead log. A larger one makes no commit faster.
const LOG_BYTES_MAX: i64 = 12 << 20;
/// The space for one record in the log, index pages included: four times what was measured in a flood of DNS events.
const LOG_BYTES_PER_RECORD: i64 = 16 << 10;
/// The size of `store.db-shm`: 32 KiB for each 4096 pages in the log (<https://www.sqlite.org/walformat.html>).
const LOG_INDEX: i64 = 32 << 10;

impl Default for StoreLimits {
    fn default() -> Self {
        StoreLimits { bytes: 512 << 20, age: Duration::from_secs(24 * 3600) }
    }
}

impl StoreLimits {
    /// The smallest size: less would not hold one hour of any kind of record.
    pub const BYTES_MIN: u64 = podopsy_model::bytes::STORE_MIN;

    /// The size of the file without its log and the log's index.
    fn file_bytes(self) -> i64 {
        let bytes = i64::try_from(self.bytes.max(Self::BYTES_MIN)).unwrap_or(i64::MAX);
        bytes - self.log_bytes() - LOG_INDEX
    }

    /// The size of the write-ahead log. It grows beyond that only for a record larger than a quarter of it, and while a
    /// query keeps it from being written back.
    fn log_bytes(self) -> i64 {
        let eighth = self.bytes.max(Self::BYTES_MIN) / 8;
        i64::try_from(eighth).unwrap_or(i64::MAX).min(LOG_BYTES_MAX)
    }

    /// The size of the records that one commit may write. The log is written back at a quarter of its size; one commit
    /// adds at most this much to that, and as much again for the pages around the records.
    fn commit_bytes(self) -> usize {
        usize::try_from(self.log_bytes() / 4).unwrap_or(usize::MAX)
    }

    /// Records that one commit may write or delete.
    fn commit_records(self) -> i64 {
        self.log_bytes() / LOG_BYTES_PER_RECORD
    }
}

/// A time for which the history has nothing, or not everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Gap {
    #[serde(rename = "from", serialize_with = "as_time")]
    pub begin_ns: i64,
    #[serde(rename = "until", serialize_with = "as_time")]
    pub end_ns: i64,
    pub reason: GapReason,
    /// Records that could not be stored, as far as they were counted.
    pub lost: u64,
}

impl Gap {
    pub fn span(&self) -> (Timestamp, Timestamp) {
        (row::time(self.begin_ns), row::time(self.end_ns))
    }
}

fn as_time<S: serde::Serializer>(ns: &i64, to: S) -> Result<S::Ok, S::Error> {
    row::time(*ns).serialize(to)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GapReason {
    /// The agent was shut down cleanly.
    Stopped,
    /// The agent was killed or crashed.
    Died,
    /// The machine was rebooted.
    Rebooted,
    /// The agent ran, and its store could not be written.
    NotWritten,
    /// The file was quarantined: its records are not in the new one.
    #[serde(rename = "put-aside")]
    Quarantined,
}

impl GapReason {
    const ALL: [GapReason; 5] = [
        GapReason::Stopped,
        GapReason::Died,
        GapReason::Rebooted,
        GapReason::NotWritten,
        GapReason::Quarantined,
    ];

    /// The value in the file and in the JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            GapReason::Stopped => "stopped",
            GapReason::Died => "died",
            GapReason::Rebooted => "rebooted",
            GapReason::NotWritten => "not-written",
            GapReason::Quarantined => "put-aside",
        }
    }
}

/// An event that the writer has finished with: it may be printed and streamed now.
#[derive(Clone, Debug)]
pub struct StoredEvent {
    /// The id in the file. None: it could not be stored, which was counted.
    pub id: Option<i64>,
    pub event: Event,
}

/// A message to the writer thread.
enum WriterMessage {
    Event(Box<Event>),
    Row(Box<StoreRow>),
    /// A reader found damage: check the file.
    CheckFile,
    Limits(StoreLimits),
    Close,
}

/// The state that the queue, the writer and the readers share.
#[derive(Default)]
struct StoreState {
    waiting: AtomicUsize,
    waiting_bytes: AtomicUsize,
    queue_full: AtomicU64,
    not_written: AtomicU64,
    unreadable: AtomicU64,
    quarantined: AtomicU64,
    /// Events accepted into the queue, and those of them that have been written or counted as lost.
    events_in: AtomicU64,
    events_done: AtomicU64,
    /// Why nothing is written at the moment.
    trouble: Mutex<Option<String>>,
}

impl StoreState {
    fn trouble(&self) -> Option<String> {
        lock(&self.trouble).clone()
    }

    fn losses(&self) -> Losses {
        let all = [
            ("store_queue_full", &self.queue_full),
            ("store_not_written", &self.not_written),
            ("store_unreadable", &self.unreadable),
            ("store_put_aside", &self.quarantined),
        ];
        let counted = all.into_iter().map(|(name, count)| (name.to_owned(), count.load(Relaxed)));
        counted.filter(|(_, count)| *count > 0).collect()
    }
}

/// The open store. Dropping it without [`Store::close`] writes what is left in the queue.
pub struct Store {
    path: PathBuf,
    sender: StoreSender,
    thread: StateThread,
}

/// Sends records to the store. It may outlive the store; records are then counted as not written.
#[derive(Clone)]
pub struct StoreSender {
    queue: mpsc::Sender<WriterMessage>,
    shared: Arc<StoreState>,
}

/// Receives events once they are stored or counted as lost, in the order in which they were put in.
pub struct StoreReceiver {
    stored: async_mpsc::UnboundedReceiver<(StoredEvent, usize)>,
    shared: Arc<StoreState>,
}

impl StoreReceiver {
    /// The next event. None: the store has been closed.
    pub async fn recv(&mut self) -> Option<StoredEvent> {
        let (stored, bytes) = self.stored.recv().await?;
        self.shared.waiting.fetch_sub(1, Relaxed);
        self.shared.waiting_bytes.fetch_sub(bytes, Relaxed);
        Some(stored)
    }

    /// Like [`StoreReceiver::recv`], for a thread that may block.
    pub fn recv_blocking(&mut self) -> Option<StoredEvent> {
        let (stored, bytes) = self.stored.blocking_recv()?;
        self.shared.waiting.fetch_sub(1, Relaxed);
        self.shared.waiting_bytes.fetch_sub(bytes, Relaxed);
        Some(stored)
    }
}

impl Store {
    /// Opens or creates the file in `dir`. A problem with the file or the disk is not an error: it is logged and counted,
    /// and recording continues without a store. Returns an error if the thread or the folder cannot be created.
    pub fn start(dir: &Path, boot_id: &str, limits: StoreLimits) -> anyhow::Result<(Store, StoreReceiver)> {
        std::fs::create_dir_all(dir).with_context(|| format!("create {} (--state-dir)", dir.display()))?;
        let path = dir.join(FILE);
        let (queue, messages) = mpsc::channel();
        let (to_receiver, stored) = async_mpsc::unbounded_channel();
        let shared = Arc::new(StoreState::default());
        let run = AgentRun { boot: boot_id.to_owned(), began_ns: row::ns(Timestamp::now()) };
        let writer = writer::Writer::new(path.clone(), run, limits, shared.clone(), to_receiver);
        let thread = state_thread::spawn("store", move || writer.run(&messages))?;
        let sender = StoreSender { queue, shared: shared.clone() };
        let store = Store { path, sender, thread };
        Ok((store, StoreReceiver { stored, shared }))
    }

    /// Queues an event; it comes out of [`StoreReceiver`]. If the queue is full, counts the loss and returns the event.
    pub fn put(&self, event: Event) -> Result<(), Box<Event>> {
        let event = Box::new(event);
        if !self.sender.admits(event_bytes(&event)) {
            return Err(event);
        }
        match self.sender.queue.send(WriterMessage::Event(event)) {
            Err(mpsc::SendError(WriterMessage::Event(event))) => {
                self.sender.retract(event_bytes(&event));
                Err(event)
            }
            _ => {
                self.sender.shared.events_in.fetch_add(1, Relaxed);
                Ok(())
            }
        }
    }

    /// Events accepted so far, and how many of them are finished: in the file, or counted as not written.
    pub fn event_counts(&self) -> (u64, u64) {
        let StoreState { events_in, events_done, .. } = &*self.sender.shared;
        (events_in.load(Relaxed), events_done.load(Relaxed))
    }

    /// Stores a pod incident. Call it each time that the incident changes; the last version is kept.
    pub fn put_incident(
        &self,
        id: &str,
        span: (Timestamp, Timestamp),
        owner: &Owner,
        incident: &impl Serialize,
    ) {
        self.sender.put_row(StoreRow::from_incident(id, span, owner, incident));
    }

    /// A handle for records that are not passed on as events.
    pub fn sender(&self) -> StoreSender {
        self.sender.clone()
    }

    pub fn reader(&self) -> Reader {
        Reader::new(self.path.clone(), Some((self.sender.queue.clone(), self.sender.shared.clone())))
    }

    pub fn set_limits(&self, limits: StoreLimits) {
        let _ = self.sender.queue.send(WriterMessage::Limits(limits));
    }

    /// Why nothing is written at the moment. None: writing works.
    pub fn trouble(&self) -> Option<String> {
        self.sender.shared.trouble()
    }

    /// `store_queue_full`: records not stored because the queue was full. `store_not_written`: records that could not be
    /// written to the disk. `store_unreadable`: records whose bytes are invalid. `store_put_aside`: files that could not
    /// be used and were quarantined.
    pub fn losses(&self) -> Losses {
        self.sender.shared.losses()
    }

    /// How many records are in the queue or wait for the receiver.
    pub fn waiting(&self) -> usize {
        self.sender.shared.waiting.load(Relaxed)
    }

    /// Asks the writer to end. It first writes what is in the queue and passes it on; then [`StoreReceiver`] ends.
    pub fn close(&self) {
        let _ = self.sender.queue.send(WriterMessage::Close);
    }
}

impl StoreSender {
    /// Stores a container's memory record. Call it again as the record grows; its start identifies it.
    pub fn put_memory(&self, memory: &MemoryRecord) {
        self.put_row(StoreRow::from_memory(memory));
    }

    pub fn put_profile(&self, profile: ProfileRecord) {
        self.put_row(Ok(StoreRow::from_profile(profile)));
    }

    fn put_row(&self, row: anyhow::Result<StoreRow>) {
        let Ok(row) = row else {
            self.shared.not_written.fetch_add(1, Relaxed);
            return;
        };
        let bytes = row.body.len();
        if self.admits(bytes) && self.queue.send(WriterMessage::Row(Box::new(row))).is_err() {
            self.retract(bytes);
        }
    }

    /// Takes back an admission because the writer has ended.
    fn retract(&self, bytes: usize) {
        self.shared.waiting.fetch_sub(1, Relaxed);
        self.shared.waiting_bytes.fetch_sub(bytes, Relaxed);
        self.shared.not_written.fetch_add(1, Relaxed);
    }

    /// Why nothing is written at the moment. None: writing works.
    pub fn trouble(&self) -> Option<String> {
        self.shared.trouble()
    }

    /// As [`Store::losses`].
    pub fn losses(&self) -> Losses {
        self.shared.losses()
    }

    fn admits(&self, bytes: usize) -> bool {
        let waiting = self.shared.waiting.fetch_add(1, Relaxed);
        let waiting_bytes = self.shared.waiting_bytes.fetch_add(bytes, Relaxed);
        let admitted = waiting < QUEUE && waiting_bytes < QUEUE_BYTES;
        if !admitted {
            self.shared.waiting.fetch_sub(1, Relaxed);
            self.shared.waiting_bytes.fetch_sub(bytes, Relaxed);
            self.shared.queue_full.fetch_add(1, Relaxed);
        }
        admitted
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.close();
        // A disk that hangs must not keep the agent from ending. An event that is not written by then was not passed on.
        self.thread.wait(CLOSE_WITHIN);
    }
}

/// The approximate size of an event in the queue: most are small; OOM incidents have tables and curves.
fn event_bytes(event: &Event) -> usize {
    let tables = event.incident.as_ref().map_or(0, |incident| {
        let points = incident.curve.as_ref().map_or(0, |curve| curve.time.len());
        let rows = incident.processes.as_ref().map_or(0, |table| table.rows.len());
        points * 64 + rows * 96 + incident.victims.len() * 256 + 16_384
    });
    2048 + tables
}
