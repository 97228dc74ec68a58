//! Profiles as files: [`export`] writes each format, [`import`] reads pprof files of any origin, [`unit`] makes their
//! values comparable, and [`compare`] lists the changes between two profiles.
//!
//! Must not depend on: processes, pods, how a profile was recorded.

pub mod compare;
pub mod export;
pub mod import;
pub mod unit;
