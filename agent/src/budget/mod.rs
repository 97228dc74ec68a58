//! What the agent may cost, and what it leaves out when it costs more. The node comes first.
//!
//! | step | what is left out | when over: CPU | events a second | memory |
//! |---|---|---|---|---|
//! | `profile` | CPU time is not sampled (`--profile-hz`); counted in minutes, or what was begun of one | first | – | first |
//! | `growth` | page faults of suspects are not sampled | second | – | second |
//! | `dns_answers` | events of answered queries (`--dns-answers`, `--dns-sample`) | third | first | third |
//! | `dns_slow` | events of slow answers (`--dns-slow-over`) | fourth | second | fourth |
//! | `dns_failures` | events of failed queries, and the lookups made of them | last | last | – |
//!
//! Never: OOM kills, their incidents, SIGKILLs, and any count: queries and outcomes are counted in the kernel, whether they
//! become events or not. Failures are not left out for memory, which an allocator may never give back: that would be for
//! good. The disk has a budget of its own (`--store-bytes`), where the oldest leaves first.
//!
//! [`decide`] says when (pure), [`keep`] measures and tells, [`Shed`] is asked where the work would be done, and counts
//! there. Must not know: what an event holds, pods, aya.

pub mod decide;
mod keeper;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

pub use decide::Limits;
pub use keeper::keep;

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
    pub fn word(self) -> &'static str {
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

    fn one(&self, step: Step) -> &One {
        &self.steps[step as usize]
    }

    pub(crate) fn set(&self, step: Step, on: bool) {
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
        self.tally().into_iter().map(|tally| (format!("shed_{}", tally.step.word()), tally.count))
    }
}
