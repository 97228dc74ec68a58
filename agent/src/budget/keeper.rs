//! Looks once a second at what the agent uses, and says aloud what changes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::decide::{Budget, Change, Decider, Limits, Usage};
use super::{Shed, Step};

const EVERY: Duration = Duration::from_secs(1);
/// CPU time is taken over so many looks: a report that names a large program's functions takes a second of one CPU, and that
/// is what it is for.
const CPU_LOOKS: usize = 10;
/// Events are taken over so many.
const EVENT_LOOKS: usize = 3;

/// CPU seconds and events so far.
struct Point {
    at: Instant,
    cpu: f64,
    offered: u64,
}

/// Keeps to the limits, as they are at the moment, until it is dropped; `shed` is told what to leave out.
pub async fn keep(mut limits: watch::Receiver<Limits>, shed: Arc<Shed>) {
    let first = *limits.borrow_and_update();
    let (began, mut decider, mut points) = (Instant::now(), Decider::new(first), VecDeque::new());
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if limits.has_changed().unwrap_or(false) {
            decider.set_limits(*limits.borrow_and_update());
        }
        let Some((cpu, memory)) = own() else {
            tracing::warn!("the agent's budgets are not kept: /proc/self/stat cannot be read");
            return;
        };
        points.push_back(Point { at: Instant::now(), cpu, offered: shed.offers() });
        if points.len() > CPU_LOOKS + 1 {
            points.pop_front();
        }
        // The first seconds are the start's own: every process is looked at.
        let over = |looks: usize| {
            let first = points.get(points.len().checked_sub(looks + 1)?)?;
            let last = points.back()?;
            Some((first, last, last.at.duration_since(first.at).as_secs_f64().max(0.001)))
        };
        let usage = Usage {
            cpu: over(CPU_LOOKS).map_or(0.0, |(first, last, seconds)| (last.cpu - first.cpu) / seconds),
            memory,
            events: over(EVENT_LOOKS)
                .map_or(0.0, |(first, last, seconds)| (last.offered - first.offered) as f64 / seconds),
        };
        for change in decider.look(began.elapsed(), &usage) {
            tell(&change);
        }
        Step::ALL.into_iter().for_each(|step| shed.set(step, decider.leaves_out(step)));
    }
}

/// CPU seconds and resident bytes.
fn own() -> Option<(f64, u64)> {
    let stat = procfs::process::Process::myself().ok()?.stat().ok()?;
    let cpu = (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64;
    Some((cpu, stat.rss * procfs::page_size()))
}

fn tell(change: &Change) {
    let amount = |value: f64| match change.budget {
        Budget::Cpu => format!("{value:.2} CPUs"),
        Budget::Events => format!("{value:.0} a second"),
        Budget::Memory => format!("{:.0} MiB", value / f64::from(1 << 20)),
    };
    let (what, used, allowed) = (change.step.as_str(), amount(change.used), amount(change.allowed));
    let budget = change.budget.words();
    match change.on {
        true => tracing::warn!(
            "over the budget for {budget}: {used} of {allowed}; left out from now on: {what} \
             (podopsy_shed_total counts it; OOM kills and counts go on)"
        ),
        false => tracing::info!("room again in the budget for {budget}: {used} of {allowed}; back: {what}"),
    }
}
