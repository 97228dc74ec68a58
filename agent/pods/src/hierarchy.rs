//! The cgroup hierarchy that accounts memory: where it is mounted, and how its directories are read.
//!
//! Handles cgroup v1, v2 and hybrid (then memory is on v1). Must not depend on containers, pods or CRI.
//! Paths in this module are relative to the mount, raw bytes, without a leading `/`; [`Hierarchy::shown`] turns one into
//! the text that the kernel would print for it.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use procfs::FromRead;
use procfs::process::MountInfos;

use podopsy_model::text;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupVersion {
    V1,
    V2,
}

/// The CPU time of a cgroup since it was created, and the periods of its quota.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuUsage {
    pub used: Duration,
    /// Periods in which a task of the cgroup could run; 0: no quota.
    pub periods: u64,
    /// Those of them in which the quota was used up.
    pub throttled_periods: u64,
}

/// The mounted hierarchy that memory is accounted in.
#[derive(Clone, Debug)]
pub struct Hierarchy {
    pub version: CgroupVersion,
    /// The mount point.
    pub dir: PathBuf,
    /// The directory of the hierarchy that is mounted there: `/`, unless this process runs in a container.
    root: PathBuf,
    /// The mount of v1's `cpu` controller, for quotas; on v2 the same as `dir`.
    cpu_dir: Option<PathBuf>,
    /// The mount of v1's `cpuacct` controller, for usage; on v2 the same as `dir`.
    cpuacct_dir: Option<PathBuf>,
    /// The root of this process's cgroup namespace, relative to `dir`: what `/` means in `/proc/<pid>/cgroup`.
    namespace: PathBuf,
}

impl Hierarchy {
    /// Finds it in `<proc>/self/mountinfo`, among the mounts below `cgroup_root`. If there is none (the tree of another
    /// mount namespace, or a test's folder), detects it by the files in `cgroup_root`.
    pub fn find(proc_root: &Path, cgroup_root: &Path) -> anyhow::Result<Hierarchy> {
        let mounts = MountInfos::from_file(proc_root.join("self/mountinfo")).map(|m| m.0).unwrap_or_default();
        let below: Vec<_> = mounts.iter().filter(|m| m.mount_point.starts_with(cgroup_root)).collect();
        let v1 = |controller: &str| {
            below.iter().find(|m| m.fs_type == "cgroup" && m.super_options.contains_key(controller))
        };
        let mut found = if let Some(mount) = v1("memory") {
            let mount_point = |controller| v1(controller).map(|m| m.mount_point.clone());
            let cpu_dirs = [mount_point("cpu"), mount_point("cpuacct")];
            Hierarchy::at(CgroupVersion::V1, &mount.mount_point, &mount.root, cpu_dirs)
        } else if let Some(mount) = below.iter().find(|m| m.fs_type == "cgroup2") {
            Hierarchy::v2_at(&mount.mount_point, &mount.root)
        } else {
            Hierarchy::by_layout(cgroup_root)?
        };
        found.namespace = found.own_namespace(proc_root);
        Ok(found)
    }

    fn at(version: CgroupVersion, dir: &Path, root: &str, cpu_dirs: [Option<PathBuf>; 2]) -> Hierarchy {
        let [cpu_dir, cpuacct_dir] = cpu_dirs;
        Hierarchy {
            version,
            dir: dir.into(),
            root: root.into(),
            cpu_dir,
            cpuacct_dir,
            namespace: PathBuf::new(),
        }
    }

    fn v2_at(dir: &Path, root: &str) -> Hierarchy {
        Hierarchy::at(CgroupVersion::V2, dir, root, [Some(dir.to_owned()), Some(dir.to_owned())])
    }

