//! Parses a cgroup's path into the pod uid and the container ids. Pure functions. What a path claims is not yet true: see
//! [`super::trust`].
//!
//! The rules are how the kubelet and the runtimes name directories (systemd and cgroupfs drivers; containerd, CRI-O,
//! cri-dockerd, k3s, kind, podman). This module must not depend on the file system or on CRI.
//! A container can be allowed to create cgroups, so every component is hostile input: the ids and uids returned here consist
//! of letters, digits and dashes only and are bounded in length.

use std::path::{Path, PathBuf};

use podopsy_model::incident::Level;

use super::trust::KubeletRoots;

/// Kubernetes' quality of service class, as the kubelet writes it into the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Qos {
    /// Kubernetes' own spelling (`status.qosClass`).
    pub fn as_str(self) -> &'static str {
        match self {
            Qos::Guaranteed => "Guaranteed",
            Qos::Burstable => "Burstable",
            Qos::BestEffort => "BestEffort",
        }
    }
}

/// The level of the memory hierarchy that a path is, as far as it is believed where nothing but the path is known: a container's
/// name inside of a container makes no second container.
pub fn level(path: &[u8]) -> Level {
    KubeletRoots::default().believed(path).level()
}

/// The runtime that named the container's directory. `None` in [`PathContainer`]: a bare id does not show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuntimeKind {
    Containerd,
    CriO,
    Docker,
    Podman,
}

/// One container in a path. Containers nest: in kind, a node's container holds the pods' containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathContainer {
    /// The uid of the pod around it. None: it is not in Kubernetes (plain docker, podman, a kind node).
    pub pod_uid: Option<String>,
    /// 64 lower-case hex digits.
    pub container_id: String,
    pub runtime: Option<RuntimeKind>,
    /// The number of path components up to and including its own: 3 for `/a/b/<id>`.
    pub depth: usize,
}

/// The parsed path of a cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupName {
    /// Outermost first. The innermost is used, unless a source of names knows one further out; [`super::names`] explains how
    /// that keeps a container from impersonating another.
    pub containers: Vec<PathContainer>,
    /// The innermost pod.
    pub pod_uid: Option<String>,
    pub qos: Option<Qos>,
    /// The path lies below the innermost container's own directory.
    pub below: bool,
    /// The number of components.
    pub depth: usize,
}

impl CgroupName {
    /// The innermost container.
    pub fn container(&self) -> Option<&PathContainer> {
        self.containers.last()
    }

    /// The level of the memory hierarchy.
    pub fn level(&self) -> Level {
        if self.depth == 0 {
            Level::Node
        } else if self.below {
            Level::InsideContainer
        } else if !self.containers.is_empty() {
            Level::Container
        } else if self.pod_uid.is_some() {
            Level::Pod
        } else {
            Level::Slice
        }
    }

    /// Drops all containers but the outermost: the others are cgroups that it created.
    pub fn keep_first_container(&mut self) {
        self.containers.truncate(1);
        self.below = self.containers.first().is_some_and(|container| container.depth < self.depth);
    }
}

/// The length of a container id in Docker, containerd, CRI-O and podman, in hex digits.
const ID_LEN: usize = 64;
/// The longest pod uid. It has 36 characters, or 32 for a static pod, but a manifest may set its own.
const UID_MAX: usize = 64;
/// The deepest nesting of containers that is parsed. kind in docker needs 2.
const NESTED_MAX: usize = 4;

/// Parses a path below the memory hierarchy's root. It is raw bytes: the kernel forbids only `/` and newline in names.
pub fn parse(path: &[u8]) -> CgroupName {
    let mut name = CgroupName::default();
    let mut in_kubepods = false;
    let mut depth = 0;
    for component in path.split(|&b| b == b'/').filter(|c| !c.is_empty()) {
        depth += 1;
        name.below = !name.containers.is_empty();
        // All names that are recognised are ASCII, so a component that is not UTF-8 is skipped.
        let Ok(component) = std::str::from_utf8(component) else { continue };
        // `<slice>:cri-containerd:<id>`: a systemd cgroups path under a cgroupfs runc.
        let (slice, joined) = match component.split_once(":cri-containerd:") {
            Some((slice, id)) => (slice, Some(id)),
            None => (component, None),
        };
        if let Some(qos) = kubepods_level(slice) {
            in_kubepods = true;
            name.qos = qos.or(name.qos).or(Some(Qos::Guaranteed));
        }
        if let Some(uid) = pod_uid(slice, in_kubepods) {
            in_kubepods = true;
            name.pod_uid = Some(uid);
        } else if let Some((id, runtime)) = container_id(joined, component) {
            push(&mut name, id, runtime, depth);
            // What follows is inside the container and needs its own kubepods and pod components.
            in_kubepods = false;
            continue;
        }
        if let Some(id) = joined.filter(|id| is_id(id)) {
            push(&mut name, id, Some(RuntimeKind::Containerd), depth);
            in_kubepods = false;
        }
    }
    if name.containers.last().is_some_and(|container| container.depth == depth) {
        name.below = false;
    }
    name.depth = depth;
    name
}

