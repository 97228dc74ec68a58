//! `/metrics`: the page for Prometheus. It is rendered at most once a second, however often clients ask for it.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::metrics::Metrics;
use crate::metrics::text::{Format, page};
use podopsy_model::metric::MetricFamily;
use podopsy_recorder::Scraper;

/// How old a page may be to be served again.
const MAX_AGE: Duration = Duration::from_secs(1);
/// How long the container runtime may take to name new containers. After that the page is rendered with the sums of the
/// last scrape.
const SCRAPE_WITHIN: Duration = Duration::from_secs(5);

/// The metrics, and the source of the sums that only the recorder has.
#[derive(Default)]
pub struct MetricsPage {
    metrics: Metrics,
    /// None: the probes are not attached yet.
    scraper: OnceLock<Scraper>,
    last: Mutex<Option<(Instant, Format, Arc<str>)>>,
}

impl MetricsPage {
    /// The metrics that count events.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Sets the source of the recorder's sums, once the recorder runs.
    pub fn attached(&self, scraper: Scraper) {
        let _ = self.scraper.set(scraper);
    }

    /// Returns the current page, or one that is at most [`MAX_AGE`] old. Concurrent callers wait for the same page.
    pub async fn render(&self, format: Format) -> Arc<str> {
        let mut last = self.last.lock().await;
        if let Some((at, had, text)) = last.as_ref()
            && *had == format
            && at.elapsed() < MAX_AGE
        {
            return text.clone();
        }
        let text: Arc<str> = page(&self.families().await, format).into();
        *last = Some((Instant::now(), format, text.clone()));
        text
    }

    /// All families, after a scrape of the recorder.
    pub async fn families(&self) -> Vec<MetricFamily> {
        // If the scrape takes too long, the sums of the last one stay: series that disappear and return look like restarts.
        if let Some(scraper) = self.scraper.get()
            && let Ok(scrape) = tokio::time::timeout(SCRAPE_WITHIN, scraper.scrape()).await
        {
            self.metrics.apply_scrape(scrape);
        }
        self.metrics.families()
    }
}
