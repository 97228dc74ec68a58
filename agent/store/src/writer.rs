//! The one thread that writes: many records a commit, one step of tidying between two commits, and what to do when the
//! disk says no.

use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::mpsc::UnboundedSender;

use super::file::{File, Kept, Run};
use super::row::{Row, ns};
use super::schema::{self, Unusable};
use super::{Gap, GapReason, Limits, Message, Shared, Stored, aside, size};
use podopsy_model::Event;

/// Records of one commit, at most; with a small store fewer (see [`Limits`]).
const TOGETHER: usize = 512;
/// A sync is the dear part of a commit: no more than fifty a second, whatever comes.
const APART: Duration = Duration::from_millis(20);
/// A sign of life, where there is nothing else to write: a gap is known this exactly.
const ALIVE_EVERY: Duration = Duration::from_secs(10);
/// Between two looks at the limits, while nothing is over them.
const TIDY_EVERY: Duration = Duration::from_secs(5);
/// Between two tries to open a file that could not be opened or written.
const AGAIN: Duration = Duration::from_secs(5);
/// A file is put aside once in so long: if the next one is bad too, it is not the file.
const ASIDE_EVERY: Duration = Duration::from_secs(60);
/// A check reads the whole file: not more often than this, however many readers complain.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Steps of emptying when a commit finds no room.
const ROOM_STEPS: usize = 8;

pub(super) struct Writer {
    path: PathBuf,
    run: Run,
    limits: Limits,
    shared: Arc<Shared>,
    told: UnboundedSender<(Stored, usize)>,
    file: Option<File>,
    /// Since when nothing is written, and how many were lost so.
    missing: Option<(i64, u64)>,
    try_again: Instant,
    put_aside: Option<Instant>,
    looked: Option<Instant>,
    /// Lost with a file that was put aside: told in the next one.
    gap: Option<Gap>,
}

struct Waiting {
    row: Row,
    event: Option<(Box<Event>, usize)>,
    /// As it was counted in the queue.
    bytes: usize,
}

impl Writer {
    pub fn new(
        path: PathBuf,
        run: Run,
        limits: Limits,
        shared: Arc<Shared>,
        told: UnboundedSender<(Stored, usize)>,
    ) -> Writer {
        let (file, try_again) = (None, Instant::now());
        Writer {
            path,
            run,
            limits,
            shared,
            told,
            file,
            missing: None,
            try_again,
            put_aside: None,
            looked: None,
            gap: None,
        }
    }

