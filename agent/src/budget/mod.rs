//! The agent's budgets, and the work that it sheds when it exceeds one. The node comes first.
//!
//! | step | what is shed | when over: CPU | events a second | memory |
//! |---|---|---|---|---|
//! | `profile` | CPU time is not sampled (`--profile-hz`); counted in minutes, a part of one counts as one | first | – | first |
//! | `growth` | page faults of growth candidates are not sampled | second | – | second |
//! | `dns_answers` | events of answered queries (`--dns-answers`, `--dns-sample`) | third | first, by container | third |
//! | `dns_slow` | events of slow answers (`--dns-slow-over`) | fourth | second, by container | fourth |
//! | `dns_failures` | events of failed queries, and the lookups made of them | last, by container | last, by container | – |
//!
//! *By container*: only the containers that have more events than their max-min fair share of what is allowed
//! (`--events-budget`; 50 a second over the CPU budget) lose events, and these are counted on them (`events_dropped`). A
//! container below its share loses nothing.
//!
//! OOM kills, their incidents, SIGKILLs and counts are never shed. Queries and outcomes are counted in the kernel, whether
//! they become events or not. The memory budget does not shed failures: an allocator may never return its memory, and the
//! failures would then be shed permanently. The disk has its own budget (`--store-bytes`): the pod with
//! the most bytes loses its oldest records first.
//!
//! [`decide`] decides (pure), [`enforce()`] measures and logs, and the recorder's [`Shed`] is asked and counts where the work
//! would be done. This module must not depend on the contents of events, pods or aya.

pub mod decide;
mod enforce;
mod memory;

pub use decide::BudgetLimits;
pub use enforce::enforce;
pub use podopsy_recorder::shed::{Shed, ShedMode, ShedStep};
