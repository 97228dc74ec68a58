//! The agent's local API: HTTP and JSON over a Unix socket, for root and the agent's own user; health over TCP.
//!
//! ```text
//! accept ─ check the peer ─ limits ─ route ─ parse the query ─→ store, pods, live events ─→ JSON
//! ```
//!
//! A client may be slow, faulty or hostile: connections, headers, times and responses are bounded, and the recorder never
//! waits for the API. This module must not depend on aya, on SQL or on how the command line renders its answers.

mod body;
mod connections;
mod health;
mod live;
mod merged;
mod pace;
mod query;
mod response;
mod route;
mod scrape;
pub mod tcp;
#[cfg(test)]
mod tests;
mod token;

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, broadcast};

pub use health::Health;
use pace::Pace;
use podopsy_pods::Pods;
use podopsy_store::{Reader, StoredEvent};
use podopsy_system::state_thread;
pub use route::{Parameter, ROUTES, Route};
pub use scrape::MetricsPage;
pub use token::MetricsToken;

#[cfg(feature = "fuzzing")]
pub(crate) fn fuzzing(text: &str) -> Option<String> {
    let refusal =
        |route: &Route| query::parse(podopsy_store::Collection::Events, text, route.parameters).err();
    ROUTES.iter().find_map(refusal).map(|error| error.reason)
}

/// The OpenAPI description of this API, as it is served.
pub const OPENAPI: &str = include_str!("openapi.json");

/// Connections at a time, on the socket and by TCP each. On the socket, one too many waits to be accepted. By TCP, where
/// any host may connect, an older connection is closed.
const CONNECTIONS: usize = 64;
/// Queries of the store at a time.
const STORE_QUERIES: usize = 4;
/// Live streams at a time.
const STREAMS: usize = 16;
/// The size of a request's line and headers together, and how long they may take to arrive.
const HEAD_BYTES: usize = 16 << 10;
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// A connection without a live stream is closed after this time.
const CONNECTION_WITHIN: Duration = Duration::from_secs(60);

/// The sources of the API's answers.
#[derive(Clone)]
pub struct Sources {
    pub pods: Arc<Pods>,
    /// None: the agent keeps no history.
    pub store: Option<Reader>,
    pub live: broadcast::Sender<Arc<StoredEvent>>,
    pub health: Arc<Health>,
    pub metrics_page: Arc<MetricsPage>,
}

/// The state that all connections share.
struct ApiState {
    sources: Sources,
    store_queries: Semaphore,
    streams: Arc<Semaphore>,
    pace: Mutex<Pace>,
    /// What a TCP client has to send for `/metrics`. None: nothing.
    metrics_token: Option<MetricsToken>,
}

/// The client at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    /// Root, or the agent's own user.
    Trusted,
    /// Any other user of this machine. Gets an error and nothing else.
    Stranger,
    /// Any TCP client, by its address. Gets health and metrics, no events, and not faster than `pace` allows.
    Anyone(IpAddr),
}

