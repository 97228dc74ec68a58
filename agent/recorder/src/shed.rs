//! The switches for optional work that the agent sheds when it exceeds a budget. The node comes first.
//!
//! The code that would do the work asks [`Shed`], which counts what is shed. The service decides when to set each switch:
//! see `podopsy_agent::budget`. This module must not depend on events, pods or aya.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Work that can be shed, in the order of the table in `podopsy_agent::budget`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ShedStep {
    Profile,
    Growth,
    DnsAnswers,
    DnsSlow,
    DnsFailures,
}

impl ShedStep {
    pub const ALL: [ShedStep; 5] =
        [ShedStep::Profile, ShedStep::Growth, ShedStep::DnsAnswers, ShedStep::DnsSlow, ShedStep::DnsFailures];

    /// The step's name in metrics, loss counters and the log.
    pub fn as_str(self) -> &'static str {
        match self {
            ShedStep::Profile => "profile",
            ShedStep::Growth => "growth",
            ShedStep::DnsAnswers => "dns_answers",
            ShedStep::DnsSlow => "dns_slow",
            ShedStep::DnsFailures => "dns_failures",
        }
    }
}

/// Which steps are shed at the moment, and how often each was shed.
#[derive(Debug, Default)]
pub struct Shed {
    steps: [StepState; ShedStep::ALL.len()],
    /// Events that were due, shed or not.
    events_due: AtomicU64,
}

#[derive(Debug, Default)]
struct StepState {
    on: AtomicBool,
    count: AtomicU64,
}

/// A step's state for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShedCount {
    pub step: ShedStep,
    /// The step is shed at the moment.
    pub on: bool,
    /// How often it was shed since the start.
    pub count: u64,
}

impl Shed {
    /// Whether to shed this piece of work. Counts it if so.
    pub fn should_shed(&self, step: ShedStep) -> bool {
        let state = self.state(step);
        let on = state.on.load(Relaxed);
        state.count.fetch_add(u64::from(on), Relaxed);
        on
    }

    /// Whether the step is shed at the moment. Counts nothing.
    pub fn is_shedding(&self, step: ShedStep) -> bool {
        self.state(step).on.load(Relaxed)
    }

    /// Counts an event that is due, shed or not.
    pub fn count_due_event(&self) {
        self.events_due.fetch_add(1, Relaxed);
    }

    /// Events that were due since the start, shed or not.
    pub fn events_due(&self) -> u64 {
        self.events_due.load(Relaxed)
    }

    fn state(&self, step: ShedStep) -> &StepState {
        &self.steps[step as usize]
    }

    pub fn set(&self, step: ShedStep, on: bool) {
        self.state(step).on.store(on, Relaxed);
    }

    /// All steps, in order.
    pub fn counts(&self) -> Vec<ShedCount> {
        let count = |step| {
            let state = self.state(step);
            ShedCount { step, on: state.on.load(Relaxed), count: state.count.load(Relaxed) }
        };
        ShedStep::ALL.into_iter().map(count).collect()
    }

    /// Counts by name of the loss counter (`shed_<step>`).
    pub fn losses(&self) -> impl Iterator<Item = (String, u64)> {
        self.counts().into_iter().map(|shed| (format!("shed_{}", shed.step.as_str()), shed.count))
    }
}
