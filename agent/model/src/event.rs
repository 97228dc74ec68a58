//! Events: one JSON object a line, with a stable core that later versions only add to.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::incident::{Incident, Limit};
use super::lookup::Lookup;
use super::owner::{CgroupRef, ContainerRef, KnownBy, Owner, PodRef};
use super::profile::Frame;
use super::sigkill::Sigkill;

/// The version of the event's shape; it changes only if a field changes its meaning.
pub const SCHEMA: u32 = 1;

/// Losses since the recorder started, by counter name (`oom_ring`, `dns_in_flight`, …).
/// A counter at 0 is left out: `{}` says that nothing was lost.
pub type Losses = BTreeMap<String, u64>;

/// What happened, to whom.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub schema: u32,
    /// When the kernel saw it (wall clock, RFC 3339, ns).
    pub time: Timestamp,
    pub kind: Kind,
    /// The node's name.
    pub node: String,
    /// Null: the process was in no pod, or its pod could not be named (see `known_by`).
    pub pod: Option<PodRef>,
    pub container: Option<ContainerRef>,
    /// How pod and container are known.
    pub known_by: KnownBy,
    /// The process that it happened to: the victim of a kill, the asker of a lookup.
    pub process: ProcessRef,
    /// That process's memory cgroup.
    pub cgroup: CgroupRef,
    /// The kind's own object, under `oom`, `dns`, `lookup` or `sigkill`; in an `oom.incident` it is the first kill's.
    #[serde(flatten)]
    pub detail: Detail,
    /// In an `oom.incident` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incident: Option<Box<Incident>>,
    pub losses: Losses,
}

impl Event {
    /// Puts an attributed record together.
    pub fn new(
        time: Timestamp,
        kind: Kind,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// The kernel's OOM killer chose a victim.
    #[serde(rename = "oom.kill")]
    OomKill,
    /// All of one OOM, some seconds later: its victims, whose limit, what Kubernetes makes of it.
    #[serde(rename = "oom.incident")]
    OomIncident,
    /// A DNS query had any outcome but an answer.
    #[serde(rename = "dns.failure")]
    DnsFailure,
    /// A DNS query was answered (only when asked for: `watch dns --all`, or `--slow-over` and it was slow).
    #[serde(rename = "dns.answer")]
    DnsAnswer,
    /// A process of a container was sent SIGKILL, by anyone but the OOM killer and its own container.
    #[serde(rename = "process.sigkill")]
    Sigkill,
    /// What an application asked for, with all the queries that it took.
    #[serde(rename = "dns.lookup")]
    DnsLookup,
}

impl Kind {
    pub const ALL: [Kind; 6] =
        [Kind::OomKill, Kind::OomIncident, Kind::DnsFailure, Kind::DnsAnswer, Kind::DnsLookup, Kind::Sigkill];

    /// The word that stands in the JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::OomKill => "oom.kill",
            Kind::OomIncident => "oom.incident",
            Kind::DnsFailure => "dns.failure",
            Kind::DnsAnswer => "dns.answer",
            Kind::Sigkill => "process.sigkill",
            Kind::DnsLookup => "dns.lookup",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Detail {
    Oom(OomKill),
    Dns(DnsTransaction),
    Sigkill(Sigkill),
    Lookup(Box<Lookup>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRef {
    /// Process id (thread group leader) in the host's pid namespace; 0: not known.
    pub pid: u32,
    /// `task_struct.comm` of the leader, at most 15 bytes.
    pub comm: String,
    /// When it started; null: not known. With `pid` it names one process for good.
    pub start_time: Option<Timestamp>,
}

/// A task's part in an OOM kill.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OomTask {
    /// Process id (thread group leader).
    pub pid: u32,
    /// The thread that was marked, or that asked for memory.
    pub tid: u32,
    pub comm: String,
}

/// One victim of the OOM killer (kernel: `mm/oom_kill.c`, tracepoint `oom:mark_victim`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OomKill {
    pub victim: OomTask,
    /// The task whose allocation met the limit; often not the victim.
    pub trigger: OomTask,
    /// The trigger's own memory cgroup.
    pub trigger_cgroup: CgroupRef,
    /// The victim's resident memory when it was chosen; null: this kernel did not say.
    pub rss: Option<Rss>,
    /// -1000..=1000; null: this kernel did not say.
    pub oom_score_adj: Option<i16>,
    /// Kernel stack of the trigger, innermost frame first.
    pub kernel_stack: Vec<Frame>,
    /// User stack of the trigger, innermost frame first (frame pointers only, so it may be short).
    pub user_stack: Vec<Frame>,
    /// The incident that it is a part of; its own event follows.
    #[serde(default)]
    pub incident: Option<String>,
    /// Whose limit was met; null: an older recorder's event.
    #[serde(default)]
    pub limit: Option<Limit>,
    /// It was dying before: the kernel counted no kill.
    #[serde(default)]
    pub already_dying: bool,
    /// Nobody watched: this is what the kernel's log has of it, and its trigger is known by name at most.
    #[serde(default)]
    pub recovered: bool,
}

/// Resident memory by kind, in bytes (`mm_struct.rss_stat`; kernels ≥ 6.2 keep it per CPU, so that
/// it may lag by some pages a CPU, as in the kernel's own log line).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rss {
    pub anon_bytes: u64,
    pub file_bytes: u64,
    pub shmem_bytes: u64,
    pub swap_bytes: u64,
}

/// What became of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Noerror,
    Nxdomain,
    Servfail,
    Refused,
    Formerr,
    /// NOERROR without an answer record.
    Nodata,
    /// TC was set: the client has to ask again by TCP.
    Truncated,
    /// Nothing came back in time.
    Timeout,
    /// An answer came after the timeout had been reported.
    Late,
    /// The network said that the server could not be reached (ICMP, ICMPv6).
    Unreachable,
    /// The query or its answer is not a DNS message (RFC 1035).
    Malformed,
    /// Any other rcode; the number stands in `rcode`.
    Other,
}

impl Outcome {
    /// The word that stands in the JSON.
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
            Outcome::Malformed => "malformed",
            Outcome::Other => "other",
        }
    }
}

/// One DNS query and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// Query sent → outcome, in ns, both taken in the kernel; for a timeout, the time waited.
    pub latency_ns: u64,
    pub outcome: Outcome,
    /// The response's rcode (RFC 1035 §4.1.1); null: there was none.
    pub rcode: Option<u8>,
    /// How often the query was sent with the same id on the same socket.
    pub sends: u32,
    /// Why it is called malformed; null otherwise.
    pub malformed: Option<String>,
    /// It took longer than was asked for as slow; never true if nobody asked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub slow: bool,
    /// An answer came to the node, and was dropped because its socket's receive buffer was full.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub answer_dropped: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Udp,
    Tcp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_use_the_words_of_the_json() {
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
            Malformed,
            Other,
        ] {
            assert_eq!(serde_json::to_string(&outcome).unwrap(), format!("{:?}", outcome.as_str()));
        }
        for k in [
            Kind::OomKill,
            Kind::OomIncident,
            Kind::DnsFailure,
            Kind::DnsAnswer,
            Kind::DnsLookup,
            Kind::Sigkill,
        ] {
            assert_eq!(serde_json::to_string(&k).unwrap(), format!("{:?}", k.as_str()));
        }
    }
}
