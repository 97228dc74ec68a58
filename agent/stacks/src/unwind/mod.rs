//! Unwind tables for the kernel side: the call frame information of executables in a compact form.
//!
//! Must not depend on: aya, pods, names of symbols.
//!
//! ```text
//! file ─ rows (from call frame information, otherwise from the code itself) ─→ a rule for each row
//!      ─→ pages ─ slabs in the kernel's memory ─→ map TABLES
//! ```
//!
//! The kernel side finds mappings by itself (`probe-ebpf/src/mapping.rs`). This module does not follow processes; it
//! builds tables for files that have none yet.

mod arch;
mod arena;
mod builder;
mod code;
mod file;
mod golang;
mod rows;
mod rule;
mod rule_numbers;
mod scan;
mod tables;
#[cfg(test)]
mod tests;
mod worker;

pub use builder::{TableBuilder, TableBuilderReport};
pub use scan::PrebuildScope;
pub use tables::KernelMaps;

/// The default bound for kernel memory that holds tables.
pub const MAX_BYTES: usize = 64 << 20;
