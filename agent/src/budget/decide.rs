//! Decides from usage and limits which work to shed. Pure: it reads no clock and no file.
//!
//! Each budget has its own ladder of steps. A ladder goes up one step when the budget was exceeded for [`OVER`]. It goes
//! down one step when usage stayed below the headroom mark for longer than that. The mark is below the budget, because the
//! resumed work would otherwise exceed it again. When a step must be shed again soon after it was resumed, the next wait
//! before resuming it is twice as long.

use std::time::Duration;

use super::{ShedMode, ShedStep};

/// What the agent may use. None: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BudgetLimits {
    /// In CPUs: 0.5 is half of one CPU.
    pub cpu: Option<f64>,
    /// Memory in bytes; see [`super::memory`].
    pub memory: Option<u64>,
    /// Events a second.
    pub events: Option<u64>,
}

/// What the agent used over the last seconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct BudgetUsage {
    /// In CPUs.
    pub cpu: f64,
    /// Memory in bytes.
    pub memory: u64,
    /// Events a second that were due, shed or not.
    pub events: f64,
}

/// A resource with a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    Cpu,
    Events,
    Memory,
}

impl Budget {
    /// The budget for the log: the resource and its setting.
    pub fn description(self) -> &'static str {
        match self {
            Budget::Cpu => "CPU time (--cpu-budget)",
            Budget::Events => "events a second (--events-budget)",
            Budget::Memory => "memory (--memory-budget)",
        }
    }

    /// The steps to shed, first to last.
    pub fn ladder(self) -> &'static [ShedStep] {
        match self {
            Budget::Cpu => &ShedStep::ALL,
            Budget::Events => &[ShedStep::DnsAnswers, ShedStep::DnsSlow, ShedStep::DnsFailures],
            Budget::Memory => &[ShedStep::Profile, ShedStep::Growth, ShedStep::DnsAnswers, ShedStep::DnsSlow],
        }
    }

    /// What is used and what is allowed. None: this budget has no limit.
    fn used_and_allowed(self, limits: &BudgetLimits, usage: &BudgetUsage) -> Option<(f64, f64)> {
        match self {
            Budget::Cpu => Some((usage.cpu, limits.cpu?)),
            Budget::Events => Some((usage.events, limits.events? as f64)),
            Budget::Memory => Some((usage.memory as f64, limits.memory? as f64)),
        }
    }

    /// A step may be resumed while usage is below this share of the budget. Shed work no longer uses CPU time and memory
    /// and would add to them when resumed. Events are counted whether they are shed or not.
    fn headroom_share(self) -> f64 {
        match self {
            Budget::Cpu => 0.5,
            Budget::Events => 0.9,
            Budget::Memory => 0.9,
        }
    }
}

/// A step that is shed or resumed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShedChange {
    pub budget: Budget,
    pub step: ShedStep,
    /// True: shed from now on. False: resumed.
    pub on: bool,
    pub used: f64,
    pub allowed: f64,
}

/// How long a budget is exceeded before a step is shed. A single burst sheds nothing.
pub const OVER: Duration = Duration::from_secs(3);
/// How long usage stays below the headroom mark before a step is resumed: at first, and at most.
pub const RESUME_AFTER: Duration = Duration::from_secs(10);
pub const RESUME_AFTER_MAX: Duration = Duration::from_secs(320);
/// A step that must be shed within this time after the last one was resumed: it was resumed too early.
const EARLY: Duration = Duration::from_secs(60);

/// Failures a second that are still reported when the CPU budget sheds them: they cost less than a hundredth of a CPU.
pub const EVENTS_OVER_CPU: u64 = 50;

/// One budget's ladder.
#[derive(Debug)]
struct Ladder {
    budget: Budget,
    /// How many steps are shed.
    shed: usize,
    over_since: Option<Duration>,
    headroom_since: Option<Duration>,
    /// How long usage must stay below the headroom mark before the next step is resumed.
    resume_after: Duration,
    resumed_at: Option<Duration>,
}

impl Ladder {
    fn new(budget: Budget) -> Ladder {
        Ladder {
            budget,
            shed: 0,
            over_since: None,
            headroom_since: None,
            resume_after: RESUME_AFTER,
            resumed_at: None,
        }
    }

    /// At most one step is shed or resumed at a time.
    fn update(&mut self, now: Duration, limits: &BudgetLimits, usage: &BudgetUsage) -> Option<ShedChange> {
        let (used, allowed) = self.budget.used_and_allowed(limits, usage)?;
        let change = |step, on| ShedChange { budget: self.budget, step, on, used, allowed };
        let ladder = self.budget.ladder();
        if used > allowed {
            self.headroom_since = None;
            let since = *self.over_since.get_or_insert(now);
            let next = *ladder.get(self.shed).filter(|_| now.saturating_sub(since) >= OVER)?;
            self.over_since = None;
            self.shed += 1;
            match self.resumed_at.take() {
                Some(resumed_at) if now.saturating_sub(resumed_at) < EARLY => {
                    self.resume_after = (self.resume_after * 2).min(RESUME_AFTER_MAX)
                }
                Some(_) => self.resume_after = RESUME_AFTER,
                None => {}
            }
            return Some(change(next, true));
        }
        self.over_since = None;
        if used > allowed * self.budget.headroom_share() || self.shed == 0 {
            self.headroom_since = None;
            return None;
        }
        let since = *self.headroom_since.get_or_insert(now);
        if now.saturating_sub(since) < self.resume_after {
            return None;
        }
        self.headroom_since = None;
        self.shed -= 1;
        self.resumed_at = Some(now);
        Some(change(ladder[self.shed], false))
    }
}