    /// Both versions, with and without a namespace.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn examples() -> [Hierarchy; 4] {
        let hierarchy = |version, root: &str, namespace: &str| Hierarchy {
            namespace: namespace.into(),
            ..Hierarchy::at(version, Path::new("/sys/fs/cgroup"), root, [None, None])
        };
        [
            hierarchy(CgroupVersion::V1, "/", ""),
            hierarchy(CgroupVersion::V1, "/docker/node", ""),
            hierarchy(CgroupVersion::V2, "/", ""),
            hierarchy(CgroupVersion::V2, "/", "system.slice/podopsy.service"),
        ]
    }

    fn by_layout(cgroup_root: &Path) -> anyhow::Result<Hierarchy> {
        if cgroup_root.join("memory").is_dir() {
            let cpu_dirs =
                ["cpu", "cpuacct"].map(|name| Some(cgroup_root.join(name)).filter(|dir| dir.is_dir()));
            return Ok(Hierarchy::at(CgroupVersion::V1, &cgroup_root.join("memory"), "/", cpu_dirs));
        }
        if cgroup_root.join("cgroup.controllers").exists() {
            return Ok(Hierarchy::v2_at(cgroup_root, "/"));
        }
        bail!("no cgroup memory hierarchy is mounted below {}", cgroup_root.display())
    }

    /// The root of the hierarchy that another process sees, as an absolute path here. It is `/`, unless that process runs in
    /// a container. None: the process is gone, or its root is not below ours.
    pub fn root_seen_by(&self, proc_root: &Path, pid: u32) -> Option<PathBuf> {
        // The kernel writes the roots of mounts relative to the cgroup namespace of the reader, which is this process.
        let mounts = MountInfos::from_file(proc_root.join(format!("{pid}/mountinfo"))).ok()?.0;
        let mut mounts = mounts.iter().filter(|mount| mount.mount_point.starts_with("/sys/fs/cgroup"));
        let mount = mounts.find(|mount| match self.version {
            CgroupVersion::V1 => mount.fs_type == "cgroup" && mount.super_options.contains_key("memory"),
            CgroupVersion::V2 => mount.fs_type == "cgroup2",
        })?;
        let root = Path::new(&mount.root);
        let is_named = |path: &Path| path.components().all(|component| component != Component::ParentDir);
        if is_named(root) && is_named(&self.root) {
            return Some(root.to_owned());
        }
        // `absolute` counts from the root of our mount, because the names above it are not known.
        let below = root.strip_prefix(&self.root).ok().filter(|below| is_named(below))?;
        Some(Path::new("/").join(below))
    }

    /// The directory of a relative path.
    pub fn join(&self, path: &Path) -> PathBuf {
        self.dir.join(path)
    }

    /// The memory cgroup's id: the inode number of its directory (kernfs gives both the same number).
    pub fn id(&self, path: &Path) -> Option<u64> {
        let meta = fs::symlink_metadata(self.join(path)).ok()?;
        meta.is_dir().then(|| meta.ino())
    }

    /// The path below the hierarchy's root, with a leading `/`, escaped: the value of `CgroupRef.path`.
    pub fn shown(&self, path: &Path) -> String {
        text::escape_bytes(&self.absolute(path))
    }

    /// The raw bytes of [`Hierarchy::shown`].
    pub fn absolute(&self, path: &Path) -> Vec<u8> {
        // `..` in the root of a mount stands for a directory above our cgroup namespace, whose name is not known.
        let named = self.root.components().all(|c| c != Component::ParentDir);
        let base = if named { self.root.as_path() } else { Path::new("/") };
        let whole = if path.as_os_str().is_empty() { base.to_owned() } else { base.join(path) };
        whole.as_os_str().as_bytes().to_owned()
    }

    /// The reverse of [`Hierarchy::absolute`]. None: the path lies outside of the mount.
    pub fn from_absolute(&self, absolute: &[u8]) -> Option<PathBuf> {
        let path = Path::new(std::ffi::OsStr::from_bytes(absolute));
        let relative = path.strip_prefix(&self.root).ok()?;
        relative.components().all(|c| matches!(c, Component::Normal(_))).then(|| relative.to_owned())
    }

    /// The path of the memory cgroup in the content of a `/proc/<pid>/cgroup`, relative to the mount. None: it has none, or
    /// the path lies outside of the mount. The content is raw bytes, since a container may choose the name.
    pub fn of_proc(&self, proc_cgroup: &[u8]) -> Option<PathBuf> {
        self.relative(self.line(proc_cgroup)?)
    }

    /// The path in the line for this hierarchy (`cgroups(7)`: `id:controllers:path`).
    fn line<'a>(&self, proc_cgroup: &'a [u8]) -> Option<&'a [u8]> {
        proc_cgroup.split(|&b| b == b'\n').find_map(|line| {
            let mut fields = line.splitn(3, |&b| b == b':');
            let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let ours = match self.version {
                CgroupVersion::V1 => controllers.split(|&b| b == b',').any(|c| c == b"memory"),
                CgroupVersion::V2 => id == b"0" && controllers.is_empty(),
            };
            // The kernel adds this suffix for a zombie's cgroup once the directory is gone.
            ours.then(|| path.strip_suffix(b" (deleted)").unwrap_or(path))
        })
    }

    fn relative(&self, path: &[u8]) -> Option<PathBuf> {
        let path = Path::new(std::ffi::OsStr::from_bytes(path));
        // The mount shows a part of the hierarchy (docker on v1), while the path counts from the hierarchy's root.
        let path = match path.strip_prefix(&self.root) {
            Ok(rest) if self.root != Path::new("/") => rest,
            _ => path,
        };
        let mut out = self.namespace.clone();
        for component in path.components() {
            match component {
                Component::Normal(name) => out.push(name),
                Component::ParentDir if !out.pop() => return None,
                _ => {}
            }
        }
        Some(out)
    }

    /// The root of this process's cgroup namespace. In a cgroup namespace, `/proc/<pid>/cgroup` counts from the root of the
    /// namespace and not of the mount. To find the difference, look for the directory whose `cgroup.procs` lists us.
    fn own_namespace(&self, proc_root: &Path) -> PathBuf {
        let none = PathBuf::new();
        let Ok(own) = fs::read(proc_root.join("self/cgroup")) else { return none };
        let Some(own) = self.line(&own).and_then(|line| self.relative(line)) else { return none };
        let me = std::process::id();
        if self.lists(&own, me) {
            return none;
        }
        let mut real = None;
        self.walk(Path::new(""), &mut |path| {
            if real.is_none() && self.lists(path, me) {
                real = Some(path.to_owned());
            }
            real.is_none()
        });
        // `<namespace root>/<own>` is the real one.
        real.filter(|real| real.ends_with(&own))
            .map(|real| {
                real.components().take(real.components().count() - own.components().count()).collect()
            })
            .unwrap_or(none)
    }

    fn lists(&self, path: &Path, pid: u32) -> bool {
        self.procs(path).contains(&pid)
    }

    /// Visits `from` and all directories below it, parents first; `visit` returns whether to descend. A directory that is
    /// removed meanwhile is skipped.
    pub fn walk(&self, from: &Path, visit: &mut dyn FnMut(&Path) -> bool) {
        let mut pending = vec![from.to_owned()];
        while let Some(path) = pending.pop() {
            if visit(&path) {
                pending.extend(self.children(&path));
            }
        }
    }

    /// The child directories of a path.
    pub fn children(&self, path: &Path) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.join(path)) else { return Vec::new() };
        entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| path.join(entry.file_name()))
            .collect()
    }

    /// The pids in `cgroup.procs`, in our pid namespace. Processes outside of it, shown as 0, are left out.
    pub fn procs(&self, path: &Path) -> Vec<u32> {
        let text = fs::read_to_string(self.join(path).join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.trim().parse().ok()).filter(|&pid| pid != 0).collect()
    }

    /// The hierarchy that is mounted here, and this process's memory cgroup in it.
    pub fn own() -> Option<(Hierarchy, PathBuf)> {
        let hierarchy = Hierarchy::find(Path::new("/proc"), Path::new("/sys/fs/cgroup")).ok()?;
        let path = hierarchy.of_proc(&fs::read("/proc/self/cgroup").ok()?)?;
        Some((hierarchy, path))
    }

    /// The smallest memory limit of this process's cgroup and of those above it that are visible here; None: there is none.
    pub fn own_memory_limit() -> Option<u64> {
        let (hierarchy, own) = Hierarchy::own()?;
        own.ancestors().filter_map(|path| hierarchy.memory_limit(path)).min()
    }

    /// The limit in bytes (`memory.max`, `memory.limit_in_bytes`); None: no limit, or not readable.
    pub fn memory_limit(&self, path: &Path) -> Option<u64> {
        let limit = self.number(path, "memory.limit_in_bytes", "memory.max")?;
        // v1 shows "no limit" as the largest multiple of the page size.
        (limit < 1 << 62).then_some(limit)
    }

    /// Usage in bytes, page cache included (`memory.current`, `memory.usage_in_bytes`).
    pub fn memory_usage(&self, path: &Path) -> Option<u64> {
        self.number(path, "memory.usage_in_bytes", "memory.current")
    }

    /// The CPU limit in thousandths of a core (`cpu.max`, `cpu.cfs_quota_us` by its period).
    pub fn cpu_limit_millis(&self, path: &Path) -> Option<u64> {
        let dir = self.cpu_dir.as_ref()?.join(path);
        let (quota, period) = match self.version {
            CgroupVersion::V1 => {
                (read(&dir.join("cpu.cfs_quota_us")).ok()?, read(&dir.join("cpu.cfs_period_us")).ok()?)
            }
            CgroupVersion::V2 => {
                let text = read(&dir.join("cpu.max")).ok()?;
                let (quota, period) = text.split_once(' ')?;
                (quota.to_owned(), period.to_owned())
            }
        };
        // "max" (v2) and -1 (v1) mean no limit, and do not parse as u64.
        millis(quota.parse().ok()?, period.parse().ok()?)
    }

    /// The CPU time of a cgroup and those below it, and how often its quota throttled it (v2 `cpu.stat`; v1 `cpuacct.usage` and
    /// `cpu.stat`). None: the cgroup is gone, or its CPU time is not accounted.
    pub fn cpu_usage(&self, path: &Path) -> Option<CpuUsage> {
        let stat = read(&self.cpu_dir.as_ref()?.join(path).join("cpu.stat")).unwrap_or_default();
        let value = |key: &str| {
            let line = stat.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
            line.and_then(|value| value.trim().parse::<u64>().ok())
        };
        let used = match self.version {
            CgroupVersion::V1 => {
                let ns = read(&self.cpuacct_dir.as_ref()?.join(path).join("cpuacct.usage")).ok()?;
                Duration::from_nanos(ns.parse().ok()?)
            }
            CgroupVersion::V2 => Duration::from_micros(value("usage_usec")?),
        };
        let periods = value("nr_periods").unwrap_or(0);
        Some(CpuUsage { used, periods, throttled_periods: value("nr_throttled").unwrap_or(0) })
    }

    fn number(&self, path: &Path, v1: &str, v2: &str) -> Option<u64> {
        let name = if self.version == CgroupVersion::V1 { v1 } else { v2 };
        read(&self.join(path).join(name)).ok()?.parse().ok()
    }
}

/// Converts `quota` µs of CPU time in every `period` µs to thousandths of a core.
pub fn millis(quota: u64, period: u64) -> Option<u64> {
    quota.checked_mul(1000)?.checked_div(period)
}

fn read(path: &Path) -> anyhow::Result<String> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
#[path = "hierarchy_tests.rs"]
mod tests;
