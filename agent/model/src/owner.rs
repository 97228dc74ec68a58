//! The owner of a process or an event: cgroup, container, pod.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A pod, from CRI's `PodSandboxMetadata` and the labels of the sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PodRef {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// The pod's own labels, without the `io.kubernetes.*` ones that the kubelet adds for itself.
    pub labels: BTreeMap<String, String>,
}

/// A container, from CRI's `ContainerStatus`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ContainerRef {
    pub name: String,
    /// The runtime's full id (64 hex digits for containerd and CRI-O).
    pub id: String,
    /// The image as the pod's spec names it.
    pub image: String,
    /// CRI's `ContainerMetadata.attempt`: 0 for the first start, then one more for each restart.
    pub attempt: u32,
}

/// The memory cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CgroupRef {
    /// kernfs id: the inode number of the cgroup's directory; 0 if the kernel did not report it.
    pub id: u64,
    /// Path below the hierarchy's root, `/` first; null if the cgroup was gone before it was seen.
    pub path: Option<String>,
}

/// The source of an [`Owner`]'s names, best first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum KnownBy {
    /// The container runtime (CRI v1).
    Cri,
    /// `/var/log/pods/<namespace>_<pod>_<uid>/`; labels and image are not known.
    LogDirectory,
    /// The cgroup's path, which gave a pod uid or a container id; the names are not known.
    CgroupPath,
    /// The pod itself, with podopsy running inside of it: host name, resolv.conf, mounts and cgroup paths.
    Inside,
    /// The process is in no container: it is a process of the host.
    Host,
    /// The cgroup is not known (gone before it was seen, or the id is 0).
    #[default]
    Unknown,
}

/// Everything that is known about the owner of a cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Owner {
    pub pod: Option<PodRef>,
    pub container: Option<ContainerRef>,
    pub cgroup: CgroupRef,
    pub known_by: KnownBy,
}
