//! Events: one JSON object per line. Later versions only add fields.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::incident::{LimitHit, OomIncident};
use super::lookup::Lookup;
use super::owner::{CgroupRef, ContainerRef, KnownBy, Owner, PodRef};
use super::profile::Frame;
use super::sigkill::Sigkill;

/// The version of the event's schema. It changes only if the meaning of a field changes.
pub const SCHEMA: u32 = 1;

/// Losses since the recorder started, by counter name (`oom_ring`, `dns_in_flight`, …).
/// A counter at 0 is left out: `{}` means that nothing was lost.
pub type Losses = BTreeMap<String, u64>;

/// One event, with the process, the container and the pod that it happened to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Event {
    pub schema: u32,
    /// When it happened, taken in the kernel (wall clock, RFC 3339, ns).
    pub time: Timestamp,
    pub kind: EventKind,
    /// The node's name.
    pub node: String,
    /// Null: the process was in no pod, or its pod is not known (see `known_by`).
    pub pod: Option<PodRef>,
    pub container: Option<ContainerRef>,
    /// The source of the pod and the container.
    pub known_by: KnownBy,
    /// The process that it happened to: the victim of a kill, the asker of a lookup.
    pub process: ProcessRef,
    /// That process's memory cgroup.
    pub cgroup: CgroupRef,
    /// The details, under `oom`, `dns`, `lookup` or `sigkill` by kind; an `oom.incident` has those of its first kill.
    #[serde(flatten)]
    pub detail: Detail,
    /// Only in an `oom.incident`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incident: Option<Box<OomIncident>>,
    pub losses: Losses,
}

impl Event {
    /// Builds the event for an attributed record.
    pub fn new(
        time: Timestamp,
        kind: EventKind,
        node: &str,
        owner: Owner,
        process: ProcessRef,
        detail: Detail,
        losses: Losses,
    ) -> Self {
        Event {
            schema: SCHEMA,
            time,
            kind,
            node: node.to_owned(),
            pod: owner.pod,
            container: owner.container,
            known_by: owner.known_by,
            process,
            cgroup: owner.cgroup,
            detail,
            incident: None,
            losses,
        }
    }
}

impl Event {
    /// The owner of the process that it happened to.
    pub fn owner(&self) -> Owner {
        Owner {
            pod: self.pod.clone(),
            container: self.container.clone(),
            cgroup: self.cgroup.clone(),
            known_by: self.known_by,
        }
    }
}

/// Defines [`EventKind`] from one list, so that a kind, its explanation and its value in the JSON stand together.
macro_rules! event_kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal,)*) => {
        /// The type of an event.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[cfg_attr(test, derive(schemars::JsonSchema))]
        pub enum EventKind {
            $($(#[$doc])* #[serde(rename = $name)] $kind,)*
        }

        impl EventKind {
            /// All kinds, in the order of the list.
            pub const ALL: [EventKind; [$(EventKind::$kind),*].len()] = [$(EventKind::$kind),*];

            /// The value in the JSON.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(EventKind::$kind => $name,)*
                }
            }
        }
    };
}

event_kinds! {
    /// The kernel's OOM killer chose a victim.
    OomKill = "oom.kill",
    /// A whole visit of the OOM killer, some seconds later: its victims, the limit, the verdicts.
    OomIncident = "oom.incident",
    /// A DNS query had any outcome but an answer. AAAA without data beside a question for A is no failure, and a query that
    /// its client needed no more is none.
    DnsFailure = "dns.failure",
    /// A DNS query was answered, or its outcome is no failure. Only with `watch dns --all`, or with `--slow-over` if it was
    /// slow.
    DnsAnswer = "dns.answer",
    /// A lookup of an application, with all its queries.
    DnsLookup = "dns.lookup",
    /// A process of a container was sent SIGKILL from outside of the container, and not by the OOM killer.
    Sigkill = "process.sigkill",
}

/// How serious an event is, as log systems count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Info,
    Warn,
    Error,
}

impl Severity {
    /// The value that Loki and Grafana read.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warn => "warn",
            Severity::Error => "error",
        }
    }
}

