//! Memory cgroup id ↔ process ↔ container ↔ pod. The only room that knows Kubernetes.
//!
//! Must not know: aya, the wire's records, symbols, how anything is rendered.

pub mod cri;
pub mod hierarchy;
pub mod logdir;
pub mod paths;
pub mod proc;
mod text;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::model::{ContainerRef, Owner, PodRef, Target};

#[derive(Clone, Debug)]
pub struct Options {
    /// CRI v1 socket; None: probe the usual paths.
    pub cri_socket: Option<PathBuf>,
    /// Longest wait for one CRI call.
    pub cri_timeout: Duration,
    /// How long the dead are remembered (at least).
    pub remember_dead: Duration,
    /// `/proc`, `/sys/fs/cgroup`, `/var/log/pods`: other places in tests.
    pub proc_root: PathBuf,
    pub cgroup_root: PathBuf,
    pub log_pods: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            cri_socket: None,
            cri_timeout: Duration::from_secs(2),
            remember_dead: Duration::from_secs(600),
            proc_root: "/proc".into(),
            cgroup_root: "/sys/fs/cgroup".into(),
            log_pods: "/var/log/pods".into(),
        }
    }
}

/// A pod sandbox and its containers, as `podopsy pods` lists them and `podopsy inspect` shows them.
#[derive(Clone, Debug, Serialize)]
pub struct Pod {
    pub pod: PodRef,
    pub sandbox_id: String,
    /// CRI's PodSandboxState: `ready` or `notready`.
    pub state: String,
    pub created_at: Option<Timestamp>,
    /// Pod IPs, from PodSandboxStatus.network.
    pub ips: Vec<String>,
    /// `/proc/<pid>/ns/net` style path or null for the host's network.
    pub netns: Option<String>,
    pub containers: Vec<Container>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Container {
    pub container: ContainerRef,
    /// CRI's ContainerState: `created`, `running`, `exited`, `unknown`.
    pub state: String,
    pub reason: String,
    pub exit_code: Option<i32>,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    /// From the kubelet's annotation `io.kubernetes.container.restartCount`, else CRI's attempt.
    pub restarts: u32,
    /// PID 1 of the container in the host's pid namespace, while it runs.
    pub pid: Option<u32>,
    /// All of its processes, host pids.
    pub pids: Vec<u32>,
    /// Namespace inode numbers of PID 1 by kind (`net`, `mnt`, `pid`, …).
    pub namespaces: BTreeMap<String, u64>,
    pub cgroup_path: Option<String>,
    /// Memory cgroup ids: the container's own first, then those below it.
    pub cgroup_ids: Vec<u64>,
    /// Bytes; null: no limit.
    pub memory_limit_bytes: Option<u64>,
    pub memory_usage_bytes: Option<u64>,
    /// CPU limit in thousandths of a core; null: none.
    pub cpu_limit_millis: Option<u64>,
}

/// How the room is doing, for `doctor` and for losses.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Status {
    pub cri_socket: Option<PathBuf>,
    /// RuntimeName and RuntimeVersion of CRI's Version call.
    pub runtime: Option<String>,
    /// The last CRI error, in words.
    pub cri_error: Option<String>,
    pub containers_known: usize,
    pub containers_remembered_dead: usize,
    /// Counters by name: `cri_errors`, `cgroups_unknown`, `watches_refused`, `dead_evicted`.
    pub losses: BTreeMap<String, u64>,
}

/// What a [`Target`] turned out to be.
#[derive(Clone, Debug)]
pub enum Resolved {
    Node,
    /// These containers (all of a pod's, or one), with their pod.
    Containers(PodRef, Vec<Container>),
    /// A process in no container.
    Process(u32),
    /// A memory cgroup that is no container's: its ids.
    Cgroups(Vec<u64>),
}

/// The room's door.
#[derive(Debug)]
pub struct Pods {}

impl Pods {
    /// Lists what is there, starts to watch, and returns; a missing or broken CRI is no error but a [`Status`].
    pub async fn start(_options: Options) -> anyhow::Result<Arc<Pods>> {
        anyhow::bail!("not yet")
    }

    /// The owner of a memory cgroup, dead or alive. Waits (bounded by `cri_timeout`) if its names are being fetched.
    pub async fn owner_of_cgroup(&self, _id: u64) -> Owner {
        Owner::default()
    }

    /// The owner of a living process.
    pub async fn owner_of_pid(&self, _pid: u32) -> anyhow::Result<Owner> {
        Ok(Owner::default())
    }

    /// Every pod that the runtime knows.
    pub async fn list(&self) -> anyhow::Result<Vec<Pod>> {
        Ok(Vec::new())
    }

    /// Errors name the target and what is there instead (close names, or that no runtime answers).
    pub async fn resolve(&self, _target: &Target) -> anyhow::Result<Resolved> {
        anyhow::bail!("not yet")
    }

    pub fn status(&self) -> Status {
        Status::default()
    }
}
