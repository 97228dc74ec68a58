//! Growth profiles: which code makes a container's memory grow in the minutes before it is OOM-killed. The page faults
//! of growth candidates are sampled.
//!
//! ```text
//! memory curves, kills → candidates → cgroup ids for the kernel side
//! samples of the kernel side → window → report → GrowthProfile
//! ```
//!
//! These modules must not depend on aya (except `sampling`), the runtime or rendering.

mod candidates;
mod report;
pub(crate) mod sampling;
mod window;

pub use candidates::{CANDIDATES_MAX, CandidateChanges, ContainerKey, GrowthCandidates, RunningContainer};
pub use report::report;
pub use window::{GrowthSlice, GrowthStack, GrowthWindow};

/// One page fault in so many is sampled: a leak of 50 MiB gives a few hundred samples, and a busy node pays hardly
/// anything.
pub const PERIOD: u64 = 32;
/// Samples that a CPU may take in 134 ms, about 470 a second. So a candidate that only causes page faults costs no more
/// than one that leaks.
pub const BUDGET: u32 = 64;
/// Kernel memory for the unwind tables of candidates; the least used tables are evicted first.
pub const TABLES_BYTES: usize = 16 << 20;
/// Files of candidates that are held open, so that the stacks of processes that ended can still be named.
pub const FILES: usize = 128;
