//! DNS: the probe's records and the queries in flight, counts by container, and lookups made of queries. Where BPF is out of
//! reach, a packet socket (`tap`) replaces the probe.

pub mod lookups;
pub mod network;

pub(crate) mod attribute;
pub(crate) mod counts;
pub(crate) mod flight;
pub(crate) mod gather;
pub(crate) mod reader;
pub(crate) mod tap;
