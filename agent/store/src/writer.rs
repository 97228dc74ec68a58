//! The one thread that writes: many records in one commit, one step of tidying between two commits, and recovery when the
//! disk fails.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::mpsc::UnboundedSender;

use super::file::{AgentRun, File, WriteOutcome};
use super::row::{StoreRow, ns};
use super::schema::{self, OpenError};
use super::{Gap, GapReason, StoreLimits, StoreState, StoredEvent, WriterMessage, event_bytes, quarantine};
use podopsy_model::Event;
use podopsy_system::sync::lock;

/// Records in one commit, at most; fewer with a small store (see [`StoreLimits`]).
const COMMIT_RECORDS_MAX: usize = 512;
/// The least time between two commits: the sync is their expensive part, so there are at most fifty a second.
const COMMIT_INTERVAL: Duration = Duration::from_millis(20);
/// How often the run is marked as alive when there is nothing else to write. It is the precision of gaps.
const ALIVE_EVERY: Duration = Duration::from_secs(10);
/// How often the limits are checked while nothing exceeds them.
const TIDY_EVERY: Duration = Duration::from_secs(5);
/// The time between two attempts to open a file that could not be opened or written.
const RETRY_EVERY: Duration = Duration::from_secs(5);
/// The least time between two quarantines: if the next file is bad too, the file is not the cause.
const QUARANTINE_EVERY: Duration = Duration::from_secs(60);
/// The least time between two checks, which read the whole file, however many readers report damage.
const CHECK_EVERY: Duration = Duration::from_secs(30);
/// Deletion steps when a commit finds the file full.
const DELETE_STEPS_MAX: usize = 8;

pub(super) struct Writer {
    path: PathBuf,
    run: AgentRun,
    limits: StoreLimits,
    shared: Arc<StoreState>,
    stored: UnboundedSender<(StoredEvent, usize)>,
    file: Option<File>,
    /// Since when nothing is written, and how many records were lost by that.
    missing: Option<(i64, u64)>,
    retry_at: Instant,
    quarantined_at: Option<Instant>,
    checked_at: Option<Instant>,
    /// The time covered by a file that was quarantined, to be recorded in the next file.
    gap: Option<Gap>,
}

struct PendingRow {
    row: StoreRow,
    event: Option<(Box<Event>, usize)>,
    /// Its size as it was counted in the queue.
    bytes: usize,
}

impl Writer {
    pub fn new(
        path: PathBuf,
        run: AgentRun,
        limits: StoreLimits,
        shared: Arc<StoreState>,
        stored: UnboundedSender<(StoredEvent, usize)>,
    ) -> Writer {
        Writer {
            path,
            run,
            limits,
            shared,
            stored,
            file: None,
            missing: None,
            retry_at: Instant::now(),
            quarantined_at: None,
            checked_at: None,
            gap: None,
        }
    }

