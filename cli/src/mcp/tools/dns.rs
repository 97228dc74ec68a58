//! `dns_summary`: failed queries by name and outcome.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Tool;
use super::arguments::{Limit, Since, TargetName};
use crate::mcp::answer::{Answer, Kept, Rows};
use crate::mcp::server::Server;
use crate::render::report;
use crate::timeline::EntryEvidence;

/// The DNS queries of some pods that failed, by name, type, outcome and server, the most frequent first.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DnsSummary {
    /// A pod by its name or the beginning of it, namespace/pod, namespace/pod/container, or a controller: deploy/NAME, sts/NAME,
    /// ds/NAME, job/NAME; also pods that are gone [default: all]
    target: Option<TargetName>,
    /// Only pods of this namespace
    namespace: Option<String>,
    /// How far back, such as 10m, 24h or 7d [default: 1h]
    since: Option<Since>,
    /// At most N rows, up to 500 [default: 50]
    limit: Option<Limit>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DnsTable {
    /// All failed queries that the history has.
    failed_queries: u64,
    queries: Vec<DnsRow>,
    /// What cannot be in this answer: do not conclude that it did not happen.
    not_in_the_history: String,
}

/// Queries that were the same but for their time.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DnsRow {
    /// As it was asked for, with the search domain.
    name: String,
    /// `A`, `AAAA`, …
    qtype: String,
    /// Such as `nxdomain`, `servfail`, `timeout`; `explain` defines them.
    outcome: String,
    server: String,
    count: u64,
    /// From sending to the outcome; for a timeout, until it was one.
    median_milliseconds: f64,
    last: Timestamp,
    how: EntryEvidence,
}

impl Tool for DnsSummary {
    const NAME: &'static str = "dns_summary";
    #[cfg(test)]
    const TITLE: &'static str = "Failed DNS queries";
    type Answer = Answer<DnsTable>;

    fn rows(&self) -> Rows {
        let max = Limit::or(self.limit, 50);
        Rows { field: "queries", kept: Kept::First, max, hint: "a shorter since, a target, or another limit" }
    }

    async fn run(self, server: &Server) -> anyhow::Result<Self::Answer> {
        let target = self.target.map(Into::into);
        let scope = server.source.scope(target, self.namespace, Since::or_hours(self.since, 1))?;
        let found = server.source.records(&server.context, &scope).await?;
        let summary = report::dns(&found.sources.events);
        let row = |row: podopsy_report::DnsRow| DnsRow {
            name: row.name,
            qtype: row.qtype,
            outcome: row.outcome,
            server: row.server,
            count: row.count,
            median_milliseconds: (row.median_ns / 1000) as f64 / 1000.0,
            last: row.last,
            how: EntryEvidence::Observed,
        };
        let queries: Vec<DnsRow> = summary.rows.into_iter().map(row).collect();
        let failed_queries = queries.iter().map(|row| row.count).sum();
        Ok(Answer::new(found, DnsTable { failed_queries, queries, not_in_the_history: summary.note }))
    }
}
