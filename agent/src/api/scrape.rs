//! `/metrics`: a page for Prometheus, made anew once a second at most, whoever asks how often.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::metrics::Metrics;
use crate::metrics::text::{Format, page};
use podopsy_model::metric::MetricFamily;
use podopsy_recorder::Scraper;

/// How old a page may be that is given once more.
const FRESH: Duration = Duration::from_secs(1);
/// How long the container runtime may take to name those who are new; then the page goes without what waits for it.
const WITHIN: Duration = Duration::from_secs(5);

/// What is counted, and where the rest is asked for.
#[derive(Default)]
pub struct Pages {
    metrics: Metrics,
    /// None: the probes are not attached yet.
    scraper: OnceLock<Scraper>,
    last: Mutex<Option<(Instant, Format, Arc<str>)>>,
}

impl Pages {
    /// Where events are counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The recorder runs.
    pub fn attached(&self, scraper: Scraper) {
        let _ = self.scraper.set(scraper);
    }

    /// The page as it is now, or was a moment ago; who comes meanwhile waits for the same one.
    pub async fn page(&self, format: Format) -> Arc<str> {
        let mut last = self.last.lock().await;
        if let Some((at, had, text)) = last.as_ref()
            && *had == format
            && at.elapsed() < FRESH
        {
            return text.clone();
        }
        let text: Arc<str> = page(&self.families().await, format).into();
        *last = Some((Instant::now(), format, text.clone()));
        text
    }

    /// What is known now.
    pub async fn families(&self) -> Vec<MetricFamily> {
        // Where it does not come in time, what was taken over before stands: series that come and go look like restarts.
        if let Some(scraper) = self.scraper.get()
            && let Ok(scrape) = tokio::time::timeout(WITHIN, scraper.scrape()).await
        {
            self.metrics.take(scrape);
        }
        self.metrics.families()
    }
}