impl Event {
    /// The table in docs/exports.md.
    pub fn severity(&self) -> Severity {
        match (self.kind, &self.detail) {
            (EventKind::OomKill | EventKind::OomIncident, _) => Severity::Error,
            (EventKind::Sigkill | EventKind::DnsFailure, _) => Severity::Warn,
            (EventKind::DnsLookup, Detail::Lookup(lookup)) if lookup.result.is_failure() => Severity::Warn,
            (EventKind::DnsLookup | EventKind::DnsAnswer, _) => Severity::Info,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Detail {
    Oom(OomKill),
    Dns(DnsTransaction),
    Sigkill(Sigkill),
    Lookup(Box<Lookup>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ProcessRef {
    /// Process id (thread group leader) in the host's pid namespace; 0: not known.
    pub pid: u32,
    /// `task_struct.comm` of the leader, at most 15 bytes.
    pub comm: String,
    /// The start time; null: not known. Together with `pid` it identifies the process permanently.
    pub start_time: Option<Timestamp>,
}

/// A task's part in an OOM kill.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OomTask {
    /// Process id (thread group leader).
    pub pid: u32,
    /// The thread that was chosen (victim), or that allocated memory (trigger).
    pub tid: u32,
    pub comm: String,
}

/// One victim of the OOM killer (kernel: `mm/oom_kill.c`, tracepoint `oom:mark_victim`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OomKill {
    pub victim: OomTask,
    /// The task whose allocation met the limit; often not the victim.
    pub trigger: OomTask,
    /// The trigger's own memory cgroup.
    pub trigger_cgroup: CgroupRef,
    /// The victim's resident memory when it was chosen; null: this kernel does not report it.
    pub rss: Option<Rss>,
    /// -1000..=1000; null: this kernel does not report it.
    pub oom_score_adj: Option<i16>,
    /// Kernel stack of the trigger, innermost frame first. Empty in an `oom.kill`, which does not wait for names: the
    /// `oom.incident` has them.
    pub kernel_stack: Vec<Frame>,
    /// User stack of the trigger, innermost frame first (frame pointers only, so it may be short). In an `oom.incident`
    /// only, like the kernel stack.
    pub user_stack: Vec<Frame>,
    /// The id of the incident that the kill belongs to. The event of the incident follows.
    #[serde(default)]
    pub incident: Option<String>,
    /// The limit that was met; null: the event is from an older recorder.
    #[serde(default)]
    pub limit: Option<LimitHit>,
    /// The victim was dying already, so the kernel counted no kill.
    #[serde(default)]
    pub already_dying: bool,
    /// Read from the kernel's log because no recorder was running. The trigger is known by its name at most.
    #[serde(default)]
    pub recovered: bool,
}

/// Resident memory by kind, in bytes (`mm_struct.rss_stat`; kernels ≥ 6.2 keep it per CPU, so that
/// it may lag by some pages a CPU, as in the kernel's own log line).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Rss {
    pub anon_bytes: u64,
    pub file_bytes: u64,
    pub shmem_bytes: u64,
    pub swap_bytes: u64,
}

/// The outcome of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Noerror,
    Nxdomain,
    Servfail,
    Refused,
    Formerr,
    /// NOERROR without an answer record of the type that was asked for (RFC 2308 §2.2).
    Nodata,
    /// The TC bit was set: the client has to repeat the query over TCP.
    Truncated,
    /// No answer came in time.
    Timeout,
    /// An answer came after the timeout had been reported.
    Late,
    /// The network reported that the server cannot be reached (ICMP, ICMPv6).
    Unreachable,
    /// The client closed its socket before an answer came, and sooner than resolvers give up.
    Abandoned,
    /// The query or its answer is not a DNS message (RFC 1035).
    Malformed,
    /// Any other response code; the number is in `rcode`.
    Other,
}

impl Outcome {
    /// The value in the JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Noerror => "noerror",
            Outcome::Nxdomain => "nxdomain",
            Outcome::Servfail => "servfail",
            Outcome::Refused => "refused",
            Outcome::Formerr => "formerr",
            Outcome::Nodata => "nodata",
            Outcome::Truncated => "truncated",
            Outcome::Timeout => "timeout",
            Outcome::Late => "late",
            Outcome::Unreachable => "unreachable",
            Outcome::Abandoned => "abandoned",
            Outcome::Malformed => "malformed",
            Outcome::Other => "other",
        }
    }
}

