//! Whether a helper that has not answered works, or waits.

use std::fs;

/// What a process does at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activity {
    /// It runs, or waits for a CPU. Otherwise it waits for something else: a file system, for example.
    pub is_runnable: bool,
    /// Clock ticks of CPU time up to now.
    pub cpu_ticks: u64,
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
        })
    }
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
}
