//! The agent's memory in one sum: its own, that of its parsing worker, and the kernel's for its maps and sockets.
//!
//! Where the agent has a memory cgroup with a limit, that is what the kernel charges to it, without what it would free by
//! itself: cached files, and reclaimable slab. Elsewhere it is the sum of what can be counted.

use std::fs;
use std::path::{Path, PathBuf};

use podopsy_pods::hierarchy::{CgroupVersion, Hierarchy};

use crate::descendants::DescendantUsage;
use crate::metrics::bpf_memory;

/// Where usage is read.
#[derive(Debug)]
pub struct OwnMemory {
    /// The agent's own memory cgroup, if it has one with a limit.
    cgroup: Option<(CgroupVersion, PathBuf)>,
}

impl OwnMemory {
    /// Finds the agent's cgroup below the mounted hierarchies.
    pub fn find() -> OwnMemory {
        OwnMemory { cgroup: own_cgroup() }
    }

    /// Bytes in use. None: /proc/self cannot be read.
    pub fn used(&self, descendants: &DescendantUsage) -> Option<u64> {
        let charged = self.cgroup.as_ref().and_then(|(version, dir)| charged(*version, dir));
        charged.or_else(|| Some(resident()? + descendants.resident + bpf_memory().unwrap_or(0)))
    }
}

fn own_cgroup() -> Option<(CgroupVersion, PathBuf)> {
    let (hierarchy, path) = Hierarchy::own()?;
    // Without a limit it may be a slice that the agent shares with others.
    hierarchy.memory_limit(&path)?;
    Some((hierarchy.version, hierarchy.join(&path)))
}

fn charged(version: CgroupVersion, dir: &Path) -> Option<u64> {
    let (usage, prefix) = match version {
        CgroupVersion::V2 => ("memory.current", ""),
        CgroupVersion::V1 => ("memory.usage_in_bytes", "total_"),
    };
    let usage: u64 = fs::read_to_string(dir.join(usage)).ok()?.trim().parse().ok()?;
    let stat = fs::read_to_string(dir.join("memory.stat")).ok()?;
    Some(usage.saturating_sub(freed_by_itself(&stat, prefix)))
}

/// Bytes that the kernel frees when it needs them: cached files, but not shared memory, and reclaimable slab.
fn freed_by_itself(stat: &str, prefix: &str) -> u64 {
    let field = |name: &str| {
        let mut lines = stat.lines();
        let value = lines.find_map(|line| line.strip_prefix(prefix)?.strip_prefix(name)?.strip_prefix(' '));
        value.and_then(|value| value.parse::<u64>().ok()).unwrap_or(0)
    };
    let cached = field("file").max(field("cache"));
    cached.saturating_sub(field("shmem")) + field("slab_reclaimable")
}

/// Resident memory of this process.
fn resident() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * podopsy_system::page_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cached_files_do_not_count_and_shared_memory_does() {
        let v2 = "anon 1000\nfile 700\nshmem 200\nslab_reclaimable 50\nslab 90\n";
        assert_eq!(freed_by_itself(v2, ""), 550);
        let v1 = "cache 5\nshmem 5\ntotal_cache 700\ntotal_shmem 200\n";
        assert_eq!(freed_by_itself(v1, "total_"), 500);
        assert_eq!(freed_by_itself("", ""), 0);
    }

    #[test]
    fn memory_that_this_process_touches_is_in_the_sum() {
        let memory = OwnMemory { cgroup: None };
        let used = || memory.used(&DescendantUsage::default()).unwrap();
        let before = used();
        let block = vec![1_u8; 64 << 20];
        assert!(used() >= before + (60 << 20));
        assert!(std::hint::black_box(block).len() > 1);
    }
}
