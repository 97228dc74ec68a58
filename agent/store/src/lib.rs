//! The history on the node: one SQLite file of events, incidents, memory and profiles, bounded by size and age.
//!
//! ```text
//! put ─ bounded queue ─ writer: one thread, many records a commit ─→ stored: told (printed, streamed) from here on
//!                                                                └─→ Reader: queries, each on a connection of its own
//! ```
//!
//! **What it promises.** An event that was told is in the file, and stays there through `kill -9`, a kernel panic and a
//! loss of power: SQLite's write-ahead log with `synchronous=FULL` is on the disk when a commit returns, and only then is
//! its event told. Where that cannot be had (full disk, read-only disk, a queue that is full) the event is told all the
//! same, counted in the losses, and the time without a store is a gap. Nothing is stored twice: what a restart tells
//! again has the name that it had.
//!
//! Must not know: where events come from, the API, Kubernetes.

mod aside;
mod file;
mod read;
mod row;
mod schema;
#[cfg(test)]
pub(crate) mod tests;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use anyhow::Context;
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::mpsc as async_mpsc;

use file::Run;
use podopsy_model::{Event, Losses, Owner};
pub use read::{Cursor, Filter, ITEMS_MAX, Item, Page, Reader, Refused, Summary};
use row::Row;
pub use row::{MemoryRecord, ProfileFacts, ProfileRecord, Shelf};

/// The state folder, unless told otherwise: where the agent keeps it, and where the CLI looks.
pub const DIR: &str = "/var/lib/podopsy";
/// The file's name in the state folder.
pub const FILE: &str = "store.db";
/// Records that wait to be written or told, and their size.
const QUEUE: usize = 4096;
const QUEUE_BYTES: usize = 32 << 20;

/// How long a drop waits for the writer.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// How much it may keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// All of its files together.
    pub bytes: u64,
    /// Of what is measured all the time. Kills are few, and stay as long as there is room.
    pub age: Duration,
}

/// Above this a larger log makes no commit faster.
const LOG_BYTES_MAX: i64 = 12 << 20;
/// What a record may come to in the log, pages of indices included: four times what a flood of DNS events took.
const LOG_BYTES_A_RECORD: i64 = 16 << 10;
/// `store.db-shm`: 32 KiB for each 4096 pages in the log (<https://www.sqlite.org/walformat.html>).
const LOG_INDEX: i64 = 32 << 10;

impl Default for Limits {
    fn default() -> Self {
        Limits { bytes: 512 << 20, age: Duration::from_secs(24 * 3600) }
    }
}

impl Limits {
    /// Less would hold no hour of anything.
    pub const BYTES_MIN: u64 = podopsy_model::bytes::STORE_MIN;

    /// The file without its log and the log's index.
    fn file_bytes(self) -> i64 {
        let bytes = i64::try_from(self.bytes.max(Self::BYTES_MIN)).unwrap_or(i64::MAX);
        bytes - self.log_bytes() - LOG_INDEX
    }

    /// The write-ahead log, which takes no more but for a record that is larger than a quarter of it, and while a query
    /// holds it.
    fn log_bytes(self) -> i64 {
        let eighth = self.bytes.max(Self::BYTES_MIN) / 8;
        i64::try_from(eighth).unwrap_or(i64::MAX).min(LOG_BYTES_MAX)
    }

    /// Of records that one commit may write. The log is written back when it has a quarter of its size; then comes this
    /// much, and as much again for the pages around it.
    fn commit_bytes(self) -> usize {
        usize::try_from(self.log_bytes() / 4).unwrap_or(usize::MAX)
    }

    /// Records that one commit may write or delete.
    fn commit_records(self) -> i64 {
        self.log_bytes() / LOG_BYTES_A_RECORD
    }
}

/// A time of which nothing, or not all, is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Gap {
    #[serde(rename = "from", serialize_with = "as_time")]
    pub begin_ns: i64,
    #[serde(rename = "until", serialize_with = "as_time")]
    pub end_ns: i64,
    pub reason: GapReason,
    /// Records that could not be kept, where they were counted.
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
    /// The agent was stopped in order.
    Stopped,
    /// The agent ended without a word: killed, or crashed.
    Died,
    /// The machine was started anew.
    Rebooted,
    /// The agent ran, and its store could not be written.
    NotWritten,
    /// The file was put aside: what it held is not in this one.
    PutAside,
}

