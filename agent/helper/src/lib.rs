//! A helper is a process of the same program that may be lost at any time: the parsing worker, the opener, the runtime reader.
//!
//! ```text
//! agent ── Supervisors ── control socket ──▶ supervisor ── fork ──▶ helper
//!      └── a socket for each helper: requests, answers, open files ──┘
//! ```
//!
//! | module | what it does |
//! |---|---|
//! | [`Supervisors`], [`run`] | start helpers, end them, and replace a supervisor that is lost |
//! | [`rights`] | what supervisors and helpers give up |
//! | [`calls`] | the system calls that are left to them |
//! | [`channel`] | frames and descriptors over a socket |
//! | [`Activity`] | whether a helper works, or waits |
//! | [`Hangs`] | the containers whose files made a helper hang |
//! | [`FileHandle`] | an open file that the agent holds, and never touches |
//!
//! Supervisors are started before the agent restrains itself. Must not depend on: parsers, pods, aya, tokio.

mod activity;
pub mod calls;
pub mod channel;
mod file_handle;
mod hangs;
pub mod rights;
mod supervisor;

pub use activity::Activity;
pub use file_handle::{FileHandle, FileStat, open_sealed, seal};
pub use hangs::Hangs;
pub use supervisor::{HelperEnd, HelperKind, Supervisors, run};

/// Identifies the container that a file belongs to: budgets and refusals are by it. 0 stands for a process that has ended.
pub type Tenant = u64;
