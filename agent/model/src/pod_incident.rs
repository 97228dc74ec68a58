//! What happened to one pod in one stretch of time.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::owner::PodRef;

/// Events of one pod with less than two minutes between any two of them. It is told again as it goes on: the last word
/// counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PodIncident {
    /// `<boot>-i<ms since 1970>-<the pod uid's first 8>`.
    pub incident: String,
    pub from: Timestamp,
    /// Of its last event.
    pub until: Timestamp,
    /// More may come.
    pub open: bool,
    pub node: String,
    pub pod: PodRef,
    /// Containers that something happened to, by name.
    pub containers: Vec<String>,
    /// Processes that the OOM killer chose, without those that were dying already.
    pub oom_kills: u64,
    /// Ids of the `oom.incident`s in it.
    pub ooms: Vec<String>,
    /// SIGKILLs by anyone else.
    pub sigkills: u64,
    /// Starts of a container again, as far as its events show them.
    pub restarts: u64,
    /// Lookups that failed; below three within a minute they make no incident.
    pub failed_lookups: u64,
    /// The names that failed most often, at most 5, and how often.
    pub failed_names: Vec<(String, u64)>,
    /// Ids of its events in the store, the first 64.
    pub events: Vec<i64>,
    /// Null: they do not line up, or too little is known of them.
    pub correlated: Option<Correlation>,
}

/// DNS failures, memory and a kill that line up in time. It says that they do, and not that one made the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Correlation {
    /// The `oom.incident`.
    pub oom: String,
    pub container: String,
    /// The stretch before the kill that both curves have.
    pub from: Timestamp,
    pub until: Timestamp,
    /// Lookups of the pod that failed in it.
    pub failures: u64,
    /// What the container's memory grew by in it, without page cache.
    pub grown_mib: f64,
    /// The share of that growth that came after the first failure, 0..=1.
    pub grown_since_first_failure: f64,
    /// Pearson's r of the two curves: memory, and failures so far. Any two things that only rise have a high one.
    pub coefficient: f64,
    /// Pearson's r of what both did in each step: strict, and low where both go on evenly; null: one did not vary.
    pub steps_coefficient: Option<f64>,
    /// Points that both curves were compared at.
    pub points: usize,
}

impl Correlation {
    /// In one line, as what was seen.
    pub fn sentence(&self) -> String {
        format!(
            "{} lookups failed and memory grew by {:.1} MiB in the {} s before the kill; the curves correlate (r = {:.2})",
            self.failures,
            self.grown_mib,
            self.until.duration_since(self.from).as_secs(),
            self.coefficient,
        )
    }
}
