//! The client of the container runtime: finds it by probing, bounds every call and counts every failure.
//!
//! The socket is looked for at the usual paths, in this process's root and in the node's (`/proc/1/root`). A container with
//! the node's PID namespace therefore needs no mount of `/run`, and it finds the new socket after the runtime's restart.
//!
//! An absent, hung or misbehaving runtime delays a caller
//! by at most `cri_timeout`; after that calls fail at once until the back-off is over.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use podopsy_model::text::field;
use podopsy_system::sync::lock;

use crate::cri::grpc::GrpcError;
use crate::cri::messages::*;
use crate::cri::status::GrpcCode;
use crate::cri::{self, Channel};
use crate::question::{Answer, CallError, ConnectionStatus, Question, listed};

/// The usual sockets of runtimes, the most likely first.
const SOCKETS: &[&str] = &[
    "/run/containerd/containerd.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/cri-dockerd.sock",
    "/var/run/cri-dockerd.sock",
    "/run/k0s/containerd.sock",
    "/var/snap/microk8s/common/run/containerd.sock",
    "/run/dockershim.sock",
    "/var/run/containerd/containerd.sock",
    "/var/run/crio/crio.sock",
];
/// Concurrent calls: few, because the kubelet needs the runtime more.
const CONCURRENT: usize = 4;
const BACKOFF_FIRST: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// The root of the node's first process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRoot {
    /// Where it is looked up.
    pub path: PathBuf,
    /// Its path in errors and in the status.
    pub shown: PathBuf,
}

impl NodeRoot {
    /// A path that is looked up as it is shown.
    pub fn new(path: PathBuf) -> NodeRoot {
        NodeRoot { shown: path.clone(), path }
    }
}

#[derive(Debug)]
pub struct RuntimeClient {
    explicit: Option<PathBuf>,
    node_root: Option<NodeRoot>,
    timeout: Duration,
    slots: Semaphore,
    state: Mutex<ConnectionState>,
    /// Held while probing, so that many concurrent callers cause one probe.
    probing: tokio::sync::Mutex<()>,
    errors: AtomicU64,
}

#[derive(Debug, Default)]
struct ConnectionState {
    channel: Option<Channel>,
    socket: Option<PathBuf>,
    version: Option<String>,
    /// The process that listens on the socket.
    pid: Option<u32>,
    error: Option<String>,
    failures: u32,
    not_before: Option<Instant>,
}

impl RuntimeClient {
    /// Creates the client; does not connect yet. `node_root`: where else paths are looked up.
    pub fn new(socket: Option<PathBuf>, node_root: Option<NodeRoot>, timeout: Duration) -> RuntimeClient {
        // crictl and the kubelet write `unix:///path`.
        let plain = |path: PathBuf| match path.to_str().and_then(|p| p.strip_prefix("unix://")) {
            Some(rest) => PathBuf::from(rest),
            None => path,
        };
        RuntimeClient {
            explicit: socket.map(plain),
            node_root,
            timeout,
            slots: Semaphore::new(CONCURRENT),
            state: Mutex::default(),
            probing: tokio::sync::Mutex::default(),
            errors: AtomicU64::new(0),
        }
    }

    /// The connection, and the last error.
    pub fn status(&self) -> ConnectionStatus {
        let state = self.lock();
        let socket = state.socket.as_deref().map(|path| self.shown(path)).or(self.explicit.clone());
        let back_off = state.not_before.map(|at| at.saturating_duration_since(Instant::now()));
        ConnectionStatus {
            socket: socket.map(|path| path.to_string_lossy().into_owned()),
            version: state.version.clone(),
            pid: state.pid,
            error: state.error.clone(),
            errors: self.errors.load(Relaxed),
            back_off: back_off.filter(|left| !left.is_zero()),
        }
    }

    /// A socket's path, with the node's root as it is shown.
    fn shown(&self, path: &Path) -> PathBuf {
        let below = self
            .node_root
            .as_ref()
            .and_then(|root| Some(root.shown.join(path.strip_prefix(&root.path).ok()?)));
        below.unwrap_or_else(|| path.to_owned())
    }

