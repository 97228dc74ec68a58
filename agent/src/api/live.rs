//! Events as they happen: one JSON object a line. Whoever reads too slowly is told how many were left out.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, broadcast, mpsc};

use podopsy_model::Event;
use podopsy_store::{Filter, StoredEvent};

/// Lines between here and the socket; before them the broadcast has its own bound.
const LINES: usize = 16;
/// An empty line now and then shows that the other end is gone.
const BEAT: Duration = Duration::from_secs(15);

/// Starts a stream of what matches from now on; it ends with the connection, or the agent.
pub fn stream(
    mut live: broadcast::Receiver<Arc<StoredEvent>>,
    filter: Filter,
    place: OwnedSemaphorePermit,
) -> mpsc::Receiver<Bytes> {
    let (to, lines) = mpsc::channel(LINES);
    tokio::spawn(async move {
        // So that a reader knows that it has begun.
        let mut line = Some(Bytes::from_static(b"\n"));
        loop {
            if let Some(line) = line.take()
                && to.send(line).await.is_err()
            {
                break;
            }
            line = match tokio::time::timeout(BEAT, live.recv()).await {
                Err(_) => Some(Bytes::from_static(b"\n")),
                Ok(Ok(stored)) if matches(&filter, &stored.event) => super::route::event_line(&stored),
                Ok(Ok(_)) => None,
                Ok(Err(RecvError::Lagged(lost))) => Some(format!("{{\"lost\":{lost}}}\n").into()),
                Ok(Err(RecvError::Closed)) => break,
            };
        }
        drop(place);
    });
    lines
}

/// What the store's query says, said of an event in memory.
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
