//! Memory cgroup id ↔ process ↔ container ↔ pod. The only room that knows Kubernetes.
//!
//! Must not know: aya, the wire's records, symbols, how anything is rendered.

mod cache;
pub mod cri;
pub mod hierarchy;
pub mod inside;
mod list;
pub mod logdir;
mod names;
pub mod paths;
pub mod proc;
mod resolve;
mod room;
mod runtime;
mod text;
mod watch;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use podopsy_model::incident::RuntimeView;
use podopsy_model::{ContainerRef, Owner, PodRef, Target};

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

impl Container {
    /// The runtime's word, as it stands beside the kernel's.
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
    /// Counters by name; one at 0 is left out. `cri_errors`: calls that failed. `cgroups_unknown`: owners
    /// that could not be told, each time that one is asked for: the cgroup was gone before anyone read it, or
    /// has been dead for longer than it is remembered, or the kernel side gave none.
    /// `cgroups_missed`: directories gone before they were read.
    /// `cgroups_over_limit`, `dead_evicted`, `labels_dropped`: beyond this room's bounds.
    /// `watches_refused`: directories without a watch (then the tree is read every second).
    /// `watch_overflows`: events lost by the kernel (then the tree is read at once).
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

/// A living memory cgroup that is a container's own, or lies above one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level {
    pub id: u64,
    /// Relative to the hierarchy's mount.
    pub path: PathBuf,
    /// A container's own: no sandbox, and not a pod's or a slice's.
    pub container: bool,
}

/// Where a cgroup lies: itself and those above it, the root last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub steps: Vec<Step>,
    /// Kubernetes' word for the class, by the path; None: no pod's.
    pub qos: Option<&'static str>,
}

/// One cgroup of a [`Place`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// None: it is not known, or gone.
    pub id: Option<u64>,
    /// Relative to the hierarchy's mount.
    pub path: PathBuf,
    /// As the kernel prints it, escaped.
    pub shown: String,
    pub level: podopsy_model::incident::Level,
}

/// The room's door. Its tasks end when it is dropped.
#[derive(Debug)]
pub struct Pods {
    room: Arc<room::Room>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Pods {
    /// Lists what is there, starts to watch, and returns; a missing or broken CRI is no error but a [`Status`].
    /// An error: no cgroup memory hierarchy is mounted.
    pub async fn start(options: Options) -> anyhow::Result<Arc<Pods>> {
        let limits = cache::Limits::new(options.remember_dead);
        Pods::start_within(options, limits, None).await
    }

    async fn start_within(
        options: Options,
        limits: cache::Limits,
        max_watches: Option<usize>,
    ) -> anyhow::Result<Arc<Pods>> {
        let room = room::Room::new(options, limits, max_watches)?;
        // First, so that `status` has its answer, and the searches below do not each wait for it.
        if let Err(error) = room.runtime.connect().await {
            tracing::warn!(%error, "no container runtime: pods are named by their log folders");
        }
        let inotify = room.open_watch();
        room.rescan().await;
        let mut tasks = vec![tokio::spawn(watch::maintain(room.clone()))];
        if let Some(inotify) = inotify {
            tasks.push(tokio::spawn(watch::follow(room.clone(), inotify)));
        }
        Ok(Arc::new(Pods { room, tasks }))
    }

    /// The owner of a memory cgroup, dead or alive. Waits (bounded by `cri_timeout`) if its names are being fetched.
    pub async fn owner_of_cgroup(&self, id: u64) -> Owner {
        self.room.owner_of_cgroup(id).await
    }

    /// Of a task as the kernel side names it: by cgroup; by process only where this kernel gave no cgroup, and then only
    /// while it lives.
    pub async fn owner_of_task(&self, cgroup_id: u64, pid: u32) -> Owner {
        if cgroup_id == 0 && pid != 0 {
            return self.owner_of_pid(pid).await.unwrap_or_default();
        }
        self.owner_of_cgroup(cgroup_id).await
    }

    /// The id of a living process's memory cgroup.
    pub fn cgroup_of_pid(&self, pid: u32) -> Option<u64> {
        let room = &self.room;
        let path = proc::cgroup(&room.options.proc_root, &room.hierarchy, pid)?;
        let known = room.cache().id_at(&path);
        known.or_else(|| room.id_of_path(&path))
    }

    /// The owner of a living process.
    pub async fn owner_of_pid(&self, pid: u32) -> anyhow::Result<Owner> {
        let room = &self.room;
        let path = proc::cgroup(&room.options.proc_root, &room.hierarchy, pid).ok_or_else(|| {
            anyhow::anyhow!("process {pid} is gone, or its memory cgroup is not mounted here")
        })?;
        // A zombie's cgroup may be gone while its path still says which it was: 0 is Unknown.
        let known = room.cache().id_at(&path);
        let id = known.or_else(|| room.id_of_path(&path)).unwrap_or(0);
        Ok(room.owner_of_cgroup(id).await)
    }

    /// Living containers, as far as their names are known now; nothing is asked.
    pub fn living(&self) -> Vec<Owner> {
        self.room.living()
    }

    /// The cgroups of living containers and of what lies above them, as far as they are known now.
    pub fn memory_levels(&self) -> Vec<Level> {
        self.room.memory_levels()
    }

    /// Where a cgroup lies, dead or alive; None: it is not known.
    pub fn place(&self, id: u64) -> Option<Place> {
        let path = self.room.cache().entry(id).map(|entry| entry.path.clone())?;
        Some(self.room.place(&path))
    }

    /// The same by a path as the kernel prints it, for a cgroup that may be long gone.
    pub fn place_of(&self, absolute: &[u8]) -> Option<Place> {
        Some(self.room.place(&self.room.hierarchy.from_absolute(absolute)?))
    }

    /// The processes in a cgroup itself, as far as it is known and alive.
    pub fn pids(&self, cgroup: u64) -> Vec<u32> {
        let path = self.room.cache().entry(cgroup).map(|entry| entry.path.clone());
        path.map(|path| self.room.hierarchy.procs(&path)).unwrap_or_default()
    }

    /// The owner of a cgroup by its path, which may be long gone; the runtime may still know the container.
    pub async fn owner_of_path(&self, absolute: &[u8]) -> Owner {
        self.room.owner_of_path(absolute).await
    }

    /// What the runtime says of a container; None: it does not know it, or does not answer.
    pub async fn container(&self, id: &str) -> Option<Container> {
        list::by_id(&self.room, id).await
    }

    /// When a living process started: with its pid, one process for good.
    pub fn start_time(&self, pid: u32) -> Option<Timestamp> {
        proc::start_time(&self.room.options.proc_root, pid)
    }

    /// Every pod that the runtime knows; without a runtime, those that cgroups and log folders show.
    /// An error only if there is neither.
    pub async fn list(&self) -> anyhow::Result<Vec<Pod>> {
        list::list(&self.room).await
    }

    /// Errors name the target and what is there instead (close names, or that no runtime answers).
    pub async fn resolve(&self, target: &Target) -> anyhow::Result<Resolved> {
        resolve::resolve(&self.room, target).await
    }

    pub fn status(&self) -> Status {
        self.room.status()
    }

    /// The memory hierarchy in use: version and mount point.
    pub fn hierarchy(&self) -> &hierarchy::Hierarchy {
        &self.room.hierarchy
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        self.room.closing.store(true, std::sync::atomic::Ordering::Relaxed);
        for task in &self.tasks {
            task.abort();
        }
    }
}
