//! The schema of the file, and the migration of files of earlier versions.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Result};

/// "podo", in the file's header: a file of another program is never written.
const APPLICATION: i32 = 0x706f_646f;
/// How long a connection waits for another one's lock. Only the checkpoint at a start takes one.
const BUSY: Duration = Duration::from_secs(5);

/// One migration for each version. A step is never changed once it was released: a file's `user_version` is the number of
/// steps that it has had.
pub(super) const STEPS: &[&str] = &[
    // 1: everything that happened is a record; its details are in its body.
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
    // 2: queries can filter by a pod's labels and uid, and find a pod's records by an index.
    "ALTER TABLE record ADD COLUMN pod_uid TEXT;
     ALTER TABLE record ADD COLUMN labels TEXT;
     CREATE INDEX record_pod ON record (namespace, pod, shelf, begin_ns, id) WHERE pod IS NOT NULL;
     CREATE INDEX gap_time ON gap (end_ns);",
    // 3: a profile's counts can be read without its body.
    "ALTER TABLE record ADD COLUMN facts TEXT;",
    // 4: pod incidents have a share of their own; an index finds events in the order in which they were stored.
    "UPDATE record SET share = 5 WHERE shelf = 2;
     DELETE FROM share;
     INSERT INTO share SELECT share, sum(bytes), count(*) FROM record GROUP BY share;
     CREATE INDEX record_event ON record (id) WHERE shelf = 1;",
];

/// Why a file cannot be used as it is.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error("the file has version {0} and was written by a newer podopsy; this one reads versions up to {known}", known = STEPS.len())]
    Newer(i64),
    #[error("the file belongs to another program")]
    Foreign,
    #[error("the check of the file found: {0}")]
    Damaged(String),
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
}

impl OpenError {
    /// Whether the file itself is at fault; it is then quarantined and a new one is created. Otherwise the disk is at
    /// fault, and may work again later.
    pub fn is_file_fault(&self) -> bool {
        match self {
            OpenError::Newer(_) | OpenError::Foreign | OpenError::Damaged(_) => true,
            OpenError::Sqlite(error) => is_damage(error),
        }
    }
}

/// Whether the error means that the file's bytes or its tables are damaged.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase, SchemaChanged, TypeMismatch, Unknown};
    let damage = [DatabaseCorrupt, NotADatabase, SchemaChanged, TypeMismatch];
    match error {
        // "no such table" or "no such column" for SQL that worked before: the page with the schema is damaged.
        rusqlite::Error::SqliteFailure(failure, _) => {
            damage.contains(&failure.code) || failure.code == Unknown
        }
        rusqlite::Error::SqlInputError { .. } | rusqlite::Error::InvalidColumnType(..) => true,
        rusqlite::Error::FromSqlConversionFailure(..) | rusqlite::Error::QueryReturnedNoRows => true,
        _ => false,
    }
}

/// Whether the disk is full, or the file has reached its limit.
pub(super) fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
}

/// Opens the file for writing, and migrates it to the current version.
pub(super) fn open(
    path: &Path,
    pages_max: impl Fn(i64) -> i64,
) -> std::result::Result<Connection, OpenError> {
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
        return Err(OpenError::Foreign);
    }
    if version < 0 || version as usize > STEPS.len() {
        return Err(OpenError::Newer(version));
    }
    if tables == 0 {
        // Lets deleted pages be returned to the file system in small steps. It can only be set in an empty file.
        connection.pragma_update(None, "auto_vacuum", "incremental")?;
    }
    connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
    // A commit is on the disk when it returns, not only in the page cache: a node that runs out of memory may be reset.
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "temp_store", "memory")?;
    connection.pragma_update(None, "cache_size", -2048)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    // Checks cells as they are read, so that damage is an error instead of a wrong result.
    connection.pragma_update(None, "cell_size_check", true)?;
    let page: i64 = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
    connection.pragma_update_and_check(None, "max_page_count", pages_max(page), |_| Ok(()))?;
    migrate(&mut connection, version as usize, STEPS)?;
    Ok(connection)
}

/// Runs each step and sets its number in one transaction, so that a crash leaves either version but nothing between.
pub(super) fn migrate(connection: &mut Connection, version: usize, steps: &[&str]) -> Result<()> {
    for (at, step) in steps.iter().enumerate().skip(version) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(step)?;
        if at == 0 {
            transaction.pragma_update(None, "application_id", APPLICATION)?;
            // Ids start at the time in ms, so that they still increase after a file was quarantined.
            let now = jiff::Timestamp::now().as_millisecond();
            transaction.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('record', ?1)", [now])?;
        }
        transaction.pragma_update(None, "user_version", at as i64 + 1)?;
        transaction.commit()?;
    }
    Ok(())
}

/// Reads and checks every page; used after an unclean shutdown.
pub(super) fn check(connection: &Connection) -> std::result::Result<(), OpenError> {
    let result: String =
        connection.pragma_query_value(None, "quick_check", |row| row.get(0)).map_err(|error| {
            if is_damage(&error) { OpenError::Damaged(error.to_string()) } else { error.into() }
        })?;
    if result == "ok" { Ok(()) } else { Err(OpenError::Damaged(podopsy_model::text::escape(&result))) }
}

/// Opens the file read-only. Each query has a connection of its own, so that a file that is quarantined meanwhile is
/// closed.
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
