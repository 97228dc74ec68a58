//! Stacks: the tables that unwind them, the names of their addresses, interpreters' frames, and how often each was seen.
//!
//! | module | what |
//! |---|---|
//! | [`unwind`] | call frame information, or the code itself, to the rows that the kernel side unwinds by |
//! | [`symbolize`] | address to function, for the living and the dead |
//! | [`python`] | interpreters, code objects, and Python's frames among the native ones |
//! | [`aggregate`] | stacks as numbers: counted, and named at the end |
//!
//! Must not know: aya, pods, events, tokio. What it reads belongs to containers and is hostile.

pub mod aggregate;
pub mod python;
pub mod symbolize;
pub mod unwind;
