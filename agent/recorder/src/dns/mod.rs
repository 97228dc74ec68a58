//! DNS: queries in flight to timeouts, counts by container, queries to lookups; by the probe or by a packet socket.

pub mod lookups;
pub mod network;

pub(crate) mod counts;
pub(crate) mod flight;
pub(crate) mod gather;
pub(crate) mod tap;
