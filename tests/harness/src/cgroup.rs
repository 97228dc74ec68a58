//! Pods' cgroups as a kubelet with the cgroupfs driver makes them: `/kubepods/burstable/pod<uid>`, in each v1 hierarchy
//! or in the v2 hierarchy. runc makes the containers' leaves; the harness makes what is above them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::process::in_cgroup;

/// The cgroups that a kubelet keeps above pods.
const PARENTS: [&str; 3] = ["kubepods/burstable", "kubepods/besteffort", "kubepods"];

/// Mount points of every cgroup hierarchy, v1 and v2, whose root is the hierarchy's root.
pub fn hierarchies() -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found = Vec::new();
    for line in mounts.lines() {
        // id parent dev root mountpoint options … - fstype source options
        let Some((before, after)) = line.split_once(" - ") else { continue };
        if after.starts_with("cgroup ") || after.starts_with("cgroup2 ") {
            found.extend(before.split(' ').nth(4).map(PathBuf::from));
        }
    }
    found.sort();
    found.dedup();
    found
}

/// The hierarchy that accounts memory, and whether it is v2.
pub fn memory_hierarchy() -> anyhow::Result<(PathBuf, bool)> {
    let all = hierarchies();
    if let Some(v1) = all.iter().find(|path| path.join("memory.limit_in_bytes").exists()) {
        return Ok((v1.clone(), false));
    }
    all.into_iter()
        .find(|path| {
            let controllers = std::fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default();
            controllers.split_whitespace().any(|name| name == "memory")
        })
        .map(|path| (path, true))
        .context("no cgroup hierarchy with the memory controller; mount -t cgroup2 cgroup2 /sys/fs/cgroup")
}

/// The parents that exist already, which the harness must not remove.
pub fn existing_parents() -> Vec<PathBuf> {
    let all = hierarchies();
    let paths = all.iter().flat_map(|root| PARENTS.iter().map(move |parent| root.join(parent)));
    paths.filter(|path| path.exists()).collect()
}

/// Makes a pod's cgroup (a path such as `/kubepods/burstable/pod<uid>`), with its own memory limit if there is one.
pub fn create(cgroup: &str, memory_limit: Option<i64>) -> anyhow::Result<()> {
    let (root, v2) = memory_hierarchy()?;
    let mut at = root;
    for part in cgroup.trim_start_matches('/').split('/') {
        if v2 {
            for controller in ["+memory", "+cpu", "+pids"] {
                // One at a time: a write that names a missing controller enables none.
                let _ = std::fs::write(at.join("cgroup.subtree_control"), controller);
            }
        }
        at.push(part);
        match std::fs::create_dir(&at) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("make {}", at.display()));
            }
            _ => {}
        }
    }
    if let Some(limit) = memory_limit {
        let file = at.join(if v2 { "memory.max" } else { "memory.limit_in_bytes" });
        std::fs::write(&file, limit.to_string()).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

/// The directory of a cgroup in the memory hierarchy: its inode number is the cgroup's id.
pub fn memory_directory(cgroup: &str) -> anyhow::Result<PathBuf> {
    Ok(memory_hierarchy()?.0.join(cgroup.trim_start_matches('/')))
}

/// Kills the processes in a pod's cgroup and below it, in every hierarchy.
pub fn kill(cgroup: &str) {
    for directory in below(cgroup) {
        for process in in_cgroup(&directory) {
            process.kill();
        }
    }
}

/// Removes a pod's cgroup and those below it in every hierarchy; returns those that could not be removed.
pub fn remove(cgroup: &str) -> Vec<PathBuf> {
    let start = Instant::now();
    loop {
        // Deepest first; a killed process keeps its cgroup busy until it is reaped.
        let left: Vec<PathBuf> =
            below(cgroup).into_iter().filter(|directory| std::fs::remove_dir(directory).is_err()).collect();
        if left.is_empty() || start.elapsed() > Duration::from_secs(5) {
            return left;
        }
        kill(cgroup);
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Removes the parents that are empty, unless they were there before.
pub fn remove_parents(kept: &[PathBuf]) {
    for root in hierarchies() {
        for path in PARENTS.iter().map(|parent| root.join(parent)) {
            if !kept.contains(&path) {
                // Fails, as it must, while a pod that is not ours is in it.
                let _ = std::fs::remove_dir(path);
            }
        }
    }
}

/// A cgroup's directories in every hierarchy, children before parents.
pub fn below(cgroup: &str) -> Vec<PathBuf> {
    fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                walk(&entry.path(), found);
            }
        }
        found.push(directory.to_owned());
    }
    let mut found = Vec::new();
    for root in hierarchies() {
        let directory = root.join(cgroup.trim_start_matches('/'));
        if directory.exists() {
            walk(&directory, &mut found);
        }
    }
    found
}
