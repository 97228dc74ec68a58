//! DNS by a packet socket: does for one network namespace what `probe-ebpf` does in the kernel for the node.
//!
//! It is used where BPF may not be loaded, or the root cgroup is out of reach: in `kubectl debug`'s ephemeral
//! containers. It needs only CAP_NET_RAW, which containerd gives every container. A classic filter keeps packets that
//! are not DNS in the kernel. The results are the records of `podopsy_wire`, and the rules are those of `podopsy_wire`,
//! so that the later stages cannot tell the difference.
//!
//! Data flows from [`socket`] (frames) through [`parse`] (datagrams and segments) and [`stream`] (messages) to
//! [`table`] (queries, answers, counters); [`asker`] finds the process behind a client's address. `parse`, `stream` and
//! `table` are pure.
//!
//! Must not depend on: aya, pods, events.

pub mod asker;
mod filter;
pub mod parse;
pub mod socket;
pub mod stream;
pub mod table;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use podopsy_wire::DnsCounters;

/// Each container's counters by memory cgroup id, as in the kernel side's map `DNS_COUNTERS`. [`table`] writes them,
/// the recorder reads them.
pub type SharedCounters = Arc<Mutex<HashMap<u64, DnsCounters>>>;

/// What a packet socket cannot see, as text for users. It is printed with the reason why a packet socket is used.
pub const SCOPE: &str = "by a packet socket, in this network namespace only: lookups of other pods, and the process \
behind a socket that is closed at once or is another user's, are not seen; those over TLS and HTTPS are not counted";

/// Tries to open a packet socket, for `podopsy doctor`. Returns what it can do, or why it cannot be opened.
pub fn check() -> Result<String, String> {
    match socket::PacketSocket::open(&[53]) {
        Ok(_) => {
            Ok("a packet socket sees this network namespace's lookups where the dns probe cannot".to_owned())
        }
        Err(error) => Err(format!("{error:#}")),
    }
}

/// Loss counters. Where the kernel side counts the same, the name is the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketLosses {
    /// Frames that found the socket's buffer full.
    pub frames: u64,
    /// Frames whose headers are inconsistent, or that have more IPv6 extension headers than are followed.
    pub unparsed: u64,
    /// Messages shorter than a DNS header.
    pub short: u64,
    /// First fragments: the rest of the message is in others.
    pub fragments: u64,
    /// Times that the beginning of the next message in a TCP stream was not known.
    pub tcp_unparsed: u64,
    /// Streams that were evicted because there were too many.
    pub streams: u64,
    /// Queries in flight that were evicted, because there were too many or because frames were lost.
    pub evicted: u64,
    /// Queries whose process was not found.
    pub askers: u64,
    /// Records that were due and found the token bucket empty.
    pub throttled: u64,
    /// Queries and answers of containers that have no counters, because there are too many containers.
    pub uncounted: u64,
}

impl PacketLosses {
    /// The counters by the names that users see.
    pub fn by_name(&self) -> [(&'static str, u64); 10] {
        [
            ("dns_socket_full", self.frames),
            ("dns_unparsed", self.unparsed),
            ("dns_short", self.short),
            ("dns_fragment", self.fragments),
            ("dns_tcp_unparsed", self.tcp_unparsed),
            ("dns_streams_evicted", self.streams),
            ("dns_in_flight_evicted", self.evicted),
            ("dns_asker", self.askers),
            ("dns_throttled", self.throttled),
            ("dns_counters_full", self.uncounted),
        ]
    }
}
