//! Sends the content of `/metrics` by OTLP at an interval, for users who cannot scrape.
//!
//! This module must not depend on what is counted.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use crate::api::MetricsPage;
use podopsy_deliver::Destination;
use podopsy_deliver::otlp_metrics::MetricsSnapshot;
use podopsy_model::metric::MetricFamily;

pub struct MetricsExport {
    pub(super) destination: Destination<MetricsSnapshot>,
    pub(super) every: Duration,
    origin: Arc<Origin>,
    task: Option<JoinHandle<()>>,
}

/// The node that the metrics come from.
struct Origin {
    node: String,
    /// Counters count since this time.
    since: Timestamp,
}

impl Origin {
    fn snapshot(&self, families: &[MetricFamily]) -> MetricsSnapshot {
        MetricsSnapshot::new(&self.node, families, self.since, Timestamp::now())
    }
}

impl MetricsExport {
    pub fn new(destination: Destination<MetricsSnapshot>, every: Duration, node: &str) -> MetricsExport {
        let origin = Arc::new(Origin { node: node.to_owned(), since: Timestamp::now() });
        MetricsExport { destination, every, origin, task: None }
    }

    /// Sends a snapshot of `pages` at each interval from now on.
    pub fn begin(&mut self, pages: Arc<MetricsPage>) {
        let sender = self.destination.sender();
        let origin = Arc::clone(&self.origin);
        let mut ticks = interval(self.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        self.task = Some(tokio::spawn(async move {
            loop {
                ticks.tick().await;
                sender.offer(origin.snapshot(&pages.families().await));
            }
        }));
    }

    pub fn offer(&self, families: &[MetricFamily]) {
        self.destination.offer(self.origin.snapshot(families));
    }

    /// Ends the task, and offers the final values if it ran. The caller must close the destination.
    pub fn end(self, final_families: &[MetricFamily]) -> Destination<MetricsSnapshot> {
        if let Some(task) = &self.task {
            task.abort();
            self.offer(final_families);
        }
        self.destination
    }
}