/// The ladders of all budgets. `now` comes from a clock that does not go back.
#[derive(Debug)]
pub struct ShedDecider {
    limits: BudgetLimits,
    ladders: [Ladder; 3],
}

impl ShedDecider {
    pub fn new(limits: BudgetLimits) -> ShedDecider {
        ShedDecider { limits, ladders: [Budget::Cpu, Budget::Events, Budget::Memory].map(Ladder::new) }
    }

    /// Replaces the limits. A budget whose limit was removed resumes all its steps at once.
    pub fn set_limits(&mut self, limits: BudgetLimits) {
        self.limits = limits;
        for ladder in &mut self.ladders {
            if ladder.budget.used_and_allowed(&limits, &BudgetUsage::default()).is_none() {
                *ladder = Ladder::new(ladder.budget);
            }
        }
    }

    /// Returns the steps to shed or resume now.
    pub fn update(&mut self, now: Duration, usage: &BudgetUsage) -> Vec<ShedChange> {
        let ShedDecider { limits, ladders } = self;
        ladders.iter_mut().filter_map(|ladder| ladder.update(now, limits, usage)).collect()
    }

    /// Whether any budget sheds this step.
    pub fn is_shed(&self, step: ShedStep) -> bool {
        self.mode(step) != ShedMode::Off
    }

    /// What of this step's work is shed. The events budget takes events from the largest users only. So does the CPU budget
    /// with failures: a container that costs the agent CPU time must not make the failures of its neighbours disappear.
    pub fn mode(&self, step: ShedStep) -> ShedMode {
        let is_shed = |budget| {
            let mut ladders = self.ladders.iter().filter(|ladder| ladder.budget == budget);
            ladders.any(|ladder| ladder.budget.ladder()[..ladder.shed].contains(&step))
        };
        let is_over_cpu = is_shed(Budget::Cpu);
        if is_shed(Budget::Memory) || is_over_cpu && step != ShedStep::DnsFailures {
            return ShedMode::All;
        }
        if is_over_cpu || is_shed(Budget::Events) { ShedMode::LargestUsers } else { ShedMode::Off }
    }