    /// The process that listened on the socket when the connection was made. None: there is no connection, or the process
    /// is in a pid namespace that is not visible here.
    pub fn pid(&self) -> Option<u32> {
        self.lock().pid
    }

    /// Whether the back-off is over, so that a call would be made.
    pub fn is_ready(&self) -> bool {
        self.lock().not_before.is_none_or(|at| Instant::now() >= at)
    }

    /// Finds and connects to the runtime if that was not done yet. The error is kept for [`RuntimeClient::status`].
    async fn connect(&self) -> Result<Channel, CallError> {
        let _guard = self.probing.lock().await;
        {
            let state = self.lock();
            if let Some(channel) = &state.channel {
                return Ok(channel.clone());
            }
            if state.not_before.is_some_and(|at| Instant::now() < at) {
                return Err(CallError::Down(state.error.clone().unwrap_or_default()));
            }
        }
        let candidates = self.candidates();
        if candidates.is_empty() {
            // A node without a runtime is not counted as an error.
            let why = "no container runtime: none of the usual CRI sockets exists";
            return Err(self.failed(why.to_owned(), false));
        }
        // Probe all at once, so that several hung sockets cost one timeout. The order of preference is kept.
        let probes: Vec<_> = candidates
            .into_iter()
            .map(|path| (path.clone(), tokio::spawn(probe(path, self.timeout))))
            .collect();
        let mut errors = Vec::new();
        for (path, task) in probes {
            match task.await.unwrap_or_else(|panic| Err(panic.into())) {
                Ok((channel, version)) => {
                    let pid = peer(&path).await;
                    let mut state = self.lock();
                    *state = ConnectionState {
                        channel: Some(channel.clone()),
                        socket: Some(path),
                        version: Some(version),
                        pid,
                        ..ConnectionState::default()
                    };
                    return Ok(channel);
                }
                Err(error) => {
                    // Remember the socket of a runtime that failed, except Docker's containerd, which does not implement CRI.
                    if !is_unimplemented(&error) {
                        self.lock().socket.get_or_insert_with(|| path.clone());
                    }
                    errors.push(format!("{}: {}", self.shown(&path).display(), field(&format!("{error:#}"))));
                }
            }
        }
        Err(self.failed(errors.join("; "), true))
    }

    /// The sockets that exist; if an explicit one does not, its path for the error.
    fn candidates(&self) -> Vec<PathBuf> {
        let explicit = self.explicit.as_deref().map(|path| vec![path]);
        let paths = explicit.unwrap_or_else(|| SOCKETS.iter().map(Path::new).collect());
        let mut found: Vec<PathBuf> = Vec::new();
        let mut inodes = Vec::new();
        for path in paths.into_iter().flat_map(|path| self.places(path)) {
            // A path may lead to a socket that another one has led to: /var/run is usually /run, and outside of a container
            // both roots are the same.
            let inode = path.metadata().ok().filter(|meta| meta.file_type().is_socket());
            let Some(inode) = inode.map(|meta| (meta.dev(), meta.ino())) else { continue };
            if !inodes.contains(&inode) {
                inodes.push(inode);
                found.push(path);
            }
        }
        if found.is_empty() { self.explicit.iter().cloned().collect() } else { found }
    }

    /// A path here, and in the node's root.
    fn places(&self, path: &Path) -> Vec<PathBuf> {
        let mut places = vec![path.to_owned()];
        if let (Some(root), Ok(below)) = (&self.node_root, path.strip_prefix("/")) {
            places.push(root.path.join(below));
            // The usual link /var/run leads to /run in this process's own root, not in the node's.
            places.extend(below.strip_prefix("var").ok().map(|below| root.path.join(below)));
        }
        places
    }

