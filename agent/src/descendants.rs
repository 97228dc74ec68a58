//! The processes that this one has started, which are helpers and their supervisors: their CPU time and memory.

use std::fs;

/// What the descendants of this process use.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DescendantUsage {
    /// User and system CPU time, also of those that have ended.
    pub cpu_seconds: f64,
    /// Resident bytes, without the pages that they share with this process.
    pub resident: u64,
}

/// Reads /proc. A process that ends meanwhile is left out, or is counted by its parent already.
pub fn usage() -> DescendantUsage {
    let mut usage = DescendantUsage::default();
    let mut parents = vec![std::process::id().cast_signed()];
    while let Some(parent) = parents.pop() {
        for child in children(parent) {
            let Ok(stat) = procfs::process::Process::new(child).and_then(|process| process.stat()) else {
                continue;
            };
            let waited_for = stat.cutime.max(0).cast_unsigned() + stat.cstime.max(0).cast_unsigned();
            usage.cpu_seconds +=
                (stat.utime + stat.stime + waited_for) as f64 / procfs::ticks_per_second() as f64;
            usage.resident += resident(child).unwrap_or(0);
            parents.push(child);
        }
    }
    usage
}

/// The children of all threads of a process.
fn children(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

fn resident(pid: i32) -> Option<u64> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let mut fields = statm.split(' ').skip(1).map(|field| field.trim().parse::<u64>());
    let (resident, shared) = (fields.next()?.ok()?, fields.next()?.ok()?);
    // The code of a worker is the agent's own, and counts once.
    Some(resident.saturating_sub(shared) * podopsy_system::page_size())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_cpu_time_of_children_and_of_those_that_they_waited_for_is_counted() {
        let before = usage().cpu_seconds;
        let line = "i=0; (while [ $i -lt 300000 ]; do i=$((i+1)); done); echo; read end";
        let mut child = Command::new("/bin/sh")
            .args(["-c", line])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // The loop's process has ended when the line comes.
        let mut line = [0; 1];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        let after = usage();
        assert!(after.cpu_seconds > before + 0.05, "{before} and then {after:?}");
        assert!(after.resident > 0);
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
