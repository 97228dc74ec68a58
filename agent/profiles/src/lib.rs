//! Profiles as files: [`export`] has one file a format, [`import`] reads pprof files of any origin, [`compare`] says what
//! changed between two.
//!
//! Must not know: processes, pods, where a profile comes from.

pub mod compare;
pub mod export;
pub mod import;
