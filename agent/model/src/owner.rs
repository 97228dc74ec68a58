//! Who was behind it: cgroup, container, pod.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A pod, as CRI's `PodSandboxMetadata` and sandbox labels give it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRef {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// The pod's own labels, without the `io.kubernetes.*` ones that the kubelet adds for itself.
    pub labels: BTreeMap<String, String>,
}

/// A container, as CRI's `ContainerStatus` gives it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRef {
    pub name: String,
    /// The runtime's full id (64 hex digits for containerd and CRI-O).
    pub id: String,
    /// The image by the name that the pod's spec used.
    pub image: String,
    /// CRI's `ContainerMetadata.attempt`: 0 for the first start, then one more a restart.
    pub attempt: u32,
}

/// The memory cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupRef {
    /// kernfs id: the inode number of the cgroup's directory; 0 when the kernel could not tell.
    pub id: u64,
    /// Path below the hierarchy's root, `/` first; null when the cgroup was gone before it was seen.
    pub path: Option<String>,
}

/// Where an [`Owner`]'s names come from, best first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KnownBy {
    /// The container runtime said so (CRI v1).
    Cri,
    /// `/var/log/pods/<namespace>_<pod>_<uid>/` said so; labels and image are unknown.
    LogDirectory,
    /// The cgroup's path gave a pod uid or container id, and nothing could put a name to it.
    CgroupPath,
    /// The pod itself said so, to podopsy inside of it: the host's name, resolv.conf, mounts and cgroup paths.
    Inside,
    /// No container at all: a process of the host.
    Host,
    /// The cgroup is not known (gone before it was seen, or the id is 0).
    #[default]
    Unknown,
}

/// Everything that is known of the owner of a cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub pod: Option<PodRef>,
    pub container: Option<ContainerRef>,
    pub cgroup: CgroupRef,
    pub known_by: KnownBy,
}
