//! The service around the recorder: settings, API, metrics, budget, restraint. The recorder itself and everything that
//! needs no service are crates of their own, in the folders beside this one.

pub mod api;
pub mod budget;
pub mod config;
pub mod metrics;
pub mod restraint;
pub mod service;
