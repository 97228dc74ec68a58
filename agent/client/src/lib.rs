//! The other end of the socket: asks a running agent, for the command line.
//!
//! What answers is believed as far as its user is: only root and this process's own user can have put it there. Answers
//! are bounded all the same. Must not know: how anything is rendered.

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

/// The name of the socket in a state folder, or in [`RUN`].
pub const SOCKET: &str = "agent.sock";
/// Where the socket lies, if there is no state folder.
pub const RUN: &str = "/run/podopsy";

/// Longer than any question is worked on.
const WITHIN: Duration = Duration::from_secs(30);
/// Of one answer: a page has 8 MiB of records, compressed; a merged profile is smaller.
const ANSWER_MAX: usize = 256 << 20;

/// Asks one agent.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    #[error("no agent answers at {path}: {why}")]
    Nobody { path: String, why: String },
    #[error("the agent refuses: {0}")]
    Refused(String),
    #[error("the agent's answer makes no sense: {0}")]
    Senseless(String),
}

/// Events, oldest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Events {
    pub events: Vec<Event>,
    /// There are more, older ones, than were asked for.
    pub more: bool,
    /// Records that the store could not read.
    pub unreadable: u64,
}

/// A time of which nothing, or not all, is known.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Gap {
    pub from: Timestamp,
    pub until: Timestamp,
    pub reason: String,
    pub lost: u64,
}

#[derive(Deserialize)]
struct Page {
    events: Vec<Event>,
    next: Option<String>,
    unreadable: u64,
}

#[derive(Deserialize)]
struct Gaps {
    gaps: Vec<Gap>,
}

/// Parameters of a question, by name.
pub type Query = Vec<(&'static str, String)>;

impl Client {
    pub fn new(socket: impl Into<PathBuf>) -> Client {
        Client { socket: socket.into() }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The newest events that match, at most so many.
    pub async fn events(&self, query: &Query, most: usize) -> Result<Events, Unanswered> {
        let (mut out, mut cursor) = (Events::default(), None);
        loop {
            let mut asked = query.clone();
            let left = most.saturating_sub(out.events.len());
            asked.extend([("order", "newest".to_owned()), ("limit", left.min(ITEMS_MAX).to_string())]);
            asked.extend(cursor.map(|cursor| ("cursor", cursor)));
            let page: Page = self.json("/api/v1/events", &asked).await?;
            out.unreadable += page.unreadable;
            out.events.extend(page.events);
            cursor = page.next;
            out.more = cursor.is_some();
            if !out.more || out.events.len() >= most {
                break;
            }
        }
        out.events.truncate(most);
        out.events.reverse();
        Ok(out)
    }

    pub async fn gaps(&self, from: Timestamp) -> Result<Vec<Gap>, Unanswered> {
        let answer: Gaps = self.json("/api/v1/gaps", &vec![("from", from.to_string())]).await?;
        Ok(answer.gaps)
    }

    pub async fn json<T: DeserializeOwned>(&self, path: &str, query: &Query) -> Result<T, Unanswered> {
        let body = self.get(path, query).await?.1;
        serde_json::from_slice(&body).map_err(|error| Unanswered::Senseless(error.to_string()))
    }

    /// What is answered, with its head.
    pub async fn get(&self, path: &str, query: &Query) -> Result<(hyper::HeaderMap, Bytes), Unanswered> {
        let answered = tokio::time::timeout(WITHIN, self.ask(path, query)).await;
        answered.unwrap_or_else(|_| Err(self.nobody(format!("nothing within {WITHIN:?}"))))
    }

    async fn ask(&self, path: &str, query: &Query) -> Result<(hyper::HeaderMap, Bytes), Unanswered> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.nobody(error))?;
        let own = nix::unistd::geteuid().as_raw();
        if !stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own) {
            return Err(self.nobody("another user's program listens there"));
        }
        let mut encoded = form_urlencoded::Serializer::new(String::new());
        encoded.extend_pairs(query);
        let target = format!("{path}?{}", encoded.finish());
        let request = Request::builder()
            .method(Method::GET)
            .uri(target)
            .header("host", "agent")
            .body(Empty::<Bytes>::new())
            .map_err(|error| Unanswered::Senseless(error.to_string()))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.nobody(error))?;
        let connection = tokio::spawn(connection);
        let answer = sender.send_request(request).await.map_err(|error| self.nobody(error))?;
        let (head, body) = answer.into_parts();
        let body = whole(body).await?;
        connection.abort();
        if head.status == StatusCode::OK {
            return Ok((head.headers, body));
        }
        #[derive(Deserialize)]
        struct Refusal {
            error: Reason,
        }
        #[derive(Deserialize)]
        struct Reason {
            reason: String,
        }
        let said = serde_json::from_slice::<Refusal>(&body).map(|refusal| refusal.error.reason);
        Err(Unanswered::Refused(said.map_or_else(|_| head.status.to_string(), |said| text::escape(&said))))
    }

    fn nobody(&self, why: impl ToString) -> Unanswered {
        let path = text::escape(&self.socket.display().to_string());
        Unanswered::Nobody { path, why: why.to_string() }
    }
}

async fn whole(mut body: Incoming) -> Result<Bytes, Unanswered> {
    let senseless = |error: hyper::Error| Unanswered::Senseless(error.to_string());
    let mut out = Vec::new();
    while let Some(frame) = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let Ok(data) = frame.map_err(senseless)?.into_data() else { continue };
        if out.len() + data.len() > ANSWER_MAX {
            return Err(Unanswered::Senseless(format!("it is longer than {ANSWER_MAX} bytes")));
        }
        out.extend_from_slice(&data);
    }
    Ok(out.into())
}
