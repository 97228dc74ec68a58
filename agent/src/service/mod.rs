//! What the agent does with an event: it stores it, prints it, streams it and exports it. Also reports the agent's own
//! state to systemd.
//!
//! This module must not depend on how events are made.

mod always_on;
mod catch_up;
mod delivery_metrics;
mod destination_url;
mod export_args;
mod exports;
#[cfg(test)]
mod exports_tests;
mod kubernetes;
mod memory_records;
mod metrics_export;
mod outputs;
mod stdout;
mod systemd;

pub use export_args::{ExportArgs, destinations_changed_by};
pub use exports::Exports;
pub use outputs::{OutputOptions, Outputs, socket_path};
pub use systemd::SystemdNotifier;
