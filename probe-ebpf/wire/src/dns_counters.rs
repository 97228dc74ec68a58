//! The kernel side's DNS counters of each container. They count every query and answer, whether it is shipped or not.

use bytemuck::{Pod, Zeroable};

/// How many memory cgroups have counters of their own at one time.
pub const DNS_CONTAINERS_MAX: u32 = 4096;
/// Number of latency buckets, by powers of two. Bucket n counts latencies below 2^n µs that no lower bucket counts; the
/// last one has no upper bound. [`crate::latency_bucket`] gives the index.
pub const DNS_LATENCY_BUCKETS: usize = 24;

/// Indices into [`DnsCounters::answers`]: the class of an answer ([`crate::answer_class`]).
pub const ANSWER_NOERROR: usize = 0;
/// NOERROR without an answer record of the type that was asked for.
pub const ANSWER_NODATA: usize = 1;
/// TC was set, whatever the rcode.
pub const ANSWER_TRUNCATED: usize = 2;
pub const ANSWER_FORMERR: usize = 3;
pub const ANSWER_SERVFAIL: usize = 4;
pub const ANSWER_NXDOMAIN: usize = 5;
pub const ANSWER_REFUSED: usize = 6;
/// Any other rcode.
pub const ANSWER_OTHER: usize = 7;
/// Number of classes.
pub const ANSWERS: usize = 8;

/// The DNS queries and answers of one memory cgroup since `since_ns`. Words, added to atomically.
///
/// The map keeps the key just before the value, so the fields that are seldom written come first. The fields that
/// queries write and those that answers write (often on another CPU) are a cache line apart.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct DnsCounters {
    /// When the first one was counted; 0: the entry was just inserted and must not be read yet.
    pub since_ns: u64,
    /// Answers that came after their timeout was reported.
    pub late: u64,
    /// Records that were due and found the token bucket empty.
    pub throttled: u64,
    /// Records that were due and found the ring `DNS_EVENTS` full.
    pub ring_full: u64,
    /// TCP connections to port 853. The queries in them are encrypted and cannot be seen.
    pub tls: u64,
    /// TCP connections to port 443 of a known resolver. The queries in them are encrypted and cannot be seen.
    pub https: u64,
    /// The token bucket of failures: see [`crate::TokenBucket`].
    pub paid_failures_ns: u64,
    /// The token bucket of successes.
    pub paid_answers_ns: u64,
    /// Queries, each once.
    pub queries: u64,
    /// The same query sent again: same socket, server and id.
    pub resends: u64,
    /// Entries that the kernel side inserted into `DNS_IN_FLIGHT` for this cgroup: see [`crate::in_flight`].
    pub inserted: u64,
    /// Queries that were not inserted into `DNS_IN_FLIGHT`: the cgroup had its share of it, or it was full. They are
    /// counted in `queries`, and their outcomes are not seen. Of a connection beyond the share of `DNS_CONNECTIONS`, each
    /// segment with data counts as one query.
    pub untracked: u64,
    /// Entries that the kernel side inserted into `DNS_CONNECTIONS` for this cgroup, and removed.
    pub connections: TableCounts,
    /// The same of `DNS_SENDERS`.
    pub senders: TableCounts,
    /// Answers that came before their timeout was reported, by `ANSWER_*`.
    pub answers: [u64; ANSWERS],
    /// The latencies of these answers, by bucket.
    pub latency: [u64; DNS_LATENCY_BUCKETS],
    /// The sum of these latencies, each rounded down to µs.
    pub latency_us: u64,
    /// Entries of this cgroup that the kernel side removed from `DNS_IN_FLIGHT`.
    pub removed: u64,
    /// Queries of tasks that were not inserted into `DNS_SENDERS`. They are followed by the address in their packets: behind
    /// address translation their answers are not recognised.
    pub unnamed: u64,
    /// Messages to DNS servers' ports that are not DNS. They are not in `queries`.
    pub not_dns: u64,
}

/// What the kernel side did to a table for one cgroup: see [`crate::in_flight`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct TableCounts {
    pub inserted: u64,
    pub removed: u64,
}

impl DnsCounters {
    /// Nothing counted.
    pub const EMPTY: DnsCounters = bytemuck::zeroed();
}

const _: () = assert!(size_of::<DnsCounters>() == 8 * (8 + 8 + ANSWERS + DNS_LATENCY_BUCKETS + 4));
const _: () = assert!(core::mem::offset_of!(DnsCounters, queries) >= 64);
const _: () =
    assert!(core::mem::offset_of!(DnsCounters, answers) >= core::mem::offset_of!(DnsCounters, queries) + 64);
