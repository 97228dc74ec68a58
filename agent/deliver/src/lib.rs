//! Sends events, metrics and profiles to the systems that people already run: one module per kind of destination.
//!
//! Each destination has its own bounded queue and its own worker, so one that hangs affects neither the others nor the
//! recorder: [`Destination::offer`] never waits. Delivery is at least once: a batch whose response was lost is sent again,
//! and the next run can send what this run did not ([`Destination::catch_up`]). Every dropped item has an
//! [`ExportLossReason`] and is counted. This crate must not depend on the store, on configuration files, or on where the
//! items come from.

mod backoff;
mod checkpoint;
mod client;
mod counters;
mod encoded_event;
mod grpc;
mod header;
mod http_client;
pub mod kubernetes;
pub mod loki;
pub mod otlp;
mod otlp_dictionary;
pub mod otlp_metrics;
pub mod otlp_profiles;
pub mod pyroscope;
pub mod queue;
mod request;
mod worker;

#[cfg(test)]
mod grpc_tests;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tls_tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::StatusCode;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use self::checkpoint::{CatchUp, DeliveryCheckpoint};
pub use self::client::DestinationClient;
use self::counters::{DeliveryCounters, ItemOutcome};
pub use self::counters::{DeliveryCounts, ExportLossReason};
pub use self::encoded_event::{EncodedEvent, to_json_line};
pub use self::header::ExportHeader;
pub use self::http_client::parse_url;
use self::queue::{Queue, QueueItem};
pub use self::request::DeliveryRequest;

/// How to reach a destination of any kind, and how much work and memory it may cost.
#[derive(Clone, Debug)]
pub struct DestinationSettings {
    /// `http://` or `https://`, with the path that the destination expects (no path for gRPC).
    pub url: String,
    /// The gRPC method that takes a batch, `/PACKAGE.SERVICE/METHOD`. None: batches are sent by HTTP POST.
    pub method: Option<&'static str>,
    /// Sent with every request, for example an authorization or a tenant.
    pub headers: Vec<ExportHeader>,
    /// A PEM file. None: the system's authorities.
    pub certificate_authority: Option<PathBuf>,
    /// A PEM file with the client's certificate and its key, for destinations that ask for one.
    pub identity: Option<PathBuf>,
    /// The longest time from connecting to the last byte of the response.
    pub timeout: Duration,
    /// How long the first item of a batch waits for others.
    pub linger: Duration,
    /// How long a batch is retried before it is dropped.
    pub retry_for: Duration,
    /// The capacity of the queue.
    pub queue_bytes: usize,
    pub batch_items: usize,
    pub batch_bytes: usize,
}

impl DestinationSettings {
    pub fn new(url: &str) -> DestinationSettings {
        DestinationSettings {
            url: url.to_owned(),
            method: None,
            headers: Vec::new(),
            certificate_authority: None,
            identity: None,
            timeout: Duration::from_secs(10),
            linger: Duration::from_secs(1),
            retry_for: Duration::from_secs(600),
            queue_bytes: 8 << 20,
            batch_items: 500,
            batch_bytes: 1 << 20,
        }
    }
}

/// How one kind of destination encodes a batch and how it answers.
pub trait DestinationFormat: Send + Sync + 'static {
    type Item: QueueItem + Send + 'static;

    /// The content type of a POST; gRPC sets its own.
    fn content_type(&self) -> &'static str;

    /// The body of one request.
    fn encode(&self, batch: &[Self::Item]) -> anyhow::Result<Vec<u8>>;

    /// The request that carries a batch.
    fn request(&self, batch: &[Self::Item]) -> anyhow::Result<DeliveryRequest> {
        Ok(DeliveryRequest::post(self.content_type(), self.encode(batch)?))
    }

    /// The number of items that the destination rejected although it reported success.
    fn rejected(&self, _response: &[u8]) -> u64 {
        0
    }

    /// Whether the destination may have accepted a part of a batch that it rejects with this status.
    fn may_accept_part(&self, _status: StatusCode) -> bool {
        false
    }

    /// Whether a request that failed with this status may succeed later.
    fn is_retryable(&self, status: StatusCode) -> bool {
        status.is_server_error()
            || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
    }

    /// What the user can do about a rejection. None: the worker adds a general remedy.
    fn remedy(&self, _status: StatusCode, _response: &[u8]) -> Option<&'static str> {
        None
    }
}

