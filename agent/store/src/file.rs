//! The open file, to write: records in, the oldest out, and the life of this run.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, Result, params};

use super::row::{Row, Share};
use super::schema::{self, Unusable};
use super::{Gap, GapReason, Limits};

/// Records that leave in one step, at most: a few milliseconds.
const LEAVE: i64 = 128;
/// Pages given back to the disk in one step, at most: a megabyte.
const GIVE_BACK: i64 = 256;
/// Gaps are a line each, and go back as far as kills do; nobody asks for more of them.
const GAPS_MAX: i64 = 10_000;

/// This process, as a run of the agent.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub boot: String,
    pub began_ns: i64,
}

/// What became of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// Under this id.
    As(i64),
    /// It is there already.
    Before,
}

pub(super) struct File {
    connection: Connection,
    run: Run,
    limits: Limits,
    page: i64,
}

impl File {
    /// Opens it, or begins it, and enters this run: what lies between the last run and this one is a gap.
    pub fn open(path: &Path, run: Run, limits: Limits, now_ns: i64) -> std::result::Result<File, Unusable> {
        let connection = schema::open(path, |page| limits.file_bytes() / page)?;
        let page = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
        let file = File { connection, run, limits, page };
        file.bound_log()?;
        file.enter(now_ns)?;
        Ok(file)
    }

    fn enter(&self, now_ns: i64) -> std::result::Result<(), Unusable> {
        let last = "SELECT boot, began_ns, alive_ns, ended FROM run ORDER BY id DESC LIMIT 1";
        let of = |row: &rusqlite::Row| {
            Ok((
                row.get::<_, String>(0)?,
                row.get::<_, i64>(1)?,
                row.get::<_, i64>(2)?,
                row.get::<_, bool>(3)?,
            ))
        };
        let last = self.connection.query_row(last, [], of).optional()?;
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
            // A clock that was set back leaves no gap that ends before it begins.
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

    /// Writes all of them or none, and says what became of each. When it returns, they are on the disk.
    pub fn write(&mut self, rows: &[Row], gap: Option<Gap>, now_ns: i64) -> Result<Vec<Kept>> {
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
                    !row.hearsay,
                    row.facts,
                ];
                let id = insert.query_row(values, |row| row.get(0)).optional()?;
                kept.push(id.map_or(Kept::Before, Kept::As));
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

    /// A clean end.
    pub fn end(self, now_ns: i64) -> Result<()> {
        self.connection.execute("UPDATE run SET alive_ns = ?1, ended = 1", [now_ns])?;
        self.connection.close().map_err(|(_, error)| error)
    }

    /// Pages in use and in the file, in bytes.
    pub fn sizes(&self) -> Result<(i64, i64)> {
        let pages = |name| self.connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let (all, free) = (pages("page_count")?, pages("freelist_count")?);
        Ok(((all - free) * self.page, all * self.page))
    }

    /// One step towards the limits; true: there is more to do. No step takes longer than a commit or two.
    pub fn tidy(&mut self, now_ns: i64) -> Result<bool> {
        let age_ns = i64::try_from(self.limits.age.as_nanos()).unwrap_or(i64::MAX);
        let too_old = now_ns.saturating_sub(age_ns);
        let mut gone = 0;
        for share in Share::ALL.into_iter().filter(|share| share.ages()) {
            gone += self.connection.execute(
                "DELETE FROM record WHERE id IN (SELECT id FROM record WHERE share = ?1 AND begin_ns < ?2 \
                 ORDER BY begin_ns LIMIT ?3)",
                params![share as i64, too_old, self.leave_at_once()],
            )?;
        }
        let (used, file) = self.sizes()?;
        let room = self.limits.file_bytes();
        // A little below the limit, so that a commit has room without waiting for a step.
        if used > room - room / 16 {
            gone += self.leave()?;
        }
        if file > room || (file - used > file / 4 && file - used > GIVE_BACK * self.page) {
            let pages = GIVE_BACK.min(self.limits.log_bytes() / 4 / self.page);
            let mut statement = self.connection.prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
            let mut rows = statement.query([])?;
            while rows.next()?.is_some() {}
            return Ok(true);
        }
        Ok(gone > 0)
    }

    /// The oldest of the one that is furthest over its share.
    pub fn leave(&mut self) -> Result<usize> {
        let mut statement = self.connection.prepare("SELECT share, bytes FROM share WHERE records > 0")?;
        let all = statement.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))?;
        let all: Vec<(i64, i64)> = all.collect::<Result<_>>()?;
        drop(statement);
        let over = |&(share, bytes): &(i64, i64)| {
            let known = Share::ALL.into_iter().find(|one| *one as i64 == share);
            bytes.saturating_mul(100) / known.map_or(1, |share| share.percent() as i64)
        };
        let Some(&(share, _)) = all.iter().max_by_key(|one| over(one)) else { return Ok(0) };
        self.connection.execute(
            "DELETE FROM record WHERE id IN (SELECT id FROM record WHERE share = ?1 ORDER BY begin_ns LIMIT ?2)",
            params![share, self.leave_at_once()],
        )
    }

    /// Whether every page makes sense.
    pub fn check(&self) -> std::result::Result<(), Unusable> {
        schema::check(&self.connection)
    }

    pub fn set_limits(&mut self, limits: Limits) -> Result<()> {
        self.limits = limits;
        let pages = limits.file_bytes() / self.page;
        self.connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))?;
        self.bound_log()
    }

    /// Has the log written back early enough for what comes on top of that, and what was above it cut off.
    fn bound_log(&self) -> Result<()> {
        let log = self.limits.log_bytes();
        self.connection
            .pragma_update_and_check(None, "wal_autocheckpoint", log / 4 / self.page, |_| Ok(()))?;
        self.connection.pragma_update_and_check(None, "journal_size_limit", log / 2, |_| Ok(()))
    }

    fn leave_at_once(&self) -> i64 {
        LEAVE.min(self.limits.commit_records())
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
