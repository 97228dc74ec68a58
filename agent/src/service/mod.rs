//! What becomes of an event in the agent: stored, then printed, streamed and exported; and whom the agent tells how it is.
//!
//! Must not know: how events are made.

mod catch_up;
mod endpoint;
mod export_args;
mod exports;
#[cfg(test)]
mod exports_tests;
mod keep;
mod kubernetes;
mod ledgers;
mod measures;
mod out;
mod profiles;
mod stdout;
mod systemd;

pub use export_args::{ExportArgs, changes};
pub use exports::Exports;
pub use out::{Out, Paths};
pub use systemd::Systemd;
