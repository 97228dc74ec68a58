//! The sums that metrics are made of; may outlive the recorder.

use std::sync::Arc;

use crate::dns::counts;
use crate::memory::{CgroupMemoryRecord, MemoryTrend};
use crate::oom::OomExaminer;
use crate::shed::{Shed, ShedCount};
use crate::totals::Totals;
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
    /// SIGKILLs within one container, which are counted and not reported.
    pub own_kills: u64,
    /// What is left out to keep to a budget.
    pub shed: Vec<ShedCount>,
}

/// Reads sums without stopping the pipeline.
#[derive(Clone)]
pub struct Scraper {
    pub(crate) totals: Arc<Totals>,
    pub(crate) counts: counts::SharedCounts,
    pub(crate) pods: Arc<Pods>,
    pub(crate) examiner: Arc<OomExaminer>,
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
            shed: self.totals.shed.counts(),
        }
    }

    /// The memory samples to store, of every container; see [`crate::memory::MemorySampler::memory_records`].
    pub fn memory_records(&self) -> Vec<CgroupMemoryRecord> {
        self.examiner.memory_records()
    }

    pub(crate) async fn dns_counts(&self) -> Vec<DnsCounts> {
        counts::attributed(&self.counts, &self.pods).await
    }

    pub(crate) fn losses(&self) -> Losses {
        self.totals.losses()
    }

    pub(crate) fn own_kills(&self) -> u64 {
        self.totals.own_kills()
    }

    pub(crate) fn shed(&self) -> Arc<Shed> {
        self.totals.shed.clone()
    }
}
