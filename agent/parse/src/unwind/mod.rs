//! Unwind information of executables: rows, each of which gives the rule from one file offset on.
//!
//! Must not depend on: processes, the kernel's maps.

mod arch;
mod code;
mod file;
mod frame_state;
mod golang;
mod packed;
#[cfg(test)]
mod readelf_tests;
mod rows;
mod rule;

pub use arch::NATIVE;
pub use file::{MAX_BYTES, UnwindDigest, UnwindSource, find_source};
pub use rows::{FileRows, UnwindRow};
