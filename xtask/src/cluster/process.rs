//! Processes by pid *and* start time, so that a reused pid is never taken for one of ours.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cgroups;
use crate::sh;

/// A process, distinguished from every other one since boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    /// Clock ticks from boot to its start (`/proc/PID/stat`, field 22).
    pub start: u64,
}

impl Process {
    /// The process that has this pid now, unless it is a zombie.
    pub fn now(pid: i32) -> Option<Process> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything, spaces and parentheses too.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let is_dead = matches!(fields.next(), Some("Z" | "X") | None);
        let start = fields.nth(18)?.parse().ok()?;
        (!is_dead).then_some(Process { pid, start })
    }

    pub fn is_alive(self) -> bool {
        Process::now(self.pid) == Some(self)
    }

    /// Sends a signal; does nothing if the process has ended.
    pub fn signal(self, signal: Signal) {
        if self.is_alive() {
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// Whether it ends within that time.
    pub fn ends_within(self, patience: Duration) -> bool {
        let start = Instant::now();
        while self.is_alive() {
            if start.elapsed() > patience {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }
}

/// Starts a process of the cluster, which outlives xtask: in the cluster's cgroup and in a process group of its own, so
/// that Ctrl-C at the terminal does not reach it.
pub fn start(arguments: &[String], log: &Path) -> Result<Process> {
    sh::progress(format_args!("$ {}", arguments.join(" ")));
    let output = File::create(log).with_context(|| format!("write {}", log.display()))?;
    let mut command = command(arguments)?;
    command.stdout(output.try_clone().context("share the log")?).stderr(output).process_group(0);
    let child = command.spawn().with_context(|| format!("start {arguments:?}"))?;
    let pid = child.id() as i32;
    // The child is not waited for. If it ends while xtask runs, it is a zombie, which counts as ended.
    Process::now(pid).with_context(|| format!("{arguments:?} ended at once; see {}", log.display()))
}

/// A command that joins the cluster's cgroup before it becomes the program.
pub fn command(arguments: &[String]) -> Result<Command> {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "echo $$ >\"$1\" && shift && exec \"$@\"", "sh"]);
    command.arg(cgroups::system()?.join("cgroup.procs")).args(arguments).stdin(Stdio::null());
    Ok(command)
}

/// A command line that runs in the cluster's mount and network namespaces.
pub fn inside(holder: Process, arguments: impl IntoIterator<Item = String>) -> Vec<String> {
    let target = format!("--target={}", holder.pid);
    ["nsenter".to_owned(), target, "--mount".to_owned(), "--net".to_owned(), "--".to_owned()]
        .into_iter()
        .chain(arguments)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_with_another_start_time_is_another_process() {
        let own = Process::now(std::process::id() as i32).unwrap();
        assert!(own.is_alive());
        let earlier = Process { start: own.start - 1, ..own };
        assert!(!earlier.is_alive() && earlier.ends_within(Duration::ZERO));
    }

    #[test]
    fn a_zombie_has_ended() {
        let mut child = Command::new("/bin/true").spawn().unwrap();
        let end = Instant::now() + Duration::from_secs(10);
        while Process::now(child.id() as i32).is_some() {
            assert!(Instant::now() < end, "the zombie counts as alive");
            std::thread::sleep(Duration::from_millis(5));
        }
        child.wait().unwrap();
    }
}
