//! Stacks: unwind tables, names for addresses, frames of interpreters, and counts of equal stacks.
//!
//! | module | what it does |
//! |---|---|
//! | [`unwind`] | keeps the tables that the kernel side unwinds by |
//! | [`symbolize`] | finds the function at an address, for processes that live and for those that have ended |
//! | [`python`] | reads code objects, and places Python's frames among the native ones |
//! | [`aggregate`] | counts stacks as numbers, and names their frames at the end |
//! | [`StackLossReason`] | lists the reasons why stacks lack frames |
//!
//! This crate opens the files of containers, and has them parsed by a worker (`podopsy_worker`). Must not depend on:
//! parsers, aya, pods, events, tokio.

pub mod aggregate;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod python;
pub mod symbolize;
mod tenant;
pub mod unwind;

pub use podopsy_worker::{ParserOptions, ParserPool, StackLossReason, StackLosses};
