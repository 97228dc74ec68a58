//! Queries: filtered, in pages, bounded in time and size.

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

use super::row::{self, Collection, Share, label, ns, time};
use super::{Gap, GapReason, StoreState, WriterMessage, schema};
use podopsy_model::{Event, EventKind, Losses};
use podopsy_system::state_thread;

/// The longest time that one query may take.
const QUERY_TIMEOUT: Duration = Duration::from_secs(3);
/// SQLite instructions between two checks of the time.
const PROGRESS_EVERY: i32 = 10_000;
/// Records in one page, at most.
pub const ITEMS_MAX: usize = 1000;
const BYTES_MAX: usize = 8 << 20;
const GAPS_MAX: usize = 1000;

/// Selects records. A record belongs to a time span if it overlaps it.
#[derive(Clone, Debug, PartialEq)]
pub struct Filter {
    pub collection: Collection,
    /// Only the record with this id.
    pub id: Option<i64>,
    pub from: Timestamp,
    /// The end of the span, exclusive.
    pub until: Timestamp,
    /// Records of any of these kinds; empty: all.
    pub kinds: Vec<String>,
    pub namespace: Option<String>,
    /// By name or by uid.
    pub pod: Option<String>,
    pub container: Option<String>,
    /// Records of pods that have all of these labels.
    pub labels: Vec<(String, String)>,
    pub newest_first: bool,
    /// Where the previous page ended.
    pub after: Option<Cursor>,
    /// Records in a page; [`ITEMS_MAX`] at most.
    pub items: usize,
}

impl Filter {
    /// Everything in a collection, oldest first.
    pub fn all(collection: Collection) -> Filter {
        Filter {
            collection,
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

/// A position between two records, ordered by time and then by id.
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
        let number = |text: &str| {
            if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().map_err(drop) } else { Err(()) }
        };
        Ok(Cursor { begin_ns: number(begin)?, id: number(id)? })
    }
}

/// A record that a query found.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreItem {
    pub id: i64,
    pub begin: Timestamp,
    pub end: Timestamp,
    pub namespace: Option<String>,
    pub pod: Option<String>,
    pub container: Option<String>,
    pub container_id: Option<String>,
    /// For a profile: its [`super::ProfileFacts`] as JSON.
    pub facts: Option<String>,
    /// A profile in pprof format, as it was stored; anything else is compressed or plain JSON, see [`StoreItem::json`].
    pub body: Vec<u8>,
}

impl StoreItem {
    /// The body as a JSON object.
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
pub struct StorePage {
    pub items: Vec<StoreItem>,
    /// Where the next page begins. None: this is the last page.
    pub next: Option<Cursor>,
    /// Records that were skipped because their bytes are invalid.
    pub unreadable: u64,
}

/// The size of the store and the time that it covers.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct StoreSummary {
    /// The size of the file and of its log.
    pub bytes: u64,
    pub records: u64,
    pub oldest: Option<Timestamp>,
    pub newest: Option<Timestamp>,
}

/// Why a query failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the query takes longer than {QUERY_TIMEOUT:?}: ask for less time, or for one pod")]
    Timeout,
    #[error("the store cannot be read: {0}")]
    Failed(String),
}

/// Queries the store, from the process that writes it or from another one.
#[derive(Clone)]
pub struct Reader {
    path: PathBuf,
    writer: Option<(mpsc::Sender<WriterMessage>, Arc<StoreState>)>,
}

impl Reader {
    pub(super) fn new(
        path: PathBuf,
        writer: Option<(mpsc::Sender<WriterMessage>, Arc<StoreState>)>,
    ) -> Reader {
        Reader { path, writer }
    }

    /// Opens a store in `dir` that this process does not write.
    pub fn open(dir: &std::path::Path) -> Reader {
        Reader::new(dir.join(super::FILE), None)
    }

    /// Why nothing is written at the moment. None: writing works, or another process writes.
    pub fn trouble(&self) -> Option<String> {
        self.writer.as_ref().and_then(|(_, shared)| shared.trouble())
    }

    /// Like [`super::Store::losses`]; empty if another process writes.
    pub fn losses(&self) -> Losses {
        self.writer.as_ref().map(|(_, shared)| shared.losses()).unwrap_or_default()
    }

    /// Reads one page. It blocks on the disk, so do not call it on an async thread.
    pub fn page(&self, filter: &Filter) -> Result<StorePage, ReadError> {
        let filter = filter.clone();
        self.ask(move |connection| page(connection, &filter)).inspect(|page| {
            if let Some((_, shared)) = &self.writer {
                shared.unreadable.fetch_add(page.unreadable, Relaxed);
            }
        })
    }

