//! The file's shape: its tables, and how a file of an earlier version becomes today's.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Result};

/// "podo" in the file's header: no other program's file is ours to write.
const APPLICATION: i32 = 0x706f_646f;
/// What a connection waits for another one's lock: only the checkpoint of a start takes one.
const BUSY: Duration = Duration::from_secs(5);

/// A step for each version, none of which is ever changed: a file's `user_version` says how many it has had.
pub(super) const STEPS: &[&str] = &[
    // 1: everything that happened is a record; what it is lies in its body.
    "CREATE TABLE record (
         id INTEGER PRIMARY KEY AUTOINCREMENT,
         shelf INTEGER NOT NULL,
         share INTEGER NOT NULL,
         kind TEXT NOT NULL,
         begin_ns INTEGER NOT NULL,
         end_ns INTEGER NOT NULL,
         namespace TEXT,
         pod TEXT,
         container TEXT,
         container_id TEXT,
         key TEXT UNIQUE,
         bytes INTEGER NOT NULL,
         body BLOB NOT NULL
     ) STRICT;
     CREATE INDEX record_time ON record (shelf, begin_ns, id);
     CREATE INDEX record_share ON record (share, begin_ns);
     CREATE TABLE share (share INTEGER PRIMARY KEY, bytes INTEGER NOT NULL, records INTEGER NOT NULL) STRICT;
     CREATE TRIGGER record_in AFTER INSERT ON record BEGIN
         INSERT INTO share VALUES (NEW.share, NEW.bytes, 1)
             ON CONFLICT DO UPDATE SET bytes = bytes + NEW.bytes, records = records + 1;
     END;
     CREATE TRIGGER record_out AFTER DELETE ON record BEGIN
         UPDATE share SET bytes = bytes - OLD.bytes, records = records - 1 WHERE share = OLD.share;
     END;
     CREATE TRIGGER record_anew AFTER UPDATE OF bytes ON record BEGIN
         UPDATE share SET bytes = bytes - OLD.bytes + NEW.bytes WHERE share = NEW.share;
     END;
     CREATE TABLE run (
         id INTEGER PRIMARY KEY,
         boot TEXT NOT NULL,
         began_ns INTEGER NOT NULL,
         alive_ns INTEGER NOT NULL,
         ended INTEGER NOT NULL DEFAULT 0,
         UNIQUE (boot, began_ns)
     ) STRICT;
     CREATE TABLE gap (
         id INTEGER PRIMARY KEY,
         begin_ns INTEGER NOT NULL,
         end_ns INTEGER NOT NULL,
         reason TEXT NOT NULL,
         lost INTEGER NOT NULL
     ) STRICT;",
    // 2: a pod's labels and uid are asked for, and a pod's records are found without looking at all others.
    "ALTER TABLE record ADD COLUMN pod_uid TEXT;
     ALTER TABLE record ADD COLUMN labels TEXT;
     CREATE INDEX record_pod ON record (namespace, pod, shelf, begin_ns, id) WHERE pod IS NOT NULL;
     CREATE INDEX gap_time ON gap (end_ns);",
    // 3: what a profile's numbers are, without reading it.
    "ALTER TABLE record ADD COLUMN facts TEXT;",
    // 4: pods' incidents have a part of the room of their own; events are found by the order in which they were kept.
    "UPDATE record SET share = 5 WHERE shelf = 2;
     DELETE FROM share;
     INSERT INTO share SELECT share, sum(bytes), count(*) FROM record GROUP BY share;
     CREATE INDEX record_event ON record (id) WHERE shelf = 1;",
];

/// Why a file cannot be used as it is.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("it is of version {0}, written by a newer podopsy; this one knows versions up to {known}", known = STEPS.len())]
    Newer(i64),
    #[error("it is another program's")]
    Foreign,
    #[error("its check found: {0}")]
    Damaged(String),
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
}

impl Unusable {
    /// The file itself is at fault: it is put aside, and a new one begun. Otherwise the disk is, and it may mend.
    pub fn is_the_files(&self) -> bool {
        match self {
            Unusable::Newer(_) | Unusable::Foreign | Unusable::Damaged(_) => true,
            Unusable::Sqlite(error) => is_damage(error),
        }
    }
}

/// The file's bytes make no sense, or its tables do not.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase, SchemaChanged, TypeMismatch, Unknown};
    let damage = [DatabaseCorrupt, NotADatabase, SchemaChanged, TypeMismatch];
    match error {
        // "no such table", "no such column": SQL that has run a thousand times fails because the schema's page is damaged.
        rusqlite::Error::SqliteFailure(failure, _) => {
            damage.contains(&failure.code) || failure.code == Unknown
        }
        rusqlite::Error::SqlInputError { .. } | rusqlite::Error::InvalidColumnType(..) => true,
        rusqlite::Error::FromSqlConversionFailure(..) | rusqlite::Error::QueryReturnedNoRows => true,
        _ => false,
    }
}

/// No room: on the disk, or below the bound that was set.
pub(super) fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
}

/// Opens the file to write, and brings it up to today's version.
pub(super) fn open(path: &Path, pages_max: impl Fn(i64) -> i64) -> std::result::Result<Connection, Unusable> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    let application: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if application != APPLICATION && (application, version, tables) != (0, 0, 0) {
        return Err(Unusable::Foreign);
    }
    if version < 0 || version as usize > STEPS.len() {
        return Err(Unusable::Newer(version));
    }
    if tables == 0 {
        // Only an empty file takes it: what is deleted can be given back to the disk in small steps.
        connection.pragma_update(None, "auto_vacuum", "incremental")?;
    }
    connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
    // A commit is on the disk when it returns, not only in the kernel: nodes that run out of memory are reset.
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "temp_store", "memory")?;
    connection.pragma_update(None, "cache_size", -2048)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    // Cells are looked at as they are read: damage is an error here, and not a wrong answer.
    connection.pragma_update(None, "cell_size_check", true)?;
    let page: i64 = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
    connection.pragma_update_and_check(None, "max_page_count", pages_max(page), |_| Ok(()))?;
    migrate(&mut connection, version as usize, STEPS)?;
    Ok(connection)
}

/// Each step in one transaction with its number: a crash leaves the version before it or after it.
pub(super) fn migrate(connection: &mut Connection, version: usize, steps: &[&str]) -> Result<()> {
    for (at, step) in steps.iter().enumerate().skip(version) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(step)?;
        if at == 0 {
            transaction.pragma_update(None, "application_id", APPLICATION)?;
            // Ids go on rising if a file is put aside: they begin at the time in ms.
            let now = jiff::Timestamp::now().as_millisecond();
            transaction.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('record', ?1)", [now])?;
        }
        transaction.pragma_update(None, "user_version", at as i64 + 1)?;
        transaction.commit()?;
    }
    Ok(())
}

/// Reads every page; after an end that was no clean one.
pub(super) fn check(connection: &Connection) -> std::result::Result<(), Unusable> {
    let said: String =
        connection.pragma_query_value(None, "quick_check", |row| row.get(0)).map_err(|error| {
            if is_damage(&error) { Unusable::Damaged(error.to_string()) } else { error.into() }
        })?;
    if said == "ok" { Ok(()) } else { Err(Unusable::Damaged(podopsy_model::text::escape(&said))) }
}

/// Opens the file to read it only; each query has a connection of its own, so that a file that is put aside meanwhile
/// is let go of.
pub(super) fn open_to_read(path: &Path) -> Result<Connection> {
    // READ_WRITE, because a reader of a file with a log takes locks in its index; query_only keeps it from writing.
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "query_only", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "temp_store", "memory")?;
    Ok(connection)
}
