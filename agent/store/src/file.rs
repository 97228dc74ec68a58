//! The open file, for writing: stores records, deletes the oldest ones, and records the start and end of this run.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, Result, params};

use super::row::{Share, StoreRow};
use super::schema::{self, OpenError};
use super::{Gap, GapReason, StoreLimits};

/// Records deleted in one step, at most: a few milliseconds.
const DELETE_MAX: i64 = 128;
/// Pages returned to the file system in one step, at most: a megabyte.
const VACUUM_PAGES: i64 = 256;
/// A gap is one small row and is kept as long as kills are; more than this is of no use to a reader.
const GAPS_MAX: i64 = 10_000;

/// The pod, or else the container, that a record belongs to; empty: the node itself.
const OWNER: &str = "coalesce(namespace || '/' || pod, container_id, '')";
/// How long the largest owner of a share is taken for the largest: finding it reads each record of the share.
const LARGEST_FOR_NS: i64 = 10_000_000_000;

/// One run of the agent: this process.
#[derive(Clone, Debug)]
pub(super) struct AgentRun {
    pub boot: String,
    pub began_ns: i64,
}

/// What a write did with a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriteOutcome {
    /// It is in the file, under this id.
    Stored(i64),
    /// A record with its key is in the file already.
    Duplicate,
}

pub(super) struct File {
    connection: Connection,
    run: AgentRun,
    limits: StoreLimits,
    page: i64,
    largest: Option<LargestOwner>,
}

/// The owner with the most bytes in a share, when that was last looked at.
struct LargestOwner {
    share: i64,
    owner: String,
    at_ns: i64,
}

impl File {
    /// Opens the file, or creates it, and records this run. The time between the last run and this one becomes a gap.
    pub fn open(
        path: &Path,
        run: AgentRun,
        limits: StoreLimits,
        now_ns: i64,
    ) -> std::result::Result<File, OpenError> {
        let connection = schema::open(path, |page| limits.file_bytes() / page)?;
        let page = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
        let file = File { connection, run, limits, page, largest: None };
        file.bound_log()?;
        file.record_run(now_ns)?;
        Ok(file)
    }

    fn record_run(&self, now_ns: i64) -> std::result::Result<(), OpenError> {
        let last = "SELECT boot, began_ns, alive_ns, ended FROM run ORDER BY id DESC LIMIT 1";
        let columns = |row: &rusqlite::Row| {
            Ok((
                row.get::<_, String>(0)?,
                row.get::<_, i64>(1)?,
                row.get::<_, i64>(2)?,
                row.get::<_, bool>(3)?,
            ))
        };
        let last = self.connection.query_row(last, [], columns).optional()?;
        if last.as_ref().is_some_and(|last| (&last.0, last.1) == (&self.run.boot, self.run.began_ns)) {
            return Ok(());
        }
        if last.as_ref().is_some_and(|last| !last.3) {
            schema::check(&self.connection)?;
        }
        let transaction = self.connection.unchecked_transaction()?;
        if let Some((boot, _, alive_ns, ended)) = last {
            let reason = match (boot == self.run.boot, ended) {
                (true, true) => GapReason::Stopped,
                (true, false) => GapReason::Died,
                (false, _) => GapReason::Rebooted,
            };
            // If the clock was set back, the gap must still not end before it begins.
            let begin_ns = alive_ns.min(self.run.began_ns);
            self.gap(Gap { begin_ns, end_ns: self.run.began_ns, reason, lost: 0 })?;
            self.connection.execute("DELETE FROM run", [])?;
        }
        self.connection.execute(
            "INSERT INTO run (boot, began_ns, alive_ns) VALUES (?1, ?2, ?3)",
            params![self.run.boot, self.run.began_ns, now_ns],
        )?;
        transaction.commit()?;
        Ok(())
    }

    /// Writes all rows or none, and returns the outcome for each. When it returns, they are on the disk.
    pub fn write(&mut self, rows: &[StoreRow], gap: Option<Gap>, now_ns: i64) -> Result<Vec<WriteOutcome>> {
        let transaction = self.connection.transaction()?;
        let mut kept = Vec::with_capacity(rows.len());
        {
            let mut insert = transaction.prepare(
                "INSERT INTO record (shelf, share, kind, begin_ns, end_ns, namespace, pod, pod_uid, container, \
                 container_id, labels, key, bytes, body, facts) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?16) \
                 ON CONFLICT (key) DO UPDATE SET begin_ns = excluded.begin_ns, end_ns = excluded.end_ns, \
                 namespace = excluded.namespace, pod = excluded.pod, pod_uid = excluded.pod_uid, \
                 container = excluded.container, container_id = excluded.container_id, \
                 labels = excluded.labels, bytes = excluded.bytes, body = excluded.body WHERE ?15 \
                 RETURNING id",
            )?;
            for row in rows {
                let values = params![
                    row.shelf as i64,
                    row.share as i64,
                    row.kind,
                    row.begin_ns,
                    row.end_ns,
                    row.namespace,
                    row.pod,
                    row.pod_uid,
                    row.container,
                    row.container_id,
                    row.labels,
                    row.key,
                    row.bytes() as i64,
                    row.body,
                    !row.from_log,
                    row.facts,
                ];
                let id = insert.query_row(values, |row| row.get(0)).optional()?;
                kept.push(id.map_or(WriteOutcome::Duplicate, WriteOutcome::Stored));
            }
            transaction.execute("UPDATE run SET alive_ns = ?1", [now_ns])?;
        }
        if let Some(gap) = gap {
            insert_gap(&transaction, gap)?;
        }
        transaction.commit()?;
        Ok(kept)
    }

