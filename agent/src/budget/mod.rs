//! What the agent may cost, and what it leaves out when it costs more. The node comes first.
//!
//! | step | what is left out | when over: CPU | events a second | memory |
//! |---|---|---|---|---|
//! | `profile` | CPU time is not sampled (`--profile-hz`); counted in minutes, or what was begun of one | first | – | first |
//! | `growth` | page faults of suspects are not sampled | second | – | second |
//! | `dns_answers` | events of answered queries (`--dns-answers`, `--dns-sample`) | third | first | third |
//! | `dns_slow` | events of slow answers (`--dns-slow-over`) | fourth | second | fourth |
//! | `dns_failures` | events of failed queries, and the lookups made of them | last | last | – |
//!
//! Never: OOM kills, their incidents, SIGKILLs, and any count: queries and outcomes are counted in the kernel, whether they
//! become events or not. Failures are not left out for memory, which an allocator may never give back: that would be for
//! good. The disk has a budget of its own (`--store-bytes`), where the oldest leaves first.
//!
//! [`decide`] says when (pure), [`keep`] measures and tells, [`Shed`] (the recorder's) is asked where the work would be done, and counts
//! there. Must not know: what an event holds, pods, aya.

pub mod decide;
mod keeper;

pub use decide::Limits;
pub use keeper::keep;
pub use podopsy_recorder::shed::{Shed, Step};
