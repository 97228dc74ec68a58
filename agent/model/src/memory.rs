//! The memory of a cgroup: its usage, its event counters, and both over time.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The memory charged to a cgroup and those below it, in bytes (v2: `memory.current`, `memory.stat`; v1:
/// `memory.usage_in_bytes`, `memory.stat`'s `total_*`, `memory.kmem.usage_in_bytes`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MemoryUsage {
    pub current_bytes: u64,
    pub anon_bytes: u64,
    /// Page cache without shared memory.
    pub file_bytes: u64,
    pub shmem_bytes: u64,
    /// Stacks, page tables, slab, sockets.
    pub kernel_bytes: u64,
    pub swap_bytes: u64,
    /// Null: no limit.
    pub limit_bytes: Option<u64>,
    /// Null: not available for this cgroup (v1).
    pub pressure: Option<Pressure>,
}

/// Time in which tasks waited for memory, in µs since the cgroup was created (`memory.pressure`, `total=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Pressure {
    pub some_us: u64,
    pub full_us: u64,
}

/// The events of a cgroup itself since it was created (v2 `memory.events.local`; v1 `memory.failcnt`, `memory.oom_control`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MemoryCounters {
    /// Charges that met this cgroup's limit. Most of them succeed after reclaim.
    pub limit_hits: u64,
    /// How often the usage exceeded `memory.high`; 0 on v1.
    pub high: u64,
    /// How often reclaim could not get below this cgroup's limit; null: v1 does not count it.
    pub ooms: Option<u64>,
    /// Processes of this cgroup itself that the OOM killer chose.
    pub oom_kills: u64,
}

/// The memory of a container over time, oldest first. All columns have the same length.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Curve {
    pub time: Vec<Timestamp>,
    pub current_bytes: Vec<u64>,
    pub anon_bytes: Vec<u64>,
    pub file_bytes: Vec<u64>,
    pub shmem_bytes: Vec<u64>,
    pub kernel_bytes: Vec<u64>,
    /// Growth of the memory that cannot be reclaimed (all but `file`): the median of the slopes between any two points
    /// (Theil–Sen), in bytes per second; null: fewer than 5 points.
    pub growth_bytes_per_second: Option<f64>,
    /// Share of the time in which some task waited for memory (PSI), 0..=1, over the curve; null: v1.
    pub pressure: Option<f64>,
}

impl Curve {
    /// The time from the first to the last point, in seconds.
    pub fn seconds(&self) -> f64 {
        match (self.time.first(), self.time.last()) {
            (Some(first), Some(last)) => last.duration_since(*first).as_secs_f64(),
            _ => 0.0,
        }
    }
}

/// The memory of a container over minutes, in steps of some seconds. All columns have the same length.
///
/// A step has the smallest and the largest sample of `current`; all other columns hold the step's last sample.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MemorySteps {
    pub from: Timestamp,
    /// The time of the last sample.
    pub until: Timestamp,
    pub step_seconds: u32,
    /// Which steps since `from` have samples; the first is 0.
    pub step: Vec<u32>,
    pub samples: Vec<u32>,
    pub current_min_bytes: Vec<u64>,
    pub current_max_bytes: Vec<u64>,
    pub current_bytes: Vec<u64>,
    pub anon_bytes: Vec<u64>,
    pub file_bytes: Vec<u64>,
    pub shmem_bytes: Vec<u64>,
    pub kernel_bytes: Vec<u64>,
    /// Time in which some task waited for memory since the step before, ms (PSI); empty: not available (v1).
    pub waited_ms: Vec<u64>,
    /// The limit at the last sample; null: none.
    pub limit_bytes: Option<u64>,
    /// The CPU time of the steps; null: not accounted, or recorded by a version before this field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuSteps>,
}

/// The CPU time of a container in the steps of a [`MemorySteps`], and how often its quota throttled it. Each value is since the
/// step before, or since the last one with a reading.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CpuSteps {
    pub used_ms: Vec<u64>,
    /// Periods of the quota in which the container could run; 0: it has none.
    pub periods: Vec<u64>,
    /// Those of them in which the quota was used up.
    pub throttled_periods: Vec<u64>,
}
