//! How much memory this process may take before a limit is met, as far as limits can be seen from here.
//!
//! ```text
//! own cgroup and those above it ── limit, usage ─────────────┐
//! v1: memory.stat's hierarchical_memory_limit (the pod's) ───┼→ the smallest headroom
//! processes of other containers (`kubectl debug --target`) ──┘
//! ```
//!
//! An ephemeral container has no limit of its own and shares the pod's, which is the sum of the containers' limits if each has
//! one. In a cgroup namespace the pod's cgroup is not visible: what the target container has left is then a lower bound of
//! what the pod has left.
//!
//! Must not depend on: CRI, pods' names. Reads /proc and cgroups; of another container, cgroup files alone.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use podopsy_system::pid_namespace;
use procfs::FromRead as _;
use procfs::process::MountInfos;

use crate::hierarchy::{CgroupVersion, Hierarchy};

/// Processes that are looked at for other containers; a pod has few.
const MAX_PROCESSES: usize = 512;
/// File systems that are served by this kernel: looking up a path on them cannot hang.
const LOCAL_FILESYSTEMS: [&str; 6] = ["btrfs", "ext4", "overlay", "tmpfs", "xfs", "zfs"];

/// What is left of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headroom {
    /// Bytes; page cache that the kernel can drop counts as free.
    pub free: u64,
    pub limit: u64,
    pub of: LimitOf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitOf {
    /// This process's cgroup, or one above it that is visible.
    Own,
    /// A cgroup above the container, of which only the limit is visible (v1). The usage is that of the containers whose
    /// processes are visible, and so a lower bound.
    Pod,
    /// Another container of the pod, whose processes are visible.
    Target,
}

/// Whether podopsy runs in a container: in a pid namespace of its own, as an ephemeral container does.
pub fn is_in_container() -> bool {
    pid_namespace::nested().is_some()
}

/// The smallest headroom of all limits that are visible; None: there is none.
pub fn find() -> Option<Headroom> {
    find_in(Path::new("/proc"), Path::new("/sys/fs/cgroup"))
}

fn find_in(proc_root: &Path, cgroup_root: &Path) -> Option<Headroom> {
    let hierarchy = Hierarchy::find(proc_root, cgroup_root).ok()?;
    let own = hierarchy.of_proc(&fs::read(proc_root.join("self/cgroup")).ok()?)?;
    let files = |path: &Path| MemoryFiles { version: hierarchy.version, folder: hierarchy.join(path) };
    let others = other_containers(proc_root, &hierarchy, &files(&own));
    let of_own = own.ancestors().filter_map(|path| files(path).headroom(LimitOf::Own));
    // The limit of the pod is at least the sum of these, so that the smallest one is a lower bound.
    let of_others = others.iter().filter_map(|files| files.headroom(LimitOf::Target));
    let of_pod = files(&own).hierarchical_limit().map(|limit| {
        let used: u64 = others.iter().chain([&files(&own)]).filter_map(MemoryFiles::used).sum();
        Headroom { free: limit.saturating_sub(used), limit, of: LimitOf::Pod }
    });
    match of_pod {
        // The pod's own limit is known: a single container's does not bind this process.
        Some(pod) => of_own.chain([pod]).min_by_key(|headroom| headroom.free),
        None => of_own.chain(of_others).min_by_key(|headroom| headroom.free),
    }
}

/// The memory files of one cgroup.
#[derive(Clone, Debug)]
struct MemoryFiles {
    version: CgroupVersion,
    folder: PathBuf,
}

impl MemoryFiles {
    fn number(&self, v1: &str, v2: &str) -> Option<u64> {
        let name = if self.version == CgroupVersion::V1 { v1 } else { v2 };
        fs::read_to_string(self.folder.join(name)).ok()?.trim().parse().ok()
    }

    fn stat(&self, v1: &str, v2: &str) -> Option<u64> {
        let name = if self.version == CgroupVersion::V1 { v1 } else { v2 };
        let text = fs::read_to_string(self.folder.join("memory.stat")).ok()?;
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    }

