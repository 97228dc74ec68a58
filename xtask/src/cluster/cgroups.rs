//! The cluster's cgroups: `/podopsy-cluster/system` holds the programs, `/podopsy-cluster/kubepods` is the kubelet's.
//!
//! `down` finds by them what no file lists: shims, containers, and what was started just before a `kill -9`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::layout::CGROUP;
use super::process::Process;

/// Mount points of every cgroup hierarchy, v1 and v2.
fn hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found: Vec<PathBuf> = mounts
        .lines()
        // id parent dev root mountpoint options … - fstype source options
        .filter_map(|line| line.split_once(" - "))
        .filter(|(_, after)| after.starts_with("cgroup ") || after.starts_with("cgroup2 "))
        .filter_map(|(before, _)| Some(PathBuf::from(before.split(' ').nth(4)?)))
        .collect();
    found.sort();
    found.dedup();
    found
}

/// The cgroup of the cluster's programs, in the hierarchy that accounts memory.
pub fn system() -> Result<PathBuf> {
    let all = hierarchies();
    let v1 = all.iter().find(|root| root.join("memory.limit_in_bytes").exists());
    let v2 = || all.iter().find(|root| root.join("cgroup.controllers").exists());
    let root = v1.or_else(v2).context("no cgroup hierarchy is mounted at /sys/fs/cgroup")?;
    Ok(root.join(CGROUP).join("system"))
}

/// Makes the root cgroup in every hierarchy, as the kubelet's `cgroupRoot` has to be.
pub fn create() -> Result<()> {
    for root in hierarchies() {
        let folder = root.join(CGROUP);
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        // A v1 cpuset is empty at first, and no process may join it.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(all) = fs::read_to_string(root.join(file)) {
                fs::write(folder.join(file), all).with_context(|| format!("{}/{file}", folder.display()))?;
            }
        }
    }
    let system = system()?;
    fs::create_dir_all(&system).with_context(|| format!("make {}", system.display()))
}

/// Ends every process in the cluster's cgroups, and removes them.
pub fn remove() -> Result<()> {
    let start = Instant::now();
    loop {
        let folders: Vec<PathBuf> = hierarchies().iter().flat_map(|root| below(&root.join(CGROUP))).collect();
        for process in folders.iter().flat_map(|folder| processes(folder)) {
            process.signal(Signal::SIGKILL);
        }
        // A killed process keeps its cgroup busy until it is reaped.
        let left: Vec<_> = folders.into_iter().filter(|folder| fs::remove_dir(folder).is_err()).collect();
        if left.is_empty() {
            return Ok(());
        }
        ensure!(start.elapsed() < Duration::from_secs(20), "cannot remove the cgroups {left:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn processes(folder: &Path) -> Vec<Process> {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|pid| Process::now(pid.parse().ok()?)).collect()
}

/// A cgroup and those below it, children before parents. Empty if there is none.
fn below(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.flat_map(|entry| below(&entry.path())).chain([folder.to_owned()]).collect()
}