/// One DNS query and its outcome.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DnsTransaction {
    /// The name asked for, absolute, in presentation form (RFC 1035 §5.1, `\DDD` escapes); null: malformed.
    pub name: Option<String>,
    /// `A`, `AAAA`, … or `TYPE<n>`; null: malformed.
    #[serde(rename = "type")]
    pub qtype: Option<String>,
    /// Where the query was sent.
    pub server: SocketAddr,
    pub protocol: Protocol,
    /// DNS transaction id.
    pub id: u16,
    /// Query sent → outcome, in ns, both taken in the kernel; for a timeout, the time until the timeout.
    pub latency_ns: u64,
    pub outcome: Outcome,
    /// The response's rcode (RFC 1035 §4.1.1), with its upper bits (RFC 6891 §6.1.3); null: there was none.
    pub rcode: Option<u16>,
    /// How often the query was sent with the same id on the same socket.
    pub sends: u32,
    /// Why the message is malformed; null otherwise.
    pub malformed: Option<String>,
    /// The latency is above `--slow-over`. Always false without that flag.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub slow: bool,
    /// An answer reached the node and was dropped because the receive buffer of the socket was full.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub answer_dropped: bool,
    #[serde(flatten)]
    pub facts: Box<QueryFacts>,
}

impl DnsTransaction {
    /// Whether the client may lack something because of this outcome. AAAA without data beside a question for A is the
    /// normal case in a cluster with IPv4 only, and a client that has the A records may not wait for AAAA.
    pub fn is_failure(&self) -> bool {
        match self.outcome {
            Outcome::Noerror => false,
            Outcome::Nodata => !self.facts.beside_a,
            Outcome::Abandoned => !self.facts.superseded && !self.facts.beside_a,
            _ => true,
        }
    }
}

/// What is known of few queries. In JSON, these are fields of the transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct QueryFacts {
    /// `UPDATE`, `NOTIFY`, … (IANA's registry "DNS OpCodes"), or `OPCODE<n>`; null: a plain query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opcode: Option<String>,
    /// The client closed its socket before an answer came; the latency is the time until then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub socket_closed: bool,
    /// For an abandoned query: the client had another answer, and needed this one no more. Another server had answered the
    /// same question, or the answer to another question of the socket made the client ask elsewhere.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub superseded: bool,
    /// For AAAA without data: the process asked for the A records of the same name, too. For AAAA that was abandoned: that
    /// query has ended, too, with an outcome of its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub beside_a: bool,
    /// For a query without an answer: an answer to it came from this address, which is not the server's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_from: Option<SocketAddr>,
    /// Why a TCP connection to the server failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_failure: Option<TcpFailure>,
    /// The client asked by TCP because the answer over UDP was truncated.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub after_truncated: bool,
}

/// What became of a TCP connection to a DNS server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum TcpFailure {
    /// The server answered the SYN by RST.
    Refused,
    /// The server reset the connection.
    Reset,
    /// The server cannot be reached.
    Unreachable,
    /// No answer to the SYN came.
    Unanswered,
}

impl TcpFailure {
    /// By the errno of a socket; None: it has no error, or one that does not end connections.
    pub fn from_errno(errno: u32) -> Option<TcpFailure> {
        // Positive errno of Linux on x86-64 and arm64.
        match errno {
            111 => Some(TcpFailure::Refused),
            32 | 103 | 104 => Some(TcpFailure::Reset),
            110 => Some(TcpFailure::Unanswered),
            0 => None,
            _ => Some(TcpFailure::Unreachable),
        }
    }

    /// Completes the sentence "TCP to the server …".
    pub fn describe(self) -> &'static str {
        match self {
            TcpFailure::Refused => "was refused",
            TcpFailure::Reset => "was reset",
            TcpFailure::Unreachable => "was not possible: the server cannot be reached",
            TcpFailure::Unanswered => "was not answered",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Udp,
    Tcp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_str_gives_the_values_of_the_json() {
        use Outcome::*;
        for outcome in [
            Noerror,
            Nxdomain,
            Servfail,
            Refused,
            Formerr,
            Nodata,
            Truncated,
            Timeout,
            Late,
            Unreachable,
            Abandoned,
            Malformed,
            Other,
        ] {
            assert_eq!(serde_json::to_string(&outcome).unwrap(), format!("{:?}", outcome.as_str()));
        }
        for kind in EventKind::ALL {
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("{:?}", kind.as_str()));
        }
    }

    #[test]
    fn kills_are_errors_and_failures_of_dns_are_warnings() {
        use crate::testing::{dns, kill, owner};
        let (time, owner) = (Timestamp::UNIX_EPOCH, owner("shop", "cart", &[]));
        let mut event = kill(time, owner.clone(), "3f2a-7", 7, false);
        assert_eq!(event.severity().as_str(), "error");
        event.kind = EventKind::OomIncident;
        assert_eq!(event.severity().as_str(), "error");
        let mut event = dns(time, owner, "a.example");
        assert_eq!(event.severity().as_str(), "warn");
        event.kind = EventKind::DnsAnswer;
        assert_eq!(event.severity().as_str(), "info");
    }
}
