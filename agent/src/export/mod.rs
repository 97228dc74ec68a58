//! One file a format.

pub mod folded;
pub mod pprof;
pub mod svg;
