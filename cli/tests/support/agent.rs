//! An agent in the test's own process.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use podopsy_agent::api::{self, ApiListener, Health, MetricsPage, Sources};
use podopsy_model::Event;
use podopsy_pods::{Pods, PodsOptions};
use podopsy_store::{Store, StoreLimits};
use tokio::runtime::Runtime;

/// An agent without a recorder: its store and its API.
#[allow(dead_code, reason = "not every test stops the agent")]
pub struct TestAgent {
    pub store: Store,
    stored: podopsy_store::StoreReceiver,
    /// Answers until it is dropped.
    pub listener: Option<ApiListener>,
    pub socket: PathBuf,
}

impl TestAgent {
    pub fn start(runtime: &Runtime, folder: &Path, pod: &str) -> TestAgent {
        let _guard = runtime.enter();
        let state = folder.join(format!("{pod}.state"));
        fs::create_dir(&state).unwrap();
        let (store, stored) = Store::start(&state, "boot", StoreLimits::default()).unwrap();
        let options = PodsOptions { cri_socket: Some("/nonexistent".into()), ..Default::default() };
        let pods = runtime.block_on(Pods::start(options)).unwrap();
        let (live, _) = tokio::sync::broadcast::channel(16);
        let (health, metrics_page) = (Arc::new(Health::default()), Arc::new(MetricsPage::default()));
        let sources = Sources { pods, store: Some(store.reader()), live, health, metrics_page };
        let socket = folder.join(format!("{pod}.sock"));
        let listener = Some(api::listen(&socket, sources).unwrap());
        TestAgent { store, stored, listener, socket }
    }

    pub fn put(&mut self, event: Event) {
        self.store.put(event).unwrap_or_else(|_| panic!("the queue is not full"));
        self.stored.recv_blocking().unwrap();
    }
}
