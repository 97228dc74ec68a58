//! The service around the recorder: settings, API, metrics, budgets, self-restraint. The recorder and everything that
//! works without the service are separate crates, in the other folders of `agent/`.

pub mod api;
pub mod budget;
pub mod config;
mod descendants;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod metrics;
pub mod restraint;
pub mod service;
