//! DNS by a packet socket: what `probe-ebpf` does in the kernel for the node, done here for one network namespace.
//!
//! For where BPF may not be loaded, or the root cgroup is out of reach: `kubectl debug`'s ephemeral containers. All that
//! it needs is CAP_NET_RAW, which containerd gives every container. Packets that are no DNS are left in the kernel, by a
//! classic filter; what comes out are the wire's own records, so that the stages behind cannot tell the difference.
//!
//! | file | does |
//! |---|---|
//! | `filter` | the classic filter, as instructions |
//! | [`socket`] | opens the socket; frames with their direction and the kernel's time; counts what did not fit |
//! | [`parse`] | a frame to a datagram, a segment, or a router's word that there is no way; pure |
//! | [`stream`] | segments to messages; pure |
//! | [`table`] | queries in flight, answers, counts; pure |
//! | [`asker`] | the process behind a socket, by /proc |
//!
//! Must not know: aya, pods, events.

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

/// Each container's counts, as the kernel side keeps them: written here, read by whoever sums them up.
pub type Counters = Arc<Mutex<HashMap<u64, DnsCounters>>>;

/// What cannot be seen from here, in words, beside why it is seen from here.
pub const SCOPE: &str = "by a packet socket, in this network namespace only: lookups of other pods, and the process \
behind a socket that is closed at once or is another user's, are not seen; those over TLS and HTTPS are not counted";

/// Whether such a socket can be had, for `podopsy doctor`.
pub fn check() -> Result<String, String> {
    match socket::Socket::open(&[53]) {
        Ok(_) => {
            Ok("a packet socket sees this network namespace's lookups where the dns probe cannot".to_owned())
        }
        Err(error) => Err(format!("{error:#}")),
    }
}

/// What was lost, by counter name. Where the kernel side counts the same, the name is the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Frames that did not fit into the socket's buffer.
    pub frames: u64,
    /// Frames whose headers do not add up, or with more IPv6 extension headers than are followed.
    pub unparsed: u64,
    /// Messages shorter than a DNS header.
    pub short: u64,
    /// First fragments: the rest of the message is in others.
    pub fragments: u64,
    /// Places in a TCP stream where the next message's beginning was not known.
    pub tcp_unparsed: u64,
    /// Streams that were dropped because there were too many.
    pub streams: u64,
    /// Queries pushed out by others while they waited.
    pub evicted: u64,
    /// Queries whose process could not be told.
    pub askers: u64,
    /// Records that were due and found the token bucket empty.
    pub throttled: u64,
    /// Containers without a place in the counts.
    pub uncounted: u64,
}

impl Lost {
    pub fn named(&self) -> [(&'static str, u64); 10] {
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
