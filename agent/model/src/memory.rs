//! Memory of a cgroup: what is charged, what its counters say, and its curve.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What is charged to a cgroup and those below it, in bytes (v2: `memory.current`, `memory.stat`; v1:
/// `memory.usage_in_bytes`, `memory.stat`'s `total_*`, `memory.kmem.usage_in_bytes`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
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
    /// Null: this kernel has none for this cgroup (v1).
    pub pressure: Option<Pressure>,
}

/// Time in which tasks waited for memory, in µs since the cgroup was made (`memory.pressure`, `total=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pressure {
    pub some_us: u64,
    pub full_us: u64,
}

/// A cgroup's own events since it was made (v2 `memory.events.local`; v1 `memory.failcnt`, `memory.oom_control`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Charges that met this cgroup's limit; most are mended by reclaim.
    pub limit_hits: u64,
    /// Times that usage went over `memory.high`; 0 on v1.
    pub high: u64,
    /// Times that this cgroup's limit was out of reach of reclaim; null: v1 does not count them.
    pub ooms: Option<u64>,
    /// Processes of this very cgroup that the OOM killer chose.
    pub oom_kills: u64,
}

/// The memory of a container over time, oldest first; columns of one length.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    pub time: Vec<Timestamp>,
    pub current_bytes: Vec<u64>,
    pub anon_bytes: Vec<u64>,
    pub file_bytes: Vec<u64>,
    pub shmem_bytes: Vec<u64>,
    pub kernel_bytes: Vec<u64>,
    /// How fast that which cannot be reclaimed (all but file) grew: the median of the slopes between any two
    /// points (Theil–Sen), bytes a second; null: fewer than 5 points.
    pub growth_bytes_per_second: Option<f64>,
    /// Share of the time in which some task waited for memory (PSI), 0..=1, over the curve; null: v1.
    pub pressure: Option<f64>,
}

impl Curve {
    /// From its first to its last point.
    pub fn seconds(&self) -> f64 {
        match (self.time.first(), self.time.last()) {
            (Some(first), Some(last)) => last.duration_since(*first).as_secs_f64(),
            _ => 0.0,
        }
    }
}

/// The memory of a container over minutes, in steps of some seconds; columns of one length.
///
/// What happened within a step is kept by its smallest and its largest sample; all other columns are of its last one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Steps {
    pub from: Timestamp,
    /// Of the last sample.
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
    /// Time in which some task waited for memory since the step before, ms (PSI); empty: this kernel has none (v1).
    pub waited_ms: Vec<u64>,
    /// At the last sample; null: none.
    pub limit_bytes: Option<u64>,
}
