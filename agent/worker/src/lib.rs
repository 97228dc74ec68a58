//! The parsing worker: a process that reads what containers wrote, holds no rights, and can be lost.
//!
//! ```text
//! agent ── Parser ── job + files (FileHandle) ──▶ worker (podopsy-parse) ── bounded answer ──▶ Parser
//!      └── control socket ──▶ supervisor (podopsy-helper) ── fork ──▶ worker
//! ```
//!
//! | module | what it does |
//! |---|---|
//! | `job` | the jobs and their answers |
//! | `jail` | what the supervisor and its workers give up |
//! | `serve` | the worker's loop |
//! | [`ParserPool`], [`Parser`] | the agent's side: deadlines, replacement, bad files, a budget for each container |
//!
//! The supervisor is started before the agent restrains itself, because it has to set up the jail; afterwards the agent can
//! start no program. A worker serves one container at a time: for the files of another container, a new one is forked, so that a
//! worker that a file took over cannot lie about a neighbour's files. Must not depend on: pods, aya, tokio.

mod bad_files;
mod budget;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod jail;
mod job;
mod parser;
mod pool;
mod serve;
#[cfg(feature = "testing")]
pub mod testing;

pub use bad_files::FileIdentity;
pub use job::{FileDescription, FoundUnwind, JobKind};
pub use parser::{Failure, FailureReason, NamedFiles, Parser};
pub use podopsy_helper::{FileHandle, FileStat, Tenant};
pub use podopsy_parse::elf::{Layout, Segment};
pub use podopsy_parse::names::{
    DebugLink, FoundNames, NameBounds, NameQuery, Nameless, SourceLine, Symbol, SymbolFunction,
};
pub use podopsy_parse::perf_map::PerfMapNames;
pub use podopsy_parse::python::{CodeLayout, Interpreter, layouts_for_version};
pub use podopsy_parse::unwind::{FileRows, MAX_BYTES as MAX_UNWIND_BYTES, UnwindDigest, UnwindRow};
pub use podopsy_parse::{StackLossReason, StackLosses};
pub use pool::{ParserOptions, ParserPool};
pub use serve::run_if_asked;
