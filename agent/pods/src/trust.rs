//! Which names in a cgroup's path are believed. Pure: what the runtime reports is passed in.
//!
//! A container, a user with a delegated subtree, or rootless docker may create cgroups and give them any name:
//! `user.slice/…/kubepods/burstable/pod<uid>/<id>` looks like a pod's cgroup and is none. So a pod's name in a path is
//! believed only below a kubelet's root, where only the kubelet and the runtime create cgroups, and only down to the first
//! container there; what is below that belongs to the container.
//!
//! The usual roots are `kubepods` and `kubepods.slice` at the top of the hierarchy that the runtime sees. Others
//! (`--cgroup-root`) are learned from the paths that the runtime reports for its containers, never from how a path looks.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::paths::{self, CgroupName};

/// A node has one kubelet; several roots mean that its settings have changed since.
const ROOTS_MAX: usize = 8;

/// The places below which pods' names are believed. All paths are absolute, from the root of the memory hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubeletRoots {
    /// The root of the hierarchy that the runtime sees: `/`, unless the runtime is in a container (kind).
    runtime_root: PathBuf,
    /// The runtime's own cgroup. Relative paths count from there.
    runtime_cgroup: Option<PathBuf>,
    roots: Vec<PathBuf>,
}

impl Default for KubeletRoots {
    fn default() -> Self {
        KubeletRoots::new("/".into(), None)
    }
}

impl KubeletRoots {
    pub fn new(runtime_root: PathBuf, runtime_cgroup: Option<PathBuf>) -> KubeletRoots {
        let roots = ["kubepods", "kubepods.slice"].map(|name| runtime_root.join(name)).to_vec();
        KubeletRoots { runtime_root, runtime_cgroup, roots }
    }

    /// The names in a path that are believed.
    ///
    /// - Below a kubelet's root: the pod, and the first container, however many names follow.
    /// - Elsewhere: the outermost container (docker, podman), unless the path claims a pod for it.
    pub fn believed(&self, path: &[u8]) -> CgroupName {
        let absolute = Path::new(OsStr::from_bytes(path));
        let Some(root) = self.roots.iter().find(|root| absolute.starts_with(root)) else {
            let mut name = paths::parse(path);
            name.keep_first_container();
            name.containers.retain(|container| container.pod_uid.is_none());
            name.below &= !name.containers.is_empty();
            (name.pod_uid, name.qos) = (None, None);
            return name;
        };
        // What is above the root's own directory cannot name the pod.
        let above = depth(root).saturating_sub(1);
        let tail: PathBuf = absolute.components().filter(is_name).skip(above).collect();
        let mut name = paths::parse(tail.as_os_str().as_bytes());
        name.keep_first_container();
        name.depth += above;
        for container in &mut name.containers {
            container.depth += above;
        }
        if let Some(container) = name.containers.first() {
            name.pod_uid.clone_from(&container.pod_uid);
        }
        name
    }

    /// Whether `dir` is the cgroup of a container whose OCI spec has this `linux.cgroupsPath`.
    pub fn is_at(&self, dir: &Path, cgroups_path: &str) -> bool {
        let reported = Path::new(cgroups_path);
        if reported.components().any(|component| component == Component::ParentDir) {
            return false;
        }
        let own = self.runtime_cgroup.as_ref();
        let from_own = || own.is_some_and(|own| dir == own.join(reported));
        if let Ok(below_root) = reported.strip_prefix("/") {
            return dir == self.runtime_root.join(below_root);
        }
        let Some(unit) = systemd_path(cgroups_path) else { return from_own() };
        // A runc with the cgroupfs driver takes the systemd notation for a relative path.
        dir == self.runtime_root.join(unit) || from_own()
    }

    /// Whether a directory's path has a kubelet's root in it that is not known.
    pub fn may_teach(&self, dir: &Path) -> bool {
        self.new_root(dir).is_some()
    }

    fn new_root(&self, dir: &Path) -> Option<PathBuf> {
        let root = paths::kubelet_root(dir)?;
        // The top itself would make every path credible.
        let is_below_top = root != self.runtime_root && root.starts_with(&self.runtime_root);
        let is_known = self.roots.iter().any(|known| dir.starts_with(known));
        (is_below_top && !is_known && self.roots.len() < ROOTS_MAX).then_some(root)
    }

    /// Adds the kubelet's root in the path of a container that the runtime has confirmed to be at `dir`.
    pub fn learn(&mut self, dir: &Path) {
        self.roots.extend(self.new_root(dir));
    }
}

/// The first `depth` components of a path.
pub fn prefix(path: &[u8], depth: usize) -> PathBuf {
    let components = Path::new(OsStr::from_bytes(path)).components().filter(is_name);
    Path::new("/").join(components.take(depth).collect::<PathBuf>())
}

fn depth(path: &Path) -> usize {
    path.components().filter(is_name).count()
}

fn is_name(component: &Component) -> bool {
    matches!(component, Component::Normal(_))
}

/// The path of `slice:prefix:name`, as systemd creates it: `a-b.slice` lies in `a.slice`.
fn systemd_path(cgroups_path: &str) -> Option<PathBuf> {
    let mut fields = cgroups_path.split(':');
    let (slice, prefix, name) = (fields.next()?, fields.next()?, fields.next()?);
    if fields.next().is_some() || name.is_empty() || cgroups_path.contains('/') {
        return None;
    }
    // runc's default.
    let slice = if slice.is_empty() { "system.slice" } else { slice };
    let stem = slice.strip_suffix(".slice")?;
    let mut path = PathBuf::new();
    if stem != "-" {
        let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
        path.extend(ends.map(|end| format!("{}.slice", &stem[..end])));
    }
    let stem = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}-{name}") };
    Some(path.join(format!("{stem}.scope")))
}

#[cfg(test)]
#[path = "trust_tests.rs"]
mod tests;
