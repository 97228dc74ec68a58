//! What the kernel side counts of each container's lookups, whether it ships them or not.

/// How many memory cgroups have counters of their own at one time.
pub const DNS_CONTAINERS_MAX: u32 = 4096;
/// Latencies by powers of two: bucket n counts those of less than 2^n µs that no lower bucket counts; the last
/// one has no upper bound.
pub const DNS_LATENCY_BUCKETS: usize = 24;

/// Indices into [`DnsCounters::answers`]: what an answer's header says. Nobody has read the rest of it.
pub const ANSWER_NOERROR: usize = 0;
/// NOERROR without an answer record.
pub const ANSWER_NODATA: usize = 1;
/// TC was set, whatever the rcode.
pub const ANSWER_TRUNCATED: usize = 2;
pub const ANSWER_FORMERR: usize = 3;
pub const ANSWER_SERVFAIL: usize = 4;
pub const ANSWER_NXDOMAIN: usize = 5;
pub const ANSWER_REFUSED: usize = 6;
/// Any other rcode.
pub const ANSWER_OTHER: usize = 7;
/// How many of them there are.
pub const ANSWERS: usize = 8;

/// The lookups of one memory cgroup since `since_ns`. Words, added to atomically.
///
/// What is seldom written comes first, because the map keeps the key just before it; what queries write and what their
/// answers write, on another CPU, is a cache line apart.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DnsCounters {
    /// When the first one was counted; 0: just now, and not yet to be read.
    pub since_ns: u64,
    /// Answers that came after their timeout was told.
    pub late: u64,
    /// Records that were due and found the token bucket empty, or the ring full.
    pub throttled: u64,
    pub ring_full: u64,
    /// TCP connections begun to port 853, and to port 443 of a known resolver: lookups that nobody can see.
    pub tls: u64,
    pub https: u64,
    /// The token bucket, as the time by which all failures shipped so far are paid for; and that of successes.
    pub paid_failures_ns: u64,
    pub paid_answers_ns: u64,
    /// Queries, each once.
    pub queries: u64,
    /// The same query sent again: same socket, server and id.
    pub resends: u64,
    pub unused: [u64; 6],
    /// Answers that came before the timeout was told, by `ANSWER_*`.
    pub answers: [u64; ANSWERS],
    /// Their latencies.
    pub latency: [u64; DNS_LATENCY_BUCKETS],
    /// The same added up, each rounded down to µs.
    pub latency_us: u64,
}

impl DnsCounters {
    pub const EMPTY: DnsCounters = DnsCounters {
        since_ns: 0,
        late: 0,
        throttled: 0,
        ring_full: 0,
        tls: 0,
        https: 0,
        paid_failures_ns: 0,
        paid_answers_ns: 0,
        queries: 0,
        resends: 0,
        unused: [0; 6],
        answers: [0; ANSWERS],
        latency: [0; DNS_LATENCY_BUCKETS],
        latency_us: 0,
    };
}

const _: () = assert!(size_of::<DnsCounters>() == 8 * (8 + 8 + ANSWERS + DNS_LATENCY_BUCKETS + 1));
const _: () = assert!(core::mem::offset_of!(DnsCounters, queries) >= 64);
const _: () =
    assert!(core::mem::offset_of!(DnsCounters, answers) >= core::mem::offset_of!(DnsCounters, queries) + 64);
