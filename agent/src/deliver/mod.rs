//! Events and profiles to where people already look: one file a destination.
//!
//! Each destination has a queue and a worker of its own, so that one that hangs changes nothing for the others or for
//! the recorder: [`Courier::offer`] never waits. Delivery is at least once: a batch whose answer was lost is sent again.
//! What is given up is counted, by reason. Must not know: where anything comes from, the store, configuration files.

pub mod loki;
pub mod otlp;
mod patience;
pub mod queue;
mod worker;
pub mod written;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Context;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::queue::{Queue, Weigh};

/// How a destination is reached, whatever it is.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `http://` or `https://`, with the path that the destination wants.
    pub url: String,
    /// Sent with every request: authorization, a tenant.
    pub headers: Vec<(String, String)>,
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

    fn content_type(&self) -> &'static str;

    /// The body of one request.
    fn body(&self, batch: &[Self::Item]) -> anyhow::Result<Vec<u8>>;

    /// How many of a batch a destination refused although its answer was a success.
    fn refused(&self, _answer: &[u8]) -> u64 {
        0
    }
}

/// What became of items; nothing that was offered is missing here but for what still waits.
#[derive(Debug, Default)]
pub struct Tally {
    pub delivered: AtomicU64,
    /// The destination said that it never will take them.
    pub refused: AtomicU64,
    /// Tried for as long as `patience` allows.
    pub expired: AtomicU64,
    /// Requests that were made again.
    pub retries: AtomicU64,
    /// Not written out when the agent ended.
    pub abandoned: AtomicU64,
}

/// Takes items to one destination.
pub struct Courier<T> {
    name: &'static str,
    queue: Arc<Queue<T>>,
    tally: Arc<Tally>,
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
        let client = client(&settings).with_context(|| format!("destination {name}"))?;
        let queue = Arc::new(Queue::new(settings.queue_bytes));
        let tally = Arc::new(Tally::default());
        let (closing, closed) = watch::channel(false);
        let worker = worker::Worker {
            name,
            client,
            settings,
            format,
            queue: queue.clone(),
            tally: tally.clone(),
            closed,
        };
        Ok(Courier { name, queue, tally, closing, worker: tokio::spawn(worker.run()) })
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Never waits.
    pub fn offer(&self, item: T) {
        self.queue.push(item);
    }

    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// What was given up, by reason.
    pub fn lost(&self) -> [(&'static str, u64); 4] {
        [
            ("queue_full", self.queue.dropped()),
            ("refused", self.tally.refused.load(Relaxed)),
            ("expired", self.tally.expired.load(Relaxed)),
            ("abandoned", self.tally.abandoned.load(Relaxed)),
        ]
    }

    /// Tries to deliver what waits, each batch once more, within `time`; the rest is counted as abandoned.
    pub async fn close(self, time: Duration) -> Arc<Tally> {
        let _ = self.closing.send(true);
        let mut worker = self.worker;
        if tokio::time::timeout(time, &mut worker).await.is_err() {
            worker.abort();
            let _ = worker.await;
        }
        let left = self.queue.take(usize::MAX, usize::MAX).len() as u64;
        self.tally.abandoned.fetch_add(left, Relaxed);
        self.tally
    }
}

fn client(settings: &Settings) -> anyhow::Result<reqwest::Client> {
    let url = reqwest::Url::parse(&settings.url).with_context(|| format!("{:?} is no URL", settings.url))?;
    anyhow::ensure!(
        matches!(url.scheme(), "http" | "https") && url.host().is_some(),
        "{:?} must begin with http:// or https:// and a host",
        settings.url
    );
    let mut headers = HeaderMap::new();
    for (name, value) in &settings.headers {
        let name = HeaderName::try_from(name).with_context(|| format!("{name:?} is no header's name"))?;
        let mut value = HeaderValue::try_from(value)
            .with_context(|| format!("the value of header {name} has bytes that no header may have"))?;
        // It may be a password.
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    // The first to come chooses for the process, and there is one to choose.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("podopsy-agent/", env!("CARGO_PKG_VERSION")))
        .default_headers(headers)
        .timeout(settings.timeout)
        // A destination does not choose another one for us.
        .redirect(reqwest::redirect::Policy::none())
        .pool_max_idle_per_host(1);
    if let Some(path) = &settings.certificate_authority {
        let pem = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let all = reqwest::Certificate::from_pem_bundle(&pem)
            .with_context(|| format!("{} has no PEM certificates", path.display()))?;
        builder = builder.tls_certs_only(all);
    }
    if let Some(path) = &settings.identity {
        let pem = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let identity = reqwest::Identity::from_pem(&pem)
            .with_context(|| format!("{} has no PEM certificate with its key", path.display()))?;
        builder = builder.identity(identity);
    }
    builder.build().context("set up HTTP and TLS")
}