    /// At most `most` events that were stored after the event with this id, in that order. None instead of an event: its
    /// bytes are invalid. Blocks on the disk.
    pub fn after(&self, id: i64, most: usize) -> Result<Vec<(i64, Option<Event>)>, ReadError> {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let bodies = self.ask(move |connection| {
            // The condition is written as in the partial index record_event, or SQLite would not use it and would scan all
            // other records.
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

    /// The gaps of the history in this span, oldest first.
    pub fn gaps(&self, from: Timestamp, until: Timestamp) -> Result<Vec<Gap>, ReadError> {
        self.ask(move |connection| {
            let mut statement = connection.prepare(
                "SELECT begin_ns, end_ns, reason, lost FROM gap WHERE end_ns >= ?1 AND begin_ns < ?2 \
                 ORDER BY end_ns, id LIMIT ?3",
            )?;
            let gaps = statement.query_map((ns(from), ns(until), GAPS_MAX as i64), |row| {
                let reason: String = row.get(2)?;
                let reason = GapReason::ALL.into_iter().find(|known| known.as_str() == reason);
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

    pub fn summary(&self) -> Result<StoreSummary, ReadError> {
        let size = |with: &str| {
            let mut path = self.path.as_os_str().to_owned();
            path.push(with);
            std::fs::metadata(path).map_or(0, |file| file.len())
        };
        let bytes = size("") + size("-wal");
        self.ask(move |connection| {
            let records: i64 =
                connection.query_row("SELECT coalesce(sum(records), 0) FROM share", [], |row| row.get(0))?;
            let (mut oldest, mut newest): (Option<i64>, Option<i64>) = (None, None);
            for collection in
                [Collection::Events, Collection::Incidents, Collection::Memory, Collection::Profiles]
            {
                let extreme = |function: &str| -> rusqlite::Result<Option<i64>> {
                    let sql = format!("SELECT {function}(begin_ns) FROM record WHERE shelf = ?1");
                    connection.query_row(&sql, [collection as i64], |row| row.get(0))
                };
                oldest = oldest.into_iter().chain(extreme("min")?).min();
                newest = newest.into_iter().chain(extreme("max")?).max();
            }
            let records = records.unsigned_abs();
            Ok(StoreSummary { bytes, records, oldest: oldest.map(time), newest: newest.map(time) })
        })
    }

    /// Runs a query on a connection of its own, bounded in time. It runs in a thread that may write files, because SQLite
    /// opens the file and its log's index for writing: readers take locks in it.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, ReadError> {
        let path = self.path.clone();
        let ask = move || {
            let mut connection = schema::open_to_read(&path)?;
            let end = Instant::now() + QUERY_TIMEOUT;
            connection.progress_handler(PROGRESS_EVERY, Some(move || Instant::now() > end))?;
            query(&connection)
        };
        let answer = state_thread::run(ask).map_err(|error| ReadError::Failed(error.to_string()))?;
        answer.map_err(|error| {
            if error.sqlite_error_code() == Some(rusqlite::ErrorCode::OperationInterrupted) {
                return ReadError::Timeout;
            }
            if schema::is_damage(&error)
                && let Some((writer, _)) = &self.writer
            {
                let _ = writer.send(WriterMessage::CheckFile);
            }
            ReadError::Failed(error.to_string())
        })
    }
}

fn page(connection: &Connection, filter: &Filter) -> rusqlite::Result<StorePage> {
    let (sql, values) = query(filter);
    let mut statement = connection.prepare(&sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let most = filter.items.clamp(1, ITEMS_MAX);
    let (mut page, mut bytes, mut last, mut seen) = (StorePage::default(), 0, None, 0);
    while let Some(row) = rows.next()? {
        // A record beyond the page shows that there is a next page.
        if seen == most || bytes > BYTES_MAX {
            page.next = last;
            break;
        }
        let item = StoreItem {
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
        if filter.collection != Collection::Profiles && item.json().is_err() {
            page.unreadable += 1;
            continue;
        }
        page.items.push(item);
    }
    Ok(page)
}

/// The share that all of these event kinds belong to, if it is one.
fn share_of(kinds: &[String]) -> Option<Share> {
    let share =
        |name: &String| EventKind::ALL.into_iter().find(|kind| kind.as_str() == name.as_str()).map(Share::of);
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
    // Kills are few among a node's failed lookups, and the index on `share` finds them. The unary plus keeps SQLite from
    // using the index on `shelf`, which would scan all events.
    match share_of(&filter.kinds) {
        Some(share) => {
            let _ = write!(sql, "share = {} AND +shelf = ", value(Value::Integer(share as i64)));
        }
        None => sql += "shelf = ",
    }
    sql += &value(Value::Integer(filter.collection as i64));
    if let Some(id) = filter.id {
        let _ = write!(sql, " AND id = {}", value(Value::Integer(id)));
    }
    // An event has no duration, so the index on begin_ns can find the start of the span.
    let from = if filter.collection == Collection::Events { "begin_ns" } else { "end_ns" };
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
    for (key, label_value) in &filter.labels {
        let label = value(text(&format!("\n{}\n", label(key, label_value))));
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
