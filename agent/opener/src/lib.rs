//! The opener: a process that opens the files of containers, so that a file system that does not answer costs that process,
//! and neither a thread of the agent nor the agent's end.
//!
//! ```text
//! agent ── Openers ── what to open ──▶ opener ── openat2, fstat ──▶ FileHandle, or a reason
//!      └── control socket ──▶ supervisor (podopsy-helper) ── fork ──▶ opener
//! ```
//!
//! | module | what it does |
//! |---|---|
//! | `request` | what can be opened, and the answers |
//! | `open` | the safe way to open a file that a container chose |
//! | `jail` | what openers give up |
//! | `lateness` | whether an opener that is late is only slow |
//! | `serve` | the opener's loop |
//! | `turns` | one opener for each container at a time |
//! | [`Openers`] | the agent's side: time limits, replacement, refusals for each container |
//!
//! An opener parses nothing. It reads what the agent itself has to parse: small text files (`resolv.conf`), `/proc/PID/maps`, and
//! parts of a process's memory, whose pages may lie on a file. Must not depend on: parsers,
//! pods, aya, tokio.

mod jail;
mod lateness;
mod open;
mod openers;
mod request;
mod serve;
mod turns;

pub use openers::{MapsReader, OpenerOptions, Openers, Target};
pub use podopsy_helper::{FileHandle, FileStat, Tenant};
pub use request::{MappedArea, OpenError};
pub use serve::run_if_asked;
