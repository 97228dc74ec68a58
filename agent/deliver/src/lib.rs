//! Events and profiles to where people already look: one file a destination.
//!
//! Each destination has a queue and a worker of its own, so that one that hangs changes nothing for the others or for
//! the recorder: [`Courier::offer`] never waits. Delivery is at least once: a batch whose answer was lost is sent again,
//! and what a run had not sent its next one can ([`Courier::resume`]). What is given up is counted, by reason. Must not
//! know: where anything comes from, the store, configuration files.

mod grpc;
mod header;
pub mod kubernetes;
pub mod loki;
pub mod otlp;
mod otlp_dictionary;
pub mod otlp_metrics;
pub mod otlp_profiles;
mod patience;
mod progress;
pub mod pyroscope;
pub mod queue;
mod request;
mod route;
mod tally;
mod trust;
mod worker;
pub mod written;

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

pub use self::header::Header;
pub use self::progress::{Progress, Resume};
use self::queue::{Queue, Weigh};
pub use self::request::Request;
pub use self::route::Route;
pub use self::tally::Counts;
use self::tally::{Fate, Tally};
pub use self::trust::url;

/// How a destination is reached, whatever it is.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `http://` or `https://`, with the path that the destination wants (none, for gRPC).
    pub url: String,
    /// The gRPC method that takes a batch, `/PACKAGE.SERVICE/METHOD`; None: it is posted.
    pub method: Option<&'static str>,
    /// Sent with every request: authorization, a tenant.
    pub headers: Vec<Header>,
    /// PEM; None: the system's.
    pub certificate_authority: Option<PathBuf>,
    /// PEM, certificate and key in one file, where the destination wants to know who we are.
    pub identity: Option<PathBuf>,
    /// Longest time from connecting to the last byte of the answer.
    pub timeout: Duration,
    /// How long a batch waits for company.
    pub linger: Duration,
    /// How long a batch is tried again before it is given up.
    pub patience: Duration,
    /// What may wait, in bytes.
    pub queue_bytes: usize,
    pub batch_items: usize,
    pub batch_bytes: usize,
}

impl Settings {
    pub fn new(url: &str) -> Settings {
        Settings {
            url: url.to_owned(),
            method: None,
            headers: Vec::new(),
            certificate_authority: None,
            identity: None,
            timeout: Duration::from_secs(10),
            linger: Duration::from_secs(1),
            patience: Duration::from_secs(600),
            queue_bytes: 8 << 20,
            batch_items: 500,
            batch_bytes: 1 << 20,
        }
    }
}

/// A destination's own words.
pub trait Format: Send + Sync + 'static {
    type Item: Weigh + Send + 'static;

    /// Of what is posted; gRPC has its own.
    fn content_type(&self) -> &'static str;

    /// The body of one request.
    fn body(&self, batch: &[Self::Item]) -> anyhow::Result<Vec<u8>>;

    /// What a batch is sent as.
    fn request(&self, batch: &[Self::Item]) -> anyhow::Result<Request> {
        Ok(Request::post(self.content_type(), self.body(batch)?))
    }

    /// How many of a batch a destination refused although its answer was a success.
    fn refused(&self, _answer: &[u8]) -> u64 {
        0
    }

    /// Whether whoever refuses so may have taken some of the batch.
    fn takes_some(&self, _status: StatusCode) -> bool {
        false
    }

    /// Whether what such an answer refuses may be taken later.
    fn passes(&self, status: StatusCode) -> bool {
        status.is_server_error()
            || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
    }

    /// What would mend a refusal; None: the worker's own words.
    fn mends(&self, _status: StatusCode, _answer: &[u8]) -> Option<&'static str> {
        None
    }
}

/// What became of what was offered to a destination; it may outlive the courier.
#[derive(Clone, Debug)]
pub struct Ledger {
    pub destination: &'static str,
    tally: Arc<Tally>,
}

impl Ledger {
    pub fn counts(&self) -> Counts {
        self.tally.counts()
    }

    /// What is lost, by counter name.
    pub fn loss(&self) -> (String, u64) {
        (format!("export_{}", self.destination), self.counts().lost_sum())
    }

    /// How many answers were no success, by status.
    pub fn answers(&self) -> Vec<(u16, u64)> {
        self.tally.answers()
    }
}

/// A courier's way in, for whoever offers on its own time.
pub struct Inlet<T>(Arc<Queue<T>>);

impl<T: Weigh> Inlet<T> {
    /// Never waits.
    pub fn offer(&self, item: T) {
        self.0.push(item);
    }
}

/// Takes items to one destination.
pub struct Courier<T> {
    name: &'static str,
    route: watch::Sender<Arc<Route>>,
    queue: Arc<Queue<T>>,
    tally: Arc<Tally>,
    progress: Arc<Progress>,
    closing: watch::Sender<bool>,
    worker: JoinHandle<()>,
}

impl<T: Weigh + Send + 'static> Courier<T> {
    /// An error says what of the settings cannot be; whether the destination is there shows later.
    pub fn start<F: Format<Item = T>>(
        name: &'static str,
        settings: Settings,
        format: F,
    ) -> anyhow::Result<Courier<T>> {
        let first = Arc::new(Route::new(name, settings)?);
        let queue_bytes = first.settings.queue_bytes;
        let (route, routes) = watch::channel(first.clone());
        let tally = Arc::new(Tally::default());
        let progress = Arc::new(Progress::default());
        let queue = Arc::new(Queue::new(queue_bytes, tally.clone(), progress.clone()));
        let (closing, closed) = watch::channel(false);
        let worker = worker::Worker {
            name,
            route: first,
            routes,
            format: Arc::new(format),
            queue: queue.clone(),
            tally: tally.clone(),
            progress: progress.clone(),
            closed,
        };
        Ok(Courier { name, route, queue, tally, progress, closing, worker: tokio::spawn(worker.run()) })
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    pub fn url(&self) -> String {
        self.route.borrow().settings.url.clone()
    }

    /// From now on it is reached so, for what waits already, too; how much may wait stays as it is.
    pub fn turn(&self, route: Route) {
        self.route.send_replace(Arc::new(route));
    }

    /// Never waits.
    pub fn offer(&self, item: T) {
        if !item.id().is_some_and(|id| self.progress.passes_over(id)) {
            self.queue.push(item);
        }
    }

    pub fn inlet(&self) -> Inlet<T> {
        Inlet(self.queue.clone())
    }

    /// How far it has come in the store; it may outlive the courier.
    pub fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }

    /// What comes first: all that the store has behind `done`. Call before anything is offered.
    pub fn resume(&self, done: i64) -> Resume<T> {
        Resume::begin(done, self.queue.clone(), self.progress.clone(), self.tally.clone())
    }

    pub fn ledger(&self) -> Ledger {
        Ledger { destination: self.name, tally: self.tally.clone() }
    }

    /// Tries to deliver what waits, each batch once more, within `time`; the rest is counted as abandoned.
    pub async fn close(self, time: Duration) -> Counts {
        let _ = self.closing.send(true);
        let mut worker = self.worker;
        if tokio::time::timeout(time, &mut worker).await.is_err() {
            worker.abort();
            let _ = worker.await;
        }
        let left = self.queue.take(usize::MAX, usize::MAX);
        let bytes: usize = left.iter().map(Weigh::bytes).sum();
        self.tally.settled(Fate::Abandoned, left.len() as u64, bytes as u64);
        self.tally.counts()
    }
}
