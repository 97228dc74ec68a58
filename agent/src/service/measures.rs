//! What `/metrics` has, sent by OTLP each so often, for who cannot scrape.
//!
//! Must not know: what is counted.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use crate::api::Pages;
use podopsy_deliver::Courier;
use podopsy_deliver::otlp_metrics::Page;
use podopsy_model::metric::Family;

pub struct Measures {
    pub(super) courier: Courier<Page>,
    pub(super) every: Duration,
    node: Arc<Node>,
    task: Option<JoinHandle<()>>,
}

struct Node {
    name: String,
    /// Since when is counted.
    since: Timestamp,
}

impl Node {
    fn page(&self, families: &[Family]) -> Page {
        Page::new(&self.name, families, self.since, Timestamp::now())
    }
}

impl Measures {
    pub fn new(courier: Courier<Page>, every: Duration, node: &str) -> Measures {
        let node = Arc::new(Node { name: node.to_owned(), since: Timestamp::now() });
        Measures { courier, every, node, task: None }
    }

    /// From here on what is counted is sent.
    pub fn begin(&mut self, pages: Arc<Pages>) {
        let (inlet, node) = (self.courier.inlet(), Arc::clone(&self.node));
        let mut round = interval(self.every);
        round.set_missed_tick_behavior(MissedTickBehavior::Skip);
        self.task = Some(tokio::spawn(async move {
            loop {
                round.tick().await;
                inlet.offer(node.page(&pages.families().await));
            }
        }));
    }

    pub fn offer(&self, families: &[Family]) {
        self.courier.offer(self.node.page(families));
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
