//! The container runtime as a client sees it: found by probing, every call bounded, every failure counted.
//!
//! Must not know: cgroups, or what the answers mean. An absent, hung or lying runtime costs its callers
//! at most `cri_timeout`, and after that nothing until its back-off is over.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tonic::transport::Channel;

use super::cri;
use super::cri::messages::{VERSION, VersionRequest, VersionResponse};
use super::text::field;

/// Where runtimes listen, the likeliest first.
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
/// Calls under way at once: the kubelet needs the runtime more than we do.
const CONCURRENT: usize = 4;
const BACKOFF_FIRST: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// Why a call brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The runtime works and knows no such thing.
    #[error("not found")]
    NotFound,
    /// The runtime works and refused this call.
    #[error("{0}")]
    Refused(String),
    /// It does not work, or did not a moment ago (then this call was not made).
    #[error("{0}")]
    Down(String),
}

#[derive(Debug)]
pub struct Runtime {
    explicit: Option<PathBuf>,
    timeout: Duration,
    slots: Semaphore,
    state: Mutex<State>,
    /// Held while probing, so that a storm of callers probes once.
    probing: tokio::sync::Mutex<()>,
    errors: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    channel: Option<Channel>,
    socket: Option<PathBuf>,
    version: Option<String>,
    error: Option<String>,
    failures: u32,
    not_before: Option<Instant>,
}

impl Runtime {
    /// Calls nobody yet.
    pub fn new(socket: Option<PathBuf>, timeout: Duration) -> Runtime {
        // crictl and the kubelet write `unix:///path`.
        let plain = |path: PathBuf| match path.to_str().and_then(|p| p.strip_prefix("unix://")) {
            Some(rest) => PathBuf::from(rest),
            None => path,
        };
        Runtime {
            explicit: socket.map(plain),
            timeout,
            slots: Semaphore::new(CONCURRENT),
            state: Mutex::default(),
            probing: tokio::sync::Mutex::default(),
            errors: AtomicU64::new(0),
        }
    }

    /// Socket, `name version`, last error.
    pub fn about(&self) -> (Option<PathBuf>, Option<String>, Option<String>) {
        let state = self.lock();
        (state.socket.clone().or(self.explicit.clone()), state.version.clone(), state.error.clone())
    }

    pub fn errors(&self) -> u64 {
        self.errors.load(Relaxed)
    }

    /// A call made now would be made, not refused by the back-off.
    pub fn ready(&self) -> bool {
        self.lock().not_before.is_none_or(|at| Instant::now() >= at)
    }

    /// Finds the runtime if it is not known; its error is kept for [`Runtime::about`].
    pub async fn connect(&self) -> Result<Channel, CallError> {
        let _one = self.probing.lock().await;
        {
            let state = self.lock();
            if let Some(channel) = &state.channel {
                return Ok(channel.clone());
            }
            if state.not_before.is_some_and(|at| Instant::now() < at) {
                return Err(CallError::Down(state.error.clone().unwrap_or_default()));
            }
        }
        let candidates: Vec<PathBuf> = match &self.explicit {
            Some(path) => vec![path.clone()],
            None => SOCKETS.iter().map(PathBuf::from).filter(|path| is_socket(path)).collect(),
        };
        if candidates.is_empty() {
            // A node without a runtime is no error of the runtime's.
            let why = "no container runtime: none of the usual CRI sockets exists";
            return Err(self.failed(why.to_owned(), false));
        }
        // All at once, so that several hung sockets cost one timeout; the order of preference stays.
        let probes: Vec<_> = candidates
            .into_iter()
            .map(|path| (path.clone(), tokio::spawn(probe(path, self.timeout))))
            .collect();
        let mut errors = Vec::new();
        for (path, task) in probes {
            match task.await.unwrap_or_else(|panic| Err(panic.to_string())) {
                Ok((channel, version)) => {
                    let mut state = self.lock();
                    *state = State {
                        channel: Some(channel.clone()),
                        socket: Some(path),
                        version: Some(version),
                        ..State::default()
                    };
                    return Ok(channel);
                }
                Err(error) => {
                    // A runtime is there, and its pods are not known; but not Docker's containerd, which is no CRI.
                    if !error.contains("not implemented") {
                        self.lock().socket.get_or_insert_with(|| path.clone());
                    }
                    errors.push(format!("{}: {error}", path.display()));
                }
            }
        }
        Err(self.failed(errors.join("; "), true))
    }

