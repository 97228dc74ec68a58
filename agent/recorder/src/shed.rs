//! The switches for optional work that the agent sheds when it exceeds a budget. The node comes first.
//!
//! The code that would do the work asks [`Shed`], which counts what is shed. The service decides when to set each switch:
//! see `podopsy_agent::budget`. This module must not depend on events, pods or aya.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

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

/// What of a step's work is shed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShedMode {
    #[default]
    Off,
    /// The events of the containers that have more than their share of [`Shed::events_allowed`].
    LargestUsers,
    All,
}

/// Which steps are shed at the moment, and how often each was shed.
#[derive(Debug, Default)]
pub struct Shed {
    steps: [StepState; ShedStep::ALL.len()],
    /// Events that were due, shed or not.
    events_due: AtomicU64,
    events_allowed: AtomicU64,
}

#[derive(Debug, Default)]
struct StepState {
    /// A [`ShedMode`].
    mode: AtomicU8,
    count: AtomicU64,
}

impl StepState {
    fn mode(&self) -> ShedMode {
        match self.mode.load(Relaxed) {
            mode if mode == ShedMode::LargestUsers as u8 => ShedMode::LargestUsers,
            mode if mode == ShedMode::All as u8 => ShedMode::All,
            _ => ShedMode::Off,
        }
    }
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
        let on = self.is_shedding(step);
        if on {
            self.count_shed(step);
        }
        on
    }

    /// Whether the step is shed at the moment. Counts nothing.
    pub fn is_shedding(&self, step: ShedStep) -> bool {
        self.mode(step) != ShedMode::Off
    }

    /// What of the step's work is shed at the moment. Counts nothing.
    pub fn mode(&self, step: ShedStep) -> ShedMode {
        self.state(step).mode()
    }

    /// Counts a piece of work that is shed.
    pub fn count_shed(&self, step: ShedStep) {
        self.state(step).count.fetch_add(1, Relaxed);
    }

    /// Events a second that all containers together may have, where [`ShedMode::LargestUsers`] is set.
    pub fn events_allowed(&self) -> u64 {
        self.events_allowed.load(Relaxed)
    }

    pub fn set_events_allowed(&self, a_second: u64) {
        self.events_allowed.store(a_second, Relaxed);
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

    pub fn set(&self, step: ShedStep, mode: ShedMode) {
        self.state(step).mode.store(mode as u8, Relaxed);
    }

    /// All steps, in order.
    pub fn counts(&self) -> Vec<ShedCount> {
        let count = |step| {
            let state = self.state(step);
            ShedCount { step, on: state.mode() != ShedMode::Off, count: state.count.load(Relaxed) }
        };
        ShedStep::ALL.into_iter().map(count).collect()
    }

    /// Counts by name of the loss counter (`shed_<step>`).
    pub fn losses(&self) -> impl Iterator<Item = (String, u64)> {
        self.counts().into_iter().map(|shed| (format!("shed_{}", shed.step.as_str()), shed.count))
    }
}