    /// Asks the runtime. These are all calls of CRI that podopsy makes, beside Version.
    pub async fn ask(&self, question: Question) -> Result<Answer, CallError> {
        match question {
            Question::Connect => self.connect().await.map(|_| Answer::Connected),
            Question::Container { id } => {
                let request = ContainerStatusRequest { container_id: id, verbose: true };
                let response: ContainerStatusResponse = self.call(CONTAINER_STATUS, request).await?;
                Ok(Answer::Container(Box::new(response.into())))
            }
            Question::Containers { id } => {
                let filter = id.map(|id| ContainerFilter { id, ..Default::default() });
                let request = ListContainersRequest { filter };
                let response: ListContainersResponse = self.call(LIST_CONTAINERS, request).await?;
                Ok(Answer::Containers(response.containers.into_iter().map(listed).collect()))
            }
            Question::Sandbox { id } => {
                let request = PodSandboxStatusRequest { pod_sandbox_id: id, verbose: true };
                let response: PodSandboxStatusResponse = self.call(POD_SANDBOX_STATUS, request).await?;
                Ok(Answer::Sandbox(Box::new(response.into())))
            }
            Question::Sandboxes { pod_uid } => {
                let label = |uid| [("io.kubernetes.pod.uid".to_owned(), uid)].into();
                let filter =
                    pod_uid.map(|uid| PodSandboxFilter { id: String::new(), label_selector: label(uid) });
                let response: ListPodSandboxResponse =
                    self.call(LIST_POD_SANDBOX, ListPodSandboxRequest { filter }).await?;
                Ok(Answer::Sandboxes(response.items))
            }
            #[cfg(feature = "testing")]
            Question::Hang | Question::TooMuch => Err(CallError::mismatched()),
        }
    }

    /// Makes one call within the timeout.
    async fn call<Request, Response>(
        &self,
        method: &'static str,
        request: Request,
    ) -> Result<Response, CallError>
    where
        Request: prost::Message + 'static,
        Response: prost::Message + Default + 'static,
    {
        if !self.is_ready() {
            return Err(CallError::Down(self.lock().error.clone().unwrap_or_default()));
        }
        let channel = self.connect().await?;
        let Ok(_slot) = self.slots.acquire().await else {
            return Err(CallError::Down("shutting down".into()));
        };
        // The runtime may have failed other calls while this one waited for a slot.
        if !self.is_ready() {
            return Err(CallError::Down(self.lock().error.clone().unwrap_or_default()));
        }
        match tokio::time::timeout(self.timeout, cri::unary(&channel, method, request)).await {
            Ok(Ok(response)) => {
                let mut state = self.lock();
                (state.failures, state.not_before, state.error) = (0, None, None);
                Ok(response)
            }
            Ok(Err(error)) => Err(self.classify(&error)),
            Err(_) => Err(self.failed(format!("CRI {method}: no answer in {:?}", self.timeout), true)),
        }
    }

    fn classify(&self, error: &anyhow::Error) -> CallError {
        let text = field(&format!("{error:#}"));
        let Some(GrpcError::Status(status)) = error.downcast_ref() else {
            return self.failed(text, true);
        };
        match status.code {
            GrpcCode::NOT_FOUND => CallError::NotFound,
            // cri-dockerd returns UNKNOWN for every error.
            GrpcCode::UNKNOWN if means_absent(&status.message) => CallError::NotFound,
            GrpcCode::UNAVAILABLE | GrpcCode::DEADLINE_EXCEEDED => self.failed(text, true),
            _ => {
                self.errors.fetch_add(1, Relaxed);
                self.lock().error = Some(text.clone());
                CallError::Refused(text)
            }
        }
    }

