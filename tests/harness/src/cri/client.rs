//! Blocking CRI calls, one method for each.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use podopsy_runtime::cri::{Channel, channel, unary};
use tokio::runtime::Runtime;

use super::messages::*;

/// The time-out of a call: a pod that takes a minute is a failure.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection to a runtime.
#[derive(Debug)]
pub struct Cri {
    // An Option, so that drop can shut it down without waiting: blocking within another runtime panics.
    runtime: Option<Runtime>,
    channel: Channel,
}

/// The state of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerState {
    Created,
    Running,
    Exited,
    Unknown,
}

/// The CRI status of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub id: String,
    pub state: ContainerState,
    /// The restart attempt, from 0.
    pub attempt: u32,
    /// The main process in the machine's PID namespace, while it runs.
    pub pid: Option<i32>,
    pub exit_code: i32,
    /// `OOMKilled`, `Error`, `Completed`, or empty while it runs.
    pub reason: String,
    pub message: String,
    /// Nanoseconds since 1970; 0 for not yet.
    pub started_at: i64,
    /// Nanoseconds since 1970; 0 for not yet.
    pub finished_at: i64,
    pub image: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

impl Cri {
    /// Connects at the first call: the socket need not exist yet.
    pub fn new(socket: &Path) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("harness-cri")
            .enable_all()
            .build()
            .context("start a runtime for CRI calls")?;
        Ok(Self { runtime: Some(runtime), channel: channel(socket) })
    }

    /// Makes one call and waits on a channel for its result: `block_on` would panic within another runtime.
    fn call<Request, Response>(&self, method: &'static str, request: Request) -> anyhow::Result<Response>
    where
        Request: prost::Message + 'static,
        Response: prost::Message + Default + 'static,
    {
        let (sender, receiver) = std::sync::mpsc::channel();
        let channel = self.channel.clone();
        let runtime = self.runtime.as_ref().context("the CRI connection is closed")?;
        runtime.spawn(async move {
            let answer = tokio::time::timeout(PATIENCE, unary(&channel, method, request)).await;
            // Fails only if the caller's thread has ended.
            let _ = sender.send(answer);
        });
        receiver.recv().context("CRI runtime ended")?.map_err(|_| anyhow!("CRI {method}: no answer"))?
    }

    /// Fails unless the runtime and its network are ready.
    pub fn check_ready(&self) -> anyhow::Result<()> {
        let answer: RuntimeStatusResponse = self.call("/runtime.v1.RuntimeService/Status", Empty {})?;
        let conditions = answer.status.unwrap_or_default().conditions;
        match conditions.iter().find(|condition| !condition.status) {
            Some(bad) => bail!("{}: {} {}", bad.kind, bad.reason, bad.message),
            None => Ok(()),
        }
    }

    /// Whether there is an image of that name.
    pub fn has_image(&self, name: &str) -> anyhow::Result<bool> {
        let image = Some(ImageSpec { image: name.to_owned() });
        let answer: ImageStatusResponse =
            self.call("/runtime.v1.ImageService/ImageStatus", ImageStatusRequest { image })?;
        Ok(answer.image.is_some_and(|image| !image.id.is_empty()))
    }

    /// Runs a sandbox and returns its id.
    pub fn run_sandbox(&self, config: PodSandboxConfig) -> anyhow::Result<String> {
        let request = RunPodSandboxRequest { config: Some(config) };
        let answer: Id = self.call("/runtime.v1.RuntimeService/RunPodSandbox", request)?;
        Ok(answer.id)
    }

    /// Kills the sandbox's processes and releases its network.
    pub fn stop_sandbox(&self, id: &str) -> anyhow::Result<()> {
        self.retry("/runtime.v1.RuntimeService/StopPodSandbox", &Id { id: id.to_owned() })
    }

    /// Retries a call as a kubelet does: containerd 1.6 answers "ttrpc: closed" when a container ends while it is being
    /// stopped, and succeeds the next time.
    fn retry<Q: prost::Message + Clone + 'static>(
        &self,
        method: &'static str,
        request: &Q,
    ) -> anyhow::Result<()> {
        for _ in 0..10 {
            match self.call::<Q, Empty>(method, request.clone()) {
                Err(error) if format!("{error:#}").contains("ttrpc: closed") => {}
                Err(error) => return Err(error),
                Ok(_) => return Ok(()),
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        self.call::<Q, Empty>(method, request.clone()).map(drop)
    }

    /// Removes a sandbox and its containers.
    pub fn remove_sandbox(&self, id: &str) -> anyhow::Result<()> {
        let _: Empty = self.call("/runtime.v1.RuntimeService/RemovePodSandbox", Id { id: id.to_owned() })?;
        Ok(())
    }

    /// The ids of all sandboxes.
    pub fn sandboxes(&self) -> anyhow::Result<Vec<String>> {
        let answer: ListPodSandboxResponse =
            self.call("/runtime.v1.RuntimeService/ListPodSandbox", Empty {})?;
        Ok(answer.items.into_iter().map(|item| item.id).collect())
    }

    /// The pod's address; empty with host networking.
    pub fn sandbox_ip(&self, id: &str) -> anyhow::Result<String> {
        let request = StatusRequest { id: id.to_owned(), verbose: false };
        let answer: PodSandboxStatusResponse =
            self.call("/runtime.v1.RuntimeService/PodSandboxStatus", request)?;
        Ok(answer.status.and_then(|status| status.network).unwrap_or_default().ip)
    }

    /// Creates a container and returns its id.
    pub fn create_container(
        &self,
        sandbox: &str,
        config: ContainerConfig,
        sandbox_config: PodSandboxConfig,
    ) -> anyhow::Result<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let answer: Id = self.call("/runtime.v1.RuntimeService/CreateContainer", request)?;
        Ok(answer.id)
    }

    pub fn start_container(&self, id: &str) -> anyhow::Result<()> {
        let _: Empty = self.call("/runtime.v1.RuntimeService/StartContainer", Id { id: id.to_owned() })?;
        Ok(())
    }

    /// SIGTERM, then SIGKILL after `seconds`; 0 kills at once.
    pub fn stop_container(&self, id: &str, seconds: i64) -> anyhow::Result<()> {
        let request = StopContainerRequest { container_id: id.to_owned(), timeout: seconds };
        self.retry("/runtime.v1.RuntimeService/StopContainer", &request)
    }

    pub fn remove_container(&self, id: &str) -> anyhow::Result<()> {
        let _: Empty = self.call("/runtime.v1.RuntimeService/RemoveContainer", Id { id: id.to_owned() })?;
        Ok(())
    }

    /// Runs a command in a container to its end: exit code, standard output, standard error.
    pub fn exec(
        &self,
        id: &str,
        command: Vec<String>,
        seconds: i64,
    ) -> anyhow::Result<(i32, String, String)> {
        let request = ExecSyncRequest { container_id: id.to_owned(), cmd: command, timeout: seconds };
        let answer: ExecSyncResponse = self.call("/runtime.v1.RuntimeService/ExecSync", request)?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok((answer.exit_code, text(answer.stdout), text(answer.stderr)))
    }

    /// The container's current status.
    pub fn container(&self, id: &str) -> anyhow::Result<Status> {
        let request = StatusRequest { id: id.to_owned(), verbose: true };
        let answer: ContainerStatusResponse =
            self.call("/runtime.v1.RuntimeService/ContainerStatus", request)?;
        let status = answer.status.with_context(|| format!("CRI has no status of container {id}"))?;
        let state = match status.state {
            0 => ContainerState::Created,
            1 => ContainerState::Running,
            2 => ContainerState::Exited,
            _ => ContainerState::Unknown,
        };
        // CRI has no field for the pid; containerd reports it in the JSON text "info".
        let info: serde_json::Value = answer
            .info
            .get("info")
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or(serde_json::Value::Null);
        let pid = info["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0);
        Ok(Status {
            id: status.id,
            state,
            attempt: status.metadata.unwrap_or_default().attempt,
            pid: pid.filter(|_| state == ContainerState::Running),
            exit_code: status.exit_code,
            reason: status.reason,
            message: status.message,
            started_at: status.started_at,
            finished_at: status.finished_at,
            image: status.image.unwrap_or_default().image,
            labels: status.labels.into_iter().collect(),
            annotations: status.annotations.into_iter().collect(),
        })
    }
}

impl Drop for Cri {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
