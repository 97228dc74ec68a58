//! Parses the OOM killer's lines (`mm/oom_kill.c`, `mm/memcontrol.c`, 5.10–7.x). Pure: no I/O.
//!
//! An attacker can choose comms (15 bytes) and cgroup names, and the lines quote neither. Therefore a line is
//! recognized by a beginning that no comm can produce, numbers are read from the end, where no name can be, and a line
//! in which a name looks like a field gives no names ([`Chosen::ambiguous`]).

use std::str::FromStr;

/// A line about an OOM kill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OomLine {
    Invoked(Invoked),
    /// The trigger's thread id, from the "CPU:" line that follows.
    Trigger(u32),
    Memory(Charged),
    Swap(Charged),
    /// v1: the kernel memory that is charged to the cgroup whose limit was hit, which `Memory` includes.
    KernelMemory(Charged),
    /// "Memory cgroup stats for PATH:", before the statistics of the cgroup whose limit was hit.
    StatisticsHeader(Vec<u8>),
    TableHeader(TaskColumns),
    TableRow(TaskRow),
    Chosen(Chosen),
    Killed(Killed),
    /// "Tasks in PATH are going to be killed due to memory.oom.group set".
    Group(Vec<u8>),
    /// The victim's thread id: it was already dying, so nothing is killed.
    Exiting(u32),
}

/// `X invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invoked {
    pub comm: Vec<u8>,
    /// The allocation was for 2^order pages.
    pub order: i32,
}

/// `memory: usage 65536kB, limit 65536kB, failcnt 1391`: the cgroup whose limit was hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charged {
    pub usage_bytes: u64,
    /// None: no limit.
    pub limit_bytes: Option<u64>,
    pub hits: u64,
}

/// The names of the task table's columns, in the order in which this kernel prints them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskColumns(Vec<String>);

/// A process in the task table; memory in pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskRow {
    /// The id of the thread that holds the memory.
    pub tid: u32,
    pub pid: u32,
    pub uid: u32,
    pub rss_pages: u64,
    pub swap_pages: u64,
    pub oom_score_adj: i32,
    pub comm: Vec<u8>,
}

/// `oom-kill:constraint=…,nodemask=…,cpuset=…,mems_allowed=…[,global_oom|,oom_memcg=…],task_memcg=…,task=…,pid=…,uid=…`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// `CONSTRAINT_MEMCG`, `_NONE`, `_CPUSET`, `_MEMORY_POLICY`, or a later addition of the kernel's.
    pub constraint: String,
    /// The memory of the machine, a cpuset or a memory policy was exhausted, not a cgroup's limit.
    pub global: bool,
    /// The cgroup whose limit was hit.
    pub oom_memcg: Option<Vec<u8>>,
    /// The victim's cgroup.
    pub task_memcg: Option<Vec<u8>>,
    pub tid: u32,
    pub uid: u32,
    /// A name looks like a field: the constraint and the numbers are valid, the names are left out.
    pub ambiguous: bool,
}

/// `Memory cgroup out of memory: Killed process 2739 (python3) total-vm:179864kB, anon-rss:49792kB, …`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Killed {
    /// Whether a cgroup's limit was hit; false: the whole machine's.
    pub in_cgroup: bool,
    pub tid: u32,
    pub comm: Vec<u8>,
    pub anon_bytes: u64,
    pub file_bytes: u64,
    pub shmem_bytes: u64,
    pub oom_score_adj: Option<i32>,
}

