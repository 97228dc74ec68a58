//! Stacks: unwind tables, names for addresses, frames of interpreters, and counts of equal stacks.
//!
//! | module | what it does |
//! |---|---|
//! | [`unwind`] | keeps the tables that the kernel side unwinds by |
//! | [`symbolize`] | finds the function at an address, for processes that live and for those that have ended |
//! | [`python`] | reads code objects, and places Python's frames among the native ones |
//! | [`aggregate`] | counts stacks as numbers, and names their frames at the end |
//! | [`FileNumbers`] | knows the files in the frames of samples by their numbers |
//! | [`Helpers`] | the processes that open and parse the files of containers |
//! | [`StackLossReason`] | lists the reasons why stacks lack frames |
//!
//! This crate finds the files of containers. An opener opens them (`podopsy_opener`), and a worker parses them
//! (`podopsy_worker`); no thread of this process touches one. Must not depend on: parsers, aya, pods, events, tokio.

pub mod aggregate;
mod file_numbers;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod helpers;
pub mod python;
pub mod symbolize;
pub mod tenant;
pub mod unwind;

pub use file_numbers::FileNumbers;
pub use helpers::{Helpers, run_if_asked};
pub use podopsy_worker::{ParserOptions, StackLossReason, StackLosses};
