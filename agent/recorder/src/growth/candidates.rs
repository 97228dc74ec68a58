//! Chooses the growth candidates: containers that were OOM-killed, and containers whose memory grows towards their
//! limit.
//!
//! Sampling all containers with complete stacks would cost a node too much. The few that may be killed are known by
//! their memory curve, or by their first kill. This module must not depend on cgroupfs or probes.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use crate::memory::MemoryTrend;

/// Containers that are sampled at a time.
pub const CANDIDATES_MAX: usize = 16;
/// Containers that were killed and are remembered; beyond that, the one that was killed first is forgotten.
const KILLED_MAX: usize = 256;
/// A container whose memory has stopped growing stays a candidate for this time, because leaks pause.
const LINGER: Duration = Duration::from_secs(600);
/// A container grows towards its limit if it will hit the limit within this time at its present rate …
const LIMIT_WITHIN: Duration = Duration::from_secs(1800);
/// … and if it uses at least this share of the limit already. Otherwise every start would count.
const HELD_SHARE: f64 = 0.25;

/// What stays the same when a container restarts: the pod's uid and the container's name.
pub type ContainerKey = (String, String);

/// A container that runs.
#[derive(Clone, Debug)]
pub struct RunningContainer {
    /// The cgroup id.
    pub id: u64,
    /// None: not known, or not yet known.
    pub key: Option<ContainerKey>,
    pub trend: Option<MemoryTrend>,
}

/// The cgroup ids that are to be sampled from now on, and those that no longer are.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct CandidateChanges {
    pub added: Vec<u64>,
    pub removed: Vec<u64>,
}

/// The containers that are sampled.
#[derive(Debug, Default)]
pub struct GrowthCandidates {
    /// Containers that were killed → the number of their last kill.
    killed: HashMap<ContainerKey, u64>,
    kills: u64,
    /// Cgroup id → when the container last had a reason to be sampled.
    current: HashMap<u64, Duration>,
    left_out: u64,
}

impl GrowthCandidates {
    /// Records that a container was OOM-killed: its next attempt is sampled from the start.
    pub fn killed(&mut self, key: ContainerKey) {
        self.kills += 1;
        self.killed.insert(key, self.kills);
        if self.killed.len() > KILLED_MAX
            && let Some(oldest) =
                self.killed.iter().min_by_key(|(_, kill)| **kill).map(|(key, _)| key.clone())
        {
            self.killed.remove(&oldest);
        }
    }

    /// Whether a kill is remembered. Without one, candidates are chosen by their curves only, and no names are needed.
    pub fn remembers_kills(&self) -> bool {
        !self.killed.is_empty()
    }

    pub fn is_empty(&self) -> bool {
        self.current.is_empty()
    }

    /// How many candidates were not sampled because there were too many: the largest number at a time.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Chooses among all running containers. `now`: the time since some fixed point.
    pub fn choose(&mut self, running: &[RunningContainer], now: Duration) -> CandidateChanges {
        // The most urgent come first: containers that were killed, the newest kill first; then by the time that is
        // left.
        let mut ranked: Vec<(f64, u64)> = Vec::new();
        for container in running {
            let kill = container.key.as_ref().and_then(|key| self.killed.get(key));
            let left = container.trend.as_ref().and_then(time_left);
            if kill.is_some() || left.is_some() {
                self.current.entry(container.id).and_modify(|last| *last = now);
            }
            let lingers =
                self.current.get(&container.id).is_some_and(|last| now.saturating_sub(*last) < LINGER);
            let rank = match (kill, left) {
                (Some(kill), _) => -(*kill as f64),
                (None, Some(left)) => left.as_secs_f64(),
                (None, None) if lingers => f64::MAX,
                (None, None) => continue,
            };
            ranked.push((rank, container.id));
        }
        ranked.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        self.left_out = self.left_out.max(ranked.len().saturating_sub(CANDIDATES_MAX) as u64);
        ranked.truncate(CANDIDATES_MAX);
        let chosen: HashSet<u64> = ranked.into_iter().map(|(_, id)| id).collect();
        let mut changes = CandidateChanges::default();
        self.current.retain(|id, _| {
            chosen.contains(id) || {
                changes.removed.push(*id);
                false
            }
        });
        for id in chosen {
            if self.current.insert(id, self.current.get(&id).copied().unwrap_or(now)).is_none() {
                changes.added.push(id);
            }
        }
        changes
    }
}