/// Parses a line; None: it is not about an OOM kill. `columns`: the header of the last task table.
pub fn parse(text: &[u8], columns: Option<&TaskColumns>) -> Option<OomLine> {
    if let Some(rest) = text.strip_prefix(b"oom-kill:constraint=") {
        return chosen(rest).map(OomLine::Chosen);
    }
    if let Some(rest) = text.strip_prefix(b"Tasks in ") {
        return rest
            .strip_suffix(b" are going to be killed due to memory.oom.group set")
            .map(|p| OomLine::Group(p.to_owned()));
    }
    if let Some(rest) = text.strip_prefix(b"Memory cgroup stats for ") {
        return rest.strip_suffix(b":").map(|path| OomLine::StatisticsHeader(path.to_owned()));
    }
    if let Some(rest) = text.strip_prefix(b"Memory cgroup out of memory") {
        return killed(rest, true);
    }
    if let Some(rest) = text.strip_prefix(b"Out of memory") {
        return killed(rest, false);
    }
    if let Some(rest) = text.strip_prefix(b"memory: usage ") {
        return charged(rest).map(OomLine::Memory);
    }
    if let Some(rest) = text.strip_prefix(b"swap: usage ") {
        return charged(rest).map(OomLine::Swap);
    }
    if let Some(rest) = text.strip_prefix(b"kmem: usage ") {
        return charged(rest).map(OomLine::KernelMemory);
    }
    if text.starts_with(b"CPU: ") {
        let (_, rest) = split(text, b" PID: ")?;
        return number(rest.split(|&b| b == b' ').next()?).map(OomLine::Trigger);
    }
    if text.starts_with(b"[") {
        return header(text).map(OomLine::TableHeader).or_else(|| row(text, columns?).map(OomLine::TableRow));
    }
    invoked(text).map(OomLine::Invoked)
}

fn invoked(text: &[u8]) -> Option<Invoked> {
    const MARK: &[u8] = b" invoked oom-killer: gfp_mask=";
    const COMM_MAX: usize = 15;
    let end = text.windows(MARK.len()).take(COMM_MAX + 1).position(|window| window == MARK)?;
    let order =
        split(&text[end..], b", order=").and_then(|(_, rest)| number(rest.split(|&b| b == b',').next()?));
    Some(Invoked { comm: text[..end].to_owned(), order: order.unwrap_or(0) })
}

/// `USAGEkB, limit LIMITkB, failcnt N`
fn charged(rest: &[u8]) -> Option<Charged> {
    let (usage, rest) = split(rest, b"kB, limit ")?;
    let (limit, hits) = split(rest, b"kB, failcnt ")?;
    let (usage, limit): (u64, u64) = (number(usage)?, number(limit)?);
    // "No limit" is the largest number of pages, in kB.
    let limit_bytes = limit.checked_mul(1024).filter(|&limit| limit < 1 << 62);
    Some(Charged { usage_bytes: usage.saturating_mul(1024), limit_bytes, hits: number(hits)? })
}

/// `[  pid  ]   uid  tgid total_vm      rss pgtables_bytes swapents oom_score_adj name`
fn header(text: &[u8]) -> Option<TaskColumns> {
    let text = std::str::from_utf8(text).ok()?;
    let (pid, rest) = text.strip_prefix('[')?.split_once(']')?;
    let columns: Vec<String> = rest.split_whitespace().map(str::to_owned).collect();
    (pid.trim() == "pid" && columns.last().is_some_and(|name| name == "name")).then_some(TaskColumns(columns))
}

fn row(text: &[u8], columns: &TaskColumns) -> Option<TaskRow> {
    let (tid, mut rest) = split(text.strip_prefix(b"[")?, b"]")?;
    let mut row = TaskRow { tid: number(tid.trim_ascii())?, ..TaskRow::default() };
    // The name is the last column, after numbers only; it may contain any bytes.
    let (_, numbers) = columns.0.split_last()?;
    for column in numbers {
        let begin = rest.iter().position(|&b| b != b' ')?;
        let end = begin + rest[begin..].iter().position(|&b| b == b' ')?;
        let value = &rest[begin..end];
        match column.as_str() {
            "uid" => row.uid = number(value)?,
            "tgid" => row.pid = number(value)?,
            "rss" => row.rss_pages = number(value)?,
            "swapents" => row.swap_pages = number(value)?,
            "oom_score_adj" => row.oom_score_adj = number(value)?,
            _ => number::<i64>(value).map(drop)?,
        }
        rest = &rest[end..];
    }
    row.comm = rest.strip_prefix(b" ")?.to_owned();
    Some(row)
}

