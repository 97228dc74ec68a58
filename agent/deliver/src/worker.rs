//! The loop that serves one destination: take a batch, send it, retry it.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Response, StatusCode};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::checkpoint::DeliveryCheckpoint;
use super::client::DestinationClient;
use super::counters::{DeliveryCounters, ExportLossReason, ItemOutcome};
use super::queue::{Queue, QueueItem};
use super::{DeliveryRequest, DestinationFormat, backoff, http_client};
use podopsy_model::text;

/// The number of bytes of a response that are read.
pub const MAX_RESPONSE_BYTES: usize = 64 << 10;
/// The number of bytes of a response that are logged.
pub const MAX_LOGGED_BYTES: usize = 200;

pub struct DeliveryWorker<F: DestinationFormat> {
    pub name: &'static str,
    pub client: Arc<DestinationClient>,
    /// Replacements for `client`.
    pub new_clients: watch::Receiver<Arc<DestinationClient>>,
    pub format: Arc<F>,
    pub queue: Arc<Queue<F::Item>>,
    pub counters: Arc<DeliveryCounters>,
    pub checkpoint: Arc<DeliveryCheckpoint>,
    pub closed: watch::Receiver<bool>,
    /// A failure was logged, and no batch was delivered since.
    pub is_failing: bool,
}

/// The result of one request.
pub enum SendOutcome {
    /// The destination accepted the batch, except for this number of items.
    Accepted(u64),
    /// The destination will never accept the batch.
    Refused(String),
    /// The destination may have accepted a part of the batch, and will never accept the rest.
    RefusedInPart(String),
    /// The request may succeed later. The destination may have requested a delay.
    Retry(String, Option<Duration>),
    /// The fallback request must be sent instead.
    UseFallback,
}

/// Items that are neither delivered nor dropped. They count as abandoned if the worker ends here.
struct BatchInFlight {
    items: u64,
    bytes: u64,
    ids: Vec<i64>,
    counters: Arc<DeliveryCounters>,
    checkpoint: Arc<DeliveryCheckpoint>,
}

impl BatchInFlight {
    fn settle(&mut self, outcome: ItemOutcome) {
        // Abandoned items stay open, so that the next run sends them.
        if outcome != ItemOutcome::Lost(ExportLossReason::Abandoned) {
            self.checkpoint.settled(std::mem::take(&mut self.ids));
        }
        self.counters.settle(outcome, std::mem::take(&mut self.items), std::mem::take(&mut self.bytes));
    }
}

impl Drop for BatchInFlight {
    fn drop(&mut self) {
        self.settle(ItemOutcome::Lost(ExportLossReason::Abandoned));
    }
}

impl<F: DestinationFormat> DeliveryWorker<F> {
    pub async fn run(mut self) {
        loop {
            let is_closing = self.is_closing();
            if !is_closing {
                self.wait_for_batch().await;
            }
            let settings = &self.client.settings;
            let batch = self.queue.take(settings.batch_items, settings.batch_bytes);
            if !batch.is_empty() {
                self.deliver(batch).await;
            } else if is_closing {
                return;
            }
        }
    }

    /// The client to use now: a replacement if there is one, with the certificates as they are now.
    async fn current_client(&mut self) -> Arc<DestinationClient> {
        if self.new_clients.has_changed().unwrap_or(false) {
            self.client = self.new_clients.borrow_and_update().clone();
        }
        if let Some(renewed) = self.client.renewed(self.name).await {
            self.client = Arc::new(renewed);
        }
        self.client.clone()
    }

    /// Also true if the destination was dropped without being closed.
    fn is_closing(&self) -> bool {
        *self.closed.borrow() || self.closed.has_changed().is_err()
    }

    /// Waits until a batch is full, has lingered long enough, or is the last one.
    async fn wait_for_batch(&mut self) {
        tokio::select! {
            () = self.queue.wait_for_item() => {}
            _ = self.closed.changed() => return,
        }
        let settings = &self.client.settings;
        tokio::select! {
            () = sleep(settings.linger) => {}
            () = self.queue.wait_for_batch(settings.batch_items, settings.batch_bytes) => {}
            _ = self.closed.changed() => {}
        }
    }

    async fn deliver(&mut self, batch: Vec<F::Item>) {
        let bytes: usize = batch.iter().map(QueueItem::bytes).sum();
        let mut in_flight = BatchInFlight {
            items: batch.len() as u64,
            bytes: bytes as u64,
            ids: batch.iter().filter_map(QueueItem::store_id).collect(),
            counters: self.counters.clone(),
            checkpoint: self.checkpoint.clone(),
        };
        // Encoding can take milliseconds, which must not block the runtime's threads.
        let format = self.format.clone();
        let encoded = tokio::task::spawn_blocking(move || format.request(&batch)).await;
        let mut request = match encoded.map_err(anyhow::Error::from).flatten() {
            Ok(request) => request,
            Err(error) => return self.drop_refused(&mut in_flight, &format!("{error:#}")),
        };
        let started = Instant::now();
        for attempt in 0.. {
            let client = self.current_client().await;
            match self.send(&client, &request).await {
                SendOutcome::Accepted(rejected) => return self.accept(&mut in_flight, rejected),
                SendOutcome::UseFallback => {
                    let Some((_, fallback)) = request.fallback.take() else { continue };
                    request = *fallback;
                }
                SendOutcome::Refused(reason) => return self.drop_refused(&mut in_flight, &reason),
                SendOutcome::RefusedInPart(reason) => {
                    return self.drop_refused_in_part(&mut in_flight, &reason);
                }
                SendOutcome::Retry(reason, requested_delay) => {
                    if !std::mem::replace(&mut self.is_failing, true) {
                        tracing::warn!(destination = self.name, "cannot deliver, retrying: {reason}");
                    }
                    let delay = backoff::delay(attempt, requested_delay, fastrand::f64());
                    let is_expired = started.elapsed() + delay > client.settings.retry_for;
                    if self.wait_to_retry(&mut in_flight, delay, is_expired).await.is_break() {
                        return;
                    }
                    self.counters.count_retry();
                }
            }
        }
    }