    /// Without the page cache that was not used lately, which the kernel drops first.
    fn used(&self) -> Option<u64> {
        let usage = self.number("memory.usage_in_bytes", "memory.current")?;
        let droppable = self.stat("total_inactive_file ", "inactive_file ").unwrap_or(0);
        Some(usage.saturating_sub(droppable))
    }

    fn headroom(&self, of: LimitOf) -> Option<Headroom> {
        let limit = self.number("memory.limit_in_bytes", "memory.max").filter(is_limit)?;
        Some(Headroom { free: limit.saturating_sub(self.used()?), limit, of })
    }

    /// The smallest limit of the cgroups above this one, if it is smaller than this one's own (v1).
    fn hierarchical_limit(&self) -> Option<u64> {
        let above = self.stat("hierarchical_memory_limit ", "no such line").filter(is_limit)?;
        let own = self.number("memory.limit_in_bytes", "memory.max")?;
        (above < own).then_some(above)
    }
}

/// v1 shows "no limit" as the largest multiple of the page size.
fn is_limit(bytes: &u64) -> bool {
    *bytes < 1 << 62
}

/// The cgroups of other containers whose processes are visible. None in the host's pid namespace: there, each process of the
/// node is visible.
fn other_containers(proc_root: &Path, hierarchy: &Hierarchy, own: &MemoryFiles) -> Vec<MemoryFiles> {
    if pid_namespace::own_in(proc_root) == Some(pid_namespace::INITIAL) {
        return Vec::new();
    }
    let entries = fs::read_dir(proc_root).into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut seen = BTreeSet::from_iter(identity(&own.folder));
    let seen_by = |pid: u32| files_seen_by(proc_root, hierarchy.version, pid);
    let is_new = |files: &MemoryFiles| identity(&files.folder).is_some_and(|id| seen.insert(id));
    pids.take(MAX_PROCESSES).filter_map(seen_by).filter(is_new).collect()
}

