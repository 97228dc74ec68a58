//! Questions to the store: filtered, in pages, bounded in time and size.

use std::fmt::{self, Write as _};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};
use serde::de::{DeserializeOwned, IgnoredAny};

use super::row::{self, Share, Shelf, label, ns, time};
use super::{Gap, GapReason, Message, Shared, schema};
use podopsy_model::{Event, Kind, Losses};

/// Longer than this no question is worked on.
const WITHIN: Duration = Duration::from_secs(3);
/// Instructions of SQLite's between two looks at the clock.
const LOOK_EVERY: i32 = 10_000;
/// Of one page.
pub const ITEMS_MAX: usize = 1000;
const BYTES_MAX: usize = 8 << 20;
const GAPS_MAX: usize = 1000;

/// What is asked for. A record belongs to a time that it has a part of.
#[derive(Clone, Debug, PartialEq)]
pub struct Filter {
    pub shelf: Shelf,
    /// This one alone.
    pub id: Option<i64>,
    pub from: Timestamp,
    /// Not included.
    pub until: Timestamp,
    /// Any of these; empty: all.
    pub kinds: Vec<String>,
    pub namespace: Option<String>,
    /// By name or by uid.
    pub pod: Option<String>,
    pub container: Option<String>,
    /// All of these.
    pub labels: Vec<(String, String)>,
    pub newest_first: bool,
    /// Where the page before ended.
    pub after: Option<Cursor>,
    /// Of a page; [`ITEMS_MAX`] at most.
    pub items: usize,
}

impl Filter {
    /// All of a shelf, from its beginning.
    pub fn all(shelf: Shelf) -> Filter {
        Filter {
            shelf,
            id: None,
            from: Timestamp::UNIX_EPOCH,
            until: Timestamp::MAX,
            kinds: Vec::new(),
            namespace: None,
            pod: None,
            container: None,
            labels: Vec::new(),
            newest_first: false,
            after: None,
            items: ITEMS_MAX,
        }
    }
}

/// A place between two records: by time, and by id among those of one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    begin_ns: i64,
    id: i64,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.begin_ns, self.id)
    }
}

impl FromStr for Cursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Cursor, ()> {
        let (begin, id) = text.split_once('-').ok_or(())?;
        let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
            true => text.parse().map_err(drop),
            false => Err(()),
        };
        Ok(Cursor { begin_ns: number(begin)?, id: number(id)? })
    }
}

/// A record as it was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    pub id: i64,
    pub begin: Timestamp,
    pub end: Timestamp,
    pub namespace: Option<String>,
    pub pod: Option<String>,
    pub container: Option<String>,
    pub container_id: Option<String>,
    /// What is known of a profile without reading it: JSON.
    pub facts: Option<String>,
    /// A profile as it was put in; anything else is compressed or plain JSON: [`Item::json`].
    pub body: Vec<u8>,
}

impl Item {
    /// The JSON object that it is.
    pub fn json(&self) -> anyhow::Result<String> {
        let json = row::unpack(&self.body)?;
        serde_json::from_slice::<IgnoredAny>(&json)?;
        Ok(String::from_utf8(json)?)
    }

    pub fn parse<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        row::parse(&self.body)
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    pub items: Vec<Item>,
    /// Where the next page begins; None: this is the last.
    pub next: Option<Cursor>,
    /// Records whose bytes make no sense, and are passed over.
    pub unreadable: u64,
}

/// How much of what there is.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    /// Of its files.
    pub bytes: u64,
    pub records: u64,
    pub oldest: Option<Timestamp>,
    pub newest: Option<Timestamp>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("it takes longer than {WITHIN:?}: ask for less time, or for one pod")]
    TooLong,
    #[error("the store cannot be read: {0}")]
    Broken(String),
}

/// Asks the store; from this process or another one.
#[derive(Clone)]
pub struct Reader {
    path: PathBuf,
    writer: Option<(mpsc::Sender<Message>, Arc<Shared>)>,
}

impl Reader {
    pub(super) fn new(path: PathBuf, writer: Option<(mpsc::Sender<Message>, Arc<Shared>)>) -> Reader {
        Reader { path, writer }
    }

    /// Of a store that another process writes, or that nobody does.
    pub fn of(dir: &std::path::Path) -> Reader {
        Reader::new(dir.join(super::FILE), None)
    }

    /// Why nothing is written now; None: all is well, or another process writes.
    pub fn trouble(&self) -> Option<String> {
        self.writer.as_ref().and_then(|(_, shared)| shared.trouble())
    }

