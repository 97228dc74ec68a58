//! Parsers of what a container's owner chose: ELF files, debug information, unwind tables, perf maps, interpreters.
//!
//! | module | what it reads |
//! |---|---|
//! | [`elf`] | segments, build id, sections |
//! | [`names`] | functions and lines at offsets of a file |
//! | [`unwind`] | call frame information, or the code itself, as rows that the kernel side unwinds by |
//! | [`python`] | which file is an interpreter, and the layouts of its structures |
//! | [`perf_map`] | names of code made at run time |
//! | [`StackLossReason`] | lists the reasons why stacks lack frames |
//!
//! This code runs in the parsing worker, which holds no rights and can be lost. It gets open files, reads them with `pread`
//! in bounded pieces, and returns plain data of bounded size. Must not depend on: processes, paths, aya, pods, tokio.
#![forbid(unsafe_code)]

pub mod elf;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod loss;
pub mod names;
pub mod perf_map;
pub mod python;
pub mod unwind;

pub use loss::{StackLossReason, StackLosses};
