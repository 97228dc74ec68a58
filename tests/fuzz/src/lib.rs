//! What the fuzz targets share: bounds of one input, damaged copies of valid inputs, and small ELF files.
//!
//! The targets are in `tests/targets`, with their corpora beside them in `__fuzz__`. Must not depend on: podopsy's crates.

mod bounds;
mod elf;
mod mutate;

pub use bounds::{Bounds, CountingAllocator};
pub use elf::{ElfFile, ElfSection, memory_file};
pub use mutate::{Mutator, Report, mutants};