    /// As [`super::Store::losses`]; empty, where another process writes.
    pub fn losses(&self) -> Losses {
        self.writer.as_ref().map(|(_, shared)| shared.losses()).unwrap_or_default()
    }

    /// One page. Waits for the disk: not for an async task.
    pub fn page(&self, filter: &Filter) -> Result<Page, Refused> {
        self.ask(|connection| page(connection, filter)).inspect(|page| {
            if let Some((_, shared)) = &self.writer {
                shared.unreadable.fetch_add(page.unreadable, Relaxed);
            }
        })
    }

    /// Events that were kept after the one with this number, in that order, so many at most; None for one whose bytes make
    /// no sense. Waits for the disk.
    pub fn after(&self, id: i64, most: usize) -> Result<Vec<(i64, Option<Event>)>, Refused> {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let bodies = self.ask(|connection| {
            // As the index record_event is written: by another one it would look through all that is no event.
            let mut statement = connection.prepare(
                "SELECT id, body FROM record INDEXED BY record_event \
                 WHERE shelf = 1 AND id > ?1 ORDER BY id LIMIT ?2",
            )?;
            let rows = statement.query_map((id, most), |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect::<rusqlite::Result<Vec<(i64, Vec<u8>)>>>()
        })?;
        let events: Vec<_> = bodies.into_iter().map(|(id, body)| (id, row::parse(&body).ok())).collect();
        if let Some((_, shared)) = &self.writer {
            let bad = events.iter().filter(|(_, event)| event.is_none()).count();
            shared.unreadable.fetch_add(bad as u64, Relaxed);
        }
        Ok(events)
    }

    /// Times of which nothing, or not all, is known; oldest first.
    pub fn gaps(&self, from: Timestamp, until: Timestamp) -> Result<Vec<Gap>, Refused> {
        self.ask(|connection| {
            let mut statement = connection.prepare(
                "SELECT begin_ns, end_ns, reason, lost FROM gap WHERE end_ns >= ?1 AND begin_ns < ?2 \
                 ORDER BY end_ns, id LIMIT ?3",
            )?;
            let gaps = statement.query_map((ns(from), ns(until), GAPS_MAX as i64), |row| {
                let reason: String = row.get(2)?;
                let reason = GapReason::ALL.into_iter().find(|one| one.as_str() == reason);
                let lost = row.get::<_, i64>(3)?.unsigned_abs();
                Ok(reason.map(|reason| (row.get(0), row.get(1), reason, lost)))
            })?;
            let mut out = Vec::new();
            for (begin_ns, end_ns, reason, lost) in
                gaps.collect::<rusqlite::Result<Vec<_>>>()?.into_iter().flatten()
            {
                out.push(Gap { begin_ns: begin_ns?, end_ns: end_ns?, reason, lost });
            }
            Ok(out)
        })
    }

    pub fn summary(&self) -> Result<Summary, Refused> {
        let size = |with: &str| {
            let mut path = self.path.as_os_str().to_owned();
            path.push(with);
            std::fs::metadata(path).map_or(0, |file| file.len())
        };
        let bytes = size("") + size("-wal");
        self.ask(|connection| {
            let records: i64 =
                connection.query_row("SELECT coalesce(sum(records), 0) FROM share", [], |row| row.get(0))?;
            let (mut oldest, mut newest): (Option<i64>, Option<i64>) = (None, None);
            for shelf in [Shelf::Events, Shelf::Incidents, Shelf::Memory, Shelf::Profiles] {
                let end = |of: &str| -> rusqlite::Result<Option<i64>> {
                    let sql = format!("SELECT {of}(begin_ns) FROM record WHERE shelf = ?1");
                    connection.query_row(&sql, [shelf as i64], |row| row.get(0))
                };
                oldest = oldest.into_iter().chain(end("min")?).min();
                newest = newest.into_iter().chain(end("max")?).max();
            }
            let records = records.unsigned_abs();
            Ok(Summary { bytes, records, oldest: oldest.map(time), newest: newest.map(time) })
        })
    }

    pub(super) fn ask<T>(
        &self,
        question: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, Refused> {
        let ask = || {
            let mut connection = schema::open_to_read(&self.path)?;
            let end = Instant::now() + WITHIN;
            connection.progress_handler(LOOK_EVERY, Some(move || Instant::now() > end))?;
            question(&connection)
        };
        ask().map_err(|error| {
            if error.sqlite_error_code() == Some(rusqlite::ErrorCode::OperationInterrupted) {
                return Refused::TooLong;
            }
            if schema::is_damage(&error)
                && let Some((writer, _)) = &self.writer
            {
                let _ = writer.send(Message::Suspect);
            }
            Refused::Broken(error.to_string())
        })
    }
}

fn page(connection: &Connection, filter: &Filter) -> rusqlite::Result<Page> {
    let (sql, values) = query(filter);
    let mut statement = connection.prepare(&sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let most = filter.items.clamp(1, ITEMS_MAX);
    let (mut page, mut bytes, mut last, mut seen) = (Page::default(), 0, None, 0);
    while let Some(row) = rows.next()? {
        // The one beyond the page says that there is a next one.
        if seen == most || bytes > BYTES_MAX {
            page.next = last;
            break;
        }
        let item = Item {
            id: row.get(0)?,
            begin: time(row.get(1)?),
            end: time(row.get(2)?),
            namespace: row.get(3)?,
            pod: row.get(4)?,
            container: row.get(5)?,
            container_id: row.get(6)?,
            facts: row.get(7)?,
            body: row.get(8)?,
        };
        last = Some(Cursor { begin_ns: row.get(1)?, id: item.id });
        seen += 1;
        bytes += item.body.len();
        if filter.shelf != Shelf::Profiles && item.json().is_err() {
            page.unreadable += 1;
            continue;
        }
        page.items.push(item);
    }
    Ok(page)
}

/// Where all of these kinds of events are.
fn share_of(kinds: &[String]) -> Option<Share> {
    let share =
        |word: &String| Kind::ALL.into_iter().find(|kind| kind.as_str() == word.as_str()).map(Share::of);
    let first = kinds.first().and_then(share)?;
    kinds.iter().all(|kind| share(kind) == Some(first)).then_some(first)
}

fn query(filter: &Filter) -> (String, Vec<Value>) {
    let mut values: Vec<Value> = Vec::new();
    let mut value = |value: Value| {
        values.push(value);
        format!("?{}", values.len())
    };
    let text = |text: &str| Value::Text(text.to_owned());
    let mut sql =
        "SELECT id, begin_ns, end_ns, namespace, pod, container, container_id, facts, body FROM record WHERE "
            .to_owned();
    // Kills are few among a node's failed lookups, and lie together; the plus keeps it from looking through the shelf.
    match share_of(&filter.kinds) {
        Some(share) => {
            let _ = write!(sql, "share = {} AND +shelf = ", value(Value::Integer(share as i64)));
        }
        None => sql += "shelf = ",
    }
    sql += &value(Value::Integer(filter.shelf as i64));
    if let Some(id) = filter.id {
        let _ = write!(sql, " AND id = {}", value(Value::Integer(id)));
    }
    // An event has no length: then the index finds where to begin.
    let from = if filter.shelf == Shelf::Events { "begin_ns" } else { "end_ns" };
    let _ = write!(sql, " AND {from} >= {}", value(Value::Integer(ns(filter.from))));
    let _ = write!(sql, " AND begin_ns < {}", value(Value::Integer(ns(filter.until))));
    if !filter.kinds.is_empty() {
        let kinds: Vec<String> = filter.kinds.iter().map(|kind| value(text(kind))).collect();
        let _ = write!(sql, " AND kind IN ({})", kinds.join(", "));
    }
    if let Some(namespace) = &filter.namespace {
        let _ = write!(sql, " AND namespace = {}", value(text(namespace)));
    }
    if let Some(pod) = &filter.pod {
        let pod = value(text(pod));
        let _ = write!(sql, " AND pod IS NOT NULL AND (pod = {pod} OR pod_uid = {pod})");
    }
    if let Some(container) = &filter.container {
        let _ = write!(sql, " AND container = {}", value(text(container)));
    }
    for (key, word) in &filter.labels {
        let label = value(text(&format!("\n{}\n", label(key, word))));
        let _ = write!(sql, " AND instr(labels, {label}) > 0");
    }
    let (order, beyond) = if filter.newest_first { ("DESC", "<") } else { ("ASC", ">") };
    if let Some(Cursor { begin_ns, id }) = filter.after {
        let (begin, id) = (value(Value::Integer(begin_ns)), value(Value::Integer(id)));
        let _ = write!(sql, " AND (begin_ns, id) {beyond} ({begin}, {id})");
    }
    let _ = write!(sql, " ORDER BY begin_ns {order}, id {order}");
    (sql, values)
}
