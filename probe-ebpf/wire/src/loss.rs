//! Losses, counted where they happen: one per-CPU counter each, in the map `LOSSES`.

/// Index into the map `LOSSES`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// A kill found the ring `OOM_EVENTS` full.
    OomRing = 0,
    /// The kernel passed only a thread id, and no signal told whose: the victim's cgroup is not known.
    OomVictimByPid = 1,
    /// A DNS record found the ring `DNS_EVENTS` full.
    DnsRing = 2,
    /// A query could not be put into `DNS_IN_FLIGHT`.
    DnsInFlight = 3,
    /// A message on a DNS port was shorter than a DNS header.
    DnsShort = 4,
    /// Where a DNS message begins in a TCP stream was not known: a gap in it, no length that could be one, or more
    /// messages in a segment than are followed.
    DnsTcpUnparsed = 5,
    /// The first fragment of a fragmented answer: its length is not known.
    DnsFragment = 6,
    /// The asker was not known at the time of the query.
    DnsAsker = 7,
    /// A sample found the ring `SAMPLES` full.
    OncpuRing = 8,
    /// A user stack could not be read at all.
    OncpuUserStack = 9,
    /// A stack was deeper than `FRAMES_MAX`.
    OncpuTruncated = 10,
    /// Who connected a TCP socket could not be put into `DNS_CONNECTED`.
    DnsConnected = 11,
    /// Not a loss but its measure: queries put into `DNS_IN_FLIGHT` …
    DnsInserted = 12,
    /// … and taken out of it by the kernel side. The difference that is not there was evicted.
    DnsRemoved = 13,
    /// A new program's file found the ring `EXECS` full: it is opened when a kill first names it, if it is still there.
    ExecRing = 14,
    /// A wish for an unwind table found the ring `TABLE_REQUESTS` or the map `TABLES` full.
    UnwindRequest = 15,
    /// A SIGKILL found the ring `SIGNAL_EVENTS` full.
    SigkillRing = 16,
    /// A SIGKILL of the kernel's found the map `SIGKILL_BY_KERNEL` full.
    SigkillByKernel = 17,
    /// Not a loss but a measure: SIGKILLs that processes of one memory cgroup sent each other, which are not told.
    SigkillOwn = 18,
    /// A sample was over the CPU's budget (`Config::sample_budget`).
    SampleThrottled = 19,
    /// A DNS record that was due found its container's token bucket empty; `DnsCounters` says whose.
    DnsThrottled = 20,
    /// A container found no place in the map `DNS_COUNTERS`: its lookups are not in the counts.
    DnsCounters = 21,
    /// Whom a query's application named could not be noted: behind address translation its answer is not recognised.
    DnsNamed = 22,
}

/// Names of the counters as events, metrics and reports show them, by index.
pub const LOSSES: [&str; 23] = [
    "oom_ring",
    "oom_victim_by_pid",
    "dns_ring",
    "dns_in_flight",
    "dns_short",
    "dns_tcp_unparsed",
    "dns_fragment",
    "dns_asker",
    "oncpu_ring",
    "oncpu_user_stack",
    "oncpu_truncated",
    "dns_connected",
    "dns_inserted",
    "dns_removed",
    "exec_ring",
    "unwind_request",
    "sigkill_ring",
    "sigkill_by_kernel",
    "sigkill_own",
    "sample_throttled",
    "dns_throttled",
    "dns_counters_full",
    "dns_named",
];
