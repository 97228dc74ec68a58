//! Reads cgroup, start time, name and namespaces of a process from `/proc/<pid>`.
//!
//! This module must not depend on containers or CRI. A process may exit at any moment: that is `None`, never an error.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use procfs::FromRead;
use procfs::process::Process;

use super::hierarchy::Hierarchy;
use super::paths;

/// The memory cgroup of a process, relative to the hierarchy's mount.
pub fn cgroup(proc_root: &Path, hierarchy: &Hierarchy, pid: u32) -> Option<PathBuf> {
    hierarchy.of_proc(&fs::read(dir(proc_root, pid).join("cgroup")).ok()?)
}

/// The root of the node's first process. None: the first process that is visible here belongs to a pod, and so does what
/// its root shows.
pub fn node_root(proc_root: &Path, hierarchy: &Hierarchy) -> Option<PathBuf> {
    let cgroup = hierarchy.absolute(&cgroup(proc_root, hierarchy, 1)?);
    paths::parse(&cgroup).pod_uid.is_none().then(|| dir(proc_root, 1).join("root"))
}

pub fn exists(proc_root: &Path, pid: u32) -> bool {
    dir(proc_root, pid).exists()
}

/// The start time, to a clock tick (10 ms): `/proc/<pid>/stat` field 22 after `/proc/stat`'s btime (s).
/// Together with the pid it identifies the process permanently.
pub fn start_time(proc_root: &Path, pid: u32) -> Option<Timestamp> {
    let stat = fs::read_to_string(proc_root.join("stat")).ok()?;
    let boot: u64 = stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    let ticks = start_ticks(proc_root, pid)?;
    let hz = procfs::ticks_per_second();
    let nanos = u128::from(boot) * 1_000_000_000 + u128::from(ticks) * 1_000_000_000 / u128::from(hz.max(1));
    Timestamp::from_nanosecond(i128::try_from(nanos).ok()?).ok()
}

/// The start time in clock ticks since boot.
pub fn start_ticks(proc_root: &Path, pid: u32) -> Option<u64> {
    Some(procfs::process::Stat::from_file(dir(proc_root, pid).join("stat")).ok()?.starttime)
}

/// The name (`comm`) of the thread group leader, as raw bytes.
pub fn comm(proc_root: &Path, pid: u32) -> Option<Vec<u8>> {
    fs::read(dir(proc_root, pid).join("comm")).ok()
}

/// Namespace inode numbers by kind (`net`, `mnt`, `pid`, …).
pub fn namespaces(proc_root: &Path, pid: u32) -> BTreeMap<String, u64> {
    let Some(all) = Process::new_with_root(dir(proc_root, pid)).and_then(|p| p.namespaces()).ok() else {
        return BTreeMap::new();
    };
    all.0.values().map(|ns| (ns.ns_type.to_string_lossy().into_owned(), ns.identifier)).collect()
}

/// The PID 1 of a container among its processes: the one with pid 1 in its own pid namespace, or in a shared namespace the
/// oldest.
pub fn first_of(proc_root: &Path, pids: &[u32]) -> Option<u32> {
    let numbered_one = |&&pid: &&u32| {
        let status = procfs::process::Status::from_file(dir(proc_root, pid).join("status")).ok();
        status.and_then(|s| s.nspid).is_some_and(|ns| ns.len() > 1 && ns.last() == Some(&1))
    };
    pids.iter().find(numbered_one).copied().or_else(|| {
        pids.iter().filter_map(|&pid| Some((start_ticks(proc_root, pid)?, pid))).min().map(|(_, pid)| pid)
    })
}

fn dir(proc_root: &Path, pid: u32) -> PathBuf {
    proc_root.join(pid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_its_own_process() {
        let root = Path::new("/proc");
        let me = std::process::id();
        let started = start_time(root, me).unwrap();
        let age = Timestamp::now().duration_since(started);
        assert!((-2..3600).contains(&age.as_secs()), "{age:?}");
        assert!(namespaces(root, me).contains_key("pid"));
        assert_eq!(first_of(root, &[me]), Some(me));
    }

    #[test]
    fn the_first_process_of_a_pod_does_not_show_the_nodes_root() {
        let folder = tempfile::tempdir().unwrap();
        let (proc_root, cgroups) = (folder.path().join("proc"), folder.path().join("cg"));
        fs::create_dir_all(proc_root.join("1")).unwrap();
        fs::create_dir(&cgroups).unwrap();
        fs::write(cgroups.join("cgroup.controllers"), "memory").unwrap();
        let hierarchy = Hierarchy::find(&proc_root, &cgroups).unwrap();
        let root = |cgroup: &str| {
            fs::write(proc_root.join("1/cgroup"), format!("0::{cgroup}\n")).unwrap();
            node_root(&proc_root, &hierarchy)
        };
        let nodes = Some(proc_root.join("1/root"));
        assert_eq!([root("/init.scope"), root("/")], [nodes.clone(), nodes]);
        let pods = "kubepods/burstable/pod8c1ee0a4-5f3b-4c1e-9f0a-0a1b2c3d4e5f";
        let id = "3f2a9c0d51b7e8843f2a9c0d51b7e8843f2a9c0d51b7e8843f2a9c0d51b7e884";
        assert_eq!(root(&format!("/{pods}/{id}")), None);
        // Another container, seen from a cgroup namespace.
        assert_eq!(root(&format!("/../{id}")), None);
    }

    #[test]
    fn an_exited_process_gives_none() {
        let root = Path::new("/proc");
        assert_eq!(start_time(root, u32::MAX), None);
        assert!(namespaces(root, u32::MAX).is_empty());
        assert_eq!(first_of(root, &[u32::MAX]), None);
        assert!(!exists(root, u32::MAX));
    }
}
