//! The code that made a container's memory grow: sampled page faults by stack.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The page faults of a container in the minutes before its kill.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GrowthProfile {
    /// From the first of its samples that is still kept to the kill.
    pub window_seconds: f64,
    pub samples: u64,
    /// The number of page faults that one sample represents.
    pub period: u64,
    pub page_bytes: u64,
    /// Estimate of the memory that was touched: samples × period × page size. It includes memory that was freed meanwhile,
    /// and a huge page counts as one page.
    pub estimated_bytes: u64,
    /// Samples whose stack reaches its outermost frame.
    pub complete: u64,
    /// Samples with an incomplete stack, by reason.
    pub incomplete: BTreeMap<String, u64>,
    /// Samples that are in no path, because the table of distinct stacks was full.
    pub not_kept: u64,
    /// The paths that touched the most, the hottest first.
    pub paths: Vec<GrowthPath>,
    /// The number of paths that are left out, and the share of all samples that they have.
    pub other_paths: usize,
    pub other_share: f64,
    /// Functions by their own faults, most first.
    pub top_self: Vec<GrowthFunction>,
    /// Functions by the faults of themselves and of all that they called, most first.
    pub top_total: Vec<GrowthFunction>,
}

/// Samples with the same functions on the stack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GrowthPath {
    /// Of all samples, 0..=1.
    pub share: f64,
    pub samples: u64,
    /// Innermost first.
    pub frames: Vec<GrowthFrame>,
    /// The number of outer frames that are left out.
    pub frames_left_out: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GrowthFrame {
    /// The function's name, or `file+0x…` if it has none, or `[…]` with the reason why there is no frame.
    pub function: String,
    /// The path of its file in the container; null: none.
    pub file: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GrowthFunction {
    #[serde(flatten)]
    pub frame: GrowthFrame,
    /// Of all samples, 0..=1.
    pub share: f64,
}
