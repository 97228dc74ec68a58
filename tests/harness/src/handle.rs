//! A running pod: query it, restart its containers as a kubelet would, stop it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::cgroup;
use crate::cri::client::{ContainerState, Cri, Status};
use crate::cri::messages::PodSandboxConfig;
use crate::pod::{ContainerSpec, PodSpec};
use crate::state::SharedState;

/// A running pod. Clones refer to the same pod, which outlives its handles and ends with `remove` or with the node.
#[derive(Debug, Clone)]
pub struct PodHandle {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub sandbox_id: String,
    /// In the pods' network; empty with host networking.
    pub ip: String,
    /// `/kubepods/…/pod<uid>`
    pub cgroup: String,
    pub(crate) spec: PodSpec,
    pub(crate) sandbox: PodSandboxConfig,
    pub(crate) logs: PathBuf,
    pub(crate) cri: Arc<Cri>,
    pub(crate) shared: Arc<SharedState>,
    pub(crate) containers: Arc<Mutex<BTreeMap<String, Instance>>>,
}

/// The newest attempt of a container.
#[derive(Debug, Clone)]
pub(crate) struct Instance {
    spec: ContainerSpec,
    id: String,
    attempt: u32,
    /// The attempt before it; a kubelet keeps it, too, for its status.
    previous: Option<String>,
}

impl PodHandle {
    /// The CRI status of a container's newest attempt.
    pub fn status(&self, container: &str) -> anyhow::Result<Status> {
        self.cri.container(&self.instance(container)?.id)
    }

    /// The CRI status of the attempt before the newest.
    pub fn previous_status(&self, container: &str) -> anyhow::Result<Status> {
        let previous = self.instance(container)?.previous;
        self.cri.container(&previous.with_context(|| format!("{container} was never restarted"))?)
    }

    /// The id of a container's newest attempt.
    pub fn container_id(&self, container: &str) -> anyhow::Result<String> {
        Ok(self.instance(container)?.id)
    }

    /// The main process of a container, on the machine.
    pub fn pid(&self, container: &str) -> anyhow::Result<i32> {
        let status = self.status(container)?;
        status.pid.with_context(|| format!("{}: {container} does not run: {status:?}", self.name))
    }

    /// A container's directory in the memory hierarchy. Its inode number is the cgroup id that podopsy reports.
    pub fn memory_cgroup(&self, container: &str) -> anyhow::Result<PathBuf> {
        Ok(cgroup::memory_directory(&self.cgroup)?.join(self.container_id(container)?))
    }

