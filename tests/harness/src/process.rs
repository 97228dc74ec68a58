//! Processes by pid *and* start time, so that a reused pid is never taken for one of ours. They are signalled through a
//! pidfd, so that the pid cannot be reused in between.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::libc;
use serde_json::{Value, json};

/// A process, distinguished from every other one since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    /// Clock ticks from boot to its start (`/proc/PID/stat`, field 22).
    pub start: u64,
}

impl Process {
    /// The process that has this pid now.
    pub fn now(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything, spaces and parentheses too.
        let after_name = stat.rsplit_once(')')?.1;
        let start = after_name.split_whitespace().nth(19)?.parse().ok()?;
        Some(Self { pid, start })
    }

    /// Whether it still runs; a zombie does not.
    pub fn is_alive(self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
        Self::now(self.pid) == Some(self) && !matches!(state, Some('Z' | 'X') | None)
    }

    /// Sends SIGKILL; does nothing if it has ended.
    pub fn kill(self) {
        // SAFETY: pidfd_open takes a pid and flags, and returns a descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid, 0) };
        if fd < 0 {
            return;
        }
        // SAFETY: the descriptor was just opened and has no other owner.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        // Checked after the descriptor was opened: from here on, it refers to this process and no other.
        if Self::now(self.pid) != Some(self) {
            return;
        }
        // SAFETY: pidfd_send_signal with a null siginfo reads nothing from this process.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                fd.as_raw_fd(),
                libc::SIGKILL,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
    }

    /// Waits for its end; false if it still runs after `patience`.
    pub fn ends_within(self, patience: Duration) -> bool {
        let start = Instant::now();
        while self.is_alive() {
            if start.elapsed() > patience {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }

    /// For the state file.
    pub fn to_json(self) -> Value {
        json!({ "pid": self.pid, "start": self.start })
    }

    /// From the state file.
    pub fn from_json(value: &Value) -> Option<Self> {
        Some(Self { pid: i32::try_from(value["pid"].as_i64()?).ok()?, start: value["start"].as_u64()? })
    }
}

/// Processes with this exact argument. containerd's shims have their containerd's address as an argument: a path below
/// the node's directory, which no other process uses.
pub fn with_argument(argument: &str) -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|part| part == argument.as_bytes())
    })
    .filter_map(Process::now)
    .collect()
}

/// The pids in a `cgroup.procs` file.
pub fn in_cgroup(directory: &Path) -> Vec<Process> {
    let text = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).filter_map(Process::now).collect()
}