    /// Events a second that all containers share while events are shed from the largest users.
    pub fn events_allowed(&self) -> u64 {
        let allowed = self.limits.events.unwrap_or(u64::MAX);
        let mut ladders = self.ladders.iter().filter(|ladder| ladder.budget == Budget::Cpu);
        let is_over_cpu = ladders.any(|ladder| ladder.shed == ladder.budget.ladder().len());
        if is_over_cpu { allowed.min(EVENTS_OVER_CPU) } else { allowed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: BudgetLimits = BudgetLimits { cpu: Some(0.5), memory: None, events: None };

    /// Updates the decider once a second. Returns each change with its second.
    fn run(
        decider: &mut ShedDecider,
        seconds: std::ops::Range<u64>,
        usage: BudgetUsage,
    ) -> Vec<(u64, ShedStep, bool)> {
        let update = |second| {
            let changes = decider.update(Duration::from_secs(second), &usage);
            changes.into_iter().map(move |change| (second, change.step, change.on)).collect::<Vec<_>>()
        };
        seconds.flat_map(update).collect()
    }

    fn cpu(cpu: f64) -> BudgetUsage {
        BudgetUsage { cpu, ..BudgetUsage::default() }
    }

    #[test]
    fn steps_are_shed_in_the_order_of_the_table_and_resumed_in_reverse() {
        let mut decider = ShedDecider::new(CPU);
        let shed = run(&mut decider, 0..60, cpu(0.9));
        assert_eq!(shed.iter().map(|(_, step, _)| *step).collect::<Vec<_>>(), ShedStep::ALL);
        assert!(shed.iter().all(|(_, _, on)| *on) && shed[0].0 == OVER.as_secs(), "{shed:?}");
        assert!(ShedStep::ALL.into_iter().all(|step| decider.is_shed(step)));
        let resumed = run(&mut decider, 60..180, cpu(0.1));
        let reverse: Vec<ShedStep> = ShedStep::ALL.into_iter().rev().collect();
        assert_eq!(resumed.iter().map(|(_, step, _)| *step).collect::<Vec<_>>(), reverse);
        assert!(!ShedStep::ALL.into_iter().any(|step| decider.is_shed(step)));
    }

    #[test]
    fn a_burst_sheds_nothing_and_usage_between_headroom_and_budget_changes_nothing() {
        let mut decider = ShedDecider::new(CPU);
        for second in (0..100).step_by(4) {
            assert_eq!(run(&mut decider, second..second + 2, cpu(2.0)), []);
            assert_eq!(run(&mut decider, second + 2..second + 4, cpu(0.4)), []);
        }
        assert_eq!(run(&mut decider, 100..104, cpu(0.6)), [(103, ShedStep::Profile, true)]);
        assert_eq!(run(&mut decider, 104..400, cpu(0.4)), []);
    }

    #[test]
    fn a_step_that_was_resumed_too_early_is_resumed_later_the_next_time() {
        let mut decider = ShedDecider::new(CPU);
        let (mut now, mut waits) = (0, Vec::new());
        for _ in 0..8 {
            let shed = run(&mut decider, now..now + 4, cpu(0.9));
            assert_eq!(shed.len(), 1, "{shed:?}");
            now += 4;
            let resumed = run(&mut decider, now..now + 600, cpu(0.1));
            waits.push(resumed[0].0 - now);
            now = resumed[0].0 + 1;
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 320, 320]);
        // A resume that lasted resets the wait.
        assert_eq!(run(&mut decider, now..now + 100, cpu(0.1)), []);
        assert_eq!(run(&mut decider, now + 100..now + 104, cpu(0.9)).len(), 1);
        assert_eq!(run(&mut decider, now + 104..now + 120, cpu(0.1))[0].0, now + 114);
    }

    #[test]
    fn the_memory_budget_never_sheds_failures_and_no_limit_sheds_nothing() {
        let usage = BudgetUsage { cpu: 9.0, memory: 2 << 30, events: 1e6 };
        let mut decider = ShedDecider::new(BudgetLimits { memory: Some(1 << 20), ..BudgetLimits::default() });
        assert_eq!(run(&mut decider, 0..100, usage).len(), 4);
        assert!(!decider.is_shed(ShedStep::DnsFailures) && decider.is_shed(ShedStep::Growth));
        assert_eq!(run(&mut ShedDecider::new(BudgetLimits::default()), 0..100, usage), []);
    }

    #[test]
    fn the_events_budget_sheds_the_largest_users_and_others_all() {
        let mut decider = ShedDecider::new(BudgetLimits { events: Some(1000), ..CPU });
        assert_eq!(decider.events_allowed(), 1000);
        run(&mut decider, 0..30, BudgetUsage { cpu: 0.0, events: 2000.0, memory: 0 });
        let modes = |decider: &ShedDecider| ShedStep::ALL.map(|step| decider.mode(step));
        let (off, all, largest) = (ShedMode::Off, ShedMode::All, ShedMode::LargestUsers);
        assert_eq!(modes(&decider), [off, off, largest, largest, largest]);
        assert_eq!(decider.events_allowed(), 1000);
        run(&mut decider, 30..60, BudgetUsage { cpu: 0.9, events: 2000.0, memory: 0 });
        assert_eq!(modes(&decider), [all, all, all, all, largest]);
        assert_eq!(decider.events_allowed(), EVENTS_OVER_CPU);
        decider.set_limits(CPU);
        assert_eq!(
            (decider.mode(ShedStep::DnsFailures), decider.events_allowed()),
            (largest, EVENTS_OVER_CPU)
        );
    }

    #[test]
    fn limits_can_change_at_any_time() {
        let mut decider = ShedDecider::new(CPU);
        assert_eq!(run(&mut decider, 0..8, cpu(0.9)).len(), 2);
        decider.set_limits(BudgetLimits { cpu: Some(4.0), ..CPU });
        assert!(decider.is_shed(ShedStep::Profile), "a larger budget resumes one step at a time");
        assert_eq!(run(&mut decider, 8..19, cpu(0.9)), [(18, ShedStep::Growth, false)]);
        decider.set_limits(BudgetLimits::default());
        assert!(
            !ShedStep::ALL.into_iter().any(|step| decider.is_shed(step)),
            "without limits nothing is shed"
        );
        assert_eq!(run(&mut decider, 19..60, cpu(9.0)), []);
        decider.set_limits(CPU);
        assert_eq!(run(&mut decider, 60..64, cpu(0.9)), [(63, ShedStep::Profile, true)]);
    }

    #[test]
    fn a_step_is_resumed_only_when_no_budget_sheds_it() {
        let mut decider = ShedDecider::new(BudgetLimits { events: Some(10), ..CPU });
        run(&mut decider, 0..30, BudgetUsage { cpu: 0.9, events: 100.0, memory: 0 });
        run(&mut decider, 30..200, BudgetUsage { cpu: 0.0, events: 100.0, memory: 0 });
        assert!(!decider.is_shed(ShedStep::Growth) && decider.is_shed(ShedStep::DnsFailures));
    }
}
