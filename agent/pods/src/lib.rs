//! Maps a memory cgroup id or a process to its container and its pod, and back. The only crate that knows Kubernetes.
//!
//! inotify and scans find the cgroups (module `watch`), their paths give ids ([`paths`]), and the container runtime or the log
//! folders give the names for the ids (`names`). `state` holds what is known, the dead included.
//!
//! This crate must not depend on aya, on the kernel side's records, on symbols or on rendering.

mod cache;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod headroom;
pub mod hierarchy;
pub mod inside;
mod list;
pub mod logdir;
mod names;
pub mod paths;
mod ports;
pub mod proc;
mod resolve;
mod state;
mod text;
mod trust;
mod watch;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use inside::OwnPod;
use podopsy_model::incident::RuntimeView;
use podopsy_model::{ContainerRef, Owner, PodRef, Target};
pub use podopsy_runtime::run_if_asked;
use podopsy_runtime::{ReaderOptions, RuntimeReader};
pub use ports::ContainerPort;

#[derive(Clone, Debug)]
pub struct PodsOptions {
    /// The CRI v1 socket. None: probe the usual paths.
    pub cri_socket: Option<PathBuf>,
    /// The timeout of one CRI call.
    pub cri_timeout: Duration,
    /// Asks the runtime. None: this process does.
    pub reader: Option<RuntimeReader>,
    /// In a pid namespace of its own, and without a runtime, take what is seen for the pod's that this process runs in. A service
    /// of the node must not: on a node that is a container, its runtime may only be late.
    pub from_inside: bool,
    /// How long cgroups are remembered after they were removed, at least.
    pub remember_dead: Duration,
    /// `/proc`, `/sys/fs/cgroup` and `/var/log/pods`; tests use other folders.
    pub proc_root: PathBuf,
    pub cgroup_root: PathBuf,
    pub log_pods: PathBuf,
}

impl Default for PodsOptions {
    fn default() -> Self {
        PodsOptions {
            cri_socket: None,
            cri_timeout: Duration::from_secs(2),
            reader: None,
            from_inside: false,
            remember_dead: Duration::from_secs(600),
            proc_root: "/proc".into(),
            cgroup_root: "/sys/fs/cgroup".into(),
            log_pods: "/var/log/pods".into(),
        }
    }
}

impl PodsOptions {
    /// Has another process ask the runtime, so that this one can give up the right to connect to it. Must be called before
    /// the process gives up the right to start programs.
    pub fn start_reader(&mut self) -> std::io::Result<()> {
        // Without a hierarchy, pods cannot be resolved, which is reported then.
        let hierarchy = hierarchy::Hierarchy::find(&self.proc_root, &self.cgroup_root).ok();
        let node_root = hierarchy.and_then(|hierarchy| proc::node_root(&self.proc_root, &hierarchy));
        let options = ReaderOptions {
            program: "/proc/self/exe".into(),
            socket: self.cri_socket.clone(),
            node_root,
            timeout: self.cri_timeout,
        };
        self.reader = Some(RuntimeReader::start(&options)?);
        Ok(())
    }
}

/// A pod with its newest sandbox and the containers of all of its sandboxes, as `podopsy pods` lists them and `podopsy inspect` shows them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodDetails {
    pub pod: PodRef,
    pub sandbox_id: String,
    /// CRI's PodSandboxState: `ready` or `notready`.
    pub state: String,
    pub created_at: Option<Timestamp>,
    /// Pod IPs, from PodSandboxStatus.network.
    pub ips: Vec<String>,
    /// The path of its network namespace, like `/proc/<pid>/ns/net`; null for the host's network.
    pub netns: Option<String>,
    pub containers: Vec<ContainerDetails>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerDetails {
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
    /// All of its processes, as host pids.
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
    /// The ports that the pod's specification declares, from the kubelet's annotation `io.kubernetes.container.ports`.
    #[serde(default)]
    pub ports: Vec<ContainerPort>,
}

impl ContainerDetails {
    /// The part that the runtime reports, for comparison with the kernel's facts.
    pub fn view(self) -> RuntimeView {
        RuntimeView {
            state: self.state,
            reason: self.reason,
            exit_code: self.exit_code,
            restarts: self.restarts,
            started_at: self.started_at,
            finished_at: self.finished_at,
            pid: self.pid,
            asked_at: Timestamp::now(),
        }
    }
}

/// The health of the runtime connection and of the cgroup cache, for `doctor` and for losses.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PodsStatus {
    pub cri_socket: Option<PathBuf>,
    /// RuntimeName and RuntimeVersion of CRI's Version call.
    pub runtime: Option<String>,
    /// The text of the last CRI error.
    pub cri_error: Option<String>,
    pub containers_known: usize,
    pub containers_remembered_dead: usize,
    /// Counters by name; one at 0 is left out.
    ///
    /// - `cri_errors`: calls that failed.
    /// - `runtime_readers_lost`: processes that asked the runtime, and ended or did not answer. Another one took over.
    /// - `cgroups_unknown`: requests for an owner that could not be found, because the cgroup was gone before it was
    ///   read, has been dead for longer than it is remembered, or was not given by the kernel side.
    /// - `cgroups_missed`: directories that were gone before they were read.
    /// - `cgroups_over_limit`, `dead_evicted`, `labels_dropped`: what exceeded the bounds of the cache.
    /// - `watches_refused`: directories without a watch; the tree is then read every second.
    /// - `watch_overflows`: times that the kernel dropped events; the tree is then read at once.
    pub losses: BTreeMap<String, u64>,
}

