//! What becomes of an event in the agent: stored, then printed, streamed and exported; and whom the agent tells how it is.
//!
//! Must not know: how events are made.

mod catch_up;
mod endpoint;
mod exports;
#[cfg(test)]
mod exports_tests;
mod keep;
mod kubernetes;
mod ledgers;
mod out;
mod profiles;
mod stdout;
mod systemd;

pub use exports::{ExportArgs, Exports};
pub use out::{Out, Paths};
pub use systemd::Systemd;