    /// Waits until the request can be sent again. Break: it must not be.
    async fn wait_to_retry(
        &mut self,
        in_flight: &mut BatchInFlight,
        delay: Duration,
        is_expired: bool,
    ) -> ControlFlow<()> {
        // The batch has had its one more attempt after closing began.
        if self.is_closing() {
            return ControlFlow::Break(());
        }
        if is_expired {
            in_flight.settle(ItemOutcome::Lost(ExportLossReason::Expired));
        }
        // The delay holds for the next batch, too: it is no reason to come back before the destination wants us. A new
        // address for the destination is.
        tokio::select! {
            () = sleep(delay) => {}
            Ok(()) = self.new_clients.changed() => self.client = self.new_clients.borrow().clone(),
            _ = self.closed.changed() => {}
        }
        if is_expired { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn accept(&mut self, in_flight: &mut BatchInFlight, rejected: u64) {
        let rejected = rejected.min(in_flight.items);
        self.counters.settle(ItemOutcome::Lost(ExportLossReason::Refused), rejected, 0);
        in_flight.items -= rejected;
        in_flight.settle(ItemOutcome::Delivered);
        if std::mem::take(&mut self.is_failing) {
            tracing::info!(destination = self.name, "delivers again");
        }
    }

    fn drop_refused(&mut self, in_flight: &mut BatchInFlight, reason: &str) {
        let count = in_flight.items;
        in_flight.settle(ItemOutcome::Lost(ExportLossReason::Refused));
        if !std::mem::replace(&mut self.is_failing, true) {
            tracing::warn!(destination = self.name, "dropped {count} items that were refused: {reason}");
        }
    }

    fn drop_refused_in_part(&mut self, in_flight: &mut BatchInFlight, reason: &str) {
        let count = in_flight.items;
        // A single item cannot be accepted in part.
        if count == 1 {
            return self.drop_refused(in_flight, reason);
        }
        in_flight.settle(ItemOutcome::Lost(ExportLossReason::RefusedInPart));
        if !std::mem::replace(&mut self.is_failing, true) {
            tracing::warn!(
                destination = self.name,
                "dropped a batch of {count} items of which some or all were refused: {reason}"
            );
        }
    }

    async fn send(&self, client: &DestinationClient, request: &DeliveryRequest) -> SendOutcome {
        let headers = match client.headers.read().await {
            Ok(headers) => headers,
            Err(error) => return SendOutcome::Retry(format!("{error:#}"), None),
        };
        if let Some(grpc) = &client.grpc {
            let response = grpc.call(headers, request.body.clone()).await;
            return response.map_or_else(
                |outcome| outcome,
                |message| SendOutcome::Accepted(self.format.rejected(&message)),
            );
        }
        let url = format!("{}{}", client.settings.url, request.path);
        let http_request = client.http.request(request.method.clone(), url).headers(headers);
        let http_request = http_request.header(CONTENT_TYPE, request.content_type).body(request.body.clone());
        match http_request.send().await {
            Ok(response) => self.outcome(request, response).await,
            Err(error) => SendOutcome::Retry(http_client::describe_error(error), None),
        }
    }

    async fn outcome(&self, request: &DeliveryRequest, response: Response) -> SendOutcome {
        let status = response.status();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let requested_delay = backoff::parse_retry_after(retry_after);
        let body = read_body(response).await;
        if status.is_success() {
            return SendOutcome::Accepted(self.format.rejected(&body));
        }
        self.counters.count_failed_response(status.as_u16());
        if request.duplicate_status == Some(status) {
            SendOutcome::Accepted(0)
        } else if request.fallback.as_ref().is_some_and(|(trigger, _)| *trigger == status) {
            SendOutcome::UseFallback
        } else if self.format.is_retryable(status) {
            SendOutcome::Retry(self.describe_failure(status, &body), requested_delay)
        } else if self.format.may_accept_part(status) {
            SendOutcome::RefusedInPart(self.describe_failure(status, &body))
        } else {
            SendOutcome::Refused(self.describe_failure(status, &body))
        }
    }

    /// The status, the beginning of the body, and what the user can do.
    fn describe_failure(&self, status: StatusCode, body: &[u8]) -> String {
        let shown = text::escape_bytes(&body[..body.len().min(MAX_LOGGED_BYTES)]);
        match self.format.remedy(status, body) {
            Some(remedy) => format!("{status}: {shown}; {remedy}"),
            None if self.format.is_retryable(status) || self.format.may_accept_part(status) => {
                format!("{status}: {shown}")
            }
            None => {
                format!("{status}: {shown}; check the destination's URL and headers in the configuration")
            }
        }
    }
}

/// Reads a response up to [`MAX_RESPONSE_BYTES`], or as much as arrives before the request times out.
async fn read_body(mut response: Response) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        let left = MAX_RESPONSE_BYTES - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(left)]);
        if body.len() == MAX_RESPONSE_BYTES {
            break;
        }
    }
    body
}
