//! A running process, read from /proc (proc(5)).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use jiff::{SignedDuration, Timestamp};
use nix::unistd::{SysconfVar, sysconf};
use podopsy_model::text;
use serde::Serialize;

/// The facts of a process that `inspect pid:N` shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProcessDetails {
    /// ProcessDetails id in this /proc.
    pub pid: u32,
    pub comm: String,
    pub start_time: Option<Timestamp>,
    pub parent_pid: Option<u32>,
    /// Effective user id, as this user namespace sees it.
    pub uid: Option<u32>,
    /// The process's id in each pid namespace, from ours inwards; the last is the id inside the container.
    pub pid_in_namespaces: Vec<u32>,
    pub threads: Option<u32>,
    /// VmRSS, in bytes; null for kernel threads.
    pub rss_bytes: Option<u64>,
    /// Namespace inode numbers by kind; empty without CAP_SYS_PTRACE.
    pub namespaces: BTreeMap<String, u64>,
}

impl ProcessDetails {
    pub fn read(pid: u32) -> anyhow::Result<Self> {
        Self::read_in(Path::new("/proc"), pid)
    }

    fn read_in(proc: &Path, pid: u32) -> anyhow::Result<Self> {
        let dir = proc.join(pid.to_string());
        let status = fs::read(dir.join("status")).with_context(|| format!("no process {pid} here"))?;
        let status = String::from_utf8_lossy(&status).into_owned();
        let field = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        let number = |key: &str| field(key)?.split_whitespace().next()?.parse::<u64>().ok();
        let numbers = |key: &str| -> Vec<u32> {
            field(key)
                .unwrap_or_default()
                .split_whitespace()
                .filter_map(|number| number.parse().ok())
                .collect()
        };
        // Not from `status`: the kernel escapes some bytes there.
        let comm = fs::read(dir.join("comm")).unwrap_or_default();
        Ok(ProcessDetails {
            pid,
            comm: text::escape_bytes(comm.strip_suffix(b"\n").unwrap_or(&comm)),
            start_time: start_time(proc, &dir),
            parent_pid: number("PPid").and_then(|pid| u32::try_from(pid).ok()),
            uid: numbers("Uid").get(1).copied(),
            pid_in_namespaces: numbers("NSpid"),
            threads: number("Threads").and_then(|count| u32::try_from(count).ok()),
            rss_bytes: number("VmRSS").map(|kib| kib * 1024),
            namespaces: namespaces(dir.join("ns")),
        })
    }
}

/// Boot time plus `starttime` (field 22 of /proc/PID/stat, in clock ticks).
fn start_time(proc: &Path, dir: &Path) -> Option<Timestamp> {
    let stat = String::from_utf8_lossy(&fs::read(dir.join("stat")).ok()?).into_owned();
    // The second field is the name in parentheses, which may hold parentheses and spaces of its own.
    let ticks: i64 = stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()?;
    let per_second = sysconf(SysconfVar::CLK_TCK).ok()??;
    let boot = fs::read_to_string(proc.join("stat")).ok()?;
    let boot: i64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    let since_boot = SignedDuration::from_millis(ticks.checked_mul(1000)? / per_second);
    Timestamp::from_second(boot).ok()?.checked_add(since_boot).ok()
}

fn namespaces(dir: PathBuf) -> BTreeMap<String, u64> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let kind = entry.file_name().into_string().ok()?;
            let link = fs::read_link(entry.path()).ok()?;
            let inode = link.to_str()?.split_once('[')?.1.strip_suffix(']')?.parse().ok()?;
            // The two `_for_children` links describe future children, not the process itself.
            (!kind.ends_with("_for_children")).then_some((kind, inode))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_can_read_itself() {
        let process = ProcessDetails::read(std::process::id()).unwrap();
        assert_eq!(process.pid_in_namespaces.first(), Some(&process.pid));
        assert!(
            process.namespaces.contains_key("net") && !process.namespaces.contains_key("pid_for_children")
        );
        let age = Timestamp::now().duration_since(process.start_time.unwrap());
        assert!(age.as_secs().abs() < 600, "{age}");
    }

    #[test]
    fn a_hostile_name_is_escaped_and_cannot_shift_fields() {
        let dir = tempfile::tempdir().unwrap();
        let proc = dir.path();
        fs::create_dir(proc.join("7")).unwrap();
        fs::write(proc.join("7/status"), "Name:\tx\nPPid:\t1\nUid:\t0\t5\t0\t0\nNSpid:\t7\t1\n").unwrap();
        fs::write(proc.join("7/comm"), b"a) R 9\x1b[2J\n").unwrap();
        let zeros = "0 ".repeat(18);
        fs::write(proc.join("7/stat"), format!("7 (a) R 9\x1b[2J) S {zeros}300 0")).unwrap();
        fs::write(proc.join("stat"), "cpu 1\nbtime 1000\n").unwrap();
        let process = ProcessDetails::read_in(proc, 7).unwrap();
        assert_eq!(process.comm, "a) R 9\\x1b[2J");
        assert_eq!(process.start_time, Some(Timestamp::from_second(1003).unwrap()));
        assert_eq!((process.uid, process.pid_in_namespaces), (Some(5), vec![7, 1]));
    }

    #[test]
    fn a_missing_process_is_an_error_with_its_pid() {
        let error = ProcessDetails::read(u32::MAX).unwrap_err();
        assert!(format!("{error:#}").starts_with("no process 4294967295 here"), "{error:#}");
    }
}
