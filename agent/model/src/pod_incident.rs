//! Pod incidents: events of one pod that happened close together.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::owner::PodRef;

/// Events of one pod with less than two minutes between any two of them. It is emitted again each time that it changes;
/// the last version is valid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PodIncident {
    /// `<boot>-i<ms since 1970>-<the pod uid's first 8>`.
    pub incident: String,
    pub from: Timestamp,
    /// The time of its last event.
    pub until: Timestamp,
    /// More events may still be added.
    pub open: bool,
    pub node: String,
    pub pod: PodRef,
    /// The names of the affected containers.
    pub containers: Vec<String>,
    /// Processes that the OOM killer chose, except those that were dying already.
    pub oom_kills: u64,
    /// The ids of its `oom.incident`s.
    pub ooms: Vec<String>,
    /// SIGKILLs that the OOM killer did not send.
    pub sigkills: u64,
    /// Container restarts, as far as the events show them.
    pub restarts: u64,
    /// Failed lookups. Fewer than three within a minute do not start an incident.
    pub failed_lookups: u64,
    /// The names that failed most often, at most 5, and how often.
    pub failed_names: Vec<(String, u64)>,
    /// The ids of its first 64 events in the store.
    pub events: Vec<i64>,
    /// Null: the events do not correlate, or there is too little data.
    pub correlated: Option<Correlation>,
}

/// DNS failures, memory and a kill that line up in time. It is not a claim that one caused the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Correlation {
    /// The id of the `oom.incident`.
    pub oom: String,
    pub container: String,
    /// The time span before the kill that both curves cover.
    pub from: Timestamp,
    pub until: Timestamp,
    /// Failed lookups of the pod in that span.
    pub failures: u64,
    /// The growth of the container's memory in that span, without page cache.
    pub grown_mib: f64,
    /// The share of that growth that came after the first failure, 0..=1.
    pub grown_since_first_failure: f64,
    /// Pearson's r of memory and cumulative failures. Any two quantities that only rise have a high one.
    pub coefficient: f64,
    /// Pearson's r of the changes per step. It is strict, and low if both grow evenly; null: one of them did not vary.
    pub steps_coefficient: Option<f64>,
    /// The number of points at which the curves were compared.
    pub points: usize,
}

impl Correlation {
    /// One line for people, phrased as an observation.
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
