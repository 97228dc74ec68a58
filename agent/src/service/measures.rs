//! What `/metrics` has, sent by OTLP each so often, for who cannot scrape.
//!
//! Must not know: what is counted.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use crate::api::Pages;
use crate::deliver::Courier;
use crate::deliver::otlp_metrics::Page;
use crate::metrics::family::Family;

pub struct Measures {
    pub(super) courier: Courier<Page>,
    pub(super) every: Duration,
    /// Since when is counted.
    since: Timestamp,
    node: String,
    task: Option<JoinHandle<()>>,
}

impl Measures {
    pub fn new(courier: Courier<Page>, every: Duration, node: &str) -> Measures {
        Measures { courier, every, since: Timestamp::now(), node: node.to_owned(), task: None }
    }

    /// From here on what is counted is sent.
    pub fn begin(&mut self, pages: Arc<Pages>) {
        let (inlet, since, node) = (self.courier.inlet(), self.since, self.node.clone());
        let mut round = interval(self.every);
        round.set_missed_tick_behavior(MissedTickBehavior::Skip);
        self.task = Some(tokio::spawn(async move {
            loop {
                round.tick().await;
                let families = pages.families().await;
                inlet.offer(Page::new(&node, &families, since, Timestamp::now()));
            }
        }));
    }

    pub fn offer(&self, families: &[Family]) {
        self.courier.offer(Page::new(&self.node, families, self.since, Timestamp::now()));
    }

    /// `last`: what was counted in the end. The courier has it to deliver, then.
    pub fn end(self, last: &[Family]) -> Courier<Page> {
        if let Some(task) = &self.task {
            task.abort();
            self.offer(last);
        }
        self.courier
    }
}