/// The listening Unix socket. Dropping it removes the socket.
pub struct ApiListener {
    path: PathBuf,
    /// None: it could not be read, so the socket stays at the end.
    identity: Option<(u64, u64)>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for ApiListener {
    fn drop(&mut self) {
        self.task.abort();
        let (path, identity) = (std::mem::take(&mut self.path), self.identity);
        let _ = state_thread::run(move || remove_own_socket(&path, identity));
    }
}

/// Removes the socket, unless the agent that takes over has put its own there already.
fn remove_own_socket(path: &Path, identity: Option<(u64, u64)>) -> std::io::Result<()> {
    if identity.is_some() && socket_identity(path) == identity { std::fs::remove_file(path) } else { Ok(()) }
}

/// Device and inode.
fn socket_identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Another process answers on the socket.
#[derive(Debug, thiserror::Error)]
#[error("another agent listens on {0}: name another path (--socket)")]
struct SocketInUse(String);

/// How long an agent that is replaced may go on.
const PREDECESSOR_ENDS_WITHIN: Duration = Duration::from_secs(10);
const PREDECESSOR_POLL: Duration = Duration::from_millis(200);

/// As [`listen`], once the agent that this one replaces has ended: where its pod is deleted by force, its successor starts
/// before its end.
pub async fn listen_when_free(path: &Path, sources: Sources) -> anyhow::Result<ApiListener> {
    let end = Instant::now() + PREDECESSOR_ENDS_WITHIN;
    loop {
        match listen(path, sources.clone()) {
            Err(error) if error.is::<SocketInUse>() && Instant::now() < end => {
                tokio::time::sleep(PREDECESSOR_POLL).await;
            }
            result => return result,
        }
    }
}

/// Listens on a Unix socket. An error gives the reason and the remedy.
pub fn listen(path: &Path, sources: Sources) -> anyhow::Result<ApiListener> {
    let listener = bind(path)?;
    let identity = socket_identity(path);
    let state = ApiState::new(sources, None);
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let own = nix::unistd::geteuid().as_raw();
    let task = tokio::spawn(async move {
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!("could not accept a connection on the API's socket: {error}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            let trusted = stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own);
            let peer = if trusted { Peer::Trusted } else { Peer::Stranger };
            let state = state.clone();
            tokio::spawn(async move {
                serve(stream, peer, state).await;
                drop(slot);
            });
        }
    });
    Ok(ApiListener { path: path.to_owned(), identity, task })
}

fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    let shown = path.display();
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("create {} (--socket)", dir.display()))?;
    }
    if let Ok(meta) = std::fs::symlink_metadata(path) {
        use std::os::unix::fs::FileTypeExt;
        if !meta.file_type().is_socket() {
            bail!("{shown} exists and is no socket: remove it, or name another path (--socket)");
        }
        if StdStream::connect(path).is_ok() {
            return Err(SocketInUse(shown.to_string()).into());
        }
        // An agent that was killed left it.
        std::fs::remove_file(path).with_context(|| format!("remove the old {shown}"))?;
    }
    // No other user can connect before the mode is set: bind(2) creates the socket with the umask, and the kernel refuses
    // connections until listen(2).
    let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    nix::sys::stat::umask(before);
    let listener = listener.with_context(|| format!("listen on {shown} (--socket names another path)"))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves `/metrics`, `/healthz` and `/readyz` by TCP to any client; `/metrics` only with the token, if there is one. Returns
/// the address with the actual port.
pub async fn listen_health(
    address: SocketAddr,
    sources: Sources,
    metrics_token: Option<MetricsToken>,
) -> anyhow::Result<(SocketAddr, tokio::task::JoinHandle<()>)> {
    let listener = tcp::listen(address);
    let listener =
        listener.with_context(|| format!("listen on {address} (--listen names another address)"))?;
    let address = listener.local_addr()?;
    let state = ApiState::new(sources, metrics_token);
    let mut connections = connections::TcpConnections::new(CONNECTIONS);
    let task = tokio::spawn(async move {
        loop {
            let Ok((stream, from)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            };
            let client = pace::client(from.ip());
            connections.close_excess(client);
            let served = tokio::spawn(serve(stream, Peer::Anyone(client), state.clone()));
            connections.add(client, served.abort_handle());
        }
    });
    Ok((address, task))
}

impl ApiState {
    fn new(sources: Sources, metrics_token: Option<MetricsToken>) -> Arc<ApiState> {
        Arc::new(ApiState {
            sources,
            store_queries: Semaphore::new(STORE_QUERIES),
            streams: Arc::new(Semaphore::new(STREAMS)),
            pace: Mutex::default(),
            metrics_token,
        })
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Peer,
    state: Arc<ApiState>,
) {
    let is_streaming = Arc::new(AtomicBool::new(false));
    let sets_streaming = is_streaming.clone();
    let service = service_fn(move |request| {
        let (state, is_streaming) = (state.clone(), sets_streaming.clone());
        async move {
            Ok::<_, std::convert::Infallible>(route::answer(&state, peer, &request, &is_streaming).await)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // Some clients (nc, socat) close their sending side after the request.
        .half_close(true)
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    loop {
        tokio::select! {
            // An error here is a fault of the client, or the client has gone: there is nothing to report.
            _ = &mut connection => return,
            () = tokio::time::sleep(CONNECTION_WITHIN) => {
                if !is_streaming.load(Relaxed) {
                    return;
                }
            }
        }
    }
}