impl GapReason {
    const ALL: [GapReason; 5] = [
        GapReason::Stopped,
        GapReason::Died,
        GapReason::Rebooted,
        GapReason::NotWritten,
        GapReason::PutAside,
    ];

    /// The word that stands in the file and in the JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            GapReason::Stopped => "stopped",
            GapReason::Died => "died",
            GapReason::Rebooted => "rebooted",
            GapReason::NotWritten => "not-written",
            GapReason::PutAside => "put-aside",
        }
    }
}

/// An event that may be told now.
#[derive(Clone, Debug)]
pub struct Stored {
    /// None: it could not be kept (and was counted).
    pub id: Option<i64>,
    pub event: Event,
}

/// What the writer is given.
enum Message {
    Event(Box<Event>),
    Row(Box<Row>),
    /// A reader met damage: look whether it is so.
    Suspect,
    Limits(Limits),
    Close,
}

/// What queue, writer and readers see of each other.
#[derive(Default)]
struct Shared {
    waiting: AtomicUsize,
    waiting_bytes: AtomicUsize,
    queue_full: AtomicU64,
    not_written: AtomicU64,
    unreadable: AtomicU64,
    put_aside: AtomicU64,
    /// Events put in line, and those of them that are written, or counted as not.
    events_in: AtomicU64,
    events_done: AtomicU64,
    /// Why nothing is written now.
    away: Mutex<Option<String>>,
}

impl Shared {
    fn trouble(&self) -> Option<String> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn losses(&self) -> Losses {
        let all = [
            ("store_queue_full", &self.queue_full),
            ("store_not_written", &self.not_written),
            ("store_unreadable", &self.unreadable),
            ("store_put_aside", &self.put_aside),
        ];
        let counted = all.into_iter().map(|(name, count)| (name.to_owned(), count.load(Relaxed)));
        counted.filter(|(_, count)| *count > 0).collect()
    }
}

/// The store's door; without a [`Store::close`] the last of the queue is written when it is dropped.
pub struct Store {
    path: PathBuf,
    keeper: Keeper,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// The queue's end, for whoever has something to keep; it may outlive the store, and then keeps nothing.
#[derive(Clone)]
pub struct Keeper {
    queue: mpsc::Sender<Message>,
    shared: Arc<Shared>,
}

/// Events come out here once they may be told, in the order in which they were put in.
pub struct Told {
    stored: async_mpsc::UnboundedReceiver<(Stored, usize)>,
    shared: Arc<Shared>,
}

impl Told {
    /// The next one; None: the store has been closed.
    pub async fn recv(&mut self) -> Option<Stored> {
        let (stored, bytes) = self.stored.recv().await?;
        self.shared.waiting.fetch_sub(1, Relaxed);
        self.shared.waiting_bytes.fetch_sub(bytes, Relaxed);
        Some(stored)
    }

    /// The same from a thread that may wait.
    pub fn recv_blocking(&mut self) -> Option<Stored> {
        let (stored, bytes) = self.stored.blocking_recv()?;
        self.shared.waiting.fetch_sub(1, Relaxed);
        self.shared.waiting_bytes.fetch_sub(bytes, Relaxed);
        Some(stored)
    }
}

impl Store {
    /// Opens or begins the file in `dir`. What is wrong with file or disk is no error but said and counted: the recorder
    /// goes on without. An error: no thread, or no such folder and none can be made.
    pub fn start(dir: &Path, boot_id: &str, limits: Limits) -> anyhow::Result<(Store, Told)> {
        std::fs::create_dir_all(dir).with_context(|| format!("make {} (--state-dir)", dir.display()))?;
        let path = dir.join(FILE);
        let (queue, messages) = mpsc::channel();
        let (told, stored) = async_mpsc::unbounded_channel();
        let shared = Arc::new(Shared::default());
        let run = Run { boot: boot_id.to_owned(), began_ns: row::ns(Timestamp::now()) };
        let writer = writer::Writer::new(path.clone(), run, limits, shared.clone(), told);
        let thread = std::thread::Builder::new().name("store".into()).spawn(move || writer.run(&messages))?;
        let keeper = Keeper { queue, shared: shared.clone() };
        let store = Store { path, keeper, thread: Some(thread) };
        Ok((store, Told { stored, shared }))
    }

