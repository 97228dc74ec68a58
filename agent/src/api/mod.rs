//! The agent's local API: HTTP and JSON over a Unix socket, for root and the agent's own user; health over TCP.
//!
//! ```text
//! accept ─ who is it? ─ limits ─ route ─ question ─→ store, pods, live events ─→ JSON
//! ```
//!
//! Whoever asks may be slow, wrong or hostile: connections, headers, time and answers are bounded, and nothing here
//! is waited for by the recorder. Must not know: aya, SQL, how anything is rendered.

mod answer;
mod crowd;
mod health;
mod live;
mod merged;
mod question;
mod route;
mod scrape;
pub mod tcp;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, bail};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, broadcast};

pub use health::Health;
use podopsy_pods::Pods;
use podopsy_store::{Reader, StoredEvent};
pub use route::{Parameter, ROUTES, Route};
pub use scrape::Pages;

/// The description of all this, as it is served.
pub const OPENAPI: &str = include_str!("openapi.json");

/// Connections at a time, on each of the two. On the socket whoever is one too many waits to be accepted; by TCP, where anyone
/// may come, somebody makes room.
const CONNECTIONS: usize = 64;
/// Questions to the store at a time.
const QUESTIONS: usize = 4;
/// Live streams at a time.
const STREAMS: usize = 16;
/// A request's line and headers together, and how long they may take.
const HEAD_BYTES: usize = 16 << 10;
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// A connection that streams nothing ends after this, whatever it does.
const CONNECTION_WITHIN: Duration = Duration::from_secs(60);

/// What there is to ask.
#[derive(Clone)]
pub struct Sources {
    pub pods: Arc<Pods>,
    /// None: the agent keeps no history.
    pub store: Option<Reader>,
    pub live: broadcast::Sender<Arc<StoredEvent>>,
    pub health: Arc<Health>,
    pub pages: Arc<Pages>,
}

/// What all connections share.
struct Room {
    sources: Sources,
    questions: Semaphore,
    streams: Arc<Semaphore>,
}

/// Who is on the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    /// Root, or the agent's own user.
    Trusted,
    /// Anyone else on this machine: gets nothing, and is told so.
    Stranger,
    /// TCP: is told whether all is well, and what is counted; no events.
    Anyone,
}

/// A socket that is listened on; it is removed when this is dropped.
pub struct Listening {
    path: PathBuf,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Listens on a Unix socket. An error says why it cannot be and what would mend it.
pub fn listen(path: &Path, sources: Sources) -> anyhow::Result<Listening> {
    let listener = bind(path)?;
    let room = Room::new(sources);
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let own = nix::unistd::geteuid().as_raw();
    let task = tokio::spawn(async move {
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!("the API's socket: {error}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            let trusted = stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own);
            let peer = if trusted { Peer::Trusted } else { Peer::Stranger };
            let room = room.clone();
            tokio::spawn(async move {
                serve(stream, peer, room).await;
                drop(slot);
            });
        }
    });
    Ok(Listening { path: path.to_owned(), task })
}

fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    let shown = path.display();
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("make {} (--socket)", dir.display()))?;
    }
    if let Ok(meta) = std::fs::symlink_metadata(path) {
        use std::os::unix::fs::FileTypeExt;
        if !meta.file_type().is_socket() {
            bail!("{shown} is there and no socket: remove it, or name another one (--socket)");
        }
        if StdStream::connect(path).is_ok() {
            bail!("another agent listens on {shown}: name another one (--socket)");
        }
        // Left by one that was killed.
        std::fs::remove_file(path).with_context(|| format!("remove the old {shown}"))?;
    }
    // Nobody can connect between its making and its mode: until `listen` it refuses, and bind makes it by the umask.
    let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    nix::sys::stat::umask(before);
    let listener = listener.with_context(|| format!("listen on {shown} (--socket names another one)"))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// `/metrics`, `/healthz` and `/readyz` for whoever can reach the address; the address that it got.
pub async fn listen_health(
    address: SocketAddr,
    sources: Sources,
) -> anyhow::Result<(SocketAddr, tokio::task::JoinHandle<()>)> {
    let listener = tcp::listen(address);
    let listener = listener.with_context(|| format!("listen on {address} (--listen names another one)"))?;
    let address = listener.local_addr()?;
    let room = Room::new(sources);
    let mut crowd = crowd::Crowd::new(CONNECTIONS);
    let task = tokio::spawn(async move {
        loop {
            let Ok((stream, from)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            };
            crowd.make_room(from.ip());
            let served = tokio::spawn(serve(stream, Peer::Anyone, room.clone()));
            crowd.add(from.ip(), served.abort_handle());
        }
    });
    Ok((address, task))
}

impl Room {
    fn new(sources: Sources) -> Arc<Room> {
        let streams = Arc::new(Semaphore::new(STREAMS));
        Arc::new(Room { sources, questions: Semaphore::new(QUESTIONS), streams })
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, peer: Peer, room: Arc<Room>) {
    let streams = Arc::new(AtomicBool::new(false));
    let told = streams.clone();
    let service = service_fn(move |request| {
        let (room, streams) = (room.clone(), told.clone());
        async move { Ok::<_, std::convert::Infallible>(route::answer(&room, peer, &request, &streams).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // Some say with their end that the question is complete (nc, socat).
        .half_close(true)
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    loop {
        tokio::select! {
            // Whatever the other end did wrong is its own business.
            _ = &mut connection => return,
            () = tokio::time::sleep(CONNECTION_WITHIN) => {
                if !streams.load(Relaxed) {
                    return;
                }
            }
        }
    }
}
