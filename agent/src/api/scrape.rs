//! `/metrics`: the page for Prometheus, in both formats. It is made at most once a second, however often clients ask for it,
//! and less often where it is expensive.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use tokio::sync::Mutex;

use crate::metrics::Metrics;
use crate::metrics::text::{Format, page};
use podopsy_model::metric::MetricFamily;
use podopsy_recorder::Scraper;
use podopsy_system::clock::thread_cpu;

/// How old a page may be to be served again: at least, and at most.
const AGE_MIN: Duration = Duration::from_secs(1);
const AGE_MAX: Duration = Duration::from_secs(10);
/// A page is served for so many times the CPU time that it took, so that pages take a hundredth of a CPU at most.
const AGE_BY_COST: u32 = 100;
/// How long the container runtime may take to name new containers. After that the page is rendered with the sums of the
/// last scrape.
const SCRAPE_WITHIN: Duration = Duration::from_secs(5);

/// The metrics, and the source of the sums that only the recorder has.
#[derive(Default)]
pub struct MetricsPage {
    metrics: Metrics,
    /// None: the probes are not attached yet.
    scraper: OnceLock<Scraper>,
    last: Mutex<Option<Snapshot>>,
}

/// The metrics at one moment, and the pages that were rendered of them.
struct Snapshot {
    at: Instant,
    /// CPU time that it took so far.
    cost: Duration,
    families: Vec<MetricFamily>,
    prometheus: Option<Bytes>,
    open_metrics: Option<Bytes>,
}

impl Snapshot {
    fn new(families: Vec<MetricFamily>, cost: Duration) -> Snapshot {
        Snapshot { at: Instant::now(), cost, families, prometheus: None, open_metrics: None }
    }

    fn is_fresh(&self) -> bool {
        self.at.elapsed() < (self.cost * AGE_BY_COST).clamp(AGE_MIN, AGE_MAX)
    }

    fn page(&mut self, format: Format) -> Bytes {
        let rendered = match format {
            Format::Prometheus => &mut self.prometheus,
            Format::OpenMetrics => &mut self.open_metrics,
        };
        if let Some(page) = rendered {
            return page.clone();
        }
        let began = thread_cpu();
        let text = Bytes::from(page(&self.families, format));
        *rendered = Some(text.clone());
        self.cost += thread_cpu().saturating_sub(began);
        text
    }
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

    /// Returns the page in this format, as it is now or was a short time ago. Concurrent callers wait for the same page.
    pub async fn render(&self, format: Format) -> Bytes {
        let mut last = self.last.lock().await;
        if let Some(snapshot) = last.as_mut().filter(|snapshot| snapshot.is_fresh()) {
            return snapshot.page(format);
        }
        let (families, cost) = with_cost(self.families()).await;
        last.insert(Snapshot::new(families, cost)).page(format)
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

/// Runs `work`, and returns the CPU time that it took, without the time in which it waited.
async fn with_cost<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let (mut work, mut cost) = (pin!(work), Duration::ZERO);
    poll_fn(move |context| {
        let began = thread_cpu();
        let polled = work.as_mut().poll(context);
        cost += thread_cpu().saturating_sub(began);
        polled.map(|value| (value, cost))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use podopsy_model::metric::MetricFamily;

    #[tokio::test]
    async fn both_formats_are_of_one_moment_and_made_once() {
        let pages = MetricsPage::default();
        let made = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
        let counter = made.clone();
        pages.metrics().set_family_source(move || {
            let n = counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            vec![MetricFamily::gauge("made", "How often.").single(n as f64)]
        });
        let began = Instant::now();
        let (mut asked, mut different) = (0, std::collections::BTreeSet::new());
        while began.elapsed() < AGE_MIN / 2 {
            for format in [Format::Prometheus, Format::OpenMetrics] {
                different.insert(pages.render(format).await);
                asked += 1;
            }
        }
        assert_eq!(
            (made.load(std::sync::atomic::Ordering::Relaxed), different.len()),
            (1, 2),
            "{asked} pages"
        );
    }

    #[test]
    fn an_expensive_page_is_served_for_longer() {
        let age = |ms: u64, seconds: u64| {
            let mut snapshot = Snapshot::new(Vec::new(), Duration::from_millis(ms));
            snapshot.at = Instant::now().checked_sub(Duration::from_millis(seconds * 1000 - 100)).unwrap();
            snapshot.is_fresh()
        };
        assert!(age(0, 1) && !age(0, 2));
        assert!(age(30, 3) && !age(30, 4));
        assert!(age(5000, 10) && !age(5000, 11));
    }
}
