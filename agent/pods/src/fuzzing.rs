//! What is private in this crate and has a fuzz target.

use std::path::PathBuf;

use crate::hierarchy::Hierarchy;
use crate::text::field;

/// The memory cgroup's path in the content of a `/proc/PID/cgroup`, for both versions of cgroups, and for a process that
/// sees the whole hierarchy and one that is in a cgroup namespace.
pub fn cgroups_of_process(content: &[u8]) -> Vec<PathBuf> {
    Hierarchy::examples().iter().filter_map(|hierarchy| hierarchy.of_proc(content)).collect()
}

/// The path below the mount of a path as the kernel prints it.
pub fn cgroups_of_path(absolute: &[u8]) -> Vec<PathBuf> {
    Hierarchy::examples().iter().filter_map(|hierarchy| hierarchy.from_absolute(absolute)).collect()
}

/// A text of the runtime as it is stored, and a pod's labels.
pub fn stored_text(raw: &str) -> String {
    field(raw)
}

/// What a pod without rights can find out about itself from these files: uid, container and namespace.
pub fn own_pod(cgroup: &str, mountinfo: &str, resolv_conf: &str) -> [Option<String>; 3] {
    crate::inside::fuzzing(cgroup, mountinfo, resolv_conf)
}
