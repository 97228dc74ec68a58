//! Unwind tables for the kernel side: what executables say about their stacks, made small.
//!
//! Must not know: aya, pods, symbols' names.
//!
//! ```text
//! file ─ rows (call frame information; else the code itself) ─→ rule a row ─→ pages ─ arena (slabs in the kernel) ─→ TABLES
//! ```
//!
//! The kernel side finds mappings by itself (`probe-ebpf/src/mapping.rs`): processes are not followed here, only files
//! that have no table yet.

mod arch;
mod arena;
mod builder;
mod code;
mod file;
mod golang;
mod numbers;
#[cfg(test)]
mod oracle;
mod rows;
mod rule;
mod tables;
#[cfg(test)]
mod truth;
#[cfg(test)]
mod walk;

pub use builder::{Builder, Built, Of};
pub use tables::Kernel;

/// Kernel memory for tables, unless somebody says otherwise.
pub const MAX_BYTES: usize = 64 << 20;