    /// One call, within the timeout, its turn included.
    pub async fn call<Request, Response>(
        &self,
        method: &'static str,
        request: Request,
    ) -> Result<Response, CallError>
    where
        Request: prost::Message + 'static,
        Response: prost::Message + Default + 'static,
    {
        if !self.ready() {
            return Err(CallError::Down(self.lock().error.clone().unwrap_or_default()));
        }
        let channel = self.connect().await?;
        let Ok(_slot) = self.slots.acquire().await else {
            return Err(CallError::Down("shutting down".into()));
        };
        // The turn may have come after the runtime failed others.
        if !self.ready() {
            return Err(CallError::Down(self.lock().error.clone().unwrap_or_default()));
        }
        match tokio::time::timeout(self.timeout, cri::unary(&channel, method, request)).await {
            Ok(Ok(response)) => {
                let mut state = self.lock();
                (state.failures, state.not_before, state.error) = (0, None, None);
                Ok(response)
            }
            Ok(Err(error)) => Err(self.judge(&error)),
            Err(_) => Err(self.failed(format!("CRI {method}: no answer in {:?}", self.timeout), true)),
        }
    }

    fn judge(&self, error: &anyhow::Error) -> CallError {
        let text = field(&format!("{error:#}"));
        let Some(status) = error.downcast_ref::<tonic::Status>() else {
            return self.failed(text, true);
        };
        // The server said it, and not our own transport on its behalf.
        let answered = std::error::Error::source(status).is_none();
        match status.code() {
            tonic::Code::NotFound => return CallError::NotFound,
            // cri-dockerd has no codes of its own.
            tonic::Code::Unknown if answered && says_absent(status.message()) => return CallError::NotFound,
            tonic::Code::Unavailable | tonic::Code::DeadlineExceeded => {}
            _ if answered => {
                self.errors.fetch_add(1, Relaxed);
                self.lock().error = Some(text.clone());
                return CallError::Refused(text);
            }
            _ => {}
        }
        self.failed(text, true)
    }

    fn failed(&self, error: String, count: bool) -> CallError {
        self.errors.fetch_add(count.into(), Relaxed);
        let mut state = self.lock();
        let wait = BACKOFF_FIRST * 2u32.pow(state.failures.min(10));
        state.failures += 1;
        state.not_before = Some(Instant::now() + wait.min(BACKOFF_MAX));
        state.error = Some(error.clone());
        if state.failures > 3 {
            // It may have come back elsewhere (an upgrade from one runtime to another).
            state.channel = None;
        }
        CallError::Down(error)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

async fn probe(path: PathBuf, timeout: Duration) -> Result<(Channel, String), String> {
    if !is_socket(&path) {
        return Err("no Unix socket is there".into());
    }
    let channel = cri::channel(&path);
    let request = VersionRequest { version: "v1".into() };
    let call = cri::unary::<_, VersionResponse>(&channel, VERSION, request);
    match tokio::time::timeout(timeout, call).await {
        Ok(Ok(answer)) => {
            Ok((channel, format!("{} {}", field(&answer.runtime_name), field(&answer.runtime_version))))
        }
        Ok(Err(error)) => Err(field(&format!("{error:#}"))),
        Err(_) => Err(format!("no answer in {timeout:?}")),
    }
}

fn is_socket(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
}

fn says_absent(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    ["not found", "no such", "does not exist"].iter().any(|words| message.contains(words))
}