    /// What the newest attempt wrote, in the kubelet's log format.
    pub fn log(&self, container: &str) -> anyhow::Result<String> {
        let attempt = self.instance(container)?.attempt;
        let file = self.logs.join(container).join(format!("{attempt}.log"));
        let bytes = std::fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Runs a command in a container to its end: exit code, standard output, standard error.
    pub fn exec<S: Into<String>>(
        &self,
        container: &str,
        command: impl IntoIterator<Item = S>,
    ) -> anyhow::Result<(i32, String, String)> {
        let command = command.into_iter().map(Into::into).collect();
        self.cri.exec(&self.instance(container)?.id, command, 50)
    }

    /// Waits for a condition on a container's status; on time-out the error holds the last one.
    pub fn wait(
        &self,
        container: &str,
        patience: Duration,
        condition: impl Fn(&Status) -> bool,
    ) -> anyhow::Result<Status> {
        let start = Instant::now();
        loop {
            let status = self.status(container)?;
            if condition(&status) {
                return Ok(status);
            }
            if start.elapsed() > patience {
                bail!(
                    "{}: {container} did not meet the condition within {patience:?}: {status:?}",
                    self.name
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn wait_exited(&self, container: &str, patience: Duration) -> anyhow::Result<Status> {
        self.wait(container, patience, |status| status.state == ContainerState::Exited)
    }

    /// Adds a container while the pod runs: with [`ContainerSpec::target`], an ephemeral container.
    pub fn add_container(&self, spec: ContainerSpec) -> anyhow::Result<()> {
        let id = self.start(&spec, 0)?;
        let name = spec.name().to_owned();
        self.lock().insert(name, Instance { spec, id, attempt: 0, previous: None });
        Ok(())
    }

    /// Starts the next attempt of a container, as a kubelet does after its end. Kills it first if it still runs.
    pub fn restart(&self, container: &str) -> anyhow::Result<Status> {
        let old = self.instance(container)?;
        if self.cri.container(&old.id)?.state == ContainerState::Running {
            self.cri.stop_container(&old.id, 0)?;
        }
        let attempt = old.attempt + 1;
        let id = self.start(&old.spec, attempt)?;
        if let Some(older) = &old.previous {
            self.cri.remove_container(older)?;
        }
        let new = Instance { spec: old.spec, id, attempt, previous: Some(old.id) };
        self.lock().insert(container.to_owned(), new);
        self.status(container)
    }

    /// Stops the sandbox and runs another one, in which all containers start again: what a kubelet does after the sandbox's
    /// process has died. CRI still reports the former sandbox.
    pub fn replace_sandbox(&mut self) -> anyhow::Result<()> {
        self.stop()?;
        if let Some(metadata) = &mut self.sandbox.metadata {
            metadata.attempt += 1;
        }
        self.sandbox_id = self.cri.run_sandbox(self.sandbox.clone()).context("run another sandbox")?;
        self.ip = self.cri.sandbox_ip(&self.sandbox_id)?;
        let all: Vec<(String, Instance)> =
            self.lock().iter().map(|(name, old)| (name.clone(), old.clone())).collect();
        for (name, old) in all {
            let attempt = old.attempt + 1;
            let id = self.start(&old.spec, attempt)?;
            self.lock().insert(name, Instance { spec: old.spec, id, attempt, previous: Some(old.id) });
        }
        Ok(())
    }

    /// Stops a container: SIGTERM, then SIGKILL after `grace`, in whole seconds.
    pub fn stop_container(&self, container: &str, grace: Duration) -> anyhow::Result<()> {
        self.cri.stop_container(&self.instance(container)?.id, grace.as_secs() as i64)
    }

    /// Stops the pod; CRI still reports its status.
    pub fn stop(&self) -> anyhow::Result<()> {
        self.cri.stop_sandbox(&self.sandbox_id)
    }

    /// Stops the pod and removes it with its cgroup.
    pub fn remove(&self) -> anyhow::Result<()> {
        self.stop()?;
        self.cri.remove_sandbox(&self.sandbox_id)?;
        let left = cgroup::remove(&self.cgroup);
        if !left.is_empty() {
            bail!("cgroups of {} cannot be removed: {left:?}", self.name);
        }
        self.shared.change(|state| state.cgroups.retain(|cgroup| *cgroup != self.cgroup))
    }

    fn start(&self, spec: &ContainerSpec, attempt: u32) -> anyhow::Result<String> {
        let target = spec.target.as_ref().map(|name| self.container_id(name)).transpose()?;
        let v2 = cgroup::memory_hierarchy()?.1;
        let config = spec.config(&self.spec, &self.uid, attempt, target, v2);
        let folder = self.logs.join(spec.name());
        std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let what = || format!("container {} of {}/{}", spec.name(), self.namespace, self.name);
        let id = self
            .cri
            .create_container(&self.sandbox_id, config, self.sandbox.clone())
            .with_context(|| format!("create {}", what()))?;
        self.cri.start_container(&id).with_context(|| format!("start {}", what()))?;
        Ok(id)
    }

    fn instance(&self, container: &str) -> anyhow::Result<Instance> {
        let containers = self.lock();
        containers.get(container).cloned().with_context(|| format!("{} has no {container}", self.name))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Instance>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Restarts a pod's containers when they end, in place of a kubelet, until it is dropped.
#[derive(Debug)]
pub struct Keeper {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// The back-off starts at 500 ms and doubles up to 10 s: a kubelet's, twenty times faster.
    pub(crate) fn start(pod: PodHandle) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            // By container: when it may start again, if it has ended, and the back-off after that.
            let mut restarts: BTreeMap<String, (Option<Instant>, Duration)> = BTreeMap::new();
            while !stopped.load(Ordering::Relaxed) {
                let names: Vec<String> = pod.lock().keys().cloned().collect();
                for name in names {
                    // The pod may have been removed meanwhile.
                    let Ok(status) = pod.status(&name) else { continue };
                    let (due, back_off) =
                        restarts.entry(name.clone()).or_insert((None, Duration::from_millis(500)));
                    match (status.state == ContainerState::Exited, *due) {
                        (true, None) => *due = Some(Instant::now() + *back_off),
                        (true, Some(at)) if at <= Instant::now() => {
                            *due = None;
                            *back_off = (*back_off * 2).min(Duration::from_secs(10));
                            if let Err(error) = pod.restart(&name) {
                                eprintln!("restart {name}: {error:#}");
                            }
                        }
                        _ => {}
                    }
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
