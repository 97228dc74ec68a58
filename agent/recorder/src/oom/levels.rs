//! Reads the levels above a victim, and the processes of the level whose limit was hit, right after a kill.

use std::fs;
use std::path::Path;

use crate::kernel_log::visit::Visit;
use crate::memory::MemorySampler;
use crate::memory::files::{self, MemoryFileReader};
use podopsy_model::incident::{Level, LevelState, ProcessRow, ProcessTable};
use podopsy_model::memory::MemoryCounters;
use podopsy_model::text;
use podopsy_pods::{CgroupLineage, Pods, proc};
use podopsy_system::page_size;

use super::charged;
use super::limit::LevelReading;

/// Rows of the process table in an event; the rest is summed up.
const ROWS_MAX: usize = 64;
/// Processes that are read from /proc after the kill, if the log has no task table.
const PROCS_MAX: usize = 256;
/// Cgroups in which they are looked for.
const CGROUPS_MAX: usize = 256;
const PROC: &str = "/proc";

/// What a level's counters are compared with.
pub enum Baseline<'a> {
    /// The sampler's last reading before this time (CLOCK_BOOTTIME), the time of the kill.
    BeforeKill(Option<&'a MemorySampler>, u64),
    /// Nothing: the kill is long past, and the present counters do not describe it.
    None,
}

/// Reads each level as it is now, from the victim's cgroup up.
pub fn read(pods: &Pods, place: &CgroupLineage, baseline: &Baseline) -> Vec<LevelReading> {
    let hierarchy = pods.hierarchy();
    let mut reader = MemoryFileReader::new(hierarchy.version);
    let steps = place.levels.iter().map(|step| {
        let dir = hierarchy.join(&step.path);
        let sampler = match baseline {
            Baseline::BeforeKill(sampler, _) => *sampler,
            Baseline::None => None,
        };
        let since = match baseline {
            Baseline::BeforeKill(_, kill_ns) => reader.counters(&dir).map(|after| {
                let before = sampler.zip(step.id).and_then(|(sampler, id)| sampler.before(id, *kill_ns));
                difference(after, before.unwrap_or_default())
            }),
            Baseline::None => None,
        };
        let mut state = LevelState {
            of: step.level,
            path: step.shown.clone(),
            usage_bytes: None,
            limit_bytes: None,
            swap_bytes: None,
            headroom_bytes: None,
            limit_hits: since.map(|since| since.limit_hits),
            oom_kills: since.map(|since| since.oom_kills),
        };
        if step.level == Level::Node {
            let machine = files::machine(Path::new(PROC));
            state.limit_bytes = machine.map(|(total, _)| total);
            state.usage_bytes = machine.map(|(total, available)| total.saturating_sub(available));
        } else if let Some(usage) = reader.usage(&dir) {
            (state.usage_bytes, state.swap_bytes) = (Some(usage.current_bytes), Some(usage.swap_bytes));
            state.limit_bytes = reader.limit(&dir);
        } else if let Some((_, last)) = sampler.zip(step.id).and_then(|(sampler, id)| sampler.last(id)) {
            // The cgroup is gone: a runtime removes a dead container's cgroup within milliseconds.
            (state.usage_bytes, state.swap_bytes) = (Some(last.current_bytes), Some(last.swap_bytes));
            state.limit_bytes = last.limit_bytes;
        }
        state.headroom_bytes = state.limit_bytes.zip(state.usage_bytes).map(|(l, u)| l.saturating_sub(u));
        let is_limited = state.of != Level::Node && state.limit_bytes.is_some();
        // Long after the kill, the statistics do not describe it.
        let is_near = matches!(baseline, Baseline::BeforeKill(..));
        let charged = (is_limited && is_near).then(|| charged::read(&mut reader, &dir)).flatten();
        LevelReading { state, kernel_path: hierarchy.absolute(&step.path), since, charged }
    });
    steps.collect()
}

fn difference(after: MemoryCounters, before: MemoryCounters) -> MemoryCounters {
    MemoryCounters {
        limit_hits: after.limit_hits.saturating_sub(before.limit_hits),
        high: after.high.saturating_sub(before.high),
        ooms: after.ooms.map(|ooms| ooms.saturating_sub(before.ooms.unwrap_or(0))),
        oom_kills: after.oom_kills.saturating_sub(before.oom_kills),
    }
}

