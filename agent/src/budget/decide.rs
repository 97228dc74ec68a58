//! What is used against what may be used → what to leave out; pure.
//!
//! Each budget has a ladder of its own. It goes up a step where it is exceeded for a while, and down a step where there has
//! been room for longer. Room is less than the budget, or what comes back would be over it again; and a step that had to be
//! taken soon after it was given back waits twice as long the next time.

use std::time::Duration;

use super::Step;

/// What may be used; None: as much as it takes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// Of one CPU: 0.5 is half of one.
    pub cpu: Option<f64>,
    /// Resident memory in bytes.
    pub memory: Option<u64>,
    /// Events a second.
    pub events: Option<u64>,
}

/// What is used, over the last moments.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub cpu: f64,
    pub memory: u64,
    /// That were due, left out or not.
    pub events: f64,
}

/// A budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    Cpu,
    Events,
    Memory,
}

impl Budget {
    pub fn words(self) -> &'static str {
        match self {
            Budget::Cpu => "CPU time (--cpu-budget)",
            Budget::Events => "events a second (--events-budget)",
            Budget::Memory => "memory (--memory-budget)",
        }
    }

    /// What is left out, first to last.
    pub fn ladder(self) -> &'static [Step] {
        match self {
            Budget::Cpu => &Step::ALL,
            Budget::Events => &[Step::DnsAnswers, Step::DnsSlow, Step::DnsFailures],
            Budget::Memory => &[Step::Profile, Step::Growth, Step::DnsAnswers, Step::DnsSlow],
        }
    }

    /// Used and allowed; None: there is no such budget.
    fn of(self, limits: &Limits, usage: &Usage) -> Option<(f64, f64)> {
        match self {
            Budget::Cpu => Some((usage.cpu, limits.cpu?)),
            Budget::Events => Some((usage.events, limits.events? as f64)),
            Budget::Memory => Some((usage.memory as f64, limits.memory? as f64)),
        }
    }

    /// Below this share of the budget there is room. What is left out has no part in CPU time and memory any more, and
    /// would come on top; events are counted whether they are left out or not.
    fn room(self) -> f64 {
        match self {
            Budget::Cpu => 0.5,
            Budget::Events => 0.9,
            Budget::Memory => 0.9,
        }
    }
}

/// A step taken or given back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    pub budget: Budget,
    pub step: Step,
    pub on: bool,
    pub used: f64,
    pub allowed: f64,
}

/// How long it is exceeded before a step is taken: one burst is nobody's business.
pub const OVER: Duration = Duration::from_secs(3);
/// How long there has been room before one is given back, at first and at most.
pub const ROOM: Duration = Duration::from_secs(10);
pub const ROOM_MAX: Duration = Duration::from_secs(320);
/// A step taken within this after the last one was given back was given back too early.
const EARLY: Duration = Duration::from_secs(60);

/// One budget's ladder.
#[derive(Debug)]
struct Ladder {
    budget: Budget,
    /// Steps taken.
    taken: usize,
    over_since: Option<Duration>,
    room_since: Option<Duration>,
    wait: Duration,
    given_back: Option<Duration>,
}

impl Ladder {
    fn new(budget: Budget) -> Ladder {
        let (over_since, room_since, given_back) = (None, None, None);
        Ladder { budget, taken: 0, over_since, room_since, wait: ROOM, given_back }
    }

    fn look(&mut self, now: Duration, limits: &Limits, usage: &Usage) -> Option<Change> {
        let (used, allowed) = self.budget.of(limits, usage)?;
        let change = |step, on| Change { budget: self.budget, step, on, used, allowed };
        let ladder = self.budget.ladder();
        if used > allowed {
            self.room_since = None;
            let since = *self.over_since.get_or_insert(now);
            let next = *ladder.get(self.taken).filter(|_| now.saturating_sub(since) >= OVER)?;
            self.over_since = None;
            self.taken += 1;
            match self.given_back.take() {
                Some(at) if now.saturating_sub(at) < EARLY => self.wait = (self.wait * 2).min(ROOM_MAX),
                Some(_) => self.wait = ROOM,
                None => {}
            }
            return Some(change(next, true));
        }
        self.over_since = None;
        if used > allowed * self.budget.room() || self.taken == 0 {
            self.room_since = None;
            return None;
        }
        let since = *self.room_since.get_or_insert(now);
        if now.saturating_sub(since) < self.wait {
            return None;
        }
        self.room_since = None;
        self.taken -= 1;
        self.given_back = Some(now);
        Some(change(ladder[self.taken], false))
    }
}

/// All ladders; `now` is any clock that does not go back.
#[derive(Debug)]
pub struct Decider {
    limits: Limits,
    ladders: [Ladder; 3],
}

impl Decider {
    pub fn new(limits: Limits) -> Decider {
        Decider { limits, ladders: [Budget::Cpu, Budget::Events, Budget::Memory].map(Ladder::new) }
    }

