//! What metrics want to know of a running recorder, for whoever serves them: it may outlive the recorder.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use crate::dns::counts;
use crate::memory::{CgroupMemoryRecord, MemoryTrend};
use crate::oom::OomExaminer;
use crate::shed::{Shed, Tally};
use podopsy_model::{DnsCounts, Losses, Owner};
use podopsy_pods::Pods;

/// What the recorder knows at the time of a scrape.
#[derive(Debug, Default)]
pub struct Scrape {
    /// Owners of living containers.
    pub alive: Vec<Owner>,
    pub dns: Vec<DnsCounts>,
    /// How fast each container's memory grows, and towards what.
    pub growth: Vec<(Owner, MemoryTrend)>,
    pub losses: Losses,
    /// SIGKILLs within one container, which are counted and not told.
    pub own_kills: u64,
    /// What is left out to keep to a budget.
    pub shed: Vec<Tally>,
}

/// Reads sums; stops nothing and keeps nobody waiting.
#[derive(Clone)]
pub struct Scraper {
    pub(super) losses: Arc<Mutex<Losses>>,
    pub(super) own_kills: Arc<AtomicU64>,
    pub(super) counts: counts::Shared,
    pub(super) pods: Arc<Pods>,
    pub(super) examiner: Arc<OomExaminer>,
    pub(super) shed: Arc<Shed>,
}

impl std::fmt::Debug for Scraper {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str("Scraper")
    }
}

impl Scraper {
    /// Waits for the container runtime as any attribution does.
    pub async fn scrape(&self) -> Scrape {
        let alive = self.pods.living();
        let growth = |owner: &Owner| Some((owner.clone(), self.examiner.trend(owner.cgroup.id)?));
        Scrape {
            growth: alive.iter().filter_map(growth).collect(),
            alive,
            dns: self.dns_counts().await,
            losses: self.losses(),
            own_kills: self.own_kills(),
            shed: self.shed.tally(),
        }
    }

    /// What is to be kept of every container's memory; see [`crate::memory::MemorySampler::memory_records`].
    pub fn memory_records(&self) -> Vec<CgroupMemoryRecord> {
        self.examiner.memory_records()
    }

    pub(super) async fn dns_counts(&self) -> Vec<DnsCounts> {
        counts::attributed(&self.counts, &self.pods).await
    }

    pub(super) fn losses(&self) -> Losses {
        self.losses.lock().map(|losses| losses.clone()).unwrap_or_default()
    }

    pub(super) fn own_kills(&self) -> u64 {
        self.own_kills.load(Relaxed)
    }
}
