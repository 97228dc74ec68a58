//! A process's view of the network: its resolv.conf and the counters of its network namespace.
//!
//! Containers choose the content of everything that is read here, and it may disappear at any time. This module must
//! not depend on DNS messages or pods.

pub mod counters;
pub mod resolv_conf;