/// What a [`Target`] refers to on this node.
#[derive(Clone, Debug)]
pub enum Resolved {
    Node,
    /// All containers of a pod, or one of them, with their pod.
    Containers(PodRef, Vec<ContainerDetails>),
    /// A process that is in no container.
    Process(u32),
    /// The ids of a memory cgroup that belongs to no container, and of those below it.
    Cgroups(Vec<u64>),
}

/// A living memory cgroup: a container's own, or an ancestor of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryCgroup {
    pub id: u64,
    /// Relative to the hierarchy's mount.
    pub path: PathBuf,
    /// Whether it is a container's own cgroup, and not a sandbox's, a pod's or a slice's.
    pub container: bool,
}

/// A cgroup and its ancestors, the root last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupLineage {
    pub levels: Vec<LineageLevel>,
    /// Kubernetes' QoS class, from the path. None: it belongs to no pod.
    pub qos: Option<&'static str>,
}

/// One cgroup of a [`CgroupLineage`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineageLevel {
    /// None: the cgroup is not known, or is gone.
    pub id: Option<u64>,
    /// Relative to the hierarchy's mount.
    pub path: PathBuf,
    /// The path as the kernel prints it, escaped.
    pub shown: String,
    pub level: podopsy_model::incident::Level,
}

