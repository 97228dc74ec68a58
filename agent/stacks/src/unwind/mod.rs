//! Unwind tables for the kernel side: the call frame information of executables in a compact form.
//!
//! Must not depend on: parsers, aya, pods, names of symbols.
//!
//! ```text
//! file ─ parsing worker ─→ rows, each with its rule
//!      ─→ pages ─ slabs in the kernel's memory ─→ map TABLES
//! ```
//!
//! The kernel side finds mappings by itself (`probe-ebpf/src/mapping.rs`). This module does not follow processes; it
//! builds tables for files that have none yet.

mod arena;
mod builder;
mod rule_numbers;
mod scan;
mod tables;
#[cfg(test)]
mod tests;
mod worker;

pub use builder::{TableBuilder, TableBuilderReport};
pub use scan::PrebuildScope;
pub(crate) use scan::file_key;
pub use tables::KernelMaps;

/// The default bound for kernel memory that holds tables.
pub const MAX_BYTES: usize = 64 << 20;