    fn failed(&self, error: String, count: bool) -> CallError {
        self.errors.fetch_add(count.into(), Relaxed);
        let mut state = self.lock();
        let wait = back_off(state.failures);
        state.failures += 1;
        state.not_before = Some(Instant::now() + wait);
        state.error = Some(error.clone());
        if state.failures > 3 {
            // Probe again: the runtime may now listen on another socket (an upgrade from one runtime to another).
            state.channel = None;
        }
        CallError::Down(error)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, ConnectionState> {
        lock(&self.state)
    }
}

/// How long no attempt is made after so many failures, and one more.
pub(crate) fn back_off(failures: u32) -> Duration {
    (BACKOFF_FIRST * 2u32.pow(failures.min(10))).min(BACKOFF_MAX)
}

async fn probe(path: PathBuf, timeout: Duration) -> anyhow::Result<(Channel, String)> {
    anyhow::ensure!(is_socket(&path), "there is no Unix socket");
    let channel = cri::channel(&path);
    let request = VersionRequest { version: "v1".into() };
    let call = cri::unary::<_, VersionResponse>(&channel, VERSION, request);
    match tokio::time::timeout(timeout, call).await {
        Ok(Ok(answer)) => {
            Ok((channel, format!("{} {}", field(&answer.runtime_name), field(&answer.runtime_version))))
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(anyhow::anyhow!("no answer in {timeout:?}")),
    }
}

/// The process that listens on a socket: the kernel notes it when the process calls `listen`.
async fn peer(path: &Path) -> Option<u32> {
    let stream = tokio::net::UnixStream::connect(path).await.ok()?;
    let pid = stream.peer_cred().ok()?.pid()?;
    u32::try_from(pid).ok().filter(|&pid| pid > 0)
}

fn is_unimplemented(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(GrpcError::Status(status)) if status.code == GrpcCode::UNIMPLEMENTED)
}

fn is_socket(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
}

fn means_absent(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    ["not found", "no such", "does not exist"].iter().any(|text| message.contains(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::status::GrpcStatus;

    #[test]
    fn a_socket_is_found_in_the_nodes_root_if_the_own_root_has_another_or_none() {
        use std::os::unix::net::UnixListener;
        let folder = tempfile::tempdir().unwrap();
        let node = folder.path().join("node");
        std::fs::create_dir_all(node.join("run/crio")).unwrap();
        let live = node.join("run/crio/crio.sock");
        let _live = UnixListener::bind(&live).unwrap();
        let found = |path: &str, root: Option<&Path>| {
            let timeout = Duration::from_secs(1);
            let root = root.map(|root| NodeRoot::new(root.to_owned()));
            RuntimeClient::new(Some(path.into()), root, timeout).candidates()
        };
        let only = std::slice::from_ref(&live);
        assert_eq!(found("unix:///run/crio/crio.sock", Some(&node)), only);
        assert_eq!(found("/var/run/crio/crio.sock", Some(&node)), only);
        // The path of the error.
        assert_eq!(found("/run/crio/crio.sock", None), [Path::new("/run/crio/crio.sock")]);
        // One socket that both roots have counts once.
        assert_eq!(found(live.to_str().unwrap(), Some(Path::new("/"))), only);
        // A socket that was mounted alone is stale after the runtime's restart.
        let stale = folder.path().join("cri.sock");
        drop(UnixListener::bind(&stale).unwrap());
        let below = node.join(stale.strip_prefix("/").unwrap());
        std::fs::create_dir_all(below.parent().unwrap()).unwrap();
        let _below = UnixListener::bind(&below).unwrap();
        assert_eq!(found(stale.to_str().unwrap(), Some(&node)), [stale, below]);
    }

    #[test]
    fn an_error_that_the_runtime_returns_starts_no_back_off() {
        for (code, message, expected) in [
            (GrpcCode::NOT_FOUND, "x", "absent"),
            (GrpcCode::UNKNOWN, "Error: No such container: x", "absent"),
            (GrpcCode::UNKNOWN, "x", "refused"),
            (GrpcCode::UNIMPLEMENTED, "not found", "refused"),
            (GrpcCode::OUT_OF_RANGE, "x", "refused"),
            (GrpcCode::UNAVAILABLE, "not found", "down"),
            (GrpcCode::DEADLINE_EXCEEDED, "x", "down"),
        ] {
            let runtime = RuntimeClient::new(None, None, Duration::from_secs(1));
            let status = GrpcStatus { code, message: message.into() };
            let error = anyhow::Error::from(GrpcError::from(status)).context("CRI method");
            let result = match runtime.classify(&error) {
                CallError::NotFound => "absent",
                CallError::Refused(_) => "refused",
                CallError::Down(_) => "down",
            };
            assert_eq!(result, expected, "{error:#}");
            assert_eq!(runtime.is_ready(), expected != "down", "{error:#}");
        }
        let runtime = RuntimeClient::new(None, None, Duration::from_secs(1));
        let error = GrpcError::Connect(std::io::Error::other("not found"));
        assert!(matches!(runtime.classify(&error.into()), CallError::Down(_)) && !runtime.is_ready());
    }
}
