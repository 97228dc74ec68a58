//! The agent's health, for the probes of the kubelet and of systemd.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use podopsy_system::sync::lock;
use serde::Serialize;

/// The event pipeline is alive if it reported within this time.
pub const ALIVE_WITHIN: Duration = Duration::from_secs(30);

/// Written by the pipeline, read by `/healthz` and `/readyz`.
pub struct Health {
    began: Instant,
    /// When the pipeline last reported, in ms since `began`.
    alive_ms: AtomicU64,
    attached: AtomicBool,
    stopping: AtomicBool,
    /// The agent still holds rights that it will give up.
    unrestrained: AtomicBool,
    degraded: Mutex<Vec<String>>,
}

/// The answer to `/readyz`.
#[derive(Debug, Serialize)]
pub struct Readiness {
    pub ready: bool,
    /// What the agent waits for. Empty if it is ready.
    pub waiting_for: Vec<String>,
    /// Features that do not work on this machine, with the reasons. Everything else works.
    pub degraded: Vec<String>,
}

impl Default for Health {
    fn default() -> Self {
        Health {
            began: Instant::now(),
            alive_ms: AtomicU64::new(0),
            attached: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            unrestrained: AtomicBool::new(false),
            degraded: Mutex::default(),
        }
    }
}

impl Health {
    /// Records that the pipeline finished a round.
    pub fn alive(&self) {
        self.alive_ms.store(self.began.elapsed().as_millis() as u64, Relaxed);
    }

    /// Records that the probes are attached, except for the degraded features.
    pub fn attached(&self, degraded: Vec<String>) {
        lock(&self.degraded).extend(degraded);
        self.attached.store(true, Relaxed);
    }

    /// Records that a feature does not work, or has stopped working. Everything else works.
    pub fn degrade(&self, what: String) {
        lock(&self.degraded).push(what);
    }

    /// Records whether the agent still holds rights that it will give up.
    pub fn set_unrestrained(&self, unrestrained: bool) {
        self.unrestrained.store(unrestrained, Relaxed);
    }

    pub fn stopping(&self) {
        self.stopping.store(true, Relaxed);
    }

    pub fn is_alive(&self) -> bool {
        let alive = Duration::from_millis(self.alive_ms.load(Relaxed));
        self.began.elapsed().saturating_sub(alive) < ALIVE_WITHIN
    }

    /// `cri_error`: why pods have no names yet. `store_trouble`: why the store cannot be written.
    pub fn readiness(&self, cri_error: Option<String>, store_trouble: Option<String>) -> Readiness {
        let mut waiting_for = Vec::new();
        if !self.attached.load(Relaxed) {
            waiting_for.push("probes are not attached yet".to_owned());
        }
        if self.unrestrained.load(Relaxed) {
            waiting_for
                .push("the agent has not given up its rights yet: probes are still being loaded".to_owned());
        }
        if self.stopping.load(Relaxed) {
            waiting_for.push("the agent is being stopped".to_owned());
        }
        waiting_for.extend(cri_error.map(|error| format!("the container runtime does not answer: {error}")));
        let mut degraded = lock(&self.degraded).clone();
        degraded.extend(store_trouble.map(|reason| format!("the store is not written: {reason}")));
        Readiness { ready: waiting_for.is_empty(), waiting_for, degraded }
    }
}
