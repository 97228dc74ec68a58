//! Whether a helper that has not answered works, or waits.

use std::fs;

/// What a process does at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activity {
    /// It runs, or waits for a CPU. Otherwise it waits for something else: a file system, for example.
    pub is_runnable: bool,
    /// Clock ticks of CPU time up to now.
    pub cpu_ticks: u64,
    /// How often it was scheduled up to now: it has waited for something, or made way for another process.
    pub switches: u64,
}

impl Activity {
    /// None if there is no such process.
    pub fn of(pid: i32) -> Option<Activity> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // Fields 3, 14 and 15 of proc(5). The name may contain spaces.
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        let ticks = |index: usize| fields.get(index)?.parse::<u64>().ok();
        Some(Activity {
            is_runnable: fields.first() == Some(&"R"),
            cpu_ticks: ticks(11)?.saturating_add(ticks(12)?),
            switches: switches(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?),
        })
    }

    /// Whether the process has done something between this look and a later one.
    pub fn is_behind(&self, later: &Activity) -> bool {
        (self.cpu_ticks, self.switches) != (later.cpu_ticks, later.switches)
    }
}

/// The sum of `voluntary_ctxt_switches` and `nonvoluntary_ctxt_switches` in /proc/PID/status.
fn switches(status: &str) -> u64 {
    let counts = status.lines().filter_map(|line| line.split_once("voluntary_ctxt_switches:"));
    counts.filter_map(|(_, count)| count.trim().parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_process_that_sleeps_is_not_runnable_and_one_that_computes_is() {
        let mut sleeper = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let mut worker =
            std::process::Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let asleep = Activity::of(sleeper.id() as i32).unwrap();
        let at_work = Activity::of(worker.id() as i32).unwrap();
        for child in [&mut sleeper, &mut worker] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(!asleep.is_runnable && at_work.is_runnable);
        assert!(at_work.cpu_ticks > asleep.cpu_ticks);
        assert_eq!(Activity::of(0), None);
    }

    #[test]
    fn switches_of_both_kinds_are_counted() {
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t150\nnonvoluntary_ctxt_switches:\t545\n";
        assert_eq!(switches(status), 695);
    }

    #[test]
    fn a_process_that_only_waits_does_nothing_and_one_that_wakes_up_does() {
        let mut waits = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let mut wakes =
            std::process::Command::new("sh").args(["-c", "while :; do sleep 0.01; done"]).spawn().unwrap();
        let look = || [&waits, &wakes].map(|child| Activity::of(child.id() as i32).unwrap());
        // Until both are at it.
        std::thread::sleep(Duration::from_millis(500));
        let before = look();
        std::thread::sleep(Duration::from_millis(500));
        let after = look();
        for child in [&mut waits, &mut wakes] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(!before[0].is_behind(&after[0]) && before[1].is_behind(&after[1]), "{before:?} {after:?}");
    }
}