/// Reads a destination's counters; it may outlive the destination.
#[derive(Clone, Debug)]
pub struct DestinationStats {
    pub destination: &'static str,
    counters: Arc<DeliveryCounters>,
}

impl DestinationStats {
    pub fn counts(&self) -> DeliveryCounts {
        self.counters.counts()
    }

    /// The destination's loss counter: its name, and the sum over all reasons.
    pub fn loss(&self) -> (String, u64) {
        (format!("export_{}", self.destination), self.counts().lost_sum())
    }

    /// The number of unsuccessful responses by HTTP status.
    pub fn failed_responses(&self) -> Vec<(u16, u64)> {
        self.counters.failed_responses()
    }
}

/// Puts items into a destination's queue, for tasks that run on their own.
pub struct QueueSender<T>(Arc<Queue<T>>);

impl<T: QueueItem> QueueSender<T> {
    /// Never waits.
    pub fn offer(&self, item: T) {
        self.0.push(item);
    }
}

/// One place that items are sent to: its queue and its running worker.
pub struct Destination<T> {
    name: &'static str,
    client: watch::Sender<Arc<DestinationClient>>,
    queue: Arc<Queue<T>>,
    counters: Arc<DeliveryCounters>,
    checkpoint: Arc<DeliveryCheckpoint>,
    closing: watch::Sender<bool>,
    worker: JoinHandle<()>,
}

impl<T: QueueItem + Send + 'static> Destination<T> {
    /// Fails if the settings are invalid. Whether the destination can be reached shows later.
    pub fn start<F: DestinationFormat<Item = T>>(
        name: &'static str,
        settings: DestinationSettings,
        format: F,
    ) -> anyhow::Result<Destination<T>> {
        let first_client = Arc::new(DestinationClient::new(name, settings)?);
        let queue_bytes = first_client.settings.queue_bytes;
        let (client, new_clients) = watch::channel(first_client.clone());
        let counters = Arc::new(DeliveryCounters::default());
        let checkpoint = Arc::new(DeliveryCheckpoint::default());
        let queue = Arc::new(Queue::new(queue_bytes, counters.clone(), checkpoint.clone()));
        let (closing, closed) = watch::channel(false);
        let worker = worker::DeliveryWorker {
            name,
            client: first_client,
            new_clients,
            format: Arc::new(format),
            queue: queue.clone(),
            counters: counters.clone(),
            checkpoint: checkpoint.clone(),
            closed,
            is_failing: false,
        };
        let worker = tokio::spawn(worker.run());
        Ok(Destination { name, client, queue, counters, checkpoint, closing, worker })
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    pub fn url(&self) -> String {
        self.client.borrow().settings.url.clone()
    }

    /// Uses `client` from now on, also for the items that already wait. The queue keeps its capacity.
    pub fn replace_client(&self, client: DestinationClient) {
        self.client.send_replace(Arc::new(client));
    }

    /// Never waits.
    pub fn offer(&self, item: T) {
        if !item.store_id().is_some_and(|id| self.checkpoint.defers(id)) {
            self.queue.push(item);
        }
    }

    pub fn sender(&self) -> QueueSender<T> {
        QueueSender(self.queue.clone())
    }

    /// How much of the store this destination has finished; it may outlive the destination.
    pub fn checkpoint(&self) -> Arc<DeliveryCheckpoint> {
        self.checkpoint.clone()
    }

    /// Starts with everything that the store has after the id `done`. Call this before the first [`Self::offer`].
    pub fn catch_up(&self, done: i64) -> CatchUp<T> {
        CatchUp::begin(done, self.queue.clone(), self.checkpoint.clone(), self.counters.clone())
    }

    pub fn stats(&self) -> DestinationStats {
        DestinationStats { destination: self.name, counters: self.counters.clone() }
    }

    /// Tries to deliver the items that wait, each batch once more, within `time`. Counts the rest as abandoned.
    pub async fn close(self, time: Duration) -> DeliveryCounts {
        let _ = self.closing.send(true);
        let mut worker = self.worker;
        if tokio::time::timeout(time, &mut worker).await.is_err() {
            worker.abort();
            let _ = worker.await;
        }
        let abandoned = self.queue.take(usize::MAX, usize::MAX);
        let bytes: usize = abandoned.iter().map(QueueItem::bytes).sum();
        let outcome = ItemOutcome::Lost(ExportLossReason::Abandoned);
        self.counters.settle(outcome, abandoned.len() as u64, bytes as u64);
        self.counters.counts()
    }
}
