//! A lookup as the application made it, whatever number of queries that took.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Outcome;
use super::event::Protocol;

/// One call of `getaddrinfo` or its like: search-path expansion, A and AAAA, retries, other servers and TCP in one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// Transactions; one that was sent again with the same id counts once here, and in `sends` as often as it was sent.
    pub queries: u32,
    pub sends: u32,
    /// Queries for names that only the search path made.
    #[serde(rename = "futile")]
    pub search_path_misses: SearchPathMisses,
    /// Every server that was asked, in that order; at most 8.
    pub resolvers: Vec<SocketAddr>,
    /// The first 32 transactions, in the order in which they were sent; `queries` counts all.
    pub transactions: Vec<Step>,
    /// The search path of the asker's resolv.conf; null: it could not be read.
    pub search: Option<Search>,
    pub saw: Saw,
    /// For a timeout: what was seen around it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diagnosis: Option<Diagnosis>,
    /// It was given up to make room while more could have come (counter `lookups_evicted`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut_short: bool,
}

/// How the name that the application asked for is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NameKnownBy {
    /// Its queries are what the asker's own resolv.conf makes of that name.
    ResolvConf,
    /// The search list is not known: it is what its queries' names have in common.
    Inferred,
    /// The name of the queries themselves.
    Query,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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
    /// An answer came after the time that counts as a timeout; whether anyone still waited cannot be told.
    Late,
    Timeout,
    /// Only failures are seen here, and none of them is the end of it: most likely the rest was answered.
    Unseen,
}

impl LookupResult {
    /// The word that stands in the JSON.
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
            Outcome::Malformed => LookupResult::Malformed,
            Outcome::Other => LookupResult::Other,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SearchPathMisses {
    pub queries: u32,
    /// At most 16.
    pub names: Vec<String>,
}

/// What resolv.conf says of searching.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Search {
    pub domains: Vec<String>,
    pub ndots: u32,
}

/// What there was to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Saw {
    /// Answers and failures.
    All,
    /// Failures only, as an agent records them: such a lookup is told when it failed for sure.
    Failures,
}

/// One transaction of a lookup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub name: String,
    #[serde(rename = "type")]
    pub qtype: String,
    pub server: SocketAddr,
    pub protocol: Protocol,
    pub outcome: Outcome,
    pub rcode: Option<u8>,
    /// After the lookup's start.
    pub sent_after_ns: u64,
    pub latency_ns: u64,
    pub sends: u32,
    /// As in the transaction.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub answer_dropped: bool,
}

/// What was seen around a timeout. Counters are of the asker's network namespace, but for `node_conntrack_*`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnosis {
    pub verdict: Verdict,
    /// The verdict and its numbers, in words.
    pub text: String,
    /// How far back the counters were compared; null: there was no earlier look, and nothing to compare with.
    pub window_ns: Option<u64>,
    /// What grew in that time, by name; what did not is left out.
    pub counters: BTreeMap<String, u64>,
}

/// Correlated, not proven: counters tell of all traffic of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The query did not leave: no route, or the kernel discarded it.
    NotSent,
    /// An answer came, and was dropped on this node.
    AnswerDropped,
    /// Connection tracking dropped packets on this node: query or answer may be among them.
    DroppedByConntrack,
    /// It came, too late.
    AnsweredLate,
    /// It was sent, and no answer came to this namespace.
    Unanswered,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_use_the_words_of_the_json() {
        for outcome in [Outcome::Noerror, Outcome::Timeout, Outcome::Late, Outcome::Servfail, Outcome::Other]
        {
            let result = LookupResult::from(outcome);
            assert_eq!(serde_json::to_string(&result).unwrap(), format!("{:?}", result.as_str()));
        }
        assert!(!LookupResult::Answered.is_failure() && !LookupResult::Unseen.is_failure());
        assert!(LookupResult::Nodata.is_failure());
    }
}