    /// Puts an event in line; it comes out of [`Told`]. Gives it back, counted, if too many wait.
    pub fn put(&self, event: Event) -> Result<(), Box<Event>> {
        let event = Box::new(event);
        if !self.keeper.admits(size(&event)) {
            return Err(event);
        }
        match self.keeper.queue.send(Message::Event(event)) {
            Err(mpsc::SendError(Message::Event(event))) => {
                self.keeper.refused(size(&event));
                Err(event)
            }
            _ => {
                self.keeper.shared.events_in.fetch_add(1, Relaxed);
                Ok(())
            }
        }
    }

    /// Events put in line so far, and how many of them are done with: in the file, or counted as not kept.
    pub fn passed(&self) -> (u64, u64) {
        let Shared { events_in, events_done, .. } = &*self.keeper.shared;
        (events_in.load(Relaxed), events_done.load(Relaxed))
    }

    /// An incident, again each time that it changes: the last word counts.
    pub fn put_incident(
        &self,
        id: &str,
        span: (Timestamp, Timestamp),
        owner: &Owner,
        incident: &impl Serialize,
    ) {
        self.keeper.put_row(Row::of_incident(id, span, owner, incident));
    }

    /// For those who put in what no one is told of.
    pub fn keeper(&self) -> Keeper {
        self.keeper.clone()
    }

    pub fn reader(&self) -> Reader {
        Reader::new(self.path.clone(), Some((self.keeper.queue.clone(), self.keeper.shared.clone())))
    }

    pub fn set_limits(&self, limits: Limits) {
        let _ = self.keeper.queue.send(Message::Limits(limits));
    }

    /// Why nothing is written now; None: all is well.
    pub fn trouble(&self) -> Option<String> {
        self.keeper.shared.trouble()
    }

    /// `store_queue_full`: told and not kept, because too many waited. `store_not_written`: because the disk did not
    /// take it. `store_unreadable`: records whose bytes make no sense. `store_put_aside`: files that could not be used.
    pub fn losses(&self) -> Losses {
        self.keeper.shared.losses()
    }

    /// How many are neither written and told, nor given up.
    pub fn waiting(&self) -> usize {
        self.keeper.shared.waiting.load(Relaxed)
    }

    /// Asks for the end: what is in the queue is written and told, then [`Told`] ends.
    pub fn close(&self) {
        let _ = self.keeper.queue.send(Message::Close);
    }
}

impl Keeper {
    /// A container's memory over the last while; again as it grows, under the beginning that it had.
    pub fn put_memory(&self, memory: &MemoryRecord) {
        self.put_row(Row::of_memory(memory));
    }

    pub fn put_profile(&self, profile: ProfileRecord) {
        self.put_row(Ok(Row::of_profile(profile)));
    }

    fn put_row(&self, row: anyhow::Result<Row>) {
        let Ok(row) = row else {
            self.shared.not_written.fetch_add(1, Relaxed);
            return;
        };
        let bytes = row.body.len();
        if self.admits(bytes) && self.queue.send(Message::Row(Box::new(row))).is_err() {
            self.refused(bytes);
        }
    }

    /// It was admitted, and the writer is gone.
    fn refused(&self, bytes: usize) {
        self.shared.waiting.fetch_sub(1, Relaxed);
        self.shared.waiting_bytes.fetch_sub(bytes, Relaxed);
        self.shared.not_written.fetch_add(1, Relaxed);
    }

    /// Why nothing is written now; None: all is well.
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
        // A disk that hangs must not keep the agent from its end: what is not written then was not told.
        let end = Instant::now() + CLOSE_WITHIN;
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What an event takes in the queue, roughly: most are small, and incidents have tables and curves.
fn size(event: &Event) -> usize {
    let tables = event.incident.as_ref().map_or(0, |incident| {
        let points = incident.curve.as_ref().map_or(0, |curve| curve.time.len());
        let rows = incident.processes.as_ref().map_or(0, |table| table.rows.len());
        points * 64 + rows * 96 + incident.victims.len() * 256 + 16_384
    });
    2048 + tables
}
