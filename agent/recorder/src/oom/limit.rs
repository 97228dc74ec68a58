//! Decides which level's limit was hit: by the kernel's log if it says so, else by the counters, else by the headroom.
//! Pure: no I/O.

use crate::kernel_log::visit::Visit;
use podopsy_model::charged::ChargedMemory;
use podopsy_model::incident::{Evidence, Level, LevelState, LimitHit};
use podopsy_model::memory::MemoryCounters;

/// One level above the victim as it was read after the kill.
#[derive(Clone, Debug)]
pub struct LevelReading {
    pub state: LevelState,
    /// The cgroup's path as the kernel prints it.
    pub kernel_path: Vec<u8>,
    /// By how much the counters rose since before the kill; None: not known.
    pub since: Option<MemoryCounters>,
    /// What was charged to it then, if it has a limit.
    pub charged: Option<ChargedMemory>,
}

/// A cgroup at least this full may have hit its limit: the kernel charges in batches of 64 pages a CPU, so that usage
/// can stay a little below the limit.
const FULL: f64 = 0.95;

/// `visit`: the visit as the kernel's log has it. `in_cgroup`: whether the kill's line says that a cgroup's limit was
/// hit; None: there is no such line. `levels`: from the victim's cgroup up.
pub fn decide(visit: Option<&Visit>, in_cgroup: Option<bool>, levels: &[LevelReading]) -> LimitHit {
    let mut limit = by_log(visit, in_cgroup, levels)
        .or_else(|| by_counters(in_cgroup, levels))
        .or_else(|| by_headroom(in_cgroup, levels))
        .unwrap_or(LimitHit {
            of: Level::Unknown,
            how: Evidence::Inferred,
            by: "neither the kernel log nor the counters nor the headroom show it".into(),
            path: None,
            limit_bytes: None,
            usage_bytes: None,
        });
    if let Some(memory) = visit.and_then(|visit| visit.memory).filter(|_| limit.path.is_some()) {
        // The log has the numbers at the time of the kill; memory may have been freed since.
        limit.limit_bytes = memory.limit_bytes;
        limit.usage_bytes = Some(memory.usage_bytes);
    }
    limit
}

fn by_log(visit: Option<&Visit>, in_cgroup: Option<bool>, levels: &[LevelReading]) -> Option<LimitHit> {
    const LOG: &str = "kernel log";
    let Some(chosen) = visit.and_then(|visit| visit.chosen.as_ref()) else {
        // The kill's own line is not rate limited. It begins with "Out of memory:" if no cgroup's limit was hit.
        return (in_cgroup == Some(false))
            .then(|| machine(Level::Node, Evidence::Inferred, "kernel log: the kill's line", levels));
    };
    match (chosen.constraint.as_str(), &chosen.oom_memcg) {
        ("CONSTRAINT_CPUSET", _) => Some(machine(Level::Cpuset, Evidence::Observed, LOG, levels)),
        ("CONSTRAINT_MEMORY_POLICY", _) => {
            Some(machine(Level::MemoryPolicy, Evidence::Observed, LOG, levels))
        }
        (_, Some(path)) => Some(match levels.iter().find(|level| level.kernel_path == *path) {
            Some(level) => limit_of(level, Evidence::Observed, LOG),
            None => LimitHit {
                of: podopsy_pods::paths::level(path),
                how: Evidence::Observed,
                by: LOG.into(),
                path: Some(podopsy_model::text::escape_bytes(path)),
                limit_bytes: None,
                usage_bytes: None,
            },
        }),
        (_, None) if chosen.global => Some(machine(Level::Node, Evidence::Observed, LOG, levels)),
        // The line is ambiguous: a name in it looks like a field.
        _ => None,
    }
}

