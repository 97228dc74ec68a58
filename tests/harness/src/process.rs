//! Processes by pid *and* start time, so that a recycled pid is never mistaken for one of ours, and signalled
//! through a pidfd, so that it cannot be recycled in between.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::libc;
use serde_json::{Value, json};

/// A process, as it can be told apart from every other one since boot.
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

    /// Does it still live? A zombie counts as dead.
    pub fn alive(self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
        Self::now(self.pid) == Some(self) && !matches!(state, Some('Z' | 'X') | None)
    }

    /// Sends SIGKILL; no error if it is gone already.
    pub fn kill(self) {
        // SAFETY: pidfd_open takes a pid and flags, and returns a descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid, 0) };
        if fd < 0 {
            return;
        }
        // SAFETY: the descriptor was just opened and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        // Only now is it certain that the descriptor and the start time belong together.
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

    /// Waits for its end; false if it outlives `patience`.
    pub fn gone_within(self, patience: Duration) -> bool {
        let start = Instant::now();
        while self.alive() {
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

/// Processes with this exact argument: containerd's shims carry the address of the containerd they serve,
/// which is a path of ours that no other process has business with.
pub fn with_argument(argument: &str) -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == argument.as_bytes())
    })
    .filter_map(Process::now)
    .collect()
}

/// The pids in a `cgroup.procs` file.
pub fn in_cgroup(directory: &Path) -> Vec<Process> {
    let text = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).filter_map(Process::now).collect()
}
