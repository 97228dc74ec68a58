//! A lookup as the application made it, with all the queries that it caused.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Outcome;
use super::event::{Protocol, QueryFacts};

/// One call of `getaddrinfo` or a similar function, with all queries by search path, for A and AAAA, by retry, to other
/// servers and over TCP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Lookup {
    /// The name as the application asked for it, without a final dot.
    pub name: String,
    pub name_known_by: NameKnownBy,
    /// `A`, `AAAA`, …, in the order in which they were asked for.
    pub types: Vec<String>,
    /// What the application got.
    pub result: LookupResult,
    /// First query sent → last outcome.
    pub wait_ns: u64,
    /// When the first query was sent.
    pub start: Timestamp,
    /// The number of transactions. One that was sent again with the same id counts once here, and each time in `sends`.
    pub queries: u32,
    pub sends: u32,
    /// Unanswered queries for names that exist only because a search domain was appended.
    #[serde(rename = "futile")]
    pub search_path_misses: SearchPathMisses,
    /// The servers that were asked, in that order; at most 8.
    pub resolvers: Vec<SocketAddr>,
    /// The first 32 transactions, in the order in which they were sent; `queries` counts all.
    pub transactions: Vec<LookupTransaction>,
    /// The search path of the asker's resolv.conf; null: it could not be read.
    pub search: Option<SearchList>,
    pub saw: SeenOutcomes,
    /// For a timeout: what the network counters showed around it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diagnosis: Option<Diagnosis>,
    /// The lookup was evicted from a full table before it was complete (counter `lookups_evicted`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut_short: bool,
}

/// How the name that the application asked for is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum NameKnownBy {
    /// The queries are those that the asker's own resolv.conf produces for that name.
    ResolvConf,
    /// The search list is not known; the name is the common part of the queries' names.
    Inferred,
    /// The name is that of the queries themselves.
    Query,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum LookupResult {
    Answered,
    Nxdomain,
    Nodata,
    Truncated,
    Other,
    Malformed,
    Formerr,
    Refused,
    Servfail,
    Unreachable,
    /// The client closed its socket before an answer came, and sooner than resolvers give up.
    Abandoned,
    /// An answer came after the timeout. Whether the application still waited is not known.
    Late,
    Timeout,
    /// Only failures are recorded here, and none of them ends the lookup: most likely another query was answered.
    Unseen,
}

impl LookupResult {
    /// The value in the JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            LookupResult::Answered => "answered",
            LookupResult::Nxdomain => "nxdomain",
            LookupResult::Nodata => "nodata",
            LookupResult::Truncated => "truncated",
            LookupResult::Other => "other",
            LookupResult::Malformed => "malformed",
            LookupResult::Formerr => "formerr",
            LookupResult::Refused => "refused",
            LookupResult::Servfail => "servfail",
            LookupResult::Unreachable => "unreachable",
            LookupResult::Abandoned => "abandoned",
            LookupResult::Late => "late",
            LookupResult::Timeout => "timeout",
            LookupResult::Unseen => "unseen",
        }
    }

    pub fn is_failure(self) -> bool {
        !matches!(self, LookupResult::Answered | LookupResult::Unseen)
    }
}

impl From<Outcome> for LookupResult {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Noerror => LookupResult::Answered,
            Outcome::Nxdomain => LookupResult::Nxdomain,
            Outcome::Servfail => LookupResult::Servfail,
            Outcome::Refused => LookupResult::Refused,
            Outcome::Formerr => LookupResult::Formerr,
            Outcome::Nodata => LookupResult::Nodata,
            Outcome::Truncated => LookupResult::Truncated,
            Outcome::Timeout => LookupResult::Timeout,
            Outcome::Late => LookupResult::Late,
            Outcome::Unreachable => LookupResult::Unreachable,
            Outcome::Abandoned => LookupResult::Abandoned,
            Outcome::Malformed => LookupResult::Malformed,
            Outcome::Other => LookupResult::Other,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SearchPathMisses {
    pub queries: u32,
    /// At most 16.
    pub names: Vec<String>,
}

/// The search settings of resolv.conf.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SearchList {
    pub domains: Vec<String>,
    pub ndots: u32,
}

/// Which outcomes were recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum SeenOutcomes {
    /// Answers and failures.
    All,
    /// Failures only, as the agent records them: such a lookup is reported only if it certainly failed.
    Failures,
}

/// One transaction of a lookup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LookupTransaction {
    pub name: String,
    #[serde(rename = "type")]
    pub qtype: String,
    pub server: SocketAddr,
    pub protocol: Protocol,
    pub outcome: Outcome,
    pub rcode: Option<u16>,
    /// The time since the start of the lookup.
    pub sent_after_ns: u64,
    pub latency_ns: u64,
    pub sends: u32,
    /// See [`DnsTransaction::answer_dropped`](crate::DnsTransaction::answer_dropped).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub answer_dropped: bool,
    #[serde(flatten)]
    pub facts: Box<QueryFacts>,
}

/// What the network counters showed around a timeout. They belong to the asker's network namespace, except
/// `node_conntrack_*`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Diagnosis {
    pub verdict: DiagnosisVerdict,
    /// The verdict and its numbers as a sentence.
    pub text: String,
    /// The time span over which the counters were compared; null: there was no earlier reading to compare with.
    pub window_ns: Option<u64>,
    /// The increase of each counter in that time; a counter that did not increase is left out.
    pub counters: BTreeMap<String, u64>,
}

/// The likely cause of a timeout. It is correlated, not proven: the counters cover all traffic of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum DiagnosisVerdict {
    /// The query was not sent: there was no route, or the kernel discarded it.
    NotSent,
    /// An answer came and was dropped on this node.
    AnswerDropped,
    /// Connection tracking dropped packets on this node; the query or the answer may be among them.
    DroppedByConntrack,
    /// The answer came too late.
    AnsweredLate,
    /// An answer came from another address than the server's, so that the client did not get it or did not accept it.
    OtherAddress,
    /// The answer over UDP was truncated, and a TCP connection to the server failed.
    TcpFailed,
    /// The query was sent, and no answer came to this namespace.
    Unanswered,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_str_gives_the_values_of_the_json() {
        for outcome in [Outcome::Noerror, Outcome::Timeout, Outcome::Late, Outcome::Servfail, Outcome::Other]
        {
            let result = LookupResult::from(outcome);
            assert_eq!(serde_json::to_string(&result).unwrap(), format!("{:?}", result.as_str()));
        }
        assert!(!LookupResult::Answered.is_failure() && !LookupResult::Unseen.is_failure());
        assert!(LookupResult::Nodata.is_failure());
    }
}
