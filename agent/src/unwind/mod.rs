//! Unwind tables for the kernel side: what executables say about their stacks, made small.
//!
//! Must not know: aya, pods, symbols' names.
//!
//! ```text
//! file ─ rows (call frame information) ─→ rule a row ─→ pages ─ arena (slabs in the kernel) ─→ TABLES
//! ```

mod arch;
mod file;
#[cfg(test)]
mod oracle;
mod rows;
mod rule;
