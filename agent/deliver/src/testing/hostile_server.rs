//! HTTP destinations for tests that misbehave in every way that we know of.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What a server does with a request. A server has a list: one behavior for each request, and the last one for all others.
#[derive(Clone, Copy, Debug)]
pub enum Behavior {
    /// Send this response.
    Respond(&'static str),
    /// Reset the connection.
    Reset,
    /// Never answer.
    Hang,
    /// Send the response one byte at a time.
    RespondSlowly,
    /// Read the request one byte at a time.
    ReadSlowly,
    /// A success whose body never ends.
    EndlessBody,
    /// A header that never ends.
    EndlessHead,
}

pub const OK: Behavior = Behavior::Respond("HTTP/1.1 204 No Content\r\n\r\n");
pub const BUSY: Behavior = Behavior::Respond("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");
pub const RETRY_LATER: Behavior =
    Behavior::Respond("HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 4\r\n\r\nslow");
pub const REDIRECT: Behavior =
    Behavior::Respond("HTTP/1.1 307 Elsewhere\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n");

/// Between two bytes of a slow server.
const BYTE_INTERVAL: Duration = Duration::from_millis(50);

/// A destination that keeps the bodies of the requests that it answered with success.
pub struct HostileServer {
    pub url: String,
    accepted: Arc<Mutex<Vec<String>>>,
    requests: Arc<AtomicUsize>,
}

impl HostileServer {
    pub async fn start(behaviors: &'static [Behavior]) -> HostileServer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        if matches!(behaviors, [Behavior::ReadSlowly]) {
            // With the default size, the kernel would receive the whole request.
            setsockopt(&listener, sockopt::RcvBuf, &4096).unwrap();
        }
        let url = format!("http://{}/push", listener.local_addr().unwrap());
        let (accepted, requests) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
        let (bodies, counted) = (accepted.clone(), requests.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, behaviors, bodies.clone(), counted.clone()));
            }
        });
        HostileServer { url, accepted, requests }
    }

    /// A destination at a port that refuses connections.
    pub async fn refusing() -> HostileServer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/push", listener.local_addr().unwrap());
        HostileServer { url, accepted: Arc::default(), requests: Arc::default() }
    }

    pub fn accepted(&self) -> MutexGuard<'_, Vec<String>> {
        self.accepted.lock().unwrap()
    }

    pub fn requests(&self) -> usize {
        self.requests.load(Relaxed)
    }
}

async fn serve(
    mut stream: TcpStream,
    behaviors: &[Behavior],
    accepted: Arc<Mutex<Vec<String>>>,
    requests: Arc<AtomicUsize>,
) {
    if matches!(behaviors, [Behavior::ReadSlowly]) {
        while matches!(stream.read(&mut [0]).await, Ok(1)) {
            tokio::time::sleep(BYTE_INTERVAL).await;
        }
        return;
    }
    while let Some(body) = request(&mut stream).await {
        let behavior = behaviors[requests.fetch_add(1, Relaxed).min(behaviors.len() - 1)];
        let accept = || accepted.lock().unwrap().push(body);
        match behavior {
            Behavior::Respond(answer) => {
                if answer.starts_with("HTTP/1.1 2") {
                    accept();
                }
                let _ = stream.write_all(answer.as_bytes()).await;
            }
            Behavior::Reset => {
                let _ = stream.set_zero_linger();
                return;
            }
            Behavior::Hang | Behavior::ReadSlowly => return std::future::pending().await,
            Behavior::RespondSlowly => return send_endlessly(&mut stream, "", b"H", BYTE_INTERVAL).await,
            Behavior::EndlessBody => {
                accept();
                let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
                let chunk = format!("1000\r\n{}\r\n", "x".repeat(0x1000));
                return send_endlessly(&mut stream, head, chunk.as_bytes(), Duration::ZERO).await;
            }
            Behavior::EndlessHead => {
                return send_endlessly(&mut stream, "HTTP/1.1 200 OK\r\nX: ", &[b'x'; 4096], Duration::ZERO)
                    .await;
            }
        }
    }
}

async fn send_endlessly(stream: &mut TcpStream, head: &str, again: &[u8], pause: Duration) {
    if stream.write_all(head.as_bytes()).await.is_err() {
        return;
    }
    while stream.write_all(again).await.is_ok() {
        tokio::time::sleep(pause).await;
    }
}

/// The body of one request. None: the connection was closed.
async fn request(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(at) = bytes.windows(4).position(|end| end == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let header = String::from_utf8_lossy(&bytes[..head]).to_lowercase();
    let length = header.lines().find_map(|line| line.strip_prefix("content-length: "))?;
    let length: usize = length.trim().parse().ok()?;
    while bytes.len() < head + length {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    assert!(header.contains("x-scope-orgid: shop"), "{header}");
    Some(String::from_utf8_lossy(&bytes[head..head + length]).into_owned())
}
