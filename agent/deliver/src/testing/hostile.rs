//! Destinations that misbehave in every way that we know of, for tests.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What to do with the nth request (from 0); the last one goes on.
#[derive(Clone, Copy, Debug)]
pub enum Act {
    Say(&'static str),
    /// Reset without a word.
    Reset,
    /// Never answer.
    Hang,
    /// A byte of the answer a while.
    Drip,
    /// A byte of the request a while.
    Nibble,
    /// A success whose answer never ends.
    EndlessBody,
    /// A header that never ends.
    EndlessHead,
}

pub const OK: Act = Act::Say("HTTP/1.1 204 No Content\r\n\r\n");
pub const BUSY: Act = Act::Say("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");
pub const LATER: Act =
    Act::Say("HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 4\r\n\r\nslow");
pub const ELSEWHERE: Act =
    Act::Say("HTTP/1.1 307 Elsewhere\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n");

/// Between two bytes.
const WHILE: Duration = Duration::from_millis(50);

/// A destination; it keeps the bodies that it answered with success.
pub struct Server {
    pub url: String,
    taken: Arc<Mutex<Vec<String>>>,
    requests: Arc<AtomicUsize>,
}

impl Server {
    pub async fn start(acts: &'static [Act]) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        if matches!(acts, [Act::Nibble]) {
            // Or the kernel would take the whole request for it.
            setsockopt(&listener, sockopt::RcvBuf, &4096).unwrap();
        }
        let url = format!("http://{}/push", listener.local_addr().unwrap());
        let (taken, requests) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
        let (bodies, counted) = (taken.clone(), requests.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, acts, bodies.clone(), counted.clone()));
            }
        });
        Server { url, taken, requests }
    }

    /// Nobody listens there.
    pub async fn refusing() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/push", listener.local_addr().unwrap());
        Server { url, taken: Arc::default(), requests: Arc::default() }
    }

    pub fn taken(&self) -> MutexGuard<'_, Vec<String>> {
        self.taken.lock().unwrap()
    }

    pub fn requests(&self) -> usize {
        self.requests.load(Relaxed)
    }
}

async fn serve(
    mut stream: TcpStream,
    acts: &[Act],
    taken: Arc<Mutex<Vec<String>>>,
    requests: Arc<AtomicUsize>,
) {
    if matches!(acts, [Act::Nibble]) {
        while matches!(stream.read(&mut [0]).await, Ok(1)) {
            tokio::time::sleep(WHILE).await;
        }
        return;
    }
    while let Some(body) = request(&mut stream).await {
        let act = acts[requests.fetch_add(1, Relaxed).min(acts.len() - 1)];
        let take = || taken.lock().unwrap().push(body);
        match act {
            Act::Say(answer) => {
                if answer.starts_with("HTTP/1.1 2") {
                    take();
                }
                let _ = stream.write_all(answer.as_bytes()).await;
            }
            Act::Reset => {
                let _ = stream.set_zero_linger();
                return;
            }
            Act::Hang | Act::Nibble => return std::future::pending().await,
            Act::Drip => return endlessly(&mut stream, "", b"H", WHILE).await,
            Act::EndlessBody => {
                take();
                let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
                let chunk = format!("1000\r\n{}\r\n", "x".repeat(0x1000));
                return endlessly(&mut stream, head, chunk.as_bytes(), Duration::ZERO).await;
            }
            Act::EndlessHead => {
                return endlessly(&mut stream, "HTTP/1.1 200 OK\r\nX: ", &[b'x'; 4096], Duration::ZERO).await;
            }
        }
    }
}

async fn endlessly(stream: &mut TcpStream, head: &str, again: &[u8], pause: Duration) {
    if stream.write_all(head.as_bytes()).await.is_err() {
        return;
    }
    while stream.write_all(again).await.is_ok() {
        tokio::time::sleep(pause).await;
    }
}

/// One request's body; None: the connection is over.
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
