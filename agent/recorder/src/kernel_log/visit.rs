//! Lines → visits of the OOM killer: the header, the task table, the choice and the kills that follow.
//!
//! The kernel holds one lock (`oom_lock`) from the header to the last kill, so visits do not interleave. Headers are
//! rate limited (10 in 5 s); without a header, a visit has only its kill. Pure (no I/O) and bounded.

use std::collections::VecDeque;

use super::line::{self, Charged, Chosen, Invoked, Killed, OomLine, TaskColumns, TaskRow};
use super::record::KernelLogRecord;
use crate::memory::statistics::MemoryStatistics;

/// Rows of a task table at most: a fork bomb must not fill our memory.
const ROWS_MAX: usize = 2048;
/// Victims of a group kill at most.
const KILLS_MAX: usize = 2048;
/// Visits that are kept; the oldest are dropped first.
const VISITS_MAX: usize = 512;
/// Rows of all visits together; beyond that, the oldest visits lose their tables.
const TOTAL_ROWS_MAX: usize = 40_000;
/// The longest line that is assembled from several records.
const LINE_MAX: usize = 16 << 10;
/// A record of at least this length may have been cut by the kernel (`PRINTKRB_RECORD_MAX` is 1,024 with the prefix).
const CUT_FROM: usize = 900;
/// The longest time between two kills of a group; a later kill without a header is another visit. The members are
/// killed one right after the other, but each kill prints a line, and consoles can be slow.
const GROUP_WITHIN_US: u64 = 1_000_000;

/// One visit of the OOM killer, as far as the log shows it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Visit {
    /// None: the rate limit suppressed the header.
    pub invoked: Option<Invoked>,
    /// The trigger's thread id.
    pub trigger_tid: Option<u32>,
    pub memory: Option<Charged>,
    pub swap: Option<Charged>,
    /// v1: the kernel memory within `memory`.
    pub kernel_memory: Option<Charged>,
    pub statistics: Option<LoggedStatistics>,
    pub rows: Vec<TaskRow>,
    pub rows_dropped: usize,
    pub chosen: Option<Chosen>,
    /// The cgroup whose tasks were all killed (memory.oom.group).
    pub group: Option<Vec<u8>>,
    pub kills: Vec<LoggedKill>,
    /// Second kills of the same thread: a group's first victim is also a member of the group, so the kernel kills,
    /// prints and counts it twice.
    pub repeats: u64,
}

impl Visit {
    /// Whether a kill can belong to this header. If records between the two were overwritten, it may be another visit's.
    fn may_be_of(&self, tid: u32) -> bool {
        let has_row = self.rows.iter().any(|row| row.tid == tid) || self.rows_dropped > 0;
        match &self.chosen {
            Some(chosen) => chosen.tid == tid || has_row,
            None => self.rows.is_empty() || has_row,
        }
    }

    /// The kills as the kernel counts them (`oom_kill` of `/proc/vmstat`).
    pub fn counted(&self) -> u64 {
        self.kills.iter().filter(|kill| kill.killed.is_some()).count() as u64 + self.repeats
    }
}

/// The statistics of the cgroup whose limit was hit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoggedStatistics {
    pub path: Vec<u8>,
    pub values: MemoryStatistics,
    /// Lines of the log may still belong to them.
    pub is_open: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct LoggedKill {
    pub sequence: u64,
    pub time_us: u64,
    /// None: the victim was already dying ("Skip killing the task").
    pub killed: Option<Killed>,
    pub tid: u32,
    /// Whether it was matched with a kill that the probe saw.
    pub taken: bool,
}

/// Assembles visits, record by record.
#[derive(Debug, Default)]
pub struct Visits {
    visits: VecDeque<Visit>,
    /// The header of a visit before its first kill.
    open: Option<Visit>,
    columns: Option<TaskColumns>,
    /// A line that the next record may continue.
    partial: Option<Vec<u8>>,
    /// Lines in which a name looked like a field.
    pub ambiguous: u64,
    pub last_sequence: Option<u64>,
    /// [`Visit::repeats`] of all visits.
    pub repeats: u64,
}

