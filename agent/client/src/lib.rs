//! A client for the HTTP API of a running agent: on its Unix socket, or over a stream that leads there from elsewhere.
//!
//! Responses from a socket are trusted only if the process at the other end runs as root or as this process's user. Their
//! size is bounded all the same. This crate must not depend on how anything is rendered.

mod lines;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::sync::Mutex;

pub use lines::ResponseLines;
use podopsy_model::{Event, text};
use podopsy_store::ITEMS_MAX;

/// The file name of the socket in a state folder or in [`RUN_DIR`].
pub const SOCKET_NAME: &str = "agent.sock";
/// The folder of the socket if there is no state folder.
pub const RUN_DIR: &str = "/run/podopsy";

/// Longer than the agent works on any request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// The bound on one response. A page has 8 MiB of compressed records; a merged profile is smaller.
const MAX_RESPONSE_BYTES: usize = 256 << 20;

/// Sends requests to one agent.
#[derive(Clone, Debug)]
pub struct AgentClient {
    endpoint: Endpoint,
    response_bytes_max: usize,
}

#[derive(Clone, Debug)]
enum Endpoint {
    /// Each request has a connection of its own.
    Socket(PathBuf),
    /// All requests share one connection, one after the other.
    Connection { name: String, sender: Arc<Mutex<Sender>> },
}

type Sender = http1::SendRequest<Empty<Bytes>>;

/// Why a request has no usable response.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no agent answers at {path}: {reason}")]
    Unreachable { path: String, reason: String },
    #[error("no permission to connect to the agent at {0}: run it as root, or as the agent's user")]
    NotPermitted(String),
    #[error("the agent refused the request: {0}")]
    Refused(String),
    #[error("the agent's response is invalid (is it another version?): {0}")]
    InvalidResponse(String),
}

/// EventList, oldest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EventList {
    pub events: Vec<Event>,
    /// There are older events than these.
    pub more: bool,
    /// The number of records that the store could not read.
    pub unreadable: u64,
}

/// A time for which the history is empty or incomplete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryGap {
    pub from: Timestamp,
    pub until: Timestamp,
    pub reason: String,
    pub lost: u64,
}

#[derive(Deserialize)]
struct EventsPage {
    events: Vec<Event>,
    next: Option<String>,
    unreadable: u64,
}

#[derive(Deserialize)]
struct GapsResponse {
    gaps: Vec<HistoryGap>,
}