/// The kubelet's root in the path of a pod's container: the path up to `kubepods` or `…kubepods.slice`. If a runc with the
/// cgroupfs driver was given a systemd path (`<slice>:cri-containerd:<id>`), it is the folder of these.
pub fn kubelet_root(dir: &Path) -> Option<PathBuf> {
    let name = dir.file_name()?.to_str()?;
    if let Some((slice, _)) = name.split_once(":cri-containerd:") {
        kubepods_level(slice)?;
        return dir.parent().map(Path::to_owned);
    }
    let is_root = |path: &&Path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name == "kubepods"
            || name.strip_suffix("kubepods.slice").is_some_and(|rest| rest.is_empty() || rest.ends_with('-'))
    };
    // The outermost: a pod's container may contain another kubelet.
    dir.ancestors().skip(1).filter(is_root).last().map(Path::to_owned)
}

fn push(name: &mut CgroupName, id: &str, runtime: Option<RuntimeKind>, depth: usize) {
    // The pod of an outer container is not the pod of the inner one unless a pod lies between them.
    let pod_uid = name.pod_uid.clone();
    let container = PathContainer { pod_uid, container_id: id.to_owned(), runtime, depth };
    if name.containers.len() == NESTED_MAX {
        name.containers.pop();
    }
    name.containers.push(container);
}

/// `Some` for a level that the kubelet creates; the inner value is the class if the level names one.
fn kubepods_level(component: &str) -> Option<Option<Qos>> {
    match component {
        "kubepods" => return Some(None),
        "burstable" => return Some(Some(Qos::Burstable)),
        "besteffort" => return Some(Some(Qos::BestEffort)),
        _ => {}
    }
    let slice = component.strip_suffix(".slice")?;
    // kind: `kubelet-kubepods-burstable-pod<uid>.slice`; a custom --cgroup-root has the same effect.
    let (before, rest) = slice.split_once("kubepods")?;
    if !(before.is_empty() || before.ends_with('-')) {
        return None;
    }
    match rest.strip_prefix('-').map(|rest| rest.split('-').next().unwrap_or(rest)) {
        Some("burstable") => Some(Some(Qos::Burstable)),
        Some("besteffort") => Some(Some(Qos::BestEffort)),
        None if rest.is_empty() => Some(None),
        Some(pod) if pod.starts_with("pod") => Some(Some(Qos::Guaranteed)),
        _ => None,
    }
}

/// `pod<uid>` below kubepods, or `…kubepods-…-pod<uid>.slice`, in which systemd wants `_` for `-`.
fn pod_uid(component: &str, in_kubepods: bool) -> Option<String> {
    let raw = match component.strip_suffix(".slice") {
        Some(slice) => {
            kubepods_level(component)?;
            slice.split_once("kubepods")?.1.rsplit('-').next()?.strip_prefix("pod")?
        }
        None if in_kubepods => component.strip_prefix("pod")?,
        None => return None,
    };
    let is_valid = (1..=UID_MAX).contains(&raw.len())
        && raw.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    is_valid.then(|| raw.replace('_', "-"))
}

fn container_id<'a>(joined: Option<&str>, component: &'a str) -> Option<(&'a str, Option<RuntimeKind>)> {
    if joined.is_some() {
        return None;
    }
    let (stem, scope) = match component.strip_suffix(".scope") {
        Some(stem) => (stem, true),
        None => (component, false),
    };
    // The id is everything after the last dash, so that `crio-conmon-<id>` has the prefix `crio-conmon`.
    let (prefix, id) = match stem.rsplit_once('-') {
        Some((prefix, id)) => (prefix, id),
        None => ("", stem),
    };
    if !is_id(id) {
        return None;
    }
    match prefix {
        "cri-containerd" | "nerdctl" => Some((id, Some(RuntimeKind::Containerd))),
        "crio" => Some((id, Some(RuntimeKind::CriO))),
        "docker" => Some((id, Some(RuntimeKind::Docker))),
        "libpod" => Some((id, Some(RuntimeKind::Podman))),
        "" if !scope => Some((id, None)),
        // `crio-conmon`, `libpod-conmon`: the monitor process of the container, which is outside of it.
        _ => None,
    }
}

fn is_id(text: &str) -> bool {
    text.len() == ID_LEN && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
#[path = "paths_tests.rs"]
mod tests;