impl Visits {
    pub fn push(&mut self, record: KernelLogRecord) {
        self.last_sequence = Some(record.sequence);
        if !record.continues && self.add_statistics(&record.text) {
            return;
        }
        // The kernel prints only three kinds of lines in pieces, between which lines of other CPUs may come.
        let mut text = record.text;
        if record.continues {
            let Some(mut line) = self.partial.take() else { return };
            line.extend_from_slice(&text);
            text = line;
        }
        let pieces = [&b"oom-kill:constraint="[..], b"Tasks in ", b"Memory cgroup stats for "];
        if text.len() < LINE_MAX && pieces.iter().any(|begin| text.starts_with(begin)) {
            self.partial = Some(text.clone());
        }
        let Some(line) = line::parse(&text, self.columns.as_ref()) else { return };
        self.add_line(line, record.sequence, record.time_us);
    }

    /// Adds statistics to the visit whose header is open; false: the text is something else. Kernels before 6.6 print all
    /// lines in one record, and cut it.
    fn add_statistics(&mut self, text: &[u8]) -> bool {
        let statistics = self.open.as_mut().and_then(|visit| visit.statistics.as_mut());
        let Some(statistics) = statistics.filter(|statistics| statistics.is_open) else { return false };
        let mut lines: Vec<&[u8]> = text.split(|&b| b == b'\n').collect();
        if lines.len() > 1 && text.len() >= CUT_FROM {
            lines.pop();
        }
        lines.iter().all(|line| statistics.values.add(line))
    }

    fn add_line(&mut self, line: OomLine, sequence: u64, time_us: u64) {
        match line {
            OomLine::Invoked(invoked) => {
                self.open = Some(Visit { invoked: Some(invoked), ..Visit::default() })
            }
            OomLine::TableHeader(columns) => {
                self.columns = Some(columns);
                self.close_statistics();
            }
            OomLine::Trigger(tid) => {
                self.in_header(|visit| visit.trigger_tid = visit.trigger_tid.or(Some(tid)))
            }
            OomLine::Memory(charged) => self.in_header(|visit| visit.memory = Some(charged)),
            OomLine::Swap(charged) => self.in_header(|visit| visit.swap = Some(charged)),
            OomLine::KernelMemory(charged) => self.in_header(|visit| visit.kernel_memory = Some(charged)),
            OomLine::StatisticsHeader(path) => self.in_header(|visit| {
                visit.statistics =
                    Some(LoggedStatistics { path, is_open: true, ..LoggedStatistics::default() });
            }),
            OomLine::TableRow(row) => self.in_header(|visit| {
                if visit.rows.len() < ROWS_MAX {
                    visit.rows.push(row);
                } else {
                    visit.rows_dropped += 1;
                }
            }),
            OomLine::Chosen(chosen) => {
                self.ambiguous += u64::from(chosen.ambiguous);
                self.close_statistics();
                self.in_header(|visit| visit.chosen = Some(chosen));
            }
            OomLine::Group(path) => {
                if let Some(visit) = self.visits.back_mut() {
                    visit.group = Some(path);
                }
            }
            OomLine::Killed(killed) => {
                let tid = killed.tid;
                self.add_kill(LoggedKill { sequence, time_us, killed: Some(killed), tid, taken: false });
            }
            OomLine::Exiting(tid) => {
                self.add_kill(LoggedKill { sequence, time_us, killed: None, tid, taken: false })
            }
        }
    }

    fn close_statistics(&mut self) {
        self.in_header(|visit| {
            if let Some(statistics) = &mut visit.statistics {
                statistics.is_open = false;
            }
        });
    }

    /// A header's lines count only after its first line, because other kernel reports print the same lines.
    fn in_header(&mut self, change: impl FnOnce(&mut Visit)) {
        if let Some(visit) = &mut self.open {
            change(visit);
        }
    }

    fn add_kill(&mut self, kill: LoggedKill) {
        let is_same_group = |visit: &&mut Visit| {
            let is_near = visit
                .kills
                .last()
                .is_some_and(|last| kill.time_us.saturating_sub(last.time_us) < GROUP_WITHIN_US);
            visit.group.is_some() && is_near && visit.kills.len() < KILLS_MAX
        };
        if self.open.is_none()
            && let Some(visit) = self.visits.back_mut().filter(is_same_group)
        {
            if visit.kills.iter().any(|known| known.tid == kill.tid) {
                visit.repeats += 1;
                self.repeats += 1;
            } else {
                visit.kills.push(kill);
            }
            return;
        }
        let open = self.open.take().filter(|visit| visit.may_be_of(kill.tid));
        let mut visit = open.unwrap_or_default();
        visit.kills.push(kill);
        if self.visits.len() >= VISITS_MAX {
            self.visits.pop_front();
        }
        let mut total_rows = visit.rows.len();
        for older in self.visits.iter_mut().rev() {
            total_rows += older.rows.len();
            if total_rows > TOTAL_ROWS_MAX {
                older.rows_dropped += std::mem::take(&mut older.rows).len();
            }
        }
        self.visits.push_back(visit);
    }

