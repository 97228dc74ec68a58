//! What the agent leaves out when it costs more than it may. The node comes first.
//!
//! [`Shed`] is asked where the work would be done, and counts there. When each step is taken is the budget's to decide, in
//! the service: here is only the switch. Must not know: what an event holds, pods, aya.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// What can be left out, in the order of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Profile,
    Growth,
    DnsAnswers,
    DnsSlow,
    DnsFailures,
}

impl Step {
    pub const ALL: [Step; 5] =
        [Step::Profile, Step::Growth, Step::DnsAnswers, Step::DnsSlow, Step::DnsFailures];

    /// In metrics, losses and the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Step::Profile => "profile",
            Step::Growth => "growth",
            Step::DnsAnswers => "dns_answers",
            Step::DnsSlow => "dns_slow",
            Step::DnsFailures => "dns_failures",
        }
    }
}

/// What is left out at the moment, and how often that was so; asked by whoever would do the work.
#[derive(Debug, Default)]
pub struct Shed {
    steps: [One; Step::ALL.len()],
    /// Events that were due, left out or not.
    offered: AtomicU64,
}

#[derive(Debug, Default)]
struct One {
    on: AtomicBool,
    count: AtomicU64,
}

/// A step as metrics have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    pub step: Step,
    pub on: bool,
    pub count: u64,
}

impl Shed {
    /// Whether to leave this out, which is counted; `due`: an event.
    pub fn leaves_out(&self, step: Step) -> bool {
        let one = self.one(step);
        let on = one.on.load(Relaxed);
        one.count.fetch_add(u64::from(on), Relaxed);
        on
    }

    /// Whether this is left out at the moment; not counted.
    pub fn is_left_out(&self, step: Step) -> bool {
        self.one(step).on.load(Relaxed)
    }

    /// An event is due, whatever becomes of it.
    pub fn offered(&self) {
        self.offered.fetch_add(1, Relaxed);
    }

    /// Events that were due so far, left out or not.
    pub fn offers(&self) -> u64 {
        self.offered.load(Relaxed)
    }

    fn one(&self, step: Step) -> &One {
        &self.steps[step as usize]
    }

    pub fn set(&self, step: Step, on: bool) {
        self.one(step).on.store(on, Relaxed);
    }

    /// Each step, in order.
    pub fn tally(&self) -> Vec<Tally> {
        let tally = |step| {
            let one = self.one(step);
            Tally { step, on: one.on.load(Relaxed), count: one.count.load(Relaxed) }
        };
        Step::ALL.into_iter().map(tally).collect()
    }

    /// By loss counter.
    pub fn losses(&self) -> impl Iterator<Item = (String, u64)> {
        self.tally().into_iter().map(|tally| (format!("shed_{}", tally.step.as_str()), tally.count))
    }
}