/// The parameters of a request: name and value.
pub type QueryParameters = Vec<(&'static str, String)>;

impl AgentClient {
    pub fn new(socket: impl Into<PathBuf>) -> AgentClient {
        let endpoint = Endpoint::Socket(socket.into());
        AgentClient { endpoint, response_bytes_max: MAX_RESPONSE_BYTES }
    }

    /// Sends the requests over a stream whose other end is an agent's socket. `name` is for messages.
    pub async fn over(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        name: &str,
    ) -> Result<AgentClient, ClientError> {
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| ClientError::Unreachable { path: name.to_owned(), reason: error.to_string() })?;
        // It ends with the stream, and with the last client that has its sender.
        tokio::spawn(connection);
        let endpoint = Endpoint::Connection { name: name.to_owned(), sender: Arc::new(Mutex::new(sender)) };
        Ok(AgentClient { endpoint, response_bytes_max: MAX_RESPONSE_BYTES })
    }

    /// The same client with a lower bound on each response.
    pub fn with_response_bytes_max(self, max: usize) -> AgentClient {
        AgentClient { response_bytes_max: max.min(MAX_RESPONSE_BYTES), ..self }
    }

    /// The socket's path, or the name of the stream, safe to print.
    pub fn name(&self) -> String {
        match &self.endpoint {
            Endpoint::Socket(path) => text::escape(&path.display().to_string()),
            Endpoint::Connection { name, .. } => name.clone(),
        }
    }

    /// The newest events that match, at most `max`.
    pub async fn events(&self, query: &QueryParameters, max: usize) -> Result<EventList, ClientError> {
        let mut out = EventList::default();
        let mut cursor = None;
        loop {
            let mut query = query.clone();
            let left = max.saturating_sub(out.events.len());
            query.extend([("order", "newest".to_owned()), ("limit", left.min(ITEMS_MAX).to_string())]);
            query.extend(cursor.map(|cursor| ("cursor", cursor)));
            let page: EventsPage = self.json("/api/v1/events", &query).await?;
            out.unreadable += page.unreadable;
            out.events.extend(page.events);
            cursor = page.next;
            out.more = cursor.is_some();
            if !out.more || out.events.len() >= max {
                break;
            }
        }
        out.events.truncate(max);
        out.events.reverse();
        Ok(out)
    }

    /// The gaps of the history since `from`.
    pub async fn gaps(&self, from: Timestamp) -> Result<Vec<HistoryGap>, ClientError> {
        let response: GapsResponse = self.json("/api/v1/gaps", &vec![("from", from.to_string())]).await?;
        Ok(response.gaps)
    }

    /// Sends a GET, and decodes the response from JSON.
    pub async fn json<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &QueryParameters,
    ) -> Result<T, ClientError> {
        let body = self.get(path, query).await?.1;
        serde_json::from_slice(&body).map_err(|error| ClientError::InvalidResponse(error.to_string()))
    }

    /// Sends a GET. Returns the headers and the body of the response.
    pub async fn get(
        &self,
        path: &str,
        query: &QueryParameters,
    ) -> Result<(hyper::HeaderMap, Bytes), ClientError> {
        let response = tokio::time::timeout(REQUEST_TIMEOUT, self.request(path, query)).await;
        response.unwrap_or_else(|_| Err(self.unreachable(format!("no response within {REQUEST_TIMEOUT:?}"))))
    }

    /// Sends a GET whose response has no end: one line for each event.
    pub async fn lines(&self, path: &str, query: &QueryParameters) -> Result<ResponseLines, ClientError> {
        let (head, body) = self.send(path, query).await?.into_parts();
        if head.status == StatusCode::OK {
            return Ok(ResponseLines::new(body));
        }
        Err(refusal(head.status, &read_body(body, self.response_bytes_max).await?))
    }

    async fn request(
        &self,
        path: &str,
        query: &QueryParameters,
    ) -> Result<(hyper::HeaderMap, Bytes), ClientError> {
        let (head, body) = self.send(path, query).await?.into_parts();
        let body = read_body(body, self.response_bytes_max).await?;
        if head.status == StatusCode::OK {
            Ok((head.headers, body))
        } else {
            Err(refusal(head.status, &body))
        }
    }

    async fn send(&self, path: &str, query: &QueryParameters) -> Result<Response<Incoming>, ClientError> {
        let request = request(path, query)?;
        let response = match &self.endpoint {
            Endpoint::Socket(path) => self.connect(path).await?.send_request(request).await,
            Endpoint::Connection { sender, .. } => {
                let mut sender = sender.lock().await;
                sender.ready().await.map_err(|error| self.unreachable(error))?;
                sender.send_request(request).await
            }
        };
        response.map_err(|error| self.unreachable(error))
    }

    async fn connect(&self, socket: &Path) -> Result<Sender, ClientError> {
        let stream = UnixStream::connect(socket).await.map_err(|error| match error.kind() {
            ErrorKind::PermissionDenied => ClientError::NotPermitted(self.name()),
            _ => self.unreachable(error),
        })?;
        let own = nix::unistd::geteuid().as_raw();
        if !stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own) {
            return Err(self.unreachable("the socket belongs to another user's program"));
        }
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.unreachable(error))?;
        // It ends with the response, when the sender is gone.
        tokio::spawn(connection);
        Ok(sender)
    }

    fn unreachable(&self, reason: impl ToString) -> ClientError {
        ClientError::Unreachable { path: self.name(), reason: reason.to_string() }
    }
}

fn request(path: &str, query: &QueryParameters) -> Result<Request<Empty<Bytes>>, ClientError> {
    let mut encoded = form_urlencoded::Serializer::new(String::new());
    encoded.extend_pairs(query);
    Request::builder()
        .method(Method::GET)
        .uri(format!("{path}?{}", encoded.finish()))
        .header("host", "agent")
        .body(Empty::new())
        .map_err(|error| ClientError::InvalidResponse(error.to_string()))
}

/// The error for a response whose status is not 200.
fn refusal(status: StatusCode, body: &[u8]) -> ClientError {
    #[derive(Deserialize)]
    struct ErrorBody {
        error: ErrorDetail,
    }
    #[derive(Deserialize)]
    struct ErrorDetail {
        reason: String,
    }
    let reason = serde_json::from_slice::<ErrorBody>(body).map(|body| body.error.reason);
    ClientError::Refused(reason.map_or_else(|_| status.to_string(), |reason| text::escape(&reason)))
}

async fn read_body(mut body: Incoming, max: usize) -> Result<Bytes, ClientError> {
    let invalid = |error: hyper::Error| ClientError::InvalidResponse(error.to_string());
    let mut out = Vec::new();
    while let Some(frame) = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let Ok(data) = frame.map_err(invalid)?.into_data() else { continue };
        if out.len() + data.len() > max {
            return Err(ClientError::InvalidResponse(format!("the response is longer than {max} bytes")));
        }
        out.extend_from_slice(&data);
    }
    Ok(out.into())
}
