//! Which code makes a container's memory grow, in the minutes before it is killed: page faults, sampled, of suspects.
//!
//! ```text
//! curves, kills ─ suspects ─→ cgroup ids for the kernel side; its samples ─ window ─ report ─→ GrowthProfile
//! ```
//!
//! Must not know: aya, the runtime, how anything is rendered. [`crate`] puts it together.

mod candidates;
mod report;
pub(crate) mod sampling;
mod window;

pub use candidates::{CANDIDATES_MAX, CandidateChanges, ContainerKey, GrowthCandidates, RunningContainer};
pub use report::report;
pub use window::{GrowthSlice, GrowthStack, GrowthWindow};

/// One page fault in so many is a sample: a few hundred of a leak of 50 MiB, and too few to cost a busy node anything.
pub const PERIOD: u64 = 32;
/// Samples that a CPU may take in 134 ms, so that a suspect that does nothing but fault costs no more than one that
/// leaks: some 470 a second.
pub const BUDGET: u32 = 64;
/// Kernel memory for the tables that suspects' stacks are unwound by; those used least are dropped first.
pub const TABLES_BYTES: usize = 16 << 20;
/// Files of suspects held open, so that the dead have names.
pub const FILES: usize = 128;
/// Symbols and debug information of theirs, while a report is made.
pub const SYMBOLS_BYTES: u64 = 32 << 20;