    /// From now on. What no budget asks for any more is back at once.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
        for ladder in &mut self.ladders {
            if ladder.budget.of(&limits, &Usage::default()).is_none() {
                *ladder = Ladder::new(ladder.budget);
            }
        }
    }

    /// What changes now.
    pub fn look(&mut self, now: Duration, usage: &Usage) -> Vec<Change> {
        let Decider { limits, ladders } = self;
        ladders.iter_mut().filter_map(|ladder| ladder.look(now, limits, usage)).collect()
    }

    /// Whether any budget wants this left out.
    pub fn leaves_out(&self, step: Step) -> bool {
        self.ladders.iter().any(|ladder| ladder.budget.ladder()[..ladder.taken].contains(&step))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: Limits = Limits { cpu: Some(0.5), memory: None, events: None };

    /// Looks once a second; what changed, with the second.
    fn run(decider: &mut Decider, seconds: std::ops::Range<u64>, usage: Usage) -> Vec<(u64, Step, bool)> {
        let look = |second| {
            let changes = decider.look(Duration::from_secs(second), &usage);
            changes.into_iter().map(move |change| (second, change.step, change.on)).collect::<Vec<_>>()
        };
        seconds.flat_map(look).collect()
    }

    fn cpu(cpu: f64) -> Usage {
        Usage { cpu, ..Usage::default() }
    }

    #[test]
    fn steps_are_taken_in_the_order_of_the_table_and_given_back_in_reverse() {
        let mut decider = Decider::new(CPU);
        let taken = run(&mut decider, 0..60, cpu(0.9));
        assert_eq!(taken.iter().map(|(_, step, _)| *step).collect::<Vec<_>>(), Step::ALL);
        assert!(taken.iter().all(|(_, _, on)| *on) && taken[0].0 == OVER.as_secs(), "{taken:?}");
        assert!(Step::ALL.into_iter().all(|step| decider.leaves_out(step)));
        let given = run(&mut decider, 60..180, cpu(0.1));
        let reverse: Vec<Step> = Step::ALL.into_iter().rev().collect();
        assert_eq!(given.iter().map(|(_, step, _)| *step).collect::<Vec<_>>(), reverse);
        assert!(!Step::ALL.into_iter().any(|step| decider.leaves_out(step)));
    }

    #[test]
    fn one_burst_changes_nothing_and_between_room_and_budget_nothing_moves() {
        let mut decider = Decider::new(CPU);
        for second in (0..100).step_by(4) {
            assert_eq!(run(&mut decider, second..second + 2, cpu(2.0)), []);
            assert_eq!(run(&mut decider, second + 2..second + 4, cpu(0.4)), []);
        }
        assert_eq!(run(&mut decider, 100..104, cpu(0.6)), [(103, Step::Profile, true)]);
        assert_eq!(run(&mut decider, 104..400, cpu(0.4)), []);
    }

    #[test]
    fn what_was_given_back_too_early_is_given_back_later_the_next_time() {
        let mut decider = Decider::new(CPU);
        let (mut now, mut waits) = (0, Vec::new());
        for _ in 0..8 {
            let taken = run(&mut decider, now..now + 4, cpu(0.9));
            assert_eq!(taken.len(), 1, "{taken:?}");
            now += 4;
            let given = run(&mut decider, now..now + 600, cpu(0.1));
            waits.push(given[0].0 - now);
            now = given[0].0 + 1;
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 320, 320]);
        // What lasted is forgiven.
        assert_eq!(run(&mut decider, now..now + 100, cpu(0.1)), []);
        assert_eq!(run(&mut decider, now + 100..now + 104, cpu(0.9)).len(), 1);
        assert_eq!(run(&mut decider, now + 104..now + 120, cpu(0.1))[0].0, now + 114);
    }

    #[test]
    fn memory_leaves_failures_alone_and_no_budget_is_no_step() {
        let usage = Usage { cpu: 9.0, memory: 2 << 30, events: 1e6 };
        let mut decider = Decider::new(Limits { memory: Some(1 << 20), ..Limits::default() });
        assert_eq!(run(&mut decider, 0..100, usage).len(), 4);
        assert!(!decider.leaves_out(Step::DnsFailures) && decider.leaves_out(Step::Growth));
        assert_eq!(run(&mut Decider::new(Limits::default()), 0..100, usage), []);
    }

    #[test]
    fn limits_change_under_way() {
        let mut decider = Decider::new(CPU);
        assert_eq!(run(&mut decider, 0..8, cpu(0.9)).len(), 2);
        decider.set_limits(Limits { cpu: Some(4.0), ..CPU });
        assert!(decider.leaves_out(Step::Profile), "a budget that is larger gives back step by step");
        assert_eq!(run(&mut decider, 8..19, cpu(0.9)), [(18, Step::Growth, false)]);
        decider.set_limits(Limits::default());
        assert!(!Step::ALL.into_iter().any(|step| decider.leaves_out(step)), "none leaves nothing out");
        assert_eq!(run(&mut decider, 19..60, cpu(9.0)), []);
        decider.set_limits(CPU);
        assert_eq!(run(&mut decider, 60..64, cpu(0.9)), [(63, Step::Profile, true)]);
    }

    #[test]
    fn a_step_is_back_only_when_no_budget_wants_it_left_out() {
        let mut decider = Decider::new(Limits { events: Some(10), ..CPU });
        run(&mut decider, 0..30, Usage { cpu: 0.9, events: 100.0, memory: 0 });
        run(&mut decider, 30..200, Usage { cpu: 0.0, events: 100.0, memory: 0 });
        assert!(!decider.leaves_out(Step::Growth) && decider.leaves_out(Step::DnsFailures));
    }
}