fn by_counters(in_cgroup: Option<bool>, levels: &[LevelReading]) -> Option<LimitHit> {
    let rose = |counter: fn(&MemoryCounters) -> u64| -> Vec<&LevelReading> {
        levels.iter().filter(|level| level.since.is_some_and(|since| counter(&since) > 0)).collect()
    };
    // cgroup v2 counts an OOM at the cgroup whose limit was hit.
    match rose(|since| since.ooms.unwrap_or(0))[..] {
        [] => {}
        [level] => return Some(limit_of(level, Evidence::Observed, "memory.events.local")),
        [first, ..] => return Some(limit_of(first, Evidence::Inferred, "memory.events.local, of several")),
    }
    // cgroup v1 counts the charges that hit a limit; reclaim resolves most of them.
    let limited: Vec<_> = rose(|since| since.limit_hits)
        .into_iter()
        .filter(|level| level.state.limit_bytes.is_some())
        .collect();
    match limited[..] {
        [] => {}
        [level] => return Some(limit_of(level, Evidence::Inferred, "memory.failcnt")),
        _ => {
            let fullest = limited.iter().max_by(|a, b| fullness(a).total_cmp(&fullness(b)))?;
            return Some(limit_of(fullest, Evidence::Inferred, "memory.failcnt and headroom"));
        }
    }
    // On v2, if the counters of all cgroups were read and none counted an OOM, it was the whole machine.
    let none_counted_an_oom = levels.len() > 1
        && levels[..levels.len() - 1]
            .iter()
            .all(|level| level.since.is_some_and(|since| since.ooms == Some(0)));
    (none_counted_an_oom && in_cgroup != Some(true))
        .then(|| machine(Level::Node, Evidence::Inferred, "memory.events.local of no level rose", levels))
}

fn by_headroom(in_cgroup: Option<bool>, levels: &[LevelReading]) -> Option<LimitHit> {
    if let Some(full) = levels.iter().find(|level| fullness(level) >= FULL) {
        return Some(limit_of(full, Evidence::Inferred, "headroom"));
    }
    let mut limited = levels.iter().filter(|level| level.state.limit_bytes.is_some());
    let only = limited.next().filter(|_| limited.next().is_none() && in_cgroup == Some(true))?;
    Some(limit_of(only, Evidence::Inferred, "the only limit there is"))
}

/// Usage divided by the limit; 0 without a limit.
fn fullness(level: &LevelReading) -> f64 {
    match (level.state.usage_bytes, level.state.limit_bytes) {
        (Some(usage), Some(limit)) if limit > 0 => usage as f64 / limit as f64,
        _ => 0.0,
    }
}

fn limit_of(level: &LevelReading, how: Evidence, by: &str) -> LimitHit {
    LimitHit {
        of: level.state.of,
        how,
        by: by.into(),
        path: Some(level.state.path.clone()),
        limit_bytes: level.state.limit_bytes,
        usage_bytes: level.state.usage_bytes,
    }
}

