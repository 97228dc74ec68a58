//! Which processes are looked at when: most are none that has a heap, and are left alone soon.
//!
//! A small process is asked for its size again after twice the time, so that a thousand of them cost little, and one that becomes a
//! JVM is found before it is twice as old. A large one is looked at in three rounds.

use std::collections::HashMap;

/// A smaller process is no runtime that has started.
const RESIDENT_MIN: u64 = 16 << 20;
/// How often a large process is looked at: a JVM makes its counters within its first second, but a program may become one later.
const LOOKS: u8 = 3;
/// Looks a round, of all containers.
const LOOKS_PER_ROUND: usize = 16;
/// Rounds between two looks at the size of a small process, at most.
const WAIT_MAX: u64 = 32;
const PROCESSES_MAX: usize = 1 << 16;

/// What is known of processes, by memory cgroup and pid.
#[derive(Debug, Default)]
pub struct Looks {
    round: u64,
    left: usize,
    known: HashMap<(u64, u32), Look>,
    left_out: u64,
}

#[derive(Clone, Copy, Debug)]
struct Look {
    /// The rounds in which it was last listed, and in which it is due.
    listed: u64,
    due: u64,
    wait: u64,
    looked: u8,
}

impl Looks {
    /// Returns the number of the round.
    pub fn begin_round(&mut self) -> u64 {
        self.round += 1;
        self.left = LOOKS_PER_ROUND;
        self.round
    }

    /// Whether a process that is listed is to be looked at now; Some(true): for the last time. `resident`: its size, asked only if
    /// that is due. With `may_look` false, it stays due.
    pub fn is_due(
        &mut self,
        cgroup_id: u64,
        pid: u32,
        may_look: bool,
        resident: impl FnOnce(u32) -> Option<u64>,
    ) -> Option<bool> {
        let is_full = self.known.len() >= PROCESSES_MAX;
        let (round, key) = (self.round, (cgroup_id, pid));
        if is_full && !self.known.contains_key(&key) {
            self.left_out += 1;
            return None;
        }
        let look = self.known.entry(key).or_insert(Look { listed: round, due: round, wait: 1, looked: 0 });
        look.listed = round;
        if look.due > round || !may_look || self.left == 0 {
            return None;
        }
        if resident(pid).is_none_or(|bytes| bytes < RESIDENT_MIN) {
            look.due = round + look.wait;
            look.wait = (look.wait * 2).min(WAIT_MAX);
            return None;
        }
        self.left -= 1;
        look.looked += 1;
        let is_last = look.looked == LOOKS;
        look.due = if is_last { u64::MAX } else { round + 1 };
        Some(is_last)
    }

    /// It is known by now, and need not be looked at again.
    pub fn end(&mut self, cgroup_id: u64, pid: u32) {
        if let Some(look) = self.known.get_mut(&(cgroup_id, pid)) {
            look.due = u64::MAX;
        }
    }

    /// Forgets processes that were not listed in this round, and returns how many were left out because there are too many.
    pub fn end_round(&mut self) -> u64 {
        let round = self.round;
        self.known.retain(|_, look| look.listed == round);
        std::mem::take(&mut self.left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: u64 = 64 << 20;

    /// In which of some rounds a process is looked at, and in which its size is asked for.
    fn rounds(count: u64, size: impl Fn(u64) -> u64) -> (Vec<u64>, Vec<u64>) {
        let (mut looks, mut looked, mut asked) = (Looks::default(), Vec::new(), Vec::new());
        for round in 1..=count {
            looks.begin_round();
            let resident = |_| {
                asked.push(round);
                Some(size(round))
            };
            looked.extend(looks.is_due(1, 7, true, resident).map(|_| round));
            looks.end_round();
        }
        (looked, asked)
    }

    #[test]
    fn a_large_process_is_looked_at_three_times() {
        assert_eq!(rounds(100, |_| LARGE), (vec![1, 2, 3], vec![1, 2, 3]));
    }

    #[test]
    fn a_small_process_costs_little_and_is_found_before_it_is_twice_as_old() {
        let (looked, asked) = rounds(100, |_| 1 << 20);
        assert_eq!((looked, asked), (vec![], vec![1, 2, 4, 8, 16, 32, 64, 96]));
        let (looked, _) = rounds(100, |round| if round < 17 { 1 << 20 } else { LARGE });
        assert_eq!(looked, [32, 33, 34]);
    }

    #[test]
    fn a_process_that_is_known_or_gone_is_not_looked_at() {
        let mut looks = Looks::default();
        looks.begin_round();
        assert_eq!(looks.is_due(1, 7, true, |_| Some(LARGE)), Some(false));
        looks.end(1, 7);
        assert_eq!(looks.is_due(1, 8, true, |_| None), None);
        looks.end_round();
        looks.begin_round();
        assert_eq!(looks.is_due(1, 7, true, |_| panic!("it is known")), None);
        looks.end_round();
        assert_eq!(looks.known.len(), 1);
        // In the next round it is not listed. Another one with its pid is another one.
        looks.begin_round();
        looks.end_round();
        looks.begin_round();
        assert_eq!(looks.is_due(1, 7, true, |_| Some(LARGE)), Some(false));
    }

    #[test]
    fn looks_are_bounded_and_what_is_over_the_bound_stays_due() {
        let mut looks = Looks::default();
        looks.begin_round();
        let due = (0..100).filter(|pid| looks.is_due(1, *pid, true, |_| Some(LARGE)).is_some()).count();
        assert_eq!(due, LOOKS_PER_ROUND);
        assert_eq!(looks.is_due(1, 50, false, |_| Some(LARGE)), None);
        looks.end_round();
        looks.begin_round();
        assert_eq!(looks.is_due(1, 50, true, |_| Some(LARGE)), Some(false));
    }
}
