//! Which code made a container's memory grow: page faults, sampled, by stack.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The page faults of a container in the minutes before its kill.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GrowthProfile {
    /// From the first of its samples that is still kept to the kill.
    pub window_seconds: f64,
    pub samples: u64,
    /// A sample stands for so many page faults.
    pub period: u64,
    pub page_bytes: u64,
    /// Estimate of the memory that was touched: samples × period × page size. What was given back meanwhile is in
    /// it, and a huge page counts as one page.
    pub estimated_bytes: u64,
    /// Samples whose stack goes to its outermost frame.
    pub complete: u64,
    /// The others, by reason.
    pub incomplete: BTreeMap<String, u64>,
    /// Samples that are in no path: there was no room for one more distinct stack.
    pub not_kept: u64,
    /// The paths that touched the most, the hottest first.
    pub paths: Vec<GrowthPath>,
    /// Distinct paths that are left out, and their samples' share of all.
    pub other_paths: usize,
    pub other_share: f64,
    /// Functions by the faults that they took themselves, most first.
    pub top_self: Vec<GrowthFunction>,
    /// Functions by the faults that they and what they called took, most first.
    pub top_total: Vec<GrowthFunction>,
}

/// Samples with the same functions on the stack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GrowthPath {
    /// Of all samples, 0..=1.
    pub share: f64,
    pub samples: u64,
    /// Innermost first.
    pub frames: Vec<GrowthFrame>,
    /// Outer frames that are left out.
    pub frames_left_out: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GrowthFrame {
    /// The function's name; `file+0x…` where it has none; `[…]` says why there is no frame.
    pub function: String,
    /// The file that it is in, as the container names it; null: none.
    pub file: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GrowthFunction {
    #[serde(flatten)]
    pub frame: GrowthFrame,
    /// Of all samples, 0..=1.
    pub share: f64,
}
