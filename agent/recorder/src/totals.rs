//! Sums that several tasks of the recorder share.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use podopsy_model::Losses;
use podopsy_system::sync::lock;

use crate::shed::Shed;

/// Sums since the start.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    /// Losses of all stages, as of the last tick.
    pub losses: Arc<Mutex<Losses>>,
    /// SIGKILLs within one container, which are counted and not reported.
    pub own_kills: AtomicU64,
    /// Stacks of kills that got no names in time.
    pub stacks_unnamed: AtomicU64,
    /// Failed queries that were dropped because too many waited for the names of their container.
    pub dns_waiting_dropped: AtomicU64,
    /// Lookups that were dropped because too many were open.
    pub lookups_evicted: AtomicU64,
    pub shed: Arc<Shed>,
}

impl Totals {
    pub fn losses(&self) -> Losses {
        lock(&self.losses).clone()
    }

    /// What attribution dropped, by counter name.
    pub fn attribution_losses(&self) -> [(String, u64); 2] {
        [
            ("lookups_evicted".to_owned(), self.lookups_evicted.load(Relaxed)),
            ("dns_waiting_dropped".to_owned(), self.dns_waiting_dropped.load(Relaxed)),
        ]
    }

    pub fn own_kills(&self) -> u64 {
        self.own_kills.load(Relaxed)
    }
}
