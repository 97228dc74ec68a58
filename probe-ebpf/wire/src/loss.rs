//! Loss counters of the kernel side: one per-CPU counter for each reason, in the map `LOSSES`.

/// Defines [`Loss`] from one list, so that a reason, its explanation and its counter's name stand together.
macro_rules! loss_reasons {
    ($($(#[$doc:meta])* $reason:ident = $name:literal,)*) => {
        /// Why the kernel side dropped something, or could not record a part of it. The value is the index into the map
        /// `LOSSES`.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Loss {
            $($(#[$doc])* $reason,)*
        }

        impl Loss {
            /// All reasons, by index.
            pub const ALL: &[Loss] = &[$(Loss::$reason),*];

            /// The counter's name in events, metrics and reports.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Loss::$reason => $name,)*
                }
            }
        }
    };
}

loss_reasons! {
    /// An OOM kill, because the ring `OOM_EVENTS` was full when the kernel marked the victim.
    OomRing = "oom_ring",
    /// The identity of a victim: the kernel passed only a thread id, and no SIGKILL to that thread was seen just
    /// before. The kill is reported without the victim's cgroup.
    OomVictimByPid = "oom_victim_by_pid",
    /// A DNS record (a query with its answer, or a socket error), because the ring `DNS_EVENTS` was full.
    DnsRing = "dns_ring",
    /// A query, because it could not be inserted into the map `DNS_IN_FLIGHT`. Its answer or timeout is not seen.
    /// `DnsCounters::untracked` has the sum of this and of `DnsOverShare` for each container.
    DnsInFlight = "dns_in_flight",
    /// A datagram on a DNS port that is shorter than a DNS header.
    DnsShort = "dns_short",
    /// The messages of a TCP stream up to the next one that can be recognised. The place where a message begins was
    /// lost: a gap in the stream, an impossible length, a connection that is not in the map `DNS_CONNECTIONS` and sends in a
    /// softirq, or more messages in one segment than tail calls are allowed.
    DnsTcpUnparsed = "dns_tcp_unparsed",
    /// The rest of a fragmented datagram: only its first fragment was seen, so the message is not whole.
    DnsFragment = "dns_fragment",
    /// The asker of a query: the current task could not be identified when the query was sent.
    DnsAsker = "dns_asker",
    /// A sample, because the ring `SAMPLES` was full.
    OncpuRing = "oncpu_ring",
    /// Not counted any more: a sample without a user stack carries the reason itself ([`crate::End`]).
    OncpuUserStack = "oncpu_user_stack",
    /// The outer frames of a stack that is deeper than `FRAMES_MAX`.
    OncpuTruncated = "oncpu_truncated",
    /// A segment of queries over TCP, because its connection could not be inserted into the map `DNS_CONNECTIONS`, although its
    /// container had not had its share.
    DnsConnected = "dns_connected",
    /// The notice of a program that starts, because the ring `EXECS` was full. Its file is opened when a kill first
    /// needs a name from it, if the file is still there.
    ExecRing = "exec_ring",
    /// A request for an unwind table, because the ring `TABLE_REQUESTS` or the map `TABLES` was full.
    UnwindRequest = "unwind_request",
    /// A SIGKILL, because the ring `SIGKILL_EVENTS` was full.
    SigkillRing = "sigkill_ring",
    /// A SIGKILL that the kernel sent, because the map `SIGKILL_BY_KERNEL` was full.
    SigkillByKernel = "sigkill_by_kernel",
    /// A measure, not a loss: SIGKILLs between processes of one memory cgroup, which are not reported.
    SigkillOwn = "sigkill_own",
    /// A sample, because the CPU had used up its budget (`Config::sample_budget`).
    SampleThrottled = "sample_throttled",
    /// A DNS record that was due, because its container's token bucket was empty. `DnsCounters::throttled` has the same
    /// count for each container.
    DnsThrottled = "dns_throttled",
    /// The counts of a container's queries, because the map `DNS_COUNTERS` was full.
    DnsCounters = "dns_counters_full",
    /// The server address that an application gave to sendmsg, because its task could not be inserted into the map
    /// `DNS_SENDERS`: its container already had its share. Behind address translation the answer to that query is not
    /// recognised. `DnsCounters::unnamed` has the same count for each container.
    DnsNamed = "dns_named",
    /// A query, because its container already had its share of the map `DNS_IN_FLIGHT`, or of `DNS_CONNECTIONS`. Its answer or
    /// timeout is not seen.
    DnsOverShare = "dns_over_share",
    /// The close of a socket whose queries had no answer, because the ring `DNS_EVENTS` was more than half full and the
    /// container had no tokens left. These queries are reported as timeouts.
    DnsClosed = "dns_closed",
    /// An answer that belongs to no query in flight, because the CPU had just reported another one. If it came from
    /// another address than the server's, the diagnosis of the timeout does not name that address.
    DnsStray = "dns_stray",
}

impl Loss {
    /// Whether the counter only measures, so that it does not belong in a list of losses.
    pub const fn is_measure(self) -> bool {
        matches!(self, Loss::SigkillOwn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_at_its_index_and_has_a_name_of_its_own() {
        for (index, loss) in Loss::ALL.iter().enumerate() {
            assert_eq!(*loss as usize, index);
            assert!(Loss::ALL[..index].iter().all(|other| other.as_str() != loss.as_str()), "{loss:?}");
        }
    }
}
