//! A client for the HTTP API on a running agent's Unix socket.
//!
//! Responses are trusted only if the process at the other end runs as root or as this process's user. Their size is
//! bounded all the same. This crate must not depend on how anything is rendered.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

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
    socket: PathBuf,
}

/// Why a request has no usable response.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no agent answers at {path}: {reason}")]
    Unreachable { path: String, reason: String },
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
#[derive(Clone, Debug, PartialEq, Deserialize)]
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
        AgentClient { socket: socket.into() }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
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

    async fn request(
        &self,
        path: &str,
        query: &QueryParameters,
    ) -> Result<(hyper::HeaderMap, Bytes), ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(error))?;
        let own = nix::unistd::geteuid().as_raw();
        if !stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own) {
            return Err(self.unreachable("the socket belongs to another user's program"));
        }
        let mut encoded = form_urlencoded::Serializer::new(String::new());
        encoded.extend_pairs(query);
        let target = format!("{path}?{}", encoded.finish());
        let request = Request::builder()
            .method(Method::GET)
            .uri(target)
            .header("host", "agent")
            .body(Empty::<Bytes>::new())
            .map_err(|error| ClientError::InvalidResponse(error.to_string()))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.unreachable(error))?;
        let connection = tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(|error| self.unreachable(error))?;
        let (head, body) = response.into_parts();
        let body = read_body(body).await?;
        connection.abort();
        if head.status == StatusCode::OK {
            return Ok((head.headers, body));
        }
        #[derive(Deserialize)]
        struct ErrorBody {
            error: ErrorDetail,
        }
        #[derive(Deserialize)]
        struct ErrorDetail {
            reason: String,
        }
        let reason = serde_json::from_slice::<ErrorBody>(&body).map(|body| body.error.reason);
        let reason = reason.map_or_else(|_| head.status.to_string(), |reason| text::escape(&reason));
        Err(ClientError::Refused(reason))
    }

    fn unreachable(&self, reason: impl ToString) -> ClientError {
        let path = text::escape(&self.socket.display().to_string());
        ClientError::Unreachable { path, reason: reason.to_string() }
    }
}

async fn read_body(mut body: Incoming) -> Result<Bytes, ClientError> {
    let invalid = |error: hyper::Error| ClientError::InvalidResponse(error.to_string());
    let mut out = Vec::new();
    while let Some(frame) = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let Ok(data) = frame.map_err(invalid)?.into_data() else { continue };
        if out.len() + data.len() > MAX_RESPONSE_BYTES {
            return Err(ClientError::InvalidResponse(format!(
                "the response is longer than {MAX_RESPONSE_BYTES} bytes"
            )));
        }
        out.extend_from_slice(&data);
    }
    Ok(out.into())
}
