//! `timeline`: what happened to some pods, in order.

use serde::{Deserialize, Serialize};

use super::Tool;
use super::arguments::{Limit, Since, TargetName};
use crate::mcp::answer::{Answer, Kept, Rows};
use crate::mcp::server::Server;
use crate::timeline::{self, TimelineEntry};

/// What happened to some pods, oldest first: starts, restarts, ends, OOM kills, SIGKILLs, streaks of failed DNS queries, and the
/// moments at which memory came near its limit. `correlated` says what lines up in time, which is no claim of a cause.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Timeline {
    /// A pod by its name or the beginning of it, namespace/pod, namespace/pod/container, or a controller: deploy/NAME, sts/NAME,
    /// ds/NAME, job/NAME; also pods that are gone [default: all]
    target: Option<TargetName>,
    /// Only pods of this namespace
    namespace: Option<String>,
    /// How far back, such as 10m, 24h or 7d [default: 1h]
    since: Option<Since>,
    /// At most the newest N entries, up to 500 [default: 200]
    limit: Option<Limit>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TimelineAnswer {
    /// Oldest first.
    entries: Vec<TimelineEntry>,
}

impl Tool for Timeline {
    const NAME: &'static str = "timeline";
    #[cfg(test)]
    const TITLE: &'static str = "What happened to some pods, in order";
    type Answer = Answer<TimelineAnswer>;

    fn rows(&self) -> Rows {
        let max = Limit::or(self.limit, 200);
        Rows { field: "entries", kept: Kept::Last, max, hint: "a shorter since, a target, or another limit" }
    }

    async fn run(self, server: &Server) -> anyhow::Result<Self::Answer> {
        let target = self.target.map(Into::into);
        let scope = server.source.scope(target, self.namespace, Since::or_hours(self.since, 1))?;
        let found = server.source.records(&server.context, &scope).await?;
        let entries = timeline::build(&found.sources, scope.from);
        Ok(Answer::new(found, TimelineAnswer { entries }))
    }
}
