//! The verdicts on an OOM incident, and the one line of advice that its numbers support. Pure functions.

use crate::charged::ChargedMemory;
use crate::heap::HeapVerdict;
use crate::incident::{Level, OomIncident, RuntimeView, Verdict};
use crate::memory::Curve;

/// The exit code of a process killed by SIGKILL: 128 + 9.
const KILLED: i32 = 137;

/// The verdicts. Empty if nothing is known about the container.
pub fn verdicts(incident: &OomIncident) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    if matches!(incident.limit.of, Level::Node | Level::Cpuset | Level::MemoryPolicy) {
        verdicts.push(Verdict::NodeOom);
    }
    if let Some(view) = &incident.runtime {
        verdicts.extend(match view.state.as_str() {
            "running" if !killed_pid_1(incident, view) => Some(Verdict::SilentChildKill),
            "exited" if view.reason == "OOMKilled" => Some(Verdict::Agrees),
            "exited" => Some(Verdict::RuntimeDisagrees),
            _ => None,
        });
    }
    verdicts
}

/// Whether the runtime's report is up to date: a container whose PID 1 was killed must have ended.
pub fn is_settled(incident: &OomIncident) -> bool {
    incident.runtime.as_ref().is_none_or(|view| view.state != "running" || !killed_pid_1(incident, view))
}

fn killed_pid_1(incident: &OomIncident, view: &RuntimeView) -> bool {
    view.pid.is_none_or(|first| incident.victims.iter().any(|victim| victim.task.pid == first))
}

/// Whether the container ended with exit code 0 although one of its processes was OOM-killed: PID 1 was not the victim, and
/// ended as if nothing had happened. For Kubernetes such a container has succeeded, and an init container lets the pod go on.
pub fn counts_as_success(incident: &OomIncident) -> bool {
    let view = incident.runtime.as_ref();
    view.is_some_and(|view| view.state == "exited" && view.exit_code == Some(0))
}

/// The container's state in Kubernetes: `Running`, `OOMKilled (137)`, `Error (137)`, `Completed (0)`.
pub fn container_state(view: &RuntimeView) -> String {
    match (view.state.as_str(), view.exit_code) {
        ("running", _) => "Running".to_owned(),
        (_, Some(code)) if !view.reason.is_empty() => format!("{} ({code})", view.reason),
        (state, Some(code)) => format!("{state} ({code})"),
        (state, None) => state.to_owned(),
    }
}

/// What the heap of the victim's language runtime had to do with the kill, if it has one.
pub fn heap_verdict(incident: &OomIncident) -> Option<HeapVerdict> {
    incident.heap.as_ref()?.verdict(&incident.limit, held_by_heap_owner(incident))
}

fn heap_advice(incident: &OomIncident) -> Option<String> {
    incident.heap.as_ref()?.advice(&incident.limit, held_by_heap_owner(incident))
}

/// The memory of the process whose heap is known, at the kill and without files, in bytes.
fn held_by_heap_owner(incident: &OomIncident) -> Option<u64> {
    let pid = incident.heap.as_ref()?.pid;
    let rss = incident.victims.iter().find(|victim| victim.task.pid == pid).and_then(|victim| victim.rss);
    if let Some(rss) = rss {
        return Some(rss.anon_bytes.saturating_add(rss.shmem_bytes));
    }
    let rows = &incident.processes.as_ref()?.rows;
    rows.iter().find(|row| row.pid == pid).map(|row| row.rss_bytes)
}

/// The share of the memory in the process table from which one process is named as the cause.
const MOST: f64 = 0.6;
/// The least number of points of a curve for advice from its slope.
const POINTS_MIN: usize = 20;
/// A curve that grew by less than this part of the limit over its whole length is steady.
const STEADY: f64 = 0.05;

/// One line of advice, phrased as an observation. None: the numbers support none.
pub fn advice(incident: &OomIncident) -> Option<String> {
    let limit = incident.limit.limit_bytes.filter(|&limit| limit > 0)?;
    let unheld = incident.charged.as_ref().and_then(ChargedMemory::advice);
    let of_container = || growth(incident, limit).or_else(|| attempts(incident));
    if let Some(line) = unheld.or_else(|| heap_advice(incident)).or_else(of_container) {
        return Some(line);
    }
    let table =
        incident.processes.as_ref().filter(|table| table.source != "/proc" && table.rows.len() >= 3)?;
    let all: u64 =
        table.rows.iter().map(|row| row.rss_bytes).sum::<u64>().saturating_add(table.others_rss_bytes);
    let top = table.rows.first()?;
    let share = top.rss_bytes as f64 / all.max(1) as f64;
    if share >= MOST {
        let count = table.rows.len() + table.others as usize;
        return Some(format!(
            "one of {count} processes, {}[{}], held {:.0} % of their memory",
            top.comm,
            top.pid,
            share * 100.0
        ));
    }
    let victim = table.rows.iter().find(|row| row.victim)?;
    (victim.pid != top.pid && victim.rss_bytes * 4 < top.rss_bytes).then(|| {
        format!(
            "the victim held {} MiB; {}[{}] held {} MiB and was spared by its oom_score_adj {}",
            victim.rss_bytes >> 20,
            top.comm,
            top.pid,
            top.rss_bytes >> 20,
            top.oom_score_adj
        )
    })
}

