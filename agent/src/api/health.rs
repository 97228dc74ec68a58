//! How the agent is doing: for probes of the kubelet and of systemd.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

/// The pipeline says that it lives more often than this.
pub const ALIVE_WITHIN: Duration = Duration::from_secs(30);

/// Said by the pipeline, asked by probes.
pub struct Health {
    began: Instant,
    /// Since `began`, in ms.
    alive_ms: AtomicU64,
    attached: AtomicBool,
    stopping: AtomicBool,
    degraded: Mutex<Vec<String>>,
}

/// The answer to `/readyz`.
#[derive(Debug, Serialize)]
pub struct Ready {
    pub ready: bool,
    /// What is waited for; empty: nothing.
    pub waiting_for: Vec<String>,
    /// What this kernel or this machine does not allow: the rest works.
    pub degraded: Vec<String>,
}

impl Default for Health {
    fn default() -> Self {
        Health {
            began: Instant::now(),
            alive_ms: AtomicU64::new(0),
            attached: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            degraded: Mutex::default(),
        }
    }
}

impl Health {
    /// The pipeline has come round once more.
    pub fn alive(&self) {
        self.alive_ms.store(self.began.elapsed().as_millis() as u64, Relaxed);
    }

    /// The probes are attached, but for these.
    pub fn attached(&self, degraded: Vec<String>) {
        self.degraded.lock().unwrap_or_else(PoisonError::into_inner).extend(degraded);
        self.attached.store(true, Relaxed);
    }

    /// One feature is not there, or no more; the rest works.
    pub fn degrade(&self, what: String) {
        self.degraded.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    pub fn stopping(&self) {
        self.stopping.store(true, Relaxed);
    }

    pub fn is_alive(&self) -> bool {
        let alive = Duration::from_millis(self.alive_ms.load(Relaxed));
        self.began.elapsed().saturating_sub(alive) < ALIVE_WITHIN
    }

    /// `cri_error`: why pods have no names yet.
    pub fn ready(&self, cri_error: Option<String>, store_trouble: Option<String>) -> Ready {
        let mut waiting_for = Vec::new();
        if !self.attached.load(Relaxed) {
            waiting_for.push("probes are not attached yet".to_owned());
        }
        if self.stopping.load(Relaxed) {
            waiting_for.push("the agent is being stopped".to_owned());
        }
        waiting_for.extend(cri_error.map(|error| format!("the container runtime does not answer: {error}")));
        let mut degraded = self.degraded.lock().unwrap_or_else(PoisonError::into_inner).clone();
        degraded.extend(store_trouble.map(|why| format!("the store is not written: {why}")));
        Ready { ready: waiting_for.is_empty(), waiting_for, degraded }
    }
}