/// The process table that the OOM killer printed; None: the log has none.
pub fn table(visit: &Visit, usage: Option<u64>) -> Option<ProcessTable> {
    let victims: Vec<u32> = visit.kills.iter().map(|kill| kill.tid).collect();
    let page = page_size();
    let rows = visit.rows.iter().map(|row| ProcessRow {
        pid: row.pid,
        comm: text::escape_bytes(&row.comm),
        rss_bytes: row.rss_pages.saturating_mul(page),
        swap_bytes: row.swap_pages.saturating_mul(page),
        oom_score_adj: row.oom_score_adj,
        share: None,
        victim: victims.contains(&row.tid),
    });
    let mut table = shorten(rows.collect(), usage, "kernel log")?;
    table.others += u32::try_from(visit.rows_dropped).unwrap_or(u32::MAX);
    Some(table)
}

/// The processes that are left in a cgroup and below it, read from /proc; None: there are none.
pub fn survivors(pods: &Pods, path: &Path, usage: Option<u64>) -> Option<ProcessTable> {
    let hierarchy = pods.hierarchy();
    let (mut pids, mut cgroups) = (Vec::new(), 0);
    // A container may have made thousands of cgroups.
    hierarchy.walk(path, &mut |path| {
        cgroups += 1;
        let is_within = pids.len() < PROCS_MAX && cgroups <= CGROUPS_MAX;
        if is_within {
            pids.extend(hierarchy.procs(path));
        }
        is_within
    });
    let (root, page) = (Path::new(PROC), page_size());
    let rows = pids.into_iter().take(PROCS_MAX).filter_map(|pid| {
        let number = |file: &str, at: usize| {
            let text = fs::read_to_string(root.join(format!("{pid}/{file}"))).ok()?;
            text.split_whitespace().nth(at)?.parse::<i64>().ok()
        };
        let comm = proc::comm(root, pid)?;
        Some(ProcessRow {
            pid,
            comm: text::escape_bytes(comm.strip_suffix(b"\n").unwrap_or(&comm)),
            rss_bytes: u64::try_from(number("statm", 1)?).ok()?.saturating_mul(page),
            swap_bytes: 0,
            oom_score_adj: number("oom_score_adj", 0).unwrap_or(0) as i32,
            share: None,
            victim: false,
        })
    });
    shorten(rows.collect(), usage, "/proc")
}

/// Keeps the largest processes and all victims, and sums up the others; None: there are no rows.
fn shorten(mut rows: Vec<ProcessRow>, usage: Option<u64>, source: &str) -> Option<ProcessTable> {
    rows.sort_by_key(|row| (std::cmp::Reverse(row.rss_bytes), row.pid));
    for row in &mut rows {
        row.share = usage.filter(|&usage| usage > 0).map(|usage| row.rss_bytes as f64 / usage as f64);
    }
    // A victim is always shown, even if it was small.
    let (mut shown, rest): (Vec<_>, Vec<_>) =
        rows.into_iter().enumerate().partition(|(index, row)| *index < ROWS_MAX || row.victim);
    shown.truncate(2 * ROWS_MAX);
    let shown: Vec<_> = shown.into_iter().map(|(_, row)| row).collect();
    (!shown.is_empty()).then(|| ProcessTable {
        source: source.into(),
        others: rest.len() as u32,
        others_rss_bytes: rest.iter().map(|(_, row)| row.rss_bytes).sum(),
        rows: shown,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel_log::line::TaskRow;
    use crate::kernel_log::visit::LoggedKill;

    #[test]
    fn a_long_table_keeps_the_largest_rows_and_the_victim_and_sums_up_the_rest() {
        let rows = (1..=200).map(|n| TaskRow {
            tid: n,
            pid: n,
            rss_pages: 1000 - u64::from(n),
            ..TaskRow::default()
        });
        let kills = vec![LoggedKill { sequence: 1, time_us: 1, killed: None, tid: 199, taken: false }];
        let visit = Visit { rows: rows.collect(), rows_dropped: 7, kills, ..Visit::default() };
        let table = table(&visit, Some(4096 * 10_000)).unwrap();
        assert_eq!((table.rows.len(), table.others), (ROWS_MAX + 1, 135 + 7));
        assert!(table.rows.last().is_some_and(|row| row.victim && row.pid == 199));
        assert!((table.rows[0].share.unwrap() - 0.0999).abs() < 1e-9);
    }

    #[test]
    fn an_empty_table_gives_none() {
        assert_eq!(super::table(&Visit::default(), None), None);
    }
}
