//! Measures once a second what the agent uses, sets the switches of [`Shed`] and logs each change.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::decide::{Budget, BudgetLimits, BudgetUsage, ShedChange, ShedDecider};
use super::memory::OwnMemory;
use super::{Shed, ShedStep};
use crate::descendants;

const INTERVAL: Duration = Duration::from_secs(1);
/// CPU time is averaged over this many intervals. A report that names a large program's functions takes a second of one
/// CPU, and that must not shed work.
const CPU_INTERVALS: usize = 10;
/// Events are averaged over this many intervals.
const EVENT_INTERVALS: usize = 3;

/// CPU seconds and events since the start.
struct UsageSample {
    at: Instant,
    cpu: f64,
    events_due: u64,
}

/// Enforces the current limits through `shed`, until the future is dropped.
pub async fn enforce(mut limits: watch::Receiver<BudgetLimits>, shed: Arc<Shed>) {
    let first = *limits.borrow_and_update();
    let began = Instant::now();
    let mut decider = ShedDecider::new(first);
    let own_memory = OwnMemory::find();
    let mut samples = VecDeque::new();
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if limits.has_changed().unwrap_or(false) {
            decider.set_limits(*limits.borrow_and_update());
        }
        let Some((cpu, memory)) = usage(&own_memory) else {
            tracing::warn!("stopped enforcing the budgets: cannot read /proc/self");
            return;
        };
        samples.push_back(UsageSample { at: Instant::now(), cpu, events_due: shed.events_due() });
        if samples.len() > CPU_INTERVALS + 1 {
            samples.pop_front();
        }
        // None until there are enough samples. The agent reads every process at its start, which must not shed work.
        let over = |intervals: usize| {
            let first = samples.get(samples.len().checked_sub(intervals + 1)?)?;
            let last = samples.back()?;
            Some((first, last, last.at.duration_since(first.at).as_secs_f64().max(0.001)))
        };
        let usage = BudgetUsage {
            cpu: over(CPU_INTERVALS)
                .map_or(0.0, |(first, last, seconds)| (last.cpu - first.cpu).max(0.0) / seconds),
            memory,
            events: over(EVENT_INTERVALS)
                .map_or(0.0, |(first, last, seconds)| (last.events_due - first.events_due) as f64 / seconds),
        };
        for change in decider.update(began.elapsed(), &usage) {
            log(&change);
        }
        shed.set_events_allowed(decider.events_allowed());
        for step in ShedStep::ALL {
            shed.set(step, decider.mode(step));
        }
    }
}

/// CPU seconds and bytes of this process and of those that it started. None: /proc/self cannot be read.
fn usage(own_memory: &OwnMemory) -> Option<(f64, u64)> {
    let stat = procfs::process::Process::myself().ok()?.stat().ok()?;
    let own = (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64;
    let descendants = descendants::usage();
    Some((own + descendants.cpu_seconds, own_memory.used(&descendants)?))
}

fn log(change: &ShedChange) {
    let amount = |value: f64| match change.budget {
        Budget::Cpu => format!("{value:.2} CPUs"),
        Budget::Events => format!("{value:.0} a second"),
        Budget::Memory => format!("{:.0} MiB", value / f64::from(1 << 20)),
    };
    let step = change.step.as_str();
    let used = amount(change.used);
    let allowed = amount(change.allowed);
    let budget = change.budget.description();
    if change.on {
        tracing::warn!(
            "over the budget for {budget}: {used} of {allowed}; left out from now on: {step} \
             (podopsy_shed_total counts it; OOM kills and counts go on)"
        );
    } else {
        tracing::info!("below the budget for {budget} again: {used} of {allowed}; resumed: {step}");
    }
}