    /// Runs until the store is closed or every sender is gone.
    pub fn run(mut self, messages: &Receiver<WriterMessage>) {
        self.open();
        let (mut last_commit, mut last_tidy, mut tidying) = (Instant::now(), Instant::now(), false);
        let mut open = true;
        while open {
            let wait = if tidying {
                Duration::ZERO
            } else if self.file.is_none() {
                RETRY_EVERY
            } else {
                ALIVE_EVERY.min(TIDY_EVERY)
            };
            let mut waiting = Vec::new();
            match messages.recv_timeout(wait) {
                Ok(first) => {
                    std::thread::sleep(COMMIT_INTERVAL.saturating_sub(last_commit.elapsed()));
                    open = self.take(first, &mut waiting);
                    let together = usize::try_from(self.limits.commit_records())
                        .map_or(1, |n| n.min(COMMIT_RECORDS_MAX));
                    let rows = |some: &[PendingRow]| some.iter().map(|one| one.row.bytes()).sum::<usize>();
                    let mut bytes = rows(&waiting);
                    while open && waiting.len() < together && bytes < self.limits.commit_bytes() {
                        let Ok(next) = messages.try_recv() else { break };
                        let before = waiting.len();
                        open = self.take(next, &mut waiting);
                        bytes += rows(waiting.get(before..).unwrap_or_default());
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => open = false,
            }
            if self.file.is_none() && self.retry_at <= Instant::now() {
                self.open();
            }
            // Commit at once after the file was opened again: this records the gap.
            let is_back = self.missing.is_some() && self.file.is_some();
            if !waiting.is_empty() || last_commit.elapsed() >= ALIVE_EVERY || is_back {
                self.commit(waiting);
                last_commit = Instant::now();
            }
            if tidying || last_tidy.elapsed() >= TIDY_EVERY {
                tidying = self.tidy();
                last_tidy = Instant::now();
            }
        }
        if let Some(file) = self.file.take()
            && let Err(error) = file.end(now())
        {
            tracing::warn!("could not close the store cleanly: {error}");
        }
    }

    /// Handles one message. Returns false if the store is to be closed.
    fn take(&mut self, message: WriterMessage, waiting: &mut Vec<PendingRow>) -> bool {
        match message {
            WriterMessage::Event(event) => {
                let bytes = event_bytes(&event);
                match StoreRow::from_event(&event) {
                    Ok(row) => waiting.push(PendingRow { row, event: Some((event, bytes)), bytes }),
                    Err(error) => {
                        tracing::warn!("could not store an event: {error:#}");
                        self.lose(1);
                        let _ = self.stored.send((StoredEvent { id: None, event: *event }, bytes));
                        self.shared.events_done.fetch_add(1, Relaxed);
                    }
                }
            }
            WriterMessage::Row(row) => {
                let bytes = row.body.len();
                waiting.push(PendingRow { row: *row, event: None, bytes });
            }
            WriterMessage::CheckFile => self.check_file(),
            WriterMessage::Limits(limits) => {
                self.limits = limits;
                if let Some(Err(error)) = self.file.as_mut().map(|file| file.set_limits(limits)) {
                    tracing::warn!("could not change the limits of the store: {error}");
                }
            }
            WriterMessage::Close => return false,
        }
        true
    }

    fn open(&mut self) {
        self.retry_at = Instant::now() + RETRY_EVERY;
        let result = self.try_open();
        let result = match result {
            Err(error) if error.is_file_fault() => {
                if self.quarantine_file(&error.to_string()) {
                    self.try_open()
                } else {
                    return;
                }
            }
            other => other,
        };
        match result {
            Ok(file) => self.file = Some(file),
            Err(error) => self.suspend(&error.to_string()),
        }
    }

    fn try_open(&self) -> Result<File, OpenError> {
        // SQLite creates its other files with the mode of this one.
        use std::os::unix::fs::OpenOptionsExt;
        let made = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
            .open(&self.path);
        if let Err(error) = made {
            let error = std::io::Error::new(error.kind(), format!("{}: {error}", self.path.display()));
            return Err(OpenError::Sqlite(rusqlite::Error::ToSqlConversionFailure(error.into())));
        }
        File::open(&self.path, self.run.clone(), self.limits, now())
    }

    /// Writes the rows, passes the events on, and counts what could not be written.
    fn commit(&mut self, waiting: Vec<PendingRow>) {
        let rows: Vec<StoreRow> = waiting.iter().map(|one| one.row.clone()).collect();
        let kept = self.write(&rows);
        if kept.is_none() {
            self.lose(waiting.len() as u64);
        }
        let events = waiting.iter().filter(|one| one.event.is_some()).count();
        for (at, one) in waiting.into_iter().enumerate() {
            let id = match kept.as_ref().map(|kept| kept[at]) {
                Some(WriteOutcome::Stored(id)) => Some(id),
                // An earlier run passed it on already.
                Some(WriteOutcome::Duplicate) => {
                    self.done(one.bytes);
                    continue;
                }
                None => None,
            };
            match one.event {
                Some((event, bytes)) => {
                    let _ = self.stored.send((StoredEvent { id, event: *event }, bytes));
                }
                None => self.done(one.bytes),
            }
        }
        self.shared.events_done.fetch_add(events as u64, Relaxed);
    }

    fn done(&self, bytes: usize) {
        self.shared.waiting.fetch_sub(1, Relaxed);
        self.shared.waiting_bytes.fetch_sub(bytes, Relaxed);
    }

    /// Returns the outcome for each row. None: the rows are not in the file.
    fn write(&mut self, rows: &[StoreRow]) -> Option<Vec<WriteOutcome>> {
        for _ in 0..2 {
            let Some(file) = &mut self.file else { return None };
            let outage = self.missing.map(|(begin_ns, lost)| Gap {
                begin_ns,
                end_ns: now(),
                reason: GapReason::NotWritten,
                lost,
            });
            let gap = outage.or(self.gap);
            match write_or_evict(file, rows, gap) {
                Ok(kept) => {
                    if outage.is_some() {
                        self.missing = None;
                        if let Some(why) = self.trouble().take() {
                            tracing::warn!("store is written again (it was not: {why})");
                        }
                    } else {
                        self.gap = None;
                    }
                    return Some(kept);
                }
                Err(error) if schema::is_damage(&error) => {
                    if !self.quarantine_file(&error.to_string()) {
                        return None;
                    }
                    self.open();
                }
                Err(error) => {
                    self.suspend(&error.to_string());
                    return None;
                }
            }
        }
        None
    }

    fn tidy(&mut self) -> bool {
        let Some(file) = &mut self.file else { return false };
        match file.tidy(now()) {
            Ok(more) => more,
            Err(error) if schema::is_damage(&error) => {
                if self.quarantine_file(&error.to_string()) {
                    self.open();
                }
                false
            }
            Err(error) => {
                tracing::warn!("could not shrink the store: {error}");
                false
            }
        }
    }

    /// Checks the file after a reader reported damage.
    fn check_file(&mut self) {
        let Some(file) = &self.file else { return };
        if self.checked_at.is_some_and(|last| last.elapsed() < CHECK_EVERY) {
            return;
        }
        self.checked_at = Some(Instant::now());
        if let Err(error) = file.check()
            && error.is_file_fault()
            && self.quarantine_file(&error.to_string())
        {
            self.open();
        }
    }

    /// Quarantines the file. Returns whether a new one may be created in its place.
    fn quarantine_file(&mut self, why: &str) -> bool {
        self.file = None;
        if self.quarantined_at.is_some_and(|last| last.elapsed() < QUARANTINE_EVERY) {
            self.suspend(&format!("{why} (and the file before it was quarantined just now)"));
            return false;
        }
        match quarantine::quarantine(&self.path) {
            Ok(to) => {
                tracing::warn!(
                    "cannot use the store: {why}. Renamed it to {} and created a new one",
                    to.display()
                );
                self.shared.quarantined.fetch_add(1, Relaxed);
                self.quarantined_at = Some(Instant::now());
                let now = now();
                self.gap = Some(Gap { begin_ns: 0, end_ns: now, reason: GapReason::Quarantined, lost: 0 });
                true
            }
            Err(error) => {
                self.suspend(&format!("{why}; and it cannot be quarantined: {error}"));
                false
            }
        }
    }

    /// Continues without a file, which is tried again later.
    fn suspend(&mut self, why: &str) {
        self.file = None;
        self.retry_at = Instant::now() + RETRY_EVERY;
        self.missing.get_or_insert((now(), 0));
        let mut trouble = self.trouble();
        if trouble.is_none() {
            tracing::warn!(
                "cannot write {}: {why}. Events are emitted but not stored; trying again every {RETRY_EVERY:?}",
                self.path.display()
            );
        }
        *trouble = Some(why.to_owned());
    }

    fn lose(&mut self, count: u64) {
        self.shared.not_written.fetch_add(count, Relaxed);
        if let Some((_, lost)) = &mut self.missing {
            *lost += count;
        }
    }

    fn trouble(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        lock(&self.shared.trouble)
    }
}

/// Writes the rows. If the file is full, deletes old records first.
fn write_or_evict(
    file: &mut File,
    rows: &[StoreRow],
    gap: Option<Gap>,
) -> rusqlite::Result<Vec<WriteOutcome>> {
    for _ in 0..DELETE_STEPS_MAX {
        match file.write(rows, gap, now()) {
            Err(error) if schema::is_full(&error) => {
                if file.delete_oldest(now())? == 0 {
                    return Err(error);
                }
            }
            other => return other,
        }
    }
    file.write(rows, gap, now())
}

fn now() -> i64 {
    ns(Timestamp::now())
}