/// The time until the limit is hit at the present rate; None: the container does not grow towards its limit.
fn time_left(trend: &MemoryTrend) -> Option<Duration> {
    let limit = trend.limit_bytes? as f64;
    let held = trend.held_bytes as f64;
    if trend.bytes_per_second <= 0.0 || held < limit * HELD_SHARE {
        return None;
    }
    let left = Duration::try_from_secs_f64(((limit - held) / trend.bytes_per_second).max(0.0)).ok()?;
    (left <= LIMIT_WITHIN).then_some(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn container(id: u64, held: u64, rate: f64) -> RunningContainer {
        let trend =
            MemoryTrend { held_bytes: held * MIB, bytes_per_second: rate, limit_bytes: Some(64 * MIB) };
        RunningContainer { id, key: None, trend: Some(trend) }
    }

    fn named(id: u64, name: &str) -> RunningContainer {
        RunningContainer { id, key: Some(("uid".into(), name.into())), trend: None }
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn a_container_that_grows_towards_its_limit_is_a_candidate_and_stays_one_for_ten_minutes() {
        let mut candidates = GrowthCandidates::default();
        let young = container(1, 8, 1e6);
        let slow = container(2, 32, 100.0);
        let flat = container(3, 60, 0.0);
        let leak = container(4, 20, 1e5);
        let unlimited = RunningContainer {
            trend: leak.trend.map(|trend| MemoryTrend { limit_bytes: None, ..trend }),
            ..container(5, 20, 1e5)
        };
        let all = [young, slow, flat, leak, unlimited];
        assert_eq!(candidates.choose(&all, seconds(1)), CandidateChanges { added: vec![4], removed: vec![] });
        assert_eq!(candidates.choose(&all, seconds(2)), CandidateChanges::default());
        let paused = [container(4, 20, 0.0)];
        assert_eq!(candidates.choose(&paused, seconds(500)), CandidateChanges::default());
        assert_eq!(
            candidates.choose(&paused, seconds(700)),
            CandidateChanges { added: vec![], removed: vec![4] }
        );
    }

    #[test]
    fn a_container_that_was_killed_is_sampled_from_the_start_of_its_next_attempt() {
        let mut candidates = GrowthCandidates::default();
        assert!(!candidates.remembers_kills());
        assert_eq!(
            candidates.choose(&[named(1, "api"), named(2, "web")], seconds(1)),
            CandidateChanges::default()
        );
        candidates.killed(("uid".into(), "api".into()));
        assert!(candidates.remembers_kills());
        let next = candidates.choose(&[named(3, "api"), named(2, "web")], seconds(2));
        assert_eq!(next, CandidateChanges { added: vec![3], removed: vec![] });
        // The next attempt replaces the one that is gone.
        let next = candidates.choose(&[named(4, "api")], seconds(3));
        assert_eq!(next, CandidateChanges { added: vec![4], removed: vec![3] });
    }

    #[test]
    fn the_number_of_candidates_is_bounded_and_the_most_urgent_are_chosen() {
        let mut candidates = GrowthCandidates::default();
        let mut all: Vec<_> = (1..=30).map(|id| container(id, 32, 2e4 * id as f64)).collect();
        let first = candidates.choose(&all, seconds(1));
        assert_eq!((first.added.len(), candidates.left_out()), (CANDIDATES_MAX, 14));
        assert!(first.added.iter().all(|id| *id > 14), "{:?}", first.added);
        candidates.killed(("uid".into(), "api".into()));
        all.push(named(99, "api"));
        let next = candidates.choose(&all, seconds(2));
        assert_eq!(next, CandidateChanges { added: vec![99], removed: vec![15] });
    }

    #[test]
    fn the_number_of_remembered_kills_is_bounded() {
        let mut candidates = GrowthCandidates::default();
        for number in 0..1000 {
            candidates.killed(("uid".into(), number.to_string()));
        }
        assert_eq!(candidates.killed.len(), KILLED_MAX);
        assert!(candidates.killed.contains_key(&("uid".to_owned(), "999".to_owned())));
    }
}
