//! `restarts`: containers that restarted.

use std::cmp::Reverse;

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use super::Tool;
use super::arguments::{Limit, TargetName};
use crate::cmd::restarts::{self, ContainerRestarts};
use crate::mcp::answer::{Answer, Kept, Rows};
use crate::mcp::server::Server;
use crate::timeline::EntryEvidence;

/// Containers that restarted, those with the most restarts first: how the last instance ended in Kubernetes' words, and beside it
/// what the kernel did to that very instance. Where `kernel` is null, no kill was recorded: the container ended by itself, or
/// nothing recorded it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Restarts {
    /// A pod by its name or the beginning of it, namespace/pod, or a controller: deploy/NAME, sts/NAME, ds/NAME, job/NAME; only
    /// pods that exist [default: all]
    target: Option<TargetName>,
    /// Only pods of this namespace
    namespace: Option<String>,
    /// At most N containers, up to 500 [default: 50]
    limit: Option<Limit>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RestartList {
    containers: Vec<RestartRow>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RestartRow {
    #[serde(flatten)]
    container: ContainerRestarts,
    how: EntryEvidence,
}

impl Tool for Restarts {
    const NAME: &'static str = "restarts";
    #[cfg(test)]
    const TITLE: &'static str = "Containers that restarted";
    type Answer = Answer<RestartList>;

    fn rows(&self) -> Rows {
        let max = Limit::or(self.limit, 50);
        Rows { field: "containers", kept: Kept::First, max, hint: "a target, a namespace, or another limit" }
    }

    async fn run(self, server: &Server) -> anyhow::Result<Self::Answer> {
        let target = self.target.map(Into::into);
        let scope = server.source.scope(target, self.namespace, SignedDuration::MAX)?;
        let found = server.source.pods_and_kills(&server.context, &scope).await?;
        let mut rows = restarts::rows(&found.sources.pods, &found.sources.events);
        rows.retain(|row| row.restarts > 0);
        rows.sort_by_key(|row| Reverse(row.restarts));
        let row = |container| RestartRow { container, how: EntryEvidence::Observed };
        let containers = rows.into_iter().map(row).collect();
        Ok(Answer::new(found, RestartList { containers }))
    }
}