/// The limit of the whole machine, a cpuset or a memory policy: none of them is a cgroup, so the path is None.
fn machine(of: Level, how: Evidence, by: &str, levels: &[LevelReading]) -> LimitHit {
    let node = levels.last().filter(|level| level.state.of == Level::Node).map(|level| &level.state);
    LimitHit {
        of,
        how,
        by: by.into(),
        path: None,
        limit_bytes: node.and_then(|node| node.limit_bytes),
        usage_bytes: node.and_then(|node| node.usage_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel_log::line::{Charged, Chosen};

    const MIB: u64 = 1 << 20;

    fn level(
        of: Level,
        path: &str,
        usage: u64,
        limit: Option<u64>,
        since: Option<MemoryCounters>,
    ) -> LevelReading {
        let state = LevelState {
            of,
            path: path.into(),
            usage_bytes: Some(usage * MIB),
            limit_bytes: limit.map(|limit| limit * MIB),
            swap_bytes: Some(0),
            headroom_bytes: None,
            limit_hits: None,
            oom_kills: None,
        };
        LevelReading { state, kernel_path: path.as_bytes().to_vec(), since, charged: None }
    }

    fn levels(v2: bool, rose: Option<usize>) -> Vec<LevelReading> {
        let counters = |at: usize| {
            let rose = u64::from(rose == Some(at));
            Some(MemoryCounters { limit_hits: rose, ooms: v2.then_some(rose), ..MemoryCounters::default() })
        };
        vec![
            level(Level::Container, "/k/pod1/c", 20, Some(64), counters(0)),
            level(Level::Pod, "/k/pod1", 60, Some(64), counters(1)),
            level(Level::Slice, "/k", 100, None, counters(2)),
            level(Level::Node, "/", 900, Some(1000), None),
        ]
    }

    fn visit(chosen: Chosen) -> Visit {
        let memory = Some(Charged { usage_bytes: 64 * MIB, limit_bytes: Some(64 * MIB), hits: 3 });
        Visit { chosen: Some(chosen), memory, ..Visit::default() }
    }

    #[test]
    fn the_log_comes_first_and_its_numbers_are_taken() {
        let chosen = Chosen {
            constraint: "CONSTRAINT_MEMCG".into(),
            oom_memcg: Some(b"/k/pod1".to_vec()),
            ..Chosen::default()
        };
        let limit = decide(Some(&visit(chosen.clone())), Some(true), &levels(true, Some(0)));
        assert_eq!((limit.of, limit.how, limit.by.as_str()), (Level::Pod, Evidence::Observed, "kernel log"));
        assert_eq!((limit.usage_bytes, limit.limit_bytes), (Some(64 * MIB), Some(64 * MIB)));
        // The levels may be gone: then the path alone decides.
        let limit = decide(Some(&visit(chosen)), Some(true), &[]);
        assert_eq!((limit.of, limit.path.as_deref()), (Level::Slice, Some("/k/pod1")));
    }

    #[test]
    fn node_cpuset_and_memory_policy_are_distinguished() {
        for (constraint, expected) in [
            ("CONSTRAINT_NONE", Level::Node),
            ("CONSTRAINT_CPUSET", Level::Cpuset),
            ("CONSTRAINT_MEMORY_POLICY", Level::MemoryPolicy),
        ] {
            let chosen = Chosen { constraint: constraint.into(), global: true, ..Chosen::default() };
            let limit = decide(Some(&visit(chosen)), Some(false), &levels(true, None));
            assert_eq!((limit.of, limit.how), (expected, Evidence::Observed));
            assert_eq!(limit.limit_bytes, Some(1000 * MIB), "the machine's, not a cgroup's");
        }
    }

    #[test]
    fn without_a_header_v2_counters_are_observed_and_v1_counters_are_inferred() {
        let limit = decide(None, Some(true), &levels(true, Some(1)));
        assert_eq!((limit.of, limit.how), (Level::Pod, Evidence::Observed));
        let limit = decide(None, Some(true), &levels(false, Some(0)));
        assert_eq!(
            (limit.of, limit.how, limit.by.as_str()),
            (Level::Container, Evidence::Inferred, "memory.failcnt")
        );
        let mut both = levels(false, Some(0));
        both[1].since = both[0].since;
        let limit = decide(None, Some(true), &both);
        assert_eq!((limit.of, limit.by.as_str()), (Level::Pod, "memory.failcnt and headroom"));
    }

    #[test]
    fn if_no_cgroup_counted_an_oom_it_was_the_node() {
        let limit = decide(None, None, &levels(true, None));
        assert_eq!((limit.of, limit.how), (Level::Node, Evidence::Inferred));
        assert_eq!(decide(None, Some(false), &levels(false, None)).of, Level::Node);
    }

    #[test]
    fn headroom_is_the_last_resort_and_without_it_the_level_is_unknown() {
        let mut levels = levels(false, None);
        levels[0].state.usage_bytes = Some(63 * MIB);
        let limit = decide(None, None, &levels);
        assert_eq!((limit.of, limit.by.as_str()), (Level::Container, "headroom"));
        assert_eq!(decide(None, None, &[]).of, Level::Unknown);
    }

    #[test]
    fn an_ambiguous_line_falls_back_to_the_counters() {
        let chosen = Chosen { constraint: "CONSTRAINT_MEMCG".into(), ambiguous: true, ..Chosen::default() };
        let limit = decide(Some(&visit(chosen)), Some(true), &levels(true, Some(0)));
        assert_eq!((limit.of, limit.by.as_str()), (Level::Container, "memory.events.local"));
    }
}
