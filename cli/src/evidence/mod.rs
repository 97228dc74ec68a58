//! Evidence about some pods: what a report shows, and what a bundle holds.
//!
//! | module | does |
//! |---|---|
//! | [`gather`] | reads it from an agent's history |
//! | [`bundle`] | writes it to one file, and reads such a file, which may be hostile |
//! | [`redact`] | replaces names by numbers |

pub mod bundle;
pub mod gather;
mod redact;

use std::collections::BTreeMap;

use jiff::Timestamp;
use podopsy_client::HistoryGap;
use serde::{Deserialize, Serialize};

use crate::args::Redaction;
use crate::timeline::Sources;

/// Everything that is known about some pods in a time.
#[derive(Clone, Debug, Default)]
pub struct PodEvidence {
    pub manifest: Manifest,
    pub sources: Sources,
    pub gaps: Vec<HistoryGap>,
    /// The sum of the stored CPU profiles, as pprof.
    pub cpu: Option<Vec<u8>>,
}

/// What the evidence is about, and where it comes from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of the archive's format.
    pub version: u32,
    /// The version of the program that gathered it.
    pub podopsy: String,
    pub node: String,
    /// The pods.
    pub subject: String,
    pub from: Timestamp,
    pub until: Timestamp,
    /// The incident that was asked for.
    pub incident: Option<String>,
    pub redacted: Vec<Redaction>,
    pub cpu: Option<CpuFacts>,
    /// What is missing.
    pub notes: Vec<String>,
}

/// The counts of a CPU profile.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CpuFacts {
    pub from: Timestamp,
    pub until: Timestamp,
    pub frequency_hz: u64,
    pub samples: u64,
    pub user_stacks: u64,
    pub complete: u64,
    pub lost: BTreeMap<String, u64>,
}

impl PodEvidence {
    pub fn is_empty(&self) -> bool {
        let Sources { events, memory, incidents, pods } = &self.sources;
        events.is_empty()
            && memory.is_empty()
            && incidents.is_empty()
            && pods.iter().all(|pod| pod.containers.is_empty())
            && self.cpu.is_none()
    }
}