    /// The newest kill of this thread that was not taken before, with its visit. Thread ids are used again, so each
    /// kill is taken only once.
    pub fn take(&mut self, tid: u32) -> Option<(Visit, LoggedKill)> {
        let visit =
            self.visits.iter_mut().rev().find(|v| v.kills.iter().any(|k| k.tid == tid && !k.taken))?;
        let kill = visit.kills.iter_mut().find(|kill| kill.tid == tid && !kill.taken)?;
        kill.taken = true;
        let kill = kill.clone();
        Some((visit.clone(), kill))
    }

    /// The visit whose first kill has this sequence number.
    pub fn find(&self, sequence: u64) -> Option<&Visit> {
        self.visits
            .iter()
            .rev()
            .find(|visit| visit.kills.first().is_some_and(|kill| kill.sequence == sequence))
    }

    pub fn into_visits(self) -> Vec<Visit> {
        self.visits.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel_log::record;

    fn visits_of(log: &str) -> Visits {
        let mut visits = Visits::default();
        log.lines().filter_map(|line| record::parse(line.as_bytes())).for_each(|record| visits.push(record));
        visits
    }

    const RECORDED: &str = include_str!("fixtures/6.18-v1-nested.kmsg");

    #[test]
    fn a_recorded_kill_is_one_visit_with_all_its_facts() {
        let mut visits = visits_of(RECORDED);
        let (visit, kill) = visits.take(2739).unwrap();
        assert_eq!((visit.kills.len(), visit.trigger_tid), (1, Some(2744)));
        assert_eq!(
            visit.memory.map(|m| (m.usage_bytes, m.limit_bytes, m.hits)),
            Some((64 << 20, Some(64 << 20), 1391))
        );
        let pids: Vec<_> = visit.rows.iter().map(|row| (row.pid, row.rss_pages)).collect();
        assert_eq!(pids, [(2720, 4620), (2739, 13231)]);
        assert_eq!(visit.chosen.unwrap().oom_memcg.unwrap(), b"/podopsy-fix-2674");
        assert_eq!(visit.kernel_memory.map(|kernel| kernel.usage_bytes), Some(348 << 10));
        let statistics = visit.statistics.unwrap();
        let user = statistics.values.user().unwrap();
        assert_eq!((statistics.path.as_slice(), statistics.is_open), (&b"/podopsy-fix-2674"[..], false));
        assert_eq!((user.anon_bytes, user.file_bytes, user.shmem_bytes), (66_748_416, 4096, 0));
        assert_eq!((kill.sequence, kill.time_us), (28908, 11_646_256_481));
        // It can be taken only once.
        assert!(visits.take(2739).is_none());
    }

    #[test]
    fn without_a_header_a_visit_has_only_its_kill() {
        let log = "3,5,100,-;Memory cgroup out of memory: Killed process 7 (a) total-vm:1kB, anon-rss:2kB, file-rss:3kB, shmem-rss:4kB, UID:0 pgtables:1kB oom_score_adj:0\n\
                   3,6,200,-;Memory cgroup out of memory: Killed process 8 (b) total-vm:1kB, anon-rss:2kB, file-rss:3kB, shmem-rss:4kB, UID:0 pgtables:1kB oom_score_adj:0\n";
        let all = visits_of(log).into_visits();
        assert_eq!(all.len(), 2);
        assert!(all.iter().all(|visit| visit.chosen.is_none() && visit.kills.len() == 1));
    }

    #[test]
    fn a_group_is_one_visit_with_all_its_victims() {
        let mut visits = visits_of(include_str!("fixtures/6.1-v2-group.kmsg"));
        let (visit, _) = visits.take(1203).unwrap();
        assert_eq!(visit.group.as_deref(), Some(&b"/kubepods/burstable/pod1/c1"[..]));
        assert_eq!(
            (visit.repeats, visit.counted(), visits.repeats),
            (1, 6, 1),
            "the first victim is a member, too"
        );
        assert_eq!(
            visit.kills.iter().map(|kill| kill.tid).collect::<Vec<_>>(),
            [1201, 1202, 1203, 1204, 1205]
        );
        assert_eq!(visits.into_visits().len(), 2, "the next header starts another visit");
    }

    const HEADER: &str =
        "4,1,1,-;x invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0\n";
    const KILL: &str = "3,90,4,-;Memory cgroup out of memory: Killed process 7 (x) total-vm:1kB, anon-rss:2kB, \
                        file-rss:3kB, shmem-rss:4kB\n";

    #[test]
    fn statistics_in_one_cut_record_are_read_without_its_last_line() {
        let filler: String = (0..60).map(|n| format!("\\x0afiller_{n} 123456")).collect();
        let log = format!(
            "{HEADER}6,2,2,-;Memory cgroup stats for /a\n6,3,2,c;:\n\
             6,4,2,-;anon 100\\x0afile 300\\x0ashmem 200\\x0afile_mapped 10{filler}\\x0aslab 12\n{KILL}"
        );
        let visit = visits_of(&log).into_visits().remove(0);
        let statistics = visit.statistics.unwrap();
        assert_eq!(statistics.path, b"/a");
        assert_eq!(statistics.values.user().map(|user| user.shmem_bytes), Some(200));
        assert_eq!(statistics.values.get("slab"), None, "its number may be cut");
    }

    #[test]
    fn only_lines_after_the_header_and_before_the_table_are_statistics() {
        let columns = "[  pid  ]   uid  tgid total_vm      rss pgtables_bytes swapents oom_score_adj name";
        let log = format!(
            "6,1,1,-;anon 1\n{HEADER}6,2,2,-;anon 2\n6,3,2,-;Memory cgroup stats for /a:\n6,4,2,-;anon 3\n\
             6,5,2,-;shmem[7]: segfault at 8\n6,6,2,-;{columns}\n6,7,2,-;shmem 9\n{KILL}"
        );
        let visit = visits_of(&log).into_visits().remove(0);
        let values = visit.statistics.unwrap().values;
        assert_eq!((values.get("anon"), values.get("shmem")), (Some(3), None));
    }

    #[test]
    fn a_kill_whose_own_header_was_overwritten_does_not_take_another_ones() {
        let chosen = "6,3,2,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/b,\
                      task_memcg=/b,task=y,pid=8,uid=0\n";
        let log = format!("{HEADER}6,2,2,-;memory: usage 64kB, limit 64kB, failcnt 1\n{chosen}{KILL}");
        let visit = visits_of(&log).into_visits().remove(0);
        assert_eq!(
            (visit.kills[0].tid, visit.memory, visit.chosen),
            (7, None, None),
            "the header is of thread 8"
        );
        let own = log.replace("pid=8", "pid=7");
        let visit = visits_of(&own).into_visits().remove(0);
        assert!(visit.memory.is_some() && visit.chosen.is_some());
    }

    #[test]
    fn a_line_in_several_records_is_assembled() {
        let log = "4,1,1,-;x invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0\n\
                   6,2,2,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null)\n\
                   6,3,2,-;eth0: link up\n\
                   6,4,3,c;,cpuset=/,mems_allowed=0,oom_memcg=/a,task_memcg=/a/b,task=x,pid=7,uid=0\n\
                   3,5,4,-;Memory cgroup out of memory: Killed process 7 (x) total-vm:1kB, anon-rss:2kB, file-rss:3kB, shmem-rss:4kB\n";
        let visit = visits_of(log).into_visits().remove(0);
        assert_eq!(visit.chosen.unwrap().task_memcg.unwrap(), b"/a/b");
    }

    #[test]
    fn a_hostile_log_stays_within_bounds() {
        let mut visits = Visits::default();
        let mut push = |text: &[u8]| {
            visits.push(KernelLogRecord {
                sequence: 1,
                time_us: 1,
                continues: text.starts_with(b","),
                text: text.to_vec(),
            });
        };
        push(b"x invoked oom-killer: gfp_mask=0x0, order=0, oom_score_adj=0");
        push(b"[  pid  ]   uid  tgid total_vm      rss pgtables_bytes swapents oom_score_adj name");
        for _ in 0..ROWS_MAX + 10 {
            push(b"[      7]     0     7        1        1        1        0             0 bomb");
        }
        push(b"oom-kill:constraint=");
        for _ in 0..100 {
            push(&[b','; 1000]);
        }
        let kill =
            b"Out of memory: Killed process 7 (x) total-vm:1kB, anon-rss:2kB, file-rss:3kB, shmem-rss:4kB";
        for _ in 0..VISITS_MAX + 10 {
            push(kill);
        }
        assert_eq!(visits.visits.len(), VISITS_MAX);
        assert!(visits.partial.is_none_or(|partial| partial.len() < LINE_MAX + 1000));
        assert!(visits.open.is_none());
    }
}
