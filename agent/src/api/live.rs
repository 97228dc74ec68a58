//! The live stream: events as they happen, one JSON object a line. A client that reads too slowly gets a line with the
//! number of events that were dropped for it.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, broadcast, mpsc};

use podopsy_model::Event;
use podopsy_store::{Filter, StoredEvent};
use serde_json::json;

/// Lines that wait for the socket. The broadcast channel in front of them has its own bound.
const LINES: usize = 16;
/// How often an empty line is sent. Writing it fails if the client has gone.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Starts a stream of the events that match from now on. It ends with the connection or with the agent, and releases
/// `permit` then.
pub fn stream(
    mut live: broadcast::Receiver<Arc<StoredEvent>>,
    filter: Filter,
    permit: OwnedSemaphorePermit,
) -> mpsc::Receiver<Bytes> {
    let (sender, lines) = mpsc::channel(LINES);
    tokio::spawn(async move {
        // The first line shows the client that the stream has begun.
        let mut line = Some(Bytes::from_static(b"\n"));
        loop {
            if let Some(line) = line.take()
                && sender.send(line).await.is_err()
            {
                break;
            }
            line = match tokio::time::timeout(KEEPALIVE, live.recv()).await {
                Err(_) => Some(Bytes::from_static(b"\n")),
                Ok(Ok(stored)) if matches(&filter, &stored.event) => super::body::event_line(&stored),
                Ok(Ok(_)) => None,
                Ok(Err(RecvError::Lagged(lost))) => Some(format!("{}\n", json!({ "lost": lost })).into()),
                Ok(Err(RecvError::Closed)) => break,
            };
        }
        drop(permit);
    });
    lines
}

/// Applies the same conditions as the store's query to an event in memory.
pub fn matches(filter: &Filter, event: &Event) -> bool {
    let pod = event.pod.as_ref();
    let is = |wanted: &Option<String>, has: Option<&String>| {
        wanted.as_ref().is_none_or(|wanted| has.is_some_and(|has| has == wanted))
    };
    (filter.kinds.is_empty() || filter.kinds.iter().any(|kind| kind == event.kind.as_str()))
        && is(&filter.namespace, pod.map(|pod| &pod.namespace))
        && (is(&filter.pod, pod.map(|pod| &pod.name)) || is(&filter.pod, pod.map(|pod| &pod.uid)))
        && is(&filter.container, event.container.as_ref().map(|container| &container.name))
        && filter.labels.iter().all(|(key, value)| pod.is_some_and(|pod| pod.labels.get(key) == Some(value)))
}
