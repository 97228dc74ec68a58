//! DNS: matches queries with timeouts, counts outcomes by container, and builds lookups from queries. The queries come
//! from the probe, or from a packet socket (`tap`) where BPF is out of reach.

pub mod lookups;
pub mod network;

pub(crate) mod attribute;
mod beside_a;
mod closed;
pub(crate) mod counts;
pub(crate) mod flight;
pub(crate) mod gather;
pub(crate) mod held;
pub(crate) mod reader;
pub(crate) mod shares;
pub(crate) mod tables;
pub(crate) mod tap;
pub(crate) mod truncated;
mod usage;
pub(crate) mod waiting;