    fn gap(&self, gap: Gap) -> Result<()> {
        insert_gap(&self.connection, gap)
    }

    /// Records a clean shutdown and closes the file.
    pub fn end(self, now_ns: i64) -> Result<()> {
        self.connection.execute("UPDATE run SET alive_ns = ?1, ended = 1", [now_ns])?;
        self.connection.close().map_err(|(_, error)| error)
    }

    /// The size of the pages in use, and of the whole file, in bytes.
    pub fn sizes(&self) -> Result<(i64, i64)> {
        let pages = |name| self.connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let (all, free) = (pages("page_count")?, pages("freelist_count")?);
        Ok(((all - free) * self.page, all * self.page))
    }

    /// Takes one step towards the limits and returns whether there is more to do. No step takes longer than a commit or
    /// two.
    pub fn tidy(&mut self, now_ns: i64) -> Result<bool> {
        let age_ns = i64::try_from(self.limits.age.as_nanos()).unwrap_or(i64::MAX);
        let too_old = now_ns.saturating_sub(age_ns);
        let mut deleted = 0;
        for share in Share::ALL.into_iter().filter(|share| share.expires()) {
            deleted += self.connection.execute(
                "DELETE FROM record WHERE id IN (SELECT id FROM record WHERE share = ?1 AND begin_ns < ?2 \
                 ORDER BY begin_ns LIMIT ?3)",
                params![share as i64, too_old, self.delete_batch()],
            )?;
        }
        let (used, file) = self.sizes()?;
        let capacity = self.limits.file_bytes();
        // A little below the limit, so that a commit has space without waiting for a step.
        if used > capacity - capacity / 16 {
            deleted += self.delete_oldest(now_ns)?;
        }
        if file > capacity || (file - used > file / 4 && file - used > VACUUM_PAGES * self.page) {
            let pages = VACUUM_PAGES.min(self.limits.log_bytes() / 4 / self.page);
            let mut statement = self.connection.prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
            let mut rows = statement.query([])?;
            while rows.next()?.is_some() {}
            return Ok(true);
        }
        Ok(deleted > 0)
    }

    /// Deletes the oldest records of the largest owner in the share that is furthest over its quota, and returns how many.
    /// A pod whose records flood a share evicts its own.
    pub fn delete_oldest(&mut self, now_ns: i64) -> Result<usize> {
        let mut statement = self.connection.prepare("SELECT share, bytes FROM share WHERE records > 0")?;
        let all = statement.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))?;
        let all: Vec<(i64, i64)> = all.collect::<Result<_>>()?;
        drop(statement);
        let over = |&(share, bytes): &(i64, i64)| {
            let share = Share::ALL.into_iter().find(|one| *one as i64 == share);
            bytes.saturating_mul(100) / share.map_or(1, |share| share.percent() as i64)
        };
        let Some(&(share, _)) = all.iter().max_by_key(|one| over(one)) else { return Ok(0) };
        let is_known = |known: &LargestOwner| known.share == share && now_ns - known.at_ns < LARGEST_FOR_NS;
        if let Some(known) = self.largest.as_ref().filter(|known| is_known(known)) {
            let deleted = self.delete_oldest_of(share, &known.owner)?;
            if deleted > 0 {
                return Ok(deleted);
            }
        }
        let Some(owner) = self.largest_owner(share)? else { return Ok(0) };
        let deleted = self.delete_oldest_of(share, &owner)?;
        self.largest = Some(LargestOwner { share, owner, at_ns: now_ns });
        Ok(deleted)
    }

    fn largest_owner(&self, share: i64) -> Result<Option<String>> {
        let sums = format!(
            "SELECT {OWNER} AS owner FROM record WHERE share = ?1 GROUP BY owner ORDER BY sum(bytes) DESC LIMIT 1"
        );
        self.connection.query_row(&sums, [share], |row| row.get(0)).optional()
    }

    fn delete_oldest_of(&self, share: i64, owner: &str) -> Result<usize> {
        let oldest =
            format!("SELECT id FROM record WHERE share = ?1 AND {OWNER} = ?2 ORDER BY begin_ns LIMIT ?3");
        self.connection.execute(
            &format!("DELETE FROM record WHERE id IN ({oldest})"),
            params![share, owner, self.delete_batch()],
        )
    }

    /// Checks that every page of the file is valid.
    pub fn check(&self) -> std::result::Result<(), OpenError> {
        schema::check(&self.connection)
    }

    pub fn set_limits(&mut self, limits: StoreLimits) -> Result<()> {
        self.limits = limits;
        let pages = limits.file_bytes() / self.page;
        self.connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))?;
        self.bound_log()
    }

    /// Sets the size of the write-ahead log at which SQLite writes it back, with space for what is still added on top
    /// of that, and the size to which it is then truncated.
    fn bound_log(&self) -> Result<()> {
        let log = self.limits.log_bytes();
        self.connection
            .pragma_update_and_check(None, "wal_autocheckpoint", log / 4 / self.page, |_| Ok(()))?;
        self.connection.pragma_update_and_check(None, "journal_size_limit", log / 2, |_| Ok(()))
    }

    fn delete_batch(&self) -> i64 {
        DELETE_MAX.min(self.limits.commit_records())
    }
}

fn insert_gap(connection: &Connection, gap: Gap) -> Result<()> {
    connection.execute(
        "INSERT INTO gap (begin_ns, end_ns, reason, lost) VALUES (?1, ?2, ?3, ?4)",
        params![gap.begin_ns, gap.end_ns, gap.reason.as_str(), gap.lost as i64],
    )?;
    connection.execute("DELETE FROM gap WHERE id <= (SELECT max(id) FROM gap) - ?1", [GAPS_MAX])?;
    Ok(())
}