fn growth(incident: &OomIncident, limit: u64) -> Option<String> {
    // The curve is the container's, which says nothing of a limit inside of it.
    if incident.limit.of == Level::InsideContainer {
        return None;
    }
    let curve = incident.curve.as_ref().filter(|curve| curve.time.len() >= POINTS_MIN)?;
    let (slope, seconds) = (curve.growth_bytes_per_second?, curve.seconds());
    let grown = slope * seconds;
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    if grown > STEADY * limit as f64 {
        let whole = limit as f64 / slope;
        return Some(format!(
            "grew by {:.1} MiB a minute over the last {:.0} s: at that rate the whole limit of {:.0} MiB lasts {}",
            mib(slope * 60.0),
            seconds,
            mib(limit as f64),
            time(whole)
        ));
    }
    if grown.abs() > STEADY * limit as f64 {
        return None;
    }
    if let Some(line) = jump(incident, curve, limit) {
        return Some(line);
    }
    let first =
        curve.current_bytes.first().zip(curve.file_bytes.first()).map(|(c, f)| c.saturating_sub(*f))?;
    let is_own_limit = incident.limit.of == Level::Container;
    (is_own_limit && first as f64 >= 0.85 * limit as f64).then(|| {
        format!(
            "held {:.0} % of its limit steadily for {}: the limit of {:.0} MiB is close to what it always needs",
            first as f64 * 100.0 / limit as f64, time(seconds), mib(limit as f64)
        )
    })
}

fn attempts(incident: &OomIncident) -> Option<String> {
    let all = &incident.attempts;
    let shortest = all.iter().map(|attempt| attempt.seconds).min_by(f64::total_cmp)?;
    let longest = all.iter().map(|attempt| attempt.seconds).max_by(f64::total_cmp)?;
    (all.len() >= ATTEMPTS_MIN).then(|| {
        format!(
            "met its limit in each of {} attempts, {} to {} after its start",
            all.len(),
            time(shortest),
            time(longest)
        )
    })
}

/// The least number of attempts that form a pattern.
const ATTEMPTS_MIN: usize = 3;

/// Advice for a last sample far below the limit: memory jumped after it, between two samples.
fn jump(incident: &OomIncident, curve: &Curve, limit: u64) -> Option<String> {
    let last = *curve.current_bytes.last()?;
    let full = incident.limit.usage_bytes.is_some_and(|usage| usage as f64 >= JUMP_TO * limit as f64);
    let of_container = matches!(incident.limit.of, Level::Container);
    (of_container && full && (last as f64) < JUMP_FROM * limit as f64).then(|| {
        format!(
            "went from {} MiB, where it had stayed, to the limit of {} MiB within about a second",
            last >> 20,
            limit >> 20
        )
    })
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.0} h", s / 3600.0),
    }
}

/// The parts of the limit from which and to which memory has to rise for a jump.
const JUMP_FROM: f64 = 0.7;
const JUMP_TO: f64 = 0.95;

/// The meaning of a verdict, in one line for people.
pub fn explain(verdict: Verdict, incident: &OomIncident) -> String {
    let state = incident.runtime.as_ref().map(container_state).unwrap_or_default();
    match verdict {
        Verdict::SilentChildKill => {
            "silent child kill: PID 1 lives on and the pod is Running, so Kubernetes shows no OOMKilled"
                .to_owned()
        }
        Verdict::RuntimeDisagrees
            if incident.runtime.as_ref().and_then(|view| view.exit_code) == Some(KILLED) =>
        {
            format!("the runtime says {state}, the kernel says OOM")
        }
        Verdict::RuntimeDisagrees => {
            format!("the container ended as {state}: its PID 1 was not the victim, and no OOMKilled is shown")
        }
        Verdict::NodeOom => {
            "node OOM: no container's limit was met, the machine's memory was short".to_owned()
        }
        Verdict::Agrees if counts_as_success(incident) => {
            "OOMKilled, exit code 0: Kubernetes counts it as succeeded, although a process of it was killed"
                .to_owned()
        }
        Verdict::Agrees => format!("the runtime says {state}, as the kernel does"),
    }
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