/// The resolver of owners and targets. Its background tasks end when it is dropped.
#[derive(Debug)]
pub struct Pods {
    state: Arc<state::PodsState>,
    /// The pod that this process runs in, where nothing else is visible.
    inside: Option<Arc<OwnPod>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Pods {
    /// Reads the existing cgroups and starts to watch for changes. A missing or broken runtime is not an error: see
    /// [`PodsStatus`]. Returns an error if no cgroup memory hierarchy is mounted.
    pub async fn start(options: PodsOptions) -> anyhow::Result<Arc<Pods>> {
        let limits = cache::CacheLimits::new(options.remember_dead);
        Pods::start_within(options, limits, None).await
    }

    async fn start_within(
        options: PodsOptions,
        limits: cache::CacheLimits,
        max_watches: Option<usize>,
    ) -> anyhow::Result<Arc<Pods>> {
        let state = state::PodsState::new(options, limits, max_watches)?;
        // Connect first, so that `status` has the result and the searches below do not each wait for it.
        let connected = state.runtime.connect().await;
        let inside = if state.options.from_inside && connected.is_err() { OwnPod::detect() } else { None };
        if let (Err(error), None) = (&connected, &inside) {
            tracing::warn!(%error, "name pods by their log folders (--cri-socket names a runtime's socket)");
        }
        let inotify = state.open_watch();
        state.rescan().await;
        let mut tasks = vec![tokio::spawn(watch::maintain(state.clone()))];
        if let Some(inotify) = inotify {
            tasks.push(tokio::spawn(watch::follow(state.clone(), inotify)));
        }
        Ok(Arc::new(Pods { state, inside: inside.map(Arc::new), tasks }))
    }

    /// The pod that this process runs in. None: it is not in a pod, or the runtime is asked for names.
    pub fn inside(&self) -> Option<&Arc<OwnPod>> {
        self.inside.as_ref()
    }

    /// The owner of a memory cgroup, dead or alive. Waits for at most `cri_timeout` if its names are being fetched.
    pub async fn owner_of_cgroup(&self, id: u64) -> Owner {
        if let Some(inside) = &self.inside {
            return inside.owner_in(id, 0);
        }
        self.state.owner_of_cgroup(id).await
    }

    /// The owner of a task that the kernel side reported: by its cgroup, or by its pid if this kernel gave no cgroup. The
    /// latter works only while the process lives.
    pub async fn owner_of_task(&self, cgroup_id: u64, pid: u32) -> Owner {
        if let Some(inside) = &self.inside {
            return inside.owner_in(cgroup_id, pid);
        }
        if cgroup_id == 0 && pid != 0 {
            return self.owner_of_pid(pid).await.unwrap_or_default();
        }
        self.owner_of_cgroup(cgroup_id).await
    }

    /// The owner of a task as far as it is known now, and whether [`Pods::owner_of_task`] would wait to learn more.
    pub fn owner_now(&self, cgroup_id: u64, pid: u32) -> (Owner, bool) {
        if let Some(inside) = &self.inside {
            return (inside.owner_in(cgroup_id, pid), false);
        }
        if cgroup_id == 0 && pid != 0 {
            return match self.cgroup_of_pid(pid) {
                Some(id) => self.state.owner_now(id),
                None => (Owner::default(), false),
            };
        }
        self.state.owner_now(cgroup_id)
    }

    /// What identifies the container that a cgroup is in, or else its pod: the same for all cgroups that the container
    /// creates. None: the cgroup is not known, or is the host's.
    pub fn container_key(&self, cgroup_id: u64) -> Option<Arc<str>> {
        self.state.cache().outermost(cgroup_id)
    }

    /// The id of a living process's memory cgroup.
    pub fn cgroup_of_pid(&self, pid: u32) -> Option<u64> {
        let state = &self.state;
        let path = proc::cgroup(&state.options.proc_root, &state.hierarchy, pid)?;
        let known = state.cache().id_at(&path);
        known.or_else(|| state.id_of_path(&path))
    }

    /// The owner of a living process.
    pub async fn owner_of_pid(&self, pid: u32) -> anyhow::Result<Owner> {
        let state = &self.state;
        if let Some(inside) = &self.inside {
            anyhow::ensure!(
                proc::exists(&state.options.proc_root, pid),
                "no process {pid} is visible in this pod"
            );
            return Ok(inside.owner_in(0, pid));
        }
        let path = proc::cgroup(&state.options.proc_root, &state.hierarchy, pid).ok_or_else(|| {
            anyhow::anyhow!("process {pid} is gone, or its memory cgroup is not mounted here")
        })?;
        // A zombie's cgroup may be gone while /proc still shows its path. Id 0 gives an unknown owner.
        let known = state.cache().id_at(&path);
        let id = known.or_else(|| state.id_of_path(&path)).unwrap_or(0);
        Ok(state.owner_of_cgroup(id).await)
    }

    /// Living containers whose names are known now. Does not call the runtime.
    pub fn living(&self) -> Vec<Owner> {
        self.state.living()
    }

    /// The cgroups of living containers and their ancestors, as far as they are known now.
    pub fn memory_cgroups(&self) -> Vec<MemoryCgroup> {
        self.state.memory_cgroups()
    }

    /// A cgroup and its ancestors, dead or alive. None: it is not known.
    pub fn lineage(&self, id: u64) -> Option<CgroupLineage> {
        let path = self.state.cache().entry(id).map(|entry| entry.path.clone())?;
        Some(self.state.lineage(&path))
    }

    /// The same for a path as the kernel prints it. The cgroup may be long gone.
    pub fn lineage_of_path(&self, absolute: &[u8]) -> Option<CgroupLineage> {
        Some(self.state.lineage(&self.state.hierarchy.from_absolute(absolute)?))
    }

    /// The processes in a cgroup itself, without those below it. Empty if it is not known or dead.
    pub fn pids(&self, cgroup: u64) -> Vec<u32> {
        let path = self.state.cache().entry(cgroup).map(|entry| entry.path.clone());
        path.map(|path| self.state.hierarchy.procs(&path)).unwrap_or_default()
    }

    /// The owner of the cgroup at a path. The cgroup may be long gone; the runtime may still know the container.
    pub async fn owner_of_path(&self, absolute: &[u8]) -> Owner {
        self.state.owner_of_path(absolute).await
    }

    /// The same as far as it is known now. Does not ask the runtime.
    pub fn owner_of_path_now(&self, absolute: &[u8]) -> Owner {
        self.state.owner_of_path_now(absolute)
    }

    /// The runtime's report of a container. None: the runtime does not know it, or does not answer.
    pub async fn container(&self, id: &str) -> Option<ContainerDetails> {
        list::by_id(&self.state, id).await
    }

    /// The start time of a living process. Together with the pid it identifies the process permanently.
    pub fn start_time(&self, pid: u32) -> Option<Timestamp> {
        proc::start_time(&self.state.options.proc_root, pid)
    }

    /// All pods that the runtime knows; without a runtime, those that cgroups and log folders show.
    /// Returns an error if neither source has any.
    pub async fn list(&self) -> anyhow::Result<Vec<PodDetails>> {
        list::list(&self.state).await
    }

    /// Finds what a target refers to: one thing, or the pods of a controller. Never empty: the error names the target and
    /// what exists instead, similar names, or that no runtime answers.
    pub async fn resolve(&self, target: &Target) -> anyhow::Result<Vec<Resolved>> {
        match &self.inside {
            Some(inside) => resolve::from_inside(inside, target).map(|found| vec![found]),
            None => resolve::resolve(&self.state, target).await,
        }
    }

    pub fn status(&self) -> PodsStatus {
        self.state.status()
    }

    /// The memory hierarchy in use: version and mount point.
    pub fn hierarchy(&self) -> &hierarchy::Hierarchy {
        &self.state.hierarchy
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        self.state.closing.store(true, std::sync::atomic::Ordering::Relaxed);
        for task in &self.tasks {
            task.abort();
        }
    }
}