fn identity(folder: &Path) -> Option<(u64, u64)> {
    fs::metadata(folder).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// The cgroup that is mounted for the container of a process: its own, as runtimes mount it.
fn files_seen_by(proc_root: &Path, version: CgroupVersion, pid: u32) -> Option<MemoryFiles> {
    let process = proc_root.join(pid.to_string());
    let mounts = MountInfos::from_file(process.join("mountinfo")).ok()?.0;
    let root = mounts.iter().find(|mount| mount.mount_point == Path::new("/"))?;
    if !LOCAL_FILESYSTEMS.contains(&root.fs_type.as_str()) {
        return None;
    }
    let mount = mounts.iter().find(|mount| match version {
        CgroupVersion::V1 => mount.fs_type == "cgroup" && mount.super_options.contains_key("memory"),
        CgroupVersion::V2 => mount.fs_type == "cgroup2",
    })?;
    let inside = mount.mount_point.strip_prefix("/").ok().filter(|path| path.starts_with("sys/fs/cgroup"))?;
    Some(MemoryFiles { version, folder: process.join("root").join(inside) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A /proc and a cgroup tree.
    struct Fake(tempfile::TempDir);

    impl Fake {
        fn new(fs_type: &str, options: &str, own: &str) -> Fake {
            let fake = Fake(tempfile::tempdir().unwrap());
            let cgroups = fake.cgroups().display().to_string();
            fake.write("proc/self/cgroup", own);
            fake.write(
                "proc/self/mountinfo",
                &format!("30 25 0:26 / {cgroups} rw - {fs_type} cgroup rw{options}\n"),
            );
            fake
        }

        fn cgroups(&self) -> PathBuf {
            self.0.path().join("cgroup")
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn v2(&self, folder: &str, limit: &str, usage: u64, inactive: u64) {
            self.write(&format!("{folder}/memory.max"), limit);
            self.write(&format!("{folder}/memory.current"), &format!("{}\n", usage * MIB));
            self.write(
                &format!("{folder}/memory.stat"),
                &format!("anon 1\ninactive_file {}\n", inactive * MIB),
            );
        }

        fn v1(&self, folder: &str, limit: u64, above: u64, usage: u64) {
            self.write(&format!("{folder}/memory.limit_in_bytes"), &format!("{limit}\n"));
            self.write(&format!("{folder}/memory.usage_in_bytes"), &format!("{}\n", usage * MIB));
            let stat = format!("cache 1\nhierarchical_memory_limit {above}\ntotal_inactive_file 0\n");
            self.write(&format!("{folder}/memory.stat"), &stat);
        }

        /// Another container's process, whose root shows its cgroup.
        fn process(&self, pid: u32, root_type: &str, cgroup_type: &str, options: &str) -> String {
            let mounts = format!(
                "1 0 0:9 / / rw - {root_type} overlay rw\n2 1 0:26 / /sys/fs/cgroup ro - {cgroup_type} cgroup rw{options}\n"
            );
            self.write(&format!("proc/{pid}/mountinfo"), &mounts);
            format!("proc/{pid}/root/sys/fs/cgroup")
        }

        fn find(&self) -> Option<Headroom> {
            find_in(&self.0.path().join("proc"), &self.cgroups())
        }
    }

    #[test]
    fn an_own_limit_counts_without_the_page_cache_that_can_be_dropped() {
        let fake = Fake::new("cgroup2", "", "0::/\n");
        fake.v2("cgroup", &(64 * MIB).to_string(), 50, 20);
        let headroom = Headroom { free: 34 * MIB, limit: 64 * MIB, of: LimitOf::Own };
        assert_eq!(fake.find(), Some(headroom));
        fake.v2("cgroup", "max", 50, 20);
        assert_eq!(fake.find(), None);
    }

    #[test]
    fn the_target_container_bounds_what_is_known_of_the_pod_in_a_cgroup_namespace() {
        let fake = Fake::new("cgroup2", "", "0::/\n");
        fake.v2("cgroup", "max", 1, 0);
        let seen = fake.process(7, "overlay", "cgroup2", "");
        fake.v2(&seen, &(24 * MIB).to_string(), 21, 0);
        assert_eq!(fake.find(), Some(Headroom { free: 3 * MIB, limit: 24 * MIB, of: LimitOf::Target }));
        // A look at a root that its container serves can hang.
        fake.process(7, "fuse.evil", "cgroup2", "");
        assert_eq!(fake.find(), None);
    }

    #[test]
    fn the_pods_limit_is_shown_by_v1_and_everything_visible_is_subtracted() {
        let fake = Fake::new("cgroup", ",memory", "9:memory:/\n");
        let none = 0x7FFF_FFFF_FFFF_F000;
        fake.v1("cgroup", none, 24 * MIB, 2);
        let seen = fake.process(7, "overlay", "cgroup", ",memory");
        fake.v1(&seen, 24 * MIB, 24 * MIB, 17);
        assert_eq!(fake.find(), Some(Headroom { free: 5 * MIB, limit: 24 * MIB, of: LimitOf::Pod }));
        fake.v1("cgroup", none, none, 2);
        assert_eq!(fake.find().unwrap().of, LimitOf::Target);
    }

    #[test]
    fn in_the_hosts_pid_namespace_other_processes_are_of_other_pods() {
        let fake = Fake::new("cgroup2", "", "0::/\n");
        fake.v2("cgroup", "max", 1, 0);
        let seen = fake.process(7, "overlay", "cgroup2", "");
        fake.v2(&seen, &(24 * MIB).to_string(), 21, 0);
        fs::create_dir_all(fake.0.path().join("proc/self/ns")).unwrap();
        let link = format!("pid:[{}]", pid_namespace::INITIAL);
        std::os::unix::fs::symlink(link, fake.0.path().join("proc/self/ns/pid")).unwrap();
        assert_eq!(fake.find(), None);
    }
}
