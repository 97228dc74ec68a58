//! What a process's network looks like from inside: its resolv.conf, its network namespace's counters.
//!
//! Must not know: DNS messages, pods. Everything here is a container's to choose, and may be gone.

pub mod counters;
pub mod resolv_conf;