    /// Until it is closed, or every sender is gone.
    pub fn run(mut self, messages: &Receiver<Message>) {
        self.open();
        let (mut last_commit, mut last_tidy, mut tidying) = (Instant::now(), Instant::now(), false);
        let mut open = true;
        while open {
            let wait = match tidying {
                true => Duration::ZERO,
                false if self.file.is_none() => AGAIN,
                false => ALIVE_EVERY.min(TIDY_EVERY),
            };
            let mut waiting = Vec::new();
            match messages.recv_timeout(wait) {
                Ok(first) => {
                    std::thread::sleep(APART.saturating_sub(last_commit.elapsed()));
                    open = self.take(first, &mut waiting);
                    let together =
                        usize::try_from(self.limits.commit_records()).map_or(1, |n| n.min(TOGETHER));
                    let rows = |some: &[Waiting]| some.iter().map(|one| one.row.bytes()).sum::<usize>();
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
            if self.file.is_none() && self.try_again <= Instant::now() {
                self.open();
            }
            // A file that is open again shows by the gap that it takes.
            let back = self.missing.is_some() && self.file.is_some();
            if !waiting.is_empty() || last_commit.elapsed() >= ALIVE_EVERY || back {
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
            tracing::warn!("the store could not be closed in order: {error}");
        }
    }

    /// False: it is to be closed.
    fn take(&mut self, message: Message, waiting: &mut Vec<Waiting>) -> bool {
        match message {
            Message::Event(event) => {
                let bytes = size(&event);
                match Row::of_event(&event) {
                    Ok(row) => waiting.push(Waiting { row, event: Some((event, bytes)), bytes }),
                    Err(error) => {
                        tracing::warn!("an event is not kept: {error:#}");
                        self.lose(1);
                        let _ = self.told.send((Stored { id: None, event: *event }, bytes));
                        self.shared.events_done.fetch_add(1, Relaxed);
                    }
                }
            }
            Message::Row(row) => {
                let bytes = row.body.len();
                waiting.push(Waiting { row: *row, event: None, bytes });
            }
            Message::Suspect => self.look(),
            Message::Limits(limits) => {
                self.limits = limits;
                if let Some(Err(error)) = self.file.as_mut().map(|file| file.set_limits(limits)) {
                    tracing::warn!("the store keeps its old limits: {error}");
                }
            }
            Message::Close => return false,
        }
        true
    }

    fn open(&mut self) {
        self.try_again = Instant::now() + AGAIN;
        let result = self.try_open();
        let result = match result {
            Err(error) if error.is_the_files() => {
                if self.set_aside(&error.to_string()) {
                    self.try_open()
                } else {
                    return;
                }
            }
            other => other,
        };
        match result {
            Ok(file) => self.file = Some(file),
            Err(error) => self.leave(&error.to_string()),
        }
    }

    fn try_open(&self) -> Result<File, Unusable> {
        // SQLite makes its other files with the rights of this one.
        use std::os::unix::fs::OpenOptionsExt;
        let made = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
            .open(&self.path);
        if let Err(error) = made {
            let error = std::io::Error::new(error.kind(), format!("{}: {error}", self.path.display()));
            return Err(Unusable::Sqlite(rusqlite::Error::ToSqlConversionFailure(error.into())));
        }
        File::open(&self.path, self.run.clone(), self.limits, now())
    }

    /// Writes, tells, and counts what could not be written.
    fn commit(&mut self, waiting: Vec<Waiting>) {
        let rows: Vec<Row> = waiting.iter().map(|one| one.row.clone()).collect();
        let kept = self.write(&rows);
        if kept.is_none() {
            self.lose(waiting.len() as u64);
        }
        let events = waiting.iter().filter(|one| one.event.is_some()).count();
        for (at, one) in waiting.into_iter().enumerate() {
            let id = match kept.as_ref().map(|kept| kept[at]) {
                Some(Kept::As(id)) => Some(id),
                // The run before told it; here it ends.
                Some(Kept::Before) => {
                    self.done(one.bytes);
                    continue;
                }
                None => None,
            };
            match one.event {
                Some((event, bytes)) => {
                    let _ = self.told.send((Stored { id, event: *event }, bytes));
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

    /// None: they are not in the file.
    fn write(&mut self, rows: &[Row]) -> Option<Vec<Kept>> {
        for _ in 0..2 {
            let Some(file) = &mut self.file else { return None };
            let away = self.missing.map(|(begin_ns, lost)| Gap {
                begin_ns,
                end_ns: now(),
                reason: GapReason::NotWritten,
                lost,
            });
            let gap = away.or(self.gap);
            match write_with_room(file, rows, gap) {
                Ok(kept) => {
                    if away.is_some() {
                        self.missing = None;
                        if let Some(why) = self.away().take() {
                            tracing::warn!("the store is written again (it was not: {why})");
                        }
                    } else {
                        self.gap = None;
                    }
                    return Some(kept);
                }
                Err(error) if schema::is_damage(&error) => {
                    if !self.set_aside(&error.to_string()) {
                        return None;
                    }
                    self.open();
                }
                Err(error) => {
                    self.leave(&error.to_string());
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
                if self.set_aside(&error.to_string()) {
                    self.open();
                }
                false
            }
            Err(error) => {
                tracing::warn!("the store could not be made smaller: {error}");
                false
            }
        }
    }

    /// A reader says that the file is damaged.
    fn look(&mut self) {
        let Some(file) = &self.file else { return };
        if self.looked.is_some_and(|last| last.elapsed() < LOOK_EVERY) {
            return;
        }
        self.looked = Some(Instant::now());
        if let Err(error) = file.check()
            && error.is_the_files()
            && self.set_aside(&error.to_string())
        {
            self.open();
        }
    }

    /// True: there is room for a new file.
    fn set_aside(&mut self, why: &str) -> bool {
        self.file = None;
        if self.put_aside.is_some_and(|last| last.elapsed() < ASIDE_EVERY) {
            self.leave(&format!("{why} (and the file before it was put aside just now)"));
            return false;
        }
        match aside::put(&self.path) {
            Ok(to) => {
                tracing::warn!(
                    "the store cannot be used: {why}. It was put aside as {}; a new one is begun",
                    to.display()
                );
                self.shared.put_aside.fetch_add(1, Relaxed);
                self.put_aside = Some(Instant::now());
                let now = now();
                self.gap = Some(Gap { begin_ns: 0, end_ns: now, reason: GapReason::PutAside, lost: 0 });
                true
            }
            Err(error) => {
                self.leave(&format!("{why}; and it cannot be put aside: {error}"));
                false
            }
        }
    }

    /// Goes on without; the file is tried again.
    fn leave(&mut self, why: &str) {
        self.file = None;
        self.try_again = Instant::now() + AGAIN;
        self.missing.get_or_insert((now(), 0));
        let mut away = self.away();
        if away.is_none() {
            tracing::warn!(
                "events are told and not kept, {} cannot be written: {why} (tried again every {AGAIN:?})",
                self.path.display()
            );
        }
        *away = Some(why.to_owned());
    }

    fn lose(&mut self, count: u64) {
        self.shared.not_written.fetch_add(count, Relaxed);
        if let Some((_, lost)) = &mut self.missing {
            *lost += count;
        }
    }

    fn away(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.shared.away.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where there is no room, the oldest leave first.
fn write_with_room(file: &mut File, rows: &[Row], gap: Option<Gap>) -> rusqlite::Result<Vec<Kept>> {
    for _ in 0..ROOM_STEPS {
        match file.write(rows, gap, now()) {
            Err(error) if schema::is_full(&error) => {
                if file.leave()? == 0 {
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
