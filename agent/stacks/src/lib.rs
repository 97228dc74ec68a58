//! Stacks: unwind tables, names for addresses, frames of interpreters, and counts of equal stacks.
//!
//! | module | what it does |
//! |---|---|
//! | [`unwind`] | turns call frame information, or the code itself, into the rows that the kernel side unwinds by |
//! | [`symbolize`] | finds the function at an address, for processes that live and for those that have ended |
//! | [`python`] | recognises interpreters, reads code objects, and places Python's frames among the native ones |
//! | [`aggregate`] | counts stacks as numbers, and names their frames at the end |
//! | [`StackLossReason`] | lists the reasons why stacks lack frames |
//!
//! Must not depend on: aya, pods, events, tokio. The input belongs to containers and may be hostile.

pub mod aggregate;
mod loss;
pub mod python;
pub mod symbolize;
pub mod unwind;

pub use loss::{StackLossReason, StackLosses};