fn chosen(rest: &[u8]) -> Option<Chosen> {
    // Read from the end: the kernel prints pid and uid after all names.
    let (rest, uid) = split_last(rest, b",uid=")?;
    let (rest, tid) = split_last(rest, b",pid=")?;
    let (uid, tid) = (number(uid)?, number(tid)?);
    let (constraint, rest) = split(rest, b",nodemask=")?;
    let constraint = String::from_utf8(constraint.to_owned()).ok()?;
    let mut out = Chosen { constraint, tid, uid, ..Chosen::default() };
    let count = |mark: &[u8]| rest.windows(mark.len()).filter(|window| *window == mark).count();
    let once = [&b",cpuset="[..], b",mems_allowed=", b",task_memcg=", b",task="];
    out.ambiguous =
        once.iter().any(|mark| count(mark) > 1) || count(b",oom_memcg=") + count(b",global_oom") > 1;
    if out.ambiguous {
        // The constraint alone still shows whether the whole machine's memory was exhausted.
        out.global = out.constraint == "CONSTRAINT_NONE";
        return Some(out);
    }
    let (rest, _comm) = split(rest, b",task=")?;
    let (rest, task_memcg) = split(rest, b",task_memcg=")?;
    out.task_memcg = Some(task_memcg.to_owned());
    out.oom_memcg = split(rest, b",oom_memcg=").map(|(_, path)| path.to_owned());
    out.global = out.oom_memcg.is_none();
    Some(out)
}

/// `[ (oom_kill_allocating_task)]: Killed process N (COMM) total-vm:…`, or `: OOM victim N (COMM) is already exiting.
/// …`
fn killed(rest: &[u8], in_cgroup: bool) -> Option<OomLine> {
    let rest = rest.strip_prefix(b" (oom_kill_allocating_task)").unwrap_or(rest);
    if let Some(rest) = rest.strip_prefix(b": OOM victim ") {
        let (tid, rest) = split(rest, b" (")?;
        return rest
            .ends_with(b" is already exiting. Skip killing the task")
            .then(|| number(tid).map(OomLine::Exiting))?;
    }
    let (tid, rest) = split(rest.strip_prefix(b": Killed process ")?, b" (")?;
    let (comm, numbers) = split_last(rest, b") total-vm:")?;
    let field = |name: &[u8]| {
        let (_, rest) = split(numbers, name)?;
        let end = rest.iter().position(|b| !b.is_ascii_digit() && *b != b'-').unwrap_or(rest.len());
        number::<i64>(&rest[..end])
    };
    // The kernel sums up per-CPU counters, which can be negative for a moment.
    let kib = |name: &[u8]| Some(u64::try_from(field(name)?).unwrap_or(0).saturating_mul(1024));
    Some(OomLine::Killed(Killed {
        in_cgroup,
        tid: number(tid)?,
        comm: comm.to_owned(),
        anon_bytes: kib(b", anon-rss:")?,
        file_bytes: kib(b", file-rss:")?,
        shmem_bytes: kib(b", shmem-rss:")?,
        oom_score_adj: field(b" oom_score_adj:").and_then(|adj| i32::try_from(adj).ok()),
    }))
}

/// The text before and after the first occurrence of `mark`.
fn split<'a>(text: &'a [u8], mark: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let begin = text.windows(mark.len()).position(|window| window == mark)?;
    Some((&text[..begin], &text[begin + mark.len()..]))
}

/// The text before and after the last occurrence of `mark`.
fn split_last<'a>(text: &'a [u8], mark: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let begin = text.windows(mark.len()).rposition(|window| window == mark)?;
    Some((&text[..begin], &text[begin + mark.len()..]))
}

fn number<T: FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
#[path = "line_tests.rs"]
mod tests;
